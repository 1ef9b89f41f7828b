"""The one step: what it passes on, what it skips, and in how many parts it may be taken."""

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
from occinv.objectives import forward
from occinv.objectives.base import Context, Objective, Setting, Terms
from occinv.objectives.ema import EMA
from occinv.rng import uniform
from occinv.train.accumulation import mean_of_parts
from occinv.train.step import Assembly, assemble, init_state, make_step
from occinv.transforms.view import whole

BATCH = 4


class Weight(nn.Module):
    """One number."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiply x by the number."""
        return x * self.param("weight", nn.initializers.constant(2.0), ())


class ToyNetworks(nn.Module):
    """f alone."""

    encoder: Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Objective):
    """weight · (first value of the image + a draw of its own key), and a count of losses."""

    @property
    def state(self) -> Any:
        return {"count": jnp.float32(0)}

    @property
    def networks(self) -> Any:
        return ToyNetworks(Weight())

    def views(self, pixels: Any, rng: Any) -> Any:
        return (whole(255 * pixels, 1),)

    def features(self, net: Any, views: Any, ctx: Context) -> Any:
        # A square root of a negative number makes a loss that is not finite.
        return jnp.sqrt(jnp.round(views[0].pixels[:, 0, 0, 0]) - 100) + uniform(ctx.rng)

    def loss(self, net: Any, z: Any, views: Any, ctx: Context) -> Terms:
        metrics = {"draw": uniform(ctx.rng)}
        return Terms(net.encoder(z), metrics, {"count": ctx.state["count"] + 1})


def toy() -> Toy:
    return Toy(setting=Setting(vit.make_vit(schema.Encoder(name="micro"), 32), 0, 10))


def make_batch(first: list[int]) -> Batch:
    image = np.zeros((BATCH, 2, 2, 3), np.uint8)
    image[:, 0, 0, 0] = first
    each = np.arange(BATCH, dtype=np.int32)
    return Batch(image, each, each, np.ones(BATCH, np.float32))


GOOD = [100, 104, 109, 116]  # roots 0, 2, 3, 4
BAD = [100, 104, 99, 116]


def start_and_step(seed: int = 0, accumulate: int = 1) -> Any:
    optimizer = optax.sgd(0.1, momentum=0.9)
    objective = toy()
    step = jax.jit(make_step(objective, optimizer, accumulate))
    return init_state(objective, optimizer, seed), step


def test_a_step_descends_and_counts() -> None:
    state, step = start_and_step()
    after, metrics = step(state, make_batch([101] * BATCH))
    slope = 1 + float(metrics["draw"])
    assert metrics["loss"] == pytest.approx(2 * slope)
    assert metrics["gradient_norm"] == pytest.approx(slope)
    assert after.params["encoder"]["weight"] == pytest.approx(2 - 0.1 * slope)
    assert (int(after.step), int(after.nonfinite), float(after.objective_state["count"])) == (
        1,
        0,
        1,
    )


def test_draws_follow_from_seed_and_step() -> None:
    batch = make_batch(GOOD)

    def draws(seed: int) -> list[float]:
        state, step = start_and_step(seed)
        found = []
        for _ in range(3):
            state, metrics = step(state, batch)
            found.append(float(metrics["draw"]))
        return found

    first, again, other = draws(0), draws(0), draws(1)
    assert first == again
    assert len(set(first + other)) == 6


def test_draws_of_the_images_differ() -> None:
    state, step = start_and_step()
    each = []
    for i in range(BATCH):
        only = make_batch(GOOD).replace(weight=(np.arange(BATCH) == i).astype(np.float32))
        each.append(float(step(state, only)[1]["draw"]))
    assert len(set(each)) == BATCH


