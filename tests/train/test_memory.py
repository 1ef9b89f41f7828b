"""A run that cannot fit is refused before it is compiled."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from tiny_runs import overrides, tiny

from occinv import parallel, schema
from occinv.config import load_config
from occinv.schema import UserError
from occinv.train import memory
from occinv.train.memory import check_memory, device_memory
from occinv.train.step import assemble, init_state


def needs(images: Path, devices: int, limit: int, *fields: str) -> str | None:
    spec, *given = tiny("mae", images)[1:]
    experiment = schema.resolve(load_config(spec, [*given, *overrides(*fields)]))
    fsdp = experiment.train.fsdp
    run = assemble(experiment, parallel.make_mesh(jax.devices()[:devices], fsdp), 3, 64)
    shapes = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "device_memory", lambda _: limit)
        patch.setattr(parallel, "SHARDED_FROM", 1)
        try:
            check_memory(run, shapes)
        except UserError as error:
            return str(error)
    return None


def test_state_gradient_and_images_count(images: Path) -> None:
    spec, *given = tiny("mae", images)[1:]
    experiment = schema.resolve(load_config(spec, given))
    run = assemble(experiment, parallel.make_mesh(jax.devices()[:1]), 3, 64)
    shapes = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 3))
    numbers = sum(x.size for x in jax.tree.leaves(shapes.params))
    size, batch = experiment.data.image_size, experiment.train.batch_size
    least = 4 * 4 * numbers + 5 * batch * size**2 * 3  # parameters, gradient, two moments
    assert needs(images, 1, int(1.01 * least)) is None
    assert "at least" in str(needs(images, 1, int(0.99 * least)))
    assert needs(images, 4, least // 2, "train.fsdp=4") is None
    assert "train.accumulate=1" in str(needs(images, 1, least // 2))


def test_devices_of_the_cpu_share_the_memory_of_the_host() -> None:
    found = device_memory(jax.devices()[0])
    assert found is not None and 2**25 < found < 2**50


def test_a_loss_that_compares_images_needs_two(images: Path) -> None:
    for name, is_refused in (("mocov3", True), ("mae", False)):
        spec, *given = tiny(name, images)[1:]
        fields = [*given, *overrides("train.batch_size=1")]
        experiment = schema.resolve(load_config(spec, fields))
        mesh = parallel.make_mesh(jax.devices()[:1])
        if is_refused:
            with pytest.raises(UserError, match=r"batch_size=1: the loss of mocov3 compares"):
                assemble(experiment, mesh, 3, 64)
        else:
            assemble(experiment, mesh, 3, 64)
