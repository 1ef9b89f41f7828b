"""Every protocol on one checkpoint: repeats are equal, and other devices give the same numbers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import DECODER, run, tiny

from occinv import evaluate as module
from occinv import parallel
from occinv.evaluate import evaluate
from occinv.train.workdir import RESULT

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

STEPS = ("train.duration.steps=4", "optimizer.warmup.steps=1", "encoder.patch_size=4")
EVALUATORS: dict[str, dict[str, Any]] = {
    "invariance": {"ratios": (0.5,), "untrained": 0, "batch_size": 8},
    "psnr": {"batch_size": 8},
    "knn": {"neighbors": 5, "batch_size": 8},
    "probe": {"batch_size": 8},
    "occlusion": {"ratios": (0.5,), "neighbors": 5, "batch_size": 8},
}


@pytest.fixture(scope="module")
def checkpoint(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a pretrained encoder."""
    workdir = tmp_path_factory.mktemp("pretrained") / "mae"
    run(tiny("mae", images, *STEPS, *DECODER), workdir)
    return workdir


def measured(checkpoint: Path, images: Path, folder: Path) -> dict[str, Any]:
    """The numbers of every protocol."""
    found: dict[str, Any] = {}
    for name in ("finetune", "linear"):
        run(tiny(name, images, *STEPS, f"init_from={checkpoint}"), folder / name)
        found[name] = json.loads((folder / name / RESULT).read_text())["metrics"]
    for name, options in EVALUATORS.items():
        (one,) = evaluate(name, [checkpoint], out=folder / f"{name}.json", **options)
        found[name] = one.record.values
        if name == "invariance":
            found["curves"] = [one.record.details[key] for key in ("cka", "retrieval", "cosine")]
    return found


def test_on_a_fixed_checkpoint(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(checkpoint, images, tmp_path / "first")
    assert measured(checkpoint, images, tmp_path / "again") == first
    alone = functools.partial(parallel.make_mesh, jax.devices()[:1])
    monkeypatch.setattr(parallel, "make_mesh", alone)
    monkeypatch.setattr(module, "make_mesh", alone)
    on_one = measured(checkpoint, images, tmp_path / "one")
    for name, values in first.items():
        found, expected = jax.tree.leaves(on_one[name]), jax.tree.leaves(values)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=name)
