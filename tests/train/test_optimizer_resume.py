"""A run that crashed and went on ends with the same bits with every optimizer, sharded by fsdp."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import (
    Crash,
    assert_same_end,
    at_step,
    crash,
    overrides,
    run,
    state_of,
    tiny,
    toy_config,
)

pytestmark = pytest.mark.usefixtures("compiled")
FIELDS = ("train.fsdp=4", "train.checkpoint_every.steps=2", "train.log_every.steps=1")


def crash_and_again(arguments: list[str], folder: Path) -> str:
    """Compare a run that crashed with one that did not; return the paths of its state."""
    arguments = [*arguments, *overrides(*FIELDS)]
    run(arguments, folder / "whole")
    with pytest.raises(Crash):
        run(arguments, folder / "crashed", watch=at_step(5, crash))
    run(arguments, folder / "crashed")
    assert_same_end(folder / "crashed", folder / "whole")
    return " ".join(state_of(folder / "whole"))


@pytest.mark.parametrize(
    ("name", "first_moment", "kept"),
    [
        ("adamw", "bfloat16", "nu"),
        ("lars", "float32", "trace"),
        ("lamb", "float32", "nu"),
        ("lion", "bfloat16", "mu"),
    ],
)
def test_with_every_optimizer(
    name: str, first_moment: str, kept: str, images: Path, tmp_path: Path
) -> None:
    own = overrides(f"optimizer.name={name}", f"optimizer.first_moment={first_moment}")
    spec = f"{toy_config(tmp_path)}:{images / 'train'}"
    assert f"['{kept}']" in crash_and_again(["--config", spec, *own], tmp_path)


@pytest.mark.parametrize(("name", "kept"), [("adafactor", "v_row"), ("muon", "mu")])
def test_with_the_optimizers_of_matrices(
    name: str, kept: str, images: Path, tmp_path: Path
) -> None:
    """Adafactor factors the second moment of matrices of 128 rows and columns or more."""
    own = (f"optimizer.name={name}", "encoder.width=128", "train.duration.steps=6")
    found = crash_and_again(tiny("supervised", images / "train", *own), tmp_path)
    assert f"['{kept}']" in found
