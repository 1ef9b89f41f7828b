"""Tests of the names of slices and GPUs, of the errors for wrong names, and of peak values."""

from __future__ import annotations

import importlib.util

import jax
import pytest
from jax.experimental import topologies

from occinv.plan import gpus
from occinv.plan.chips import CHIPS, GIB, describe_slice, parse
from occinv.schema import UserError


def test_parse_returns_chip_and_shape() -> None:
    assert parse("v5e:16x16") == (CHIPS["v5e"], (16, 16))
    assert parse("v4:4x4x8") == (CHIPS["v4"], (4, 4, 8))
    assert parse("tpu7x:2x2x1") == (CHIPS["tpu7x"], (2, 2, 1))
    assert parse("h100:8") == (CHIPS["h100"], (1, 8))
    assert parse("h100:4x8") == (CHIPS["h100"], (4, 8))


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        ("v9:2x2", r"no chip 'v9' \("),
        ("v5:2x2", r"no chip 'v5' \(did you mean 'v5(e|p)'\?\)"),
        ("v5e", "'v5e', expected 2 sizes of a slice, as in v4:4x4x4, v5e:16x16"),
        ("v5e:4x4x4", "'v5e:4x4x4', expected 2 sizes"),
        ("v4:4x4", "'v4:4x4', expected 3 sizes"),
        ("v5e:0x2", "expected 2 sizes"),
        ("v5e:2xb", "expected 2 sizes"),
        ("v5e:32x32", "1024 chips, expected at most 256"),
        ("h10:8", r"no chip 'h10' \(did you mean"),
        ("h100", "'h100', expected a number of GPUs, as in h100:8 or, for 4 nodes of 8, h100:4x8"),
        ("h100:2x2x2", "'h100:2x2x2', expected a number of GPUs"),
        ("h100:0", "expected a number of GPUs"),
        ("a100:32", "32 GPUs in a node, expected at most 8, as in h100:8 or, for 4 nodes"),
    ],
)
def test_a_wrong_slice_gives_one_line(topology: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse(topology)
    assert "\n" not in str(error.value)


def test_without_libtpu_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[tpu\]'$"):
        describe_slice("v5e:2x2")


def test_without_the_cuda_plugin_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[cuda13\]'$"):
        describe_slice("h100:8")


@pytest.mark.parametrize(
    ("topology", "spelled", "name"),
    [("h100:8", "1x1x8", "H100"), ("b200:4x8", "1x4x8", "B200"), ("a100:1", "1x1x1", "A100")],
)
def test_nodes_are_the_second_size_that_jax_reads(
    topology: str, spelled: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        devices = (name,)

    def describe(*, platform: str, topology: str, target_config: str) -> type[Found]:
        assert (platform, topology) == ("cuda", spelled)
        assert f"NVIDIA {name}" in target_config
        assert target_config.count("{") == target_config.count("}")
        return Found

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    assert describe_slice(topology).devices == [name]


def test_a_gpu_that_the_compiler_does_not_know_gives_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**options: object) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: no such field\nmore")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    with pytest.raises(UserError, match=r"does not know b200: INTERNAL: no such field$"):
        describe_slice("b200:8")


def test_options_of_the_gpu_compiler_respect_xla_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert gpus.options() == gpus.OPTIONS
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
    assert gpus.options() == {"xla_gpu_autotune_level": 0}


def test_the_available_memory_of_a_gpu_is_what_jax_allocates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    chip = CHIPS["h100"]
    assert chip.available == round(0.75 * chip.memory)
    assert CHIPS["v5e"].available == 16 * GIB
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert chip.available == round(0.9 * chip.memory)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(UserError, match=r"='most', expected a fraction such as 0.9"):
        _ = chip.available


def test_peak_values_have_the_same_order_of_magnitude() -> None:
    """Finds a value that is wrong by a power of ten."""
    for name, chip in CHIPS.items():
        assert 16 <= chip.memory / GIB < 200, name
        assert 1e14 < chip.flops < 3e15, name
        assert 5e11 < chip.memory_bandwidth < 1e13, name
        assert 1e11 < chip.link_bandwidth < 1e12, name
        assert chip.is_gpu == (1e10 < chip.network_bandwidth < 1e11), name
        assert chip.is_gpu == (name in gpus.GPUS), name


def test_clocks_agree_with_the_peaks() -> None:
    """A multiply-add is two operations; see the comment at CHIPS for the number of units."""
    units = {"v4": 8, "v5e": 4, "v5p": 8, "v6e": 16, "tpu7x": 16}  # of 128 x 128
    for name, count in units.items():
        chip = CHIPS[name]
        assert chip.clock == pytest.approx(chip.flops / (count * 128**2 * 2), rel=0.003)
