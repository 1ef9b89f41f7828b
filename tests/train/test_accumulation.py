"""Parts of a batch whose images are compared with each other, against the whole batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from occinv import parallel, schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives.base import (
    Context,
    Objective,
    Setting,
    Terms,
    make_objective,
    mean_terms,
)
from occinv.objectives.ema import EMA
from occinv.objectives.mocov3 import MoCoV3
from occinv.objectives.msn import MSN
from occinv.train.accumulation import join_parts, split_batch
from occinv.train.step import TrainState, init_state, make_step
from occinv.transforms.view import View, whole

BATCH, SIZE = 8, 8
HEADS = {"head_hidden": 12, "head_out": 6}


class CoupledNetworks(nn.Module):
    """f and a metric, both linear."""

    encoder: nn.Dense
    metric: nn.Dense

    def encode(self, view: View) -> jax.Array:
        """Return f(view)."""
        return jnp.tanh(self.encoder(view.pixels.mean((1, 2))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coupled(Objective):
    """Everything that a coupled objective may do, and nothing that takes long to compile.

    There are parameters in f, in z2 (through which gradients flow), in an EMA and in M; M depends
    on the views, labels and step, too; the state moves by what the batch shows.
    """

    @property
    def couples(self) -> Any:
        return "loss"

    @property
    def state(self) -> Any:
        return {"target": EMA(("encoder",), 0.5, "cosine"), "center": jnp.zeros(4)}

    @property
    def networks(self) -> Any:
        return CoupledNetworks(nn.Dense(4), nn.Dense(4))

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        noise = jax.vmap(lambda key: jax.random.normal(key, (2, SIZE, SIZE, 3)))(rng)
        return tuple(whole(pixels + 0.1 * noise[:, i], 4) for i in range(2))

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        z = [net.encode(view) for view in views]
        return z, [jnp.sin(x) + ctx.target.encode(v) for x, v in zip(z, views, strict=True)]

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        first, second = z
        terms = mean_terms(
            [self.measure(net, first[i], second[j], views[j], ctx) for i, j in ((0, 1), (1, 0))]
        )
        seen = (ctx.weight[:, None] * first[0] * second[1]).sum(0) / ctx.weight.sum()
        return terms._replace(state={"center": 0.9 * ctx.state["center"] + 0.1 * seen})

    def measure(self, net: Any, z1: Any, z2: Any, view: View, ctx: Context) -> Terms:
        keys = net.metric(z2) - ctx.state["center"]
        brightness = view.pixels.mean((1, 2, 3))[:, None]
        cosines = z1 @ keys.T * (1 + brightness) + ctx.step.astype(jnp.float32)
        label = ctx.label.astype(jnp.float32)
        loss = jax.nn.logsumexp(cosines, -1) - label * jnp.diagonal(cosines)
        return Terms(loss, {"first": cosines[:, 0]})


class PlainMoco(MoCoV3):
    """Without its colors, which take long to compile."""

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        return tuple(whole(crop, self.setting.encoder.num_patches) for crop in pixels)


class PlainMSN(MSN):
    """Without its colors, which take long to compile, and without masking."""

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        size = self.setting.encoder.patch_size
        return tuple(whole(crop, (crop.shape[1] // size) ** 2) for crop in pixels)


def make(section: dict[str, Any], devices: int = 1) -> Any:
    encoder = schema.Encoder(name="micro", patch_size=4, width=8, depth=1, heads=2, drop_path=0.3)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    setting = Setting(vit.make_vit(encoder, SIZE), 3, total_steps=10, mesh=mesh)
    return make_objective(section, setting) if section else Coupled(setting=setting)


def stepped(objective: Any, accumulate: int) -> tuple[TrainState, Any]:
    """The state after one step, with the gradient as its `opt_state`, and the metrics."""
    mesh = objective.setting.mesh
    everywhere, rows = parallel.replicated(mesh), parallel.by_image(mesh)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    number = np.arange(BATCH, dtype=np.int32)
    # With GradCache images may differ in weight, which the mean of the parts' means would miss.
    weight = (1 + (objective.couples != "nothing") * number % 3).astype(np.float32)
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
    return after.replace(opt_state=after.opt_state[0].trace), metrics


CMAE = {"name": "cmae", "color": None, "symmetric": False, **HEADS}
CASES: dict[str, dict[str, Any]] = {
    "toy": {},
    "cmae position": CMAE,
    "cmae image": {**CMAE, "negatives": "image"},
    "cmae batch": {**CMAE, "negatives": "batch", "key_chunk": 3},
    "mocov3": {"name": f"{__name__}:PlainMoco", **HEADS},
    "msn": {"name": f"{__name__}:PlainMSN", "focal_crops": 1, "focal_size": 8, **HEADS},
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
        ("msn", 2, 2),
    ],
)
def test_parts_are_the_whole_batch(case: str, accumulate: int, devices: int) -> None:
    objective = make(CASES[case], devices)
    assert objective.couples == ("nothing" if case == "cmae image" else "loss")
    after, metrics = stepped(objective, 1)
    theirs, their_metrics = stepped(objective, accumulate)

    # A gradient that is a sum of what cancels is as exact as the largest of them.
    largest = max(np.abs(slope).max() for slope in jax.tree.leaves(after.opt_state))
    assert largest > 0.1

    def same(path: Any, found: Any, expected: Any) -> None:
        atol = 1e-5 * largest
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=str(path))

    jax.tree_util.tree_map_with_path(same, their_metrics, metrics)
    jax.tree_util.tree_map_with_path(same, theirs, after)


def test_split_is_inverted() -> None:
    arrays = {"x": jnp.arange(24).reshape(12, 2), "keys": jax.random.split(jax.random.key(0), 12)}
    parts = split_batch(arrays, 3)
    np.testing.assert_array_equal(parts["x"][1], arrays["x"][1::3])
    assert jnp.array_equal(join_parts(parts)["x"], arrays["x"])
    assert jnp.array_equal(join_parts(parts)["keys"], arrays["keys"])


@pytest.mark.parametrize(
    ("section", "refused"),
    [
        ({"name": "cmae"}, False),
        ({"name": "cmae", "negatives": "batch"}, False),
        ({"name": "cmae", "similarity": "byol"}, False),
        ({"name": "cmae", "head_norm": "batchnorm"}, True),
        ({"name": "cmae", "cutmix": 1.0}, True),
        ({"name": "mocov3"}, False),
        ({"name": "msn"}, False),
        ({"name": "classification", "mixup": 0.8}, True),
        ({"name": "linear_probe"}, True),
        ({"name": "mae", "cutmix": 1.0}, True),
    ],
)
def test_what_cannot_be_parted(section: dict[str, Any], refused: bool) -> None:
    assert (make(section).couples == "features") == refused
