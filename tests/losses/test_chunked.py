"""InfoNCE by blocks and round a ring of devices, against the plain formula."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv import parallel, schema
from occinv.config import CONFIGS, load_config
from occinv.losses.chunked import chunked_info_nce
from occinv.losses.losses import info_nce, similarities
from occinv.models import vit
from occinv.objectives.base import Setting, make_objective
from occinv.train.loop import prepare

NEGATIVES = ("position", "image", "batch")
BATCH, TOKENS, WIDTH = 8, 5, 6
Pair = tuple[jax.Array, jax.Array]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain(queries: jax.Array, keys: jax.Array, negatives: Any, temperature: float) -> Pair:
    cosines, positive = similarities(queries, keys, negatives)
    agrees = (cosines.argmax(-1) == positive).astype(jnp.float32)
    return info_nce(cosines, positive, temperature), agrees


def differentiated(function: Callable[..., Pair], queries: Any, keys: Any) -> dict[str, np.ndarray]:
    """Loss and agreement of each token, and the gradients of a sum in which each weighs its own."""
    weight = normal(*queries.shape[:2], seed=9)

    def total(queries: jax.Array, keys: jax.Array) -> Any:
        loss, agrees = function(queries, keys)
        return (weight * loss).sum(), (loss, agrees)

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, (loss, agrees)), slopes = jax.device_get(gradient(queries, keys))
    return {"loss": loss, "agrees": agrees, "to queries": slopes[0], "to keys": slopes[1]}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float) -> None:
    """Equal to `rtol` of the largest value of each array; a loss below 1 to `rtol` itself."""
    for name, value in expected.items():
        atol = rtol * np.abs(value).max(initial=1 if name == "loss" else 0)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


@functools.cache
def example(negatives: str, temperature: float, near: float) -> Any:
    """Queries, keys, and what the plain formula says; keys are `near` parts query."""
    queries, noise = normal(BATCH, TOKENS, WIDTH), normal(BATCH, TOKENS, WIDTH, seed=1)
    keys = near * queries + (1 - near) * noise
    formula = functools.partial(plain, negatives=negatives, temperature=temperature)
    return queries, keys, differentiated(formula, queries, keys)


# 1 key at a time; one that divides none of 8, 5 and 40; one that divides two; more than there are.
@pytest.mark.parametrize("block", [1, 3, 4, 1000])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_blocks_of_any_size_are_the_plain_formula(negatives: str, block: int) -> None:
    queries, keys, expected = example(negatives, 0.2, 0.3)
    assert 0 < expected["agrees"].mean() < 1
    found = differentiated(
        lambda q, k: chunked_info_nce(q, k, negatives, 0.2, block), queries, keys
    )
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("temperature", "near"), [(1e-3, -1.0), (1e-3, 0.3), (0.01, -1.0), (0.01, 1.0), (10.0, 0.3)]
)
def test_extreme_temperatures(temperature: float, near: float) -> None:
    """At τ = 0.001 logits reach ±1000; exp of 89 is already more than float32 holds."""
    queries, keys, expected = example("batch", temperature, near)
    found = differentiated(
        lambda q, k: chunked_info_nce(q, k, "batch", temperature, 7), queries, keys
    )
    assert all(np.isfinite(value).all() for value in found.values())
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_the_number_of_devices_changes_nothing(negatives: str, devices: int) -> None:
    queries, keys, expected = example(negatives, 0.1, 0.3)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    there = parallel.put_batch(mesh, (queries, keys))

    def contrast(queries: jax.Array, keys: jax.Array, mesh: Any = mesh) -> Pair:
        return chunked_info_nce(queries, keys, negatives, 0.1, 3, mesh)

    found = differentiated(contrast, *there)
    assert_same(found, expected, 1e-5)
    assert_same(found, differentiated(functools.partial(contrast, mesh=None), queries, keys), 1e-6)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_of_equal_keys_the_first_is_the_nearest(negatives: str, devices: int) -> None:
    """As `argmax` has it, whatever device a key comes from, and from whichever side."""
    mesh = parallel.make_mesh(jax.devices()[:devices])
    # Images 2 and 4 are equal. Of unit vectors with a single 1 every cosine is exact.
    same = np.eye(BATCH, dtype=np.float32)[[0, 1, 2, 3, 2, 5, 6, 7]][:, None].repeat(TOKENS, 1)
    contrast = jax.jit(lambda q, k: chunked_info_nce(q, k, negatives, 0.2, 3, mesh)[1])
    agrees = contrast(*parallel.put_batch(mesh, (same, same)))
    np.testing.assert_array_equal(agrees, plain(same, same, negatives, 0.2)[1])
    assert list(agrees[:, 0]) == [1, 1, 1, 1, float(negatives == "image"), 1, 1, 1]


def temporary_bytes(function: Callable[..., Pair], batch: int, tokens: int, width: int) -> int:
    """What XLA sets aside for loss and gradients beyond arguments and results."""

    def total(queries: jax.Array, keys: jax.Array) -> jax.Array:
        return function(queries, keys)[0].sum()

    shape = jax.ShapeDtypeStruct((batch, tokens, width), jnp.float32)
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


# A problem has as many queries as keys, so for a fixed number of queries there are fewer problems.
@pytest.mark.parametrize(
    ("negatives", "few", "many"),
    [
        ("position", (64, 32), (1024, 2)),  # images, tokens: 64 keys and 1024
        ("image", (32, 64), (2, 1024)),
        ("batch", (4, 16), (32, 64)),  # 64 keys and 2048; counted for each query
    ],
)
def test_memory_for_a_query_does_not_grow_with_its_keys(
    negatives: Any, few: tuple[int, int], many: tuple[int, int]
) -> None:
    def growth(function: Callable[..., Pair]) -> float:
        """How much more memory a query takes with many keys than with few."""
        small, large = (temporary_bytes(function, *size, 4) / np.prod(size) for size in (few, many))
        return large / small

    assert growth(lambda q, k: plain(q, k, negatives, 0.2)) > 8
    assert growth(lambda q, k: chunked_info_nce(q, k, negatives, 0.2, 16)) < 1.3


def objective_of(section: dict[str, Any], mesh: Any = None) -> Any:
    encoder = vit.make_vit(schema.Encoder(name="micro", patch_size=4), 8)
    return make_objective(section, Setting(encoder, num_classes=3, total_steps=9, mesh=mesh))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("negatives", [*NEGATIVES, None])
def test_an_objective_by_blocks_is_itself(negatives: str | None, devices: int) -> None:
    """C-MAE with such negatives, or MoCo v3, whose class token meets those of other images."""
    section = {"name": "cmae", "negatives": negatives} if negatives else {"name": "mocov3"}
    section |= {"head_hidden": 8, "head_out": WIDTH}
    objective = objective_of(section)
    z1, z2 = normal(BATCH, TOKENS, WIDTH), normal(BATCH, TOKENS, WIDTH, seed=1)
    if negatives is None:
        z1, z2 = (normal(BATCH, objective.encoder.width, seed=seed) for seed in range(2))
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params, state = jax.tree.map(lambda x: normal(*x.shape), shapes)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    view: Any = None

    def measured(objective: Any, z1: Any, z2: Any) -> Any:
        return jax.jit(lambda z1, z2: objective.measure(params, state, z1, z2, view, view))(z1, z2)

    loss, metrics = measured(objective, z1, z2)
    by_blocks = objective_of({**section, "block": 3}, mesh)
    their_loss, their_metrics = measured(by_blocks, *parallel.put_batch(mesh, (z1, z2)))
    np.testing.assert_allclose(their_loss, loss, rtol=1e-5)
    assert set(metrics) == set(their_metrics) == {"similarity", "agreement"}
    for name, values in metrics.items():
        np.testing.assert_allclose(their_metrics[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cmae", "mocov3"])
def test_a_block_has_keys(name: str) -> None:
    said = "objective.block=0, expected 1 or more keys at once, or None for all"
    with pytest.raises(schema.UserError, match=said):
        objective_of({"name": name, "block": 0})


def test_a_run_tells_its_objective_the_mesh() -> None:
    """Else `block` would gather the keys of all devices, as the plain formula does."""
    fields = ["--config.objective.block=16", "--config.data.source=digits"]
    run = prepare(schema.resolve(load_config(str(CONFIGS / "cmae.py:smoke"), fields)))
    assert run.objective.setting.mesh == run.mesh and run.mesh.size == 8
    assert run.objective.block == 16  # type: ignore[attr-defined]
