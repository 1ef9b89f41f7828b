"""The train step with arrays for each block, as on CPU, is the step with stacks of blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import overrides, tiny

from occinv import parallel, schema
from occinv.config import load_config
from occinv.models.blocks import split_blocks
from occinv.train.optimizer import layer_scales
from occinv.train.step import (
    Assembly,
    assemble,
    batch_shapes,
    init_state,
    join_state,
    make_step,
    split_state,
)

RUNS = {  # config: fields
    # The regressor has a stack of its own beside the decoder's.
    "cae": ("optimizer.clip_norm=0.05", "optimizer.clip_by=parameter"),
    "finetune": ("optimizer.layer_decay=0.5", "encoder.relative_position='block'"),
}


def make_run(config: str, images: Path, *fields: str) -> Assembly:
    spec, *given = tiny(config, images)[1:]
    experiment = schema.resolve(load_config(spec, [*given, *overrides("encoder.depth=2", *fields)]))
    return assemble(experiment, parallel.make_mesh(jax.devices()[:1]), 3, 64)


@pytest.mark.parametrize("config", RUNS)
def test_the_step_is_the_same(config: str, images: Path) -> None:
    run = make_run(config, images, *RUNS[config])
    shapes = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 3))
    draw = np.random.default_rng(0)

    def some(x: Any) -> np.ndarray:
        if np.issubdtype(x.dtype, np.integer):
            return draw.integers(1, 3, x.shape).astype(x.dtype)
        return (draw.uniform(0.05, 0.1, x.shape) * draw.choice([1, 1, 2], x.shape)).astype(x.dtype)

    state, batch = jax.tree.map(some, shapes), jax.tree.map(some, batch_shapes(run))
    batch = dataclasses.replace(batch, weight=np.ones_like(batch.weight))
    split = split_state(run, state)
    assert any(isinstance(key, jax.tree_util.SequenceKey) for key in leaf_keys(split.params))
    jax.tree.map(np.testing.assert_array_equal, join_state(run, split), state)

    step = jax.jit(make_step(run.objective, run.optimizer))
    expected, metrics = step(state, batch)
    after, found = step(split, batch)
    assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    changed = 0
    for (path, x), y, old in zip(
        jax.tree.leaves_with_path(expected),
        jax.tree.leaves(join_state(run, after)),
        jax.tree.leaves(state),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))
        changed += not np.array_equal(x, old)
    assert changed > 50


def test_a_part_of_the_optimizer_may_skip_a_stack(images: Path) -> None:
    run = make_run("dino", images)
    assert run.objective.param_groups
    state = jax.jit(lambda: init_state(run.objective, run.optimizer, 3))()
    split = split_state(run, state)
    jax.tree.map(np.testing.assert_array_equal, join_state(run, split), state)
    step = make_step(run.objective, run.optimizer)
    after, _ = jax.eval_shape(step, split, batch_shapes(run))
    assert jax.tree.structure(after) == jax.tree.structure(split)


def test_a_block_has_the_learning_rate_of_its_row() -> None:
    stack = {"out": {"kernel": np.ones((3, 2, 2)), "bias": np.ones((3, 2))}}
    params = {"encoder": {"blocks": {"scan": stack}, "norm": {"scale": np.ones(2)}}}
    factors = layer_scales(split_blocks(params), 0.5)["encoder"]["blocks"]["scan"]
    rows = layer_scales(params, 0.5)["encoder"]["blocks"]["scan"]["out"]["bias"].ravel()
    assert rows.tolist() == [0.125, 0.25, 0.5]
    assert [float(block["out"]["kernel"]) for block in factors] == rows.tolist()


def leaf_keys(tree: Any) -> list[Any]:
    return [key for path, _ in jax.tree.leaves_with_path(tree) for key in path]


def test_only_cpus_that_hold_the_whole_state_split_it(images: Path) -> None:
    run = make_run("mae", images)
    state = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 3)),
    )
    assert split_state(run, state) is not state
    mesh = parallel.make_mesh(jax.devices()[:2], fsdp=2)
    sharded = assemble(run.experiment, mesh, 3, 64)
    assert split_state(sharded, state) is state
    assert join_state(sharded, state) is state
