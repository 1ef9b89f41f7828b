"""Batches go to the device while it is busy: nothing waits for a step before the next is put."""

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import make_images, overrides, run, toy_config

from occinv import parallel
from occinv.data.batch import Batch


def test_two_batches_are_put_before_a_step_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    put_batch, block_until_ready = parallel.put_batch, jax.block_until_ready

    def put(mesh: jax.sharding.Mesh, batch: Batch) -> Batch:
        events.append("put")
        assert batch.image.dtype == np.uint8  # a quarter of the bytes of float32
        return put_batch(mesh, batch)

    def block(of_step: object) -> object:
        events.append("wait")
        return block_until_ready(of_step)

    monkeypatch.setattr(parallel, "put_batch", put)
    monkeypatch.setattr(jax, "block_until_ready", block)
    spec = f"{toy_config(tmp_path)}:{make_images(tmp_path / 'images')}"
    once = ("train.log_every.steps=8", "train.checkpoint_every.steps=8")
    run(["--config", spec, *overrides(*once)], tmp_path / "run")
    # A wait is for the step before the last but one: two batches more are on their way by then.
    assert events[:7] == ["put", "put", "put", "wait", "put", "wait", "put"]
