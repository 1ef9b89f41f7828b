"""InfoNCE by key chunks and around a ring of devices, against the plain formula."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import make, make_batch, rngs_of, start

from occinv import parallel, schema
from occinv.config import CONFIGS, load_config
from occinv.losses.chunked import agreement_by_chance, chunked_info_nce
from occinv.losses.contrastive import info_nce, similarities, unit
from occinv.objectives import forward
from occinv.train.prepare import prepare

NEGATIVES = ("position", "image", "batch")
METRICS = {"similarity", "agreement", "agreement_by_chance"}
BATCH, TOKENS, WIDTH = 8, 5, 6
Pair = tuple[jax.Array, jax.Array]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain(queries: jax.Array, keys: jax.Array, negatives: Any, temperature: float) -> Pair:
    cosines, positive = similarities(unit(queries), unit(keys), negatives)
    agrees = (cosines.argmax(-1) == positive).astype(jnp.float32)
    return info_nce(cosines, positive, temperature), agrees


def differentiated(function: Callable[..., Pair], queries: Any, keys: Any) -> dict[str, np.ndarray]:
    """Return loss and agreement of each token, and the gradients of a weighted sum of losses."""
    weight = normal(*queries.shape[:2], seed=9)

    def total(queries: jax.Array, keys: jax.Array) -> Any:
        loss, agrees = function(queries, keys)
        return (weight * loss).sum(), (loss, agrees)

    gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, (loss, agrees)), slopes = jax.device_get(gradient(queries, keys))
    return {"loss": loss, "agrees": agrees, "to queries": slopes[0], "to keys": slopes[1]}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float) -> None:
    """Compare to `rtol` of the largest value of each array, and of 1 for losses below 1."""
    for name, value in expected.items():
        atol = rtol * np.abs(value).max(initial=1 if name == "loss" else 0)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


@functools.cache
def example(negatives: str, temperature: float, near: float) -> Any:
    """Return queries, keys (a share `near` is the query), and the result of the plain formula."""
    queries, noise = normal(BATCH, TOKENS, WIDTH), normal(BATCH, TOKENS, WIDTH, seed=1)
    keys = near * queries + (1 - near) * noise
    formula = functools.partial(plain, negatives=negatives, temperature=temperature)
    return queries, keys, differentiated(formula, queries, keys)


# A chunk of 1 key, one that divides none of 8, 5 and 40, one that divides two, and all keys.
@pytest.mark.parametrize("key_chunk", [1, 3, 4, 1000])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_chunks_of_any_size_equal_the_plain_formula(negatives: str, key_chunk: int) -> None:
    queries, keys, expected = example(negatives, 0.2, 0.3)
    assert 0 < expected["agrees"].mean() < 1
    found = differentiated(
        lambda q, k: chunked_info_nce(q, k, negatives, 0.2, key_chunk), queries, keys
    )
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("key_chunk", [None, 3])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_a_key_that_does_not_exist_is_no_negative(negatives: str, key_chunk: int | None) -> None:
    queries, keys, _ = example(negatives, 0.2, 0.3)
    present = np.random.default_rng(5).random((BATCH, TOKENS)) < 0.6

    def losses(keys: np.ndarray) -> Any:
        found = chunked_info_nce(queries, keys, negatives, 0.2, key_chunk, present=present)
        return np.where(present, found[0], 0), np.where(present, found[1], 0)

    cosines, positive = similarities(unit(queries), unit(keys), negatives)
    exists = {"position": present.T, "image": present[:, None], "batch": present.reshape(-1)}
    logits = np.where(exists[negatives], np.asarray(cosines, float) / 0.2, -np.inf)
    own = np.take_along_axis(logits, np.asarray(positive)[..., None], -1)[..., 0]
    expected = np.log(np.exp(logits).sum(-1)) - own
    loss, agrees = losses(keys)
    np.testing.assert_allclose(loss[present], expected[present], rtol=1e-4)
    nearest = (logits.argmax(-1) == np.asarray(positive))[present]
    assert 0 < nearest.mean() < 1
    np.testing.assert_array_equal(agrees[present], nearest)
    moved = np.where(present[..., None], keys, 7 * keys[::-1, ::-1])
    np.testing.assert_allclose(losses(moved)[0], loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("temperature", "near"), [(1e-3, -1.0), (1e-3, 0.3), (0.01, -1.0), (0.01, 1.0), (10.0, 0.3)]
)
def test_extreme_temperatures(temperature: float, near: float) -> None:
    """At τ = 0.001 logits reach ±1000, while exp(89) already overflows in float32."""
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
    sharded = parallel.put_batch(mesh, (queries, keys))

    def contrast(queries: jax.Array, keys: jax.Array, mesh: Any = mesh) -> Pair:
        return chunked_info_nce(queries, keys, negatives, 0.1, 3, mesh)

    found = differentiated(contrast, *sharded)
    assert_same(found, expected, 1e-5)
    assert_same(found, differentiated(functools.partial(contrast, mesh=None), queries, keys), 1e-6)


@pytest.mark.parametrize(("devices", "key_chunk"), [(1, None), (1, 3), (4, 3)])
@pytest.mark.parametrize("negatives", ["position", "batch"])
def test_a_group_is_a_batch_of_its_own(negatives: str, devices: int, key_chunk: int | None) -> None:
    queries, keys, _ = example(negatives, 0.2, 0.3)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    present = np.random.default_rng(3).random((BATCH, TOKENS)) < 0.7
    options: Any = negatives, 0.2, key_chunk, mesh
    found = jax.jit(lambda *arrays: chunked_info_nce(*arrays[:2], *options, arrays[2], group=4))(
        *parallel.put_batch(mesh, (queries, keys, present))
    )
    for images in (slice(0, 4), slice(4, 8)):
        each = queries[images], keys[images], negatives, 0.2, None, None, present[images]
        for value, expected in zip(found, chunked_info_nce(*each), strict=True):
            compared = present[images]
            np.testing.assert_allclose(value[images][compared], expected[compared], rtol=1e-4)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_the_first_of_equal_keys_counts_as_the_nearest(negatives: str, devices: int) -> None:
    """It does so in `argmax`, and must not depend on the device that holds a key."""
    mesh = parallel.make_mesh(jax.devices()[:devices])
    # Images 2 and 4 are equal. Cosines of one-hot vectors are exact.
    same = np.eye(BATCH, dtype=np.float32)[[0, 1, 2, 3, 2, 5, 6, 7]][:, None].repeat(TOKENS, 1)
    contrast = jax.jit(lambda q, k: chunked_info_nce(q, k, negatives, 0.2, 3, mesh)[1])
    agrees = contrast(*parallel.put_batch(mesh, (same, same)))
    np.testing.assert_array_equal(agrees, plain(same, same, negatives, 0.2)[1])
    assert list(agrees[:, 0]) == [1, 1, 1, 1, float(negatives == "image"), 1, 1, 1]


def temporary_bytes(function: Callable[..., Pair], batch: int, tokens: int, width: int) -> int:
    """Return the temporary memory of loss and gradients, without arguments and results."""

    def total(queries: jax.Array, keys: jax.Array) -> jax.Array:
        return function(queries, keys)[0].sum()

    shape = jax.ShapeDtypeStruct((batch, tokens, width), jnp.float32)
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


# A problem has as many queries as keys, so more keys mean fewer problems.
@pytest.mark.parametrize(
    ("negatives", "few", "many"),
    [
        ("position", (64, 32), (1024, 2)),  # images, tokens: 64 keys and 1024
        ("image", (32, 64), (2, 1024)),
        ("batch", (4, 16), (32, 64)),  # 64 keys and 2048, measured for each query
    ],
)
def test_memory_for_a_query_does_not_grow_with_its_keys(
    negatives: Any, few: tuple[int, int], many: tuple[int, int]
) -> None:
    def growth(function: Callable[..., Pair]) -> float:
        """Return the memory of a query with many keys, relative to that with few."""
        small, large = (temporary_bytes(function, *size, 4) / np.prod(size) for size in (few, many))
        return large / small

    assert growth(lambda q, k: plain(q, k, negatives, 0.2)) > 8
    assert growth(lambda q, k: chunked_info_nce(q, k, negatives, 0.2, 16)) < 1.3


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("negatives", [*NEGATIVES, None])
def test_an_objective_with_chunks_has_the_same_loss(negatives: str | None, devices: int) -> None:
    """C-MAE with these negatives, or MoCo v3, which contrasts class tokens of all images."""
    fields: dict[str, Any] = {"head_hidden": 8, "head_out": WIDTH}
    name = "cmae" if negatives else "mocov3"
    if negatives:
        fields |= {"negatives": negatives, "symmetric": False}
    objective = make(name, **fields)
    z1, z2 = normal(BATCH, TOKENS, WIDTH), normal(BATCH, TOKENS, WIDTH, seed=1)
    z: Any = ((z1, z2),)
    if negatives is None:
        width = objective.setting.encoder.width
        online, target = (
            tuple(normal(BATCH, width, seed=seed + i) for i in range(2)) for seed in (0, 2)
        )
        z = online, target
    params, state = start(objective)
    inputs = params, state, make_batch(images=BATCH), rngs_of(0, BATCH), jnp.int32(0)

    def compared(objective: Any, z: Any) -> Any:
        def loss(z: Any) -> Any:
            net, ctx = forward.bind(objective, *inputs)
            return objective.loss(net, z, (None, None), ctx)  # all tokens exist

        return jax.jit(loss)(z)

    mesh = parallel.make_mesh(jax.devices()[:devices])
    chunked = make(name, key_chunk=3, **fields)
    setting = dataclasses.replace(chunked.setting, mesh=mesh)
    chunked = dataclasses.replace(chunked, setting=setting)
    found, expected = compared(chunked, parallel.put_batch(mesh, z)), compared(objective, z)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    assert set(found.metrics) == set(expected.metrics) == METRICS
    for name, values in expected.metrics.items():
        np.testing.assert_allclose(found.metrics[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_random_keys_agree_by_chance(negatives: str, group: int | None) -> None:
    shape, repeats = (BATCH, TOKENS), 400
    queries, keys = normal(repeats, *shape, WIDTH), normal(repeats, *shape, WIDTH, seed=1)
    present = np.random.default_rng(5).random(shape) < 0.7
    _, agrees = jax.vmap(
        lambda q, k: chunked_info_nce(q, k, negatives, 0.2, present=present, group=group)
    )(queries, keys)
    chance = agreement_by_chance(shape, negatives, jnp.asarray(present), group)
    assert chance.shape == shape
    found, expected = (np.asarray(x)[..., present].mean() for x in (agrees, chance))
    assert found == pytest.approx(expected, rel=0.1)
    count = {"position": group or BATCH, "image": TOKENS, "batch": (group or BATCH) * TOKENS}
    np.testing.assert_allclose(
        agreement_by_chance(shape, negatives, group=group), 1 / count[negatives]
    )


@pytest.mark.parametrize("name", ["cmae", "mocov3"])
def test_an_empty_chunk_is_refused(name: str) -> None:
    with pytest.raises(schema.UserError, match=r"objective\.key_chunk=0, expected a number >= 1"):
        make(name, key_chunk=0)


def test_the_objective_of_a_run_has_the_mesh() -> None:
    """Without it `key_chunk` would gather the keys of all devices, as the plain formula does."""
    fields = ["--config.objective.key_chunk=16", "--config.data.source=digits"]
    run = prepare(schema.resolve(load_config(str(CONFIGS / "cmae.py:smoke"), fields))).assembly
    assert run.objective.setting.mesh == run.mesh and run.mesh.size == 8
    assert run.objective.key_chunk == 16  # type: ignore[attr-defined]
