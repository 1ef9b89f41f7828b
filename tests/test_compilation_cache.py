"""The compilation cache: when the command line turns it on, and that a hit changes no result.

No test writes to the user's cache folder: each sets XDG_CACHE_HOME, or JAX's own folder.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from tiny_runs import assert_same_end, overrides, start, start_several, toy_config

from occinv.commands.compilation_cache import cache_folder, use_compilation_cache

FOLDER = "jax_compilation_cache_dir"


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One process with a GPU, in which nothing is set but the folder of caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert jax.config.jax_compilation_cache_dir is None
    yield
    jax.config.update(FOLDER, None)
    jax.config.update("jax_enable_compilation_cache", True)


def test_it_is_on_for_gpus_and_tpus(tmp_path: Path) -> None:
    use_compilation_cache()
    folder = tmp_path / "caches" / "occinv" / "xla"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_it_is_off_on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(tmp_path.iterdir())


def test_it_is_off_in_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [(FOLDER, "mine"), (FOLDER, ""), ("jax_enable_compilation_cache", False)]
)
def test_the_settings_of_jax_come_first(name: str, value: str | bool, tmp_path: Path) -> None:
    jax.config.update(name, value)
    before = jax.config.jax_compilation_cache_dir
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "caches").write_text("a file")
    with caplog.at_level(logging.WARNING, "occinv"):
        use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    (record,) = caplog.records
    assert record.getMessage().startswith("Compiled programs are not cached: ")
    assert "\n" not in record.getMessage()


def test_a_relative_xdg_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG specification demands."""
    monkeypatch.setenv("HOME", "/home/me")
    for value in ("caches", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path("/home/me/.cache/occinv/xla")


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_of_cached_programs_ends_with_the_same_bits(
    count: int, images: Path, tmp_path: Path
) -> None:
    """On CPU, with JAX's own variable.

    Process 0 loads its programs. The keys of process 1 are others on CPU, so it compiles its own.
    """
    programs = tmp_path / "programs"
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_EXPLAIN_CACHE_MISSES": "true",
    }
    often = overrides("train.log_every.steps=1")
    compiled: list[list[bool]] = []
    for name in ("compiled", "loaded"):
        command = ["train", "--config", f"{toy_config(images.parent)}:{images}", *often,
                   "--workdir", str(tmp_path / name)]  # fmt: skip
        several = count > 1
        processes = (
            start_several(count, command, **variables) if several else [start(command, **variables)]
        )
        shown = [process.communicate(timeout=200) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, shown
        compiled.append(["CACHE MISS for 'jit_step'" in errors for _, errors in shown])
    assert compiled[0] == [True] * count
    assert not compiled[1][0]
    assert_same_end(tmp_path / "compiled", tmp_path / "loaded")