def test_a_step_that_is_not_finite_changes_the_counters_only() -> None:
    state, step = start_and_step()
    state, _ = step(state, make_batch([101] * BATCH))
    after, metrics = step(state, make_batch(BAD))
    assert not np.isfinite(metrics["loss"])
    assert (int(after.step), int(after.nonfinite), int(after.first_nonfinite)) == (2, 1, 2)
    for name in ("params", "objective_state", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    again, _ = step(after, make_batch(BAD))
    assert (int(again.nonfinite), int(again.first_nonfinite)) == (2, 2)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_draw_and_descend_as_the_whole(accumulate: int) -> None:
    batch = make_batch([101, 104, 109, 116])
    at_once, parts = (
        step(state, batch) for state, step in (start_and_step(), start_and_step(0, accumulate))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), at_once[1], parts[1])
    assert parts[0].params["encoder"]["weight"] == pytest.approx(
        float(at_once[0].params["encoder"]["weight"])
    )
    assert float(parts[0].objective_state["count"]) == 1


def test_mean_of_parts_takes_every_image_once() -> None:
    seen = []

    def mean(x: jax.Array) -> Any:
        seen.append(x.shape)
        return {"mean": x.mean()}, x

    values = jnp.arange(12.0).reshape(6, 2) ** 2
    means, rows = mean_of_parts(mean, (values,), 3)
    assert means["mean"] == pytest.approx(float(values.mean()))
    assert set(seen) == {(2, 2)}
    # Strided: part i has every third image from i on.
    np.testing.assert_allclose(rows, values.reshape(2, 3, 2).mean(1), rtol=1e-6)


def assembled(objective: Any = None, train: Any = None, **optimizer: Any) -> Assembly:
    """Eight images a step, with a frozen patch projection."""
    config = {
        "objective": objective or {"name": "tiny_runs:Toy"},
        "data": {"source": "digits", "image_size": 16},
        "encoder": {"name": "micro", "patch_size": 8, "train_patch": False},
        "optimizer": {"warmup": {"steps": 0}, **optimizer},
        "train": {"batch_size": 8, "duration": {"steps": 4}, **(train or {})},
    }
    return assemble(schema.resolve(config), parallel.make_mesh(jax.devices()[:1]), 3, 64)


def test_the_momentum_of_the_target_follows_the_batch() -> None:
    old, new = ({"encoder": {"scale": jnp.full(3, x)}} for x in (1.0, 0.0))
    for batch, momentum in ((None, 0.5), (4, 0.5**2), (16, 0.5**0.5)):
        objective = assembled(ema_batch=batch).objective
        moved = forward.update_target(objective, new, {"target": old}, jnp.int32(0))
        np.testing.assert_allclose(moved["target"]["encoder"]["scale"], momentum, rtol=1e-6)
    moved = EMA(("encoder",), 0.5, "linear").update(old, new, jnp.int32(2), 4, power=2.0)
    np.testing.assert_allclose(moved["encoder"]["scale"], 0.75**2, rtol=1e-6)


@pytest.mark.parametrize(("decay", "moves"), [("tokens", True), ("all", False)])
def test_frozen_parts_of_the_encoder_do_not_decay(decay: str, moves: bool) -> None:
    """A position embedding without a gradient needs no group of its own unless it decays."""
    params = {"patch_embed": {"kernel": jnp.ones(2)}, "position": jnp.ones(2), "x": jnp.ones(2)}
    run = assembled(decay=decay)
    given = {"encoder": params}
    updates, _ = run.optimizer.update(given, run.optimizer.init(given), given)
    moved = {
        name: bool(leaf.any()) for name, leaf in updates["encoder"].items() if name != "patch_embed"
    }
    assert moved == {"position": moves, "x": True}
    assert not updates["encoder"]["patch_embed"]["kernel"].any()


def test_independent_decay_does_not_depend_on_the_learning_rate() -> None:
    ones = {"head": {"kernel": jnp.ones((2, 2))}}
    zero = jax.tree.map(jnp.zeros_like, ones)
    for rate in (1e-3, 0.1):
        run = assembled(base_lr=rate, weight_decay=0.2, independent_decay=True)
        updates, _ = run.optimizer.update(zero, run.optimizer.init(ones), ones)
        np.testing.assert_allclose(updates["head"]["kernel"], -0.2, rtol=1e-6)
