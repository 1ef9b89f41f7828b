"""However the train state lies and whatever is computed again, a step is the same step."""

from __future__ import annotations

import functools
import shutil
from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_runs import losses, make_images, overrides, tiny

from occinv import parallel, schema
from occinv.cli import main
from occinv.data.batch import Batch
from occinv.encoder import vit
from occinv.encoder.blocks import Layout
from occinv.objective.base import Setting, build
from occinv.train.signals import StopRequest
from occinv.train.step import init_state, make_step

BATCH, SIZE = 16, 8
HEADS = {"head_hidden": 16, "head_out": 16}
MAE = {"name": "mae", "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
CMAE = {"name": "cmae", "negatives": "batch", "block": 8, "mask_ratio": 0.5, **HEADS}
LAYOUTS = {  # objective, devices, fsdp, and how its blocks are computed
    "a loop": (MAE, 1, 1, False, 0),
    "a loop, remat": (MAE, 1, 1, True, 0),
    "fsdp 4 of 8, a loop": (MAE, 8, 4, False, 0),
    "fsdp 8 of 8, remat": (MAE, 8, 8, True, 4),
    "blockwise C-MAE in 2 parts, fsdp 2 of 4, a loop, remat": (CMAE, 4, 2, True, 0),
}
Stepped = tuple[Any, dict[str, jax.Array]]


def stepped(
    section: dict[str, Any],
    devices: int = 1,
    fsdp: int = 1,
    remat: bool = False,
    unroll: int = 4,
    accumulate: int = 1,
) -> Stepped:
    """The state after one step, with the gradient as its `optimizer`, and the metrics."""
    mesh = parallel.make_mesh(jax.devices()[:devices], fsdp)
    sizes = schema.Encoder(name="micro", patch_size=2, width=16, depth=3, heads=2, drop_path=0.3)
    encoder = vit.build(sizes, SIZE, layout=Layout(unroll, remat, mesh))
    objective = build(section, Setting(encoder, 3, total_steps=10, mesh=mesh))
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
    lies = parallel.of_state(mesh, shapes)
    step = jax.jit(make_step(objective, optimizer, accumulate), out_shardings=(lies, None))
    state, metrics = step(jax.device_put(start, lies), parallel.put_batch(mesh, batch))
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
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with the state on each device, gone on with a quarter of it."""
    monkeypatch.setattr(parallel, "SHARDED_FROM", 1)
    run = tiny("mae", make_images(tmp_path / "images"))
    shutil.rmtree(tmp_path / "images" / "val")
    run += overrides(
        "train.duration.steps=4", "optimizer.warmup.steps=1", "train.log_every.steps=1"
    )
    for workdir, fsdp, remat, stop in (
        ("changing", 1, False, 2),
        ("changing", 4, True, 4),
        ("at once", 1, False, 4),
    ):
        monkeypatch.setattr(StopRequest, "is_due", lambda _, step, stop=stop: step == stop)
        how = overrides(f"train.fsdp={fsdp}", f"train.remat={remat}")
        main(["train", *run, *how, "--workdir", str(tmp_path / workdir)])
    changing, at_once = losses(tmp_path / "changing"), losses(tmp_path / "at once")
    assert list(changing) == list(at_once) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(changing.values()), list(at_once.values()), rtol=2e-5)
