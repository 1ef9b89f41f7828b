"""Parts of a batch whose images are compared with each other, against the whole batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from occinv import parallel, schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives.base import Axes, Objective, Setting, make_objective
from occinv.objectives.mocov3 import MoCoV3
from occinv.train.accumulation import joined, parted
from occinv.train.step import TrainState, init_state, make_step
from occinv.transforms.view import View, normalize, whole

BATCH, SIZE = 8, 8
HEADS = {"head_hidden": 12, "head_out": 6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coupled(Objective):
    """All that a coupled objective may do, and nothing that takes long to compile.

    There are parameters in f, in the target (through which gradients flow) and in M; M looks at
    the views, too; the state moves by the step and by what the batch shows.
    """

    @property
    def axes(self) -> Axes:
        return Axes("noise", "noise", "f", "InfoNCE")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return ((0, 1), (1, 0))

    @property
    def couples_batch(self) -> bool:
        return True

    @property
    def couples_before_measure(self) -> bool:
        return False

    def init(self, key: jax.Array, encoder: Any = None) -> tuple[Any, Any]:
        kernel, metric = jax.random.normal(key, (3, 4)), jnp.eye(4) + 0.1
        return {"kernel": kernel, "metric": metric}, {"center": jnp.zeros(4), "step": jnp.zeros(())}

    def transform(self, pixels: Any, keys: jax.Array) -> tuple[View, ...]:
        noise = jax.vmap(lambda key: jax.random.normal(key, (2, SIZE, SIZE, 3)))(keys)
        return tuple(whole(pixels + 0.1 * noise[:, i], 4) for i in range(2))

    def source(self, params: Any, view: View, keys: Any = None) -> jax.Array:
        return jnp.tanh(view.pixels.mean((1, 2)) @ params["kernel"])

    def target(self, params: Any, state: Any, view: View, batch: Batch, keys: Any) -> Any:
        return {"z": jnp.sin(self.source(params, view)), "label": batch.label.astype(jnp.float32)}

    def measure(self, params: Any, state: Any, z1: Any, z2: Any, view1: View, view2: View) -> Any:
        keys = z2["z"] @ params["metric"] - state["center"]
        cosines = z1 @ keys.T * (1 + view2.pixels.mean((1, 2, 3))[:, None]) + state["step"]
        loss = jax.nn.logsumexp(cosines, -1) - z2["label"] * jnp.diagonal(cosines)
        return loss, {"first": cosines[:, 0]}

    def advance(self, params: Any, state: Any, step: jax.Array) -> Any:
        return {**state, "step": state["step"] + 1 + step.astype(jnp.float32)}

    def observe(self, state: Any, sources: Any, targets: Any, weight: jax.Array) -> Any:
        seen = (weight[:, None] * sources[0] * targets[1]["z"]).sum(0) / weight.sum()
        return {**state, "center": 0.9 * state["center"] + 0.1 * seen}


class PlainMoco(MoCoV3):
    """Without its colors, which take long to compile."""

    def transform(self, pixels: Any, keys: jax.Array) -> tuple[View, ...]:
        return tuple(whole(normalize(crop), self.encoder.num_patches) for crop in pixels)


def make(section: dict[str, Any], devices: int = 1) -> Any:
    encoder = schema.Encoder(name="micro", patch_size=4, width=8, depth=1, heads=2, drop_path=0.3)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    setting = Setting(vit.make_vit(encoder, SIZE), 3, total_steps=10, mesh=mesh)
    return make_objective(section, setting) if section else Coupled(setting=setting)


def stepped(objective: Any, accumulate: int) -> tuple[TrainState, Any]:
    """The state after one step, with the gradient as its `optimizer`, and the metrics."""
    mesh = objective.setting.mesh
    everywhere, rows = parallel.replicated(mesh), parallel.by_image(mesh)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    number = np.arange(BATCH, dtype=np.int32)
    # In two passes images may differ in weight, which the mean of the parts' means would miss.
    weight = (1 + objective.couples_batch * number % 3).astype(np.float32)
    batch = Batch(image, number, number, weight, (image[:, ::-1],) * len(objective.crops))
    optimizer = optax.chain(optax.trace(0.0), optax.scale(-0.1))
    shapes = jax.eval_shape(lambda: init_state(objective, optimizer, 3))

    def draw(path: Any, leaf: Any) -> Any:
        center = float(getattr(path[-1], "key", "") == "scale")
        return rng.normal(center, 0.4, leaf.shape).astype(leaf.dtype)

    start = jax.tree_util.tree_map_with_path(draw, shapes)
    start = start.replace(step=np.int32(2), seed=np.uint32(3))
    step = jax.jit(
        make_step(objective, optimizer, accumulate),
        in_shardings=(everywhere, rows),
        out_shardings=everywhere,
    )
    there = jax.device_put(start, everywhere), parallel.put_batch(mesh, batch)
    after, metrics = jax.device_get(step(*there))
    return after.replace(optimizer=after.optimizer[0].trace), metrics


CMAE = {"name": "cmae", "color": None, "symmetric": False, **HEADS}
CASES: dict[str, dict[str, Any]] = {
    "toy": {},
    "cmae position": CMAE,
    "cmae image": {**CMAE, "negatives": "image"},
    "cmae batch": {**CMAE, "negatives": "batch", "block": 3},
    "mocov3": {"name": f"{__name__}:PlainMoco", **HEADS},
}


@pytest.mark.parametrize(
    ("case", "accumulate", "devices"),
    [
        ("toy", 2, 1),
        ("toy", 4, 2),
        ("toy", 8, 1),
        ("cmae position", 4, 1),
        ("cmae image", 4, 1),
        ("cmae batch", 2, 2),
        ("mocov3", 2, 1),
    ],
)
def test_parts_are_the_whole_batch(case: str, accumulate: int, devices: int) -> None:
    objective = make(CASES[case], devices)
    assert objective.couples_batch == (case != "cmae image")
    assert not objective.couples_before_measure
    after, metrics = stepped(objective, 1)
    theirs, their_metrics = stepped(objective, accumulate)

    # A gradient that is a sum of what cancels is as exact as the largest of them.
    largest = max(np.abs(slope).max() for slope in jax.tree.leaves(after.optimizer))
    assert largest > 0.1

    def same(path: Any, found: Any, expected: Any) -> None:
        atol = 1e-5 * largest
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=str(path))

    jax.tree_util.tree_map_with_path(same, their_metrics, metrics)
    jax.tree_util.tree_map_with_path(same, theirs, after)


def test_parted_is_undone() -> None:
    arrays = {"x": jnp.arange(24).reshape(12, 2), "keys": jax.random.split(jax.random.key(0), 12)}
    parts = parted(arrays, 3)
    np.testing.assert_array_equal(parts["x"][1], arrays["x"][1::3])
    assert jnp.array_equal(joined(parts)["x"], arrays["x"])
    assert jnp.array_equal(joined(parts)["keys"], arrays["keys"])


@pytest.mark.parametrize(
    ("section", "refused"),
    [
        ({"name": "cmae"}, False),
        ({"name": "cmae", "negatives": "batch"}, False),
        ({"name": "cmae", "similarity": "byol"}, False),
        ({"name": "cmae", "head_norm": "batchnorm"}, True),
        ({"name": "cmae", "cutmix": 1.0}, True),
        ({"name": "mocov3"}, False),
        ({"name": "classification", "mixup": 0.8}, True),
        ({"name": "linear_probe"}, True),
        ({"name": "mae", "cutmix": 1.0}, True),
    ],
)
def test_what_cannot_be_parted(section: dict[str, Any], refused: bool) -> None:
    assert make(section).couples_before_measure == refused
