"""Tests of the names of slices and of the errors for wrong names."""

from __future__ import annotations

import importlib.util

import pytest

from occinv.plan.chips import CHIPS, GIB, describe_slice, parse
from occinv.schema import UserError


def test_parse_returns_chip_and_shape() -> None:
    assert parse("v5e:16x16") == (CHIPS["v5e"], (16, 16))
    assert parse("v4:4x4x8") == (CHIPS["v4"], (4, 4, 8))


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
    ],
)
def test_a_wrong_slice_gives_one_line(topology: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse(topology)
    assert "\n" not in str(error.value)


def test_without_libtpu_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]' in the checkout of occinv$"):
        describe_slice("v5e:2x2")


def test_peak_values_have_the_same_order_of_magnitude() -> None:
    """Finds a value that is wrong by a power of ten."""
    for name, chip in CHIPS.items():
        assert 16 <= chip.memory / GIB < 128, name
        assert 1e14 < chip.flops < 1e15, name
        assert 5e11 < chip.memory_bandwidth < 5e12, name
        assert 1e11 < chip.link_bandwidth < 1e12, name
