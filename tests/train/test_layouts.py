"""A step is the same for every sharding of the train state and with recomputation."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_runs import make_images, overrides, tiny

from occinv import parallel, schema
from occinv.config import load_config
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.models.blocks import Layout
from occinv.objectives.base import Setting, make_objective
from occinv.train.checkpoints import Checkpoints
from occinv.train.evaluation import make_evaluation
from occinv.train.loop import start_or_resume
from occinv.train.prepare import prepare
from occinv.train.step import as_items, init_state, make_step, recomputes

BATCH, SIZE = 16, 8
HEADS = {"head_hidden": 16, "head_out": 16}
MAE = {"name": "mae", "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
CMAE = {"name": "cmae", "negatives": "batch", "key_chunk": 8, "mask_ratio": 0.5, **HEADS}
LAYOUTS = {  # objective, devices, fsdp, and how its blocks are computed
    "a loop": (MAE, 1, 1, False, 0),
    "remat": (MAE, 1, 1, True, 4),
    "fsdp 4 of 8, a loop": (MAE, 8, 4, False, 0),
    "chunked C-MAE in 2 parts, fsdp 2 of 4, a loop, remat": (CMAE, 4, 2, True, 0),
    "the kernel in 2 parts, fsdp 2 of 4, a loop, remat": (MAE, 4, 2, True, 0, "pallas"),
}
Stepped = tuple[Any, dict[str, jax.Array]]


def stepped(
    section: dict[str, Any],
    devices: int = 1,
    fsdp: int = 1,
    remat: bool = False,
    unroll: int = 4,
    attention: schema.Attention = "xla",
    accumulate: int = 1,
) -> Stepped:
    """The state after one step, with the gradient as its `opt_state`, and the metrics."""
    mesh = parallel.make_mesh(jax.devices()[:devices], fsdp)
    sizes = schema.Encoder(name="micro", patch_size=2, width=16, depth=3, heads=2, drop_path=0.3)
    encoder = vit.make_vit(sizes, SIZE, layout=Layout(unroll, remat, attention, mesh))
    objective = make_objective(section, Setting(encoder, 3, total_steps=10, mesh=mesh))
    number = np.arange(BATCH, dtype=np.int32)
    rng = np.random.default_rng(0)

    def images(size: int) -> np.ndarray:
        return rng.integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)

    crops = tuple(images(crop.size) for crop in objective.crops)
    batch = Batch(images(SIZE), number, number, np.ones(BATCH, np.float32), crops)
    optimizer = optax.trace(0.5)
    shapes = jax.eval_shape(lambda: init_state(objective, optimizer, 3))
    draw = functools.partial(rng.normal, 0.0, 0.2)  # takes less time than to compile `init`
    start = jax.tree.map(lambda x: draw(x.shape).astype(x.dtype), shapes)
    start = start.replace(step=np.int32(2), seed=np.uint32(3))
    placed = parallel.of_state(mesh, shapes)
    step = jax.jit(make_step(objective, optimizer, accumulate), out_shardings=(placed, None))
    state, metrics = step(jax.device_put(start, placed), parallel.put_batch(mesh, batch))
    if fsdp > 1:
        parts = [x.addressable_shards[0].data.size / x.size for x in jax.tree.leaves(state.params)]
        assert np.mean(np.equal(parts, 1 / fsdp)) > 0.9  # but the class token of odd size, say
    return jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def plain() -> dict[str, Stepped]:
    return {section["name"]: stepped(section) for section in (MAE, CMAE)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_the_same(
    layout: str, plain: dict[str, Stepped], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "SHARDED_FROM", 1)
    section, *how = LAYOUTS[layout]
    found = stepped(section, *how, accumulate=2 if "2 parts" in layout else 1)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        found,
        plain[section["name"]],
    )


def test_a_run_goes_on_with_its_state_shared_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved with the state on each device, it is read back with a quarter on each, evaluated."""
    monkeypatch.setattr(parallel, "SHARDED_FROM", 1)
    spec, *given = tiny("mae", make_images(tmp_path / "images"))[1:]
    states, evaluated = [], []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for fsdp in (1, 4):
            run = prepare(
                schema.resolve(load_config(spec, [*given, *overrides(f"train.fsdp={fsdp}")]))
            )
            state = start_or_resume(run, checkpoints)
            checkpoints.save(0, as_items(state))
            checkpoints.wait()
            states.append(state)
            evaluated.append(make_evaluation(run)(state))
    whole, quarters = states
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))
    assert evaluated[0]["loss"] > 0
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-5)
    kernel = ("encoder", "patch_embed", "kernel")
    parts = [
        functools.reduce(lambda tree, name: tree[name], kernel, s.params).addressable_shards[0]
        for s in (whole, quarters)
    ]
    assert parts[0].data.size == 4 * parts[1].data.size


@pytest.mark.parametrize(
    ("kind", "remat", "expected"),
    [
        ("TPU v6 lite", None, True),
        ("TPU v6 lite", False, False),
        ("TPU v5 lite", None, False),
        ("TPU v5 lite", True, True),
        ("cpu", None, False),
    ],
)
def test_blocks_are_recomputed_where_reading_costs_more(
    kind: str, remat: bool | None, expected: bool
) -> None:
    devices = np.array([types.SimpleNamespace(device_kind=kind)])
    mesh: Any = types.SimpleNamespace(devices=devices)
    assert recomputes(schema.Train(remat=remat), mesh) == expected
