"""Each update rule against its paper's equations in float64, with stacked and with split blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from occinv import schema
from occinv.models.blocks import fill_blocks, join_blocks, split_blocks
from occinv.train.checkpoints import Checkpoints
from occinv.train.optimizer import make_optimizer
from occinv.train.start_state import has_moments, reset_count

Array = np.ndarray[Any, Any]
RATES = [0.1, 0.2, 0.05]
NAMES = ["adamw", "lars", "lamb", "lion", "adafactor", "muon"]
CONFIG = schema.Optimizer(weight_decay=0.3, betas=(0.8, 0.5), momentum=0.7, trust_coefficient=0.01)


@pytest.fixture(autouse=True)
def optax_promotes() -> Any:
    """Optax's own arithmetic promotes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def draws(seed: int) -> Any:
    """Two blocks, and parameters outside of them. Adafactor factors `out` alone."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return draw.normal(size=shape).astype(np.float32)

    out = {"kernel": normal(2, 33, 32), "bias": normal(2, 32)}
    blocks = {"attention": {"qkv": {"kernel": normal(2, 4, 12)}}, "out": out}
    blocks["out"]["kernel"][1] *= 3  # blocks differ in their norms
    tables, token = normal(2, 5, 4), normal(4)
    return {
        "encoder": {"blocks": {"scan": blocks}, "relative_position": tables, "class_token": token},
        "head": {"kernel": normal(5, 3), "bias": normal(3)},
    }


def arrays(tree: Any) -> dict[str, Array]:
    """The array of each parameter of each block, by name."""
    leaves = jax.tree.leaves_with_path(split_blocks(tree))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    tables = named.pop("encoder/relative_position")
    named |= {f"encoder/relative_position/{i}": table for i, table in enumerate(tables)}
    return {name: np.asarray(x, np.float64) for name, x in named.items()}


def adam(w: Array, gradients: list[Array], config: schema.Optimizer, epsilon: float = 1e-8) -> Any:
    """Kingma and Ba 2015, Algorithm 1: the direction of each step."""
    b1, b2 = config.betas
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        yield (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)


def lion(w: Array, gradients: list[Array], config: schema.Optimizer) -> Any:
    """Chen et al. 2023, Algorithm 2."""
    b1, b2 = config.betas
    m = np.zeros_like(w)
    for g in gradients:
        yield np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g


def adafactor(w: Array, gradients: list[Array], config: schema.Optimizer) -> Any:
    """Shazeer and Stern 2018, Algorithm 4, with the β of Zhai et al. 2022."""
    b1, limit = config.betas
    m, v, rows, columns = np.zeros_like(w), np.zeros_like(w), 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        beta, square = min(limit, 1 - t**-0.8), g**2 + 1e-30
        if min(w.shape) >= 32 and w.ndim == 2:
            rows = beta * rows + (1 - beta) * square.sum(1)
            columns = beta * columns + (1 - beta) * square.sum(0)
            v = np.outer(rows, columns) / rows.sum()
        else:
            v = beta * v + (1 - beta) * square
        m = b1 * m + (1 - b1) * g / np.sqrt(v)
        yield m


def muon(w: Array, gradients: list[Array], config: schema.Optimizer) -> Any:
    """Jordan et al. 2024: five Newton-Schulz steps, each a polynomial of the singular values."""
    mu, m = config.momentum, np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m = mu * m + (1 - mu) * g
        nesterov = mu * m / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t)
        u, s, v = np.linalg.svd(nesterov, full_matrices=False)
        s /= np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        yield 0.2 * np.sqrt(max(w.shape)) * u * s @ v


def expected(name: str, path: str, gradients: list[Array], config: schema.Optimizer) -> Array:
    """The weights of one array after three steps."""
    w = arrays(draws(0))[path]
    is_matrix = "kernel" in path or "relative_position" in path
    is_decayed = is_matrix or ("class_token" in path and name != "lars")
    decay = config.weight_decay * is_decayed
    if name == "muon" and "/qkv/" in path:
        thirds = zip(*(np.split(g, 3, axis=1) for g in gradients), strict=True)
        shape = np.empty((4, 4))
        parts = zip(*(muon(shape, list(third), config) for third in thirds), strict=True)
        directions: Any = map(np.hstack, parts)
    elif name == "muon" and "scan" in path and is_matrix:
        directions = muon(w, gradients, config)
    elif name in ("lion", "adafactor"):
        directions = {"lion": lion, "adafactor": adafactor}[name](w, gradients, config)
    else:
        directions = adam(w, gradients, config, 1e-6 if name == "lamb" else 1e-8)
    velocity = 0.0
    for rate, gradient, direction in zip(RATES, gradients, directions, strict=True):
        if name == "lars":  # You et al. 2017, Algorithm 1; weight decay and ratio of matrices only
            direction = gradient + decay * w
            if is_matrix:
                direction *= 0.01 * np.linalg.norm(w) / np.linalg.norm(direction)
            velocity = direction = config.momentum * velocity + direction
            w = w - rate * direction
            continue
        direction = direction + decay * w / (max(RATES) if config.independent_decay else 1)
        if name == "lamb" and is_decayed:  # You et al. 2020, Algorithm 2, with φ(z) = z
            direction *= np.linalg.norm(w) / np.linalg.norm(direction)
        w = w - rate * direction
    return w


@pytest.mark.parametrize("is_split", [False, True], ids=["stacked", "split"])
@pytest.mark.parametrize("name", [*NAMES, "adamw, independent decay"])
def test_three_steps_of_each_rule(name: str, is_split: bool) -> None:
    name, *more = name.split(", ")
    config = dataclasses.replace(CONFIG, name=name, independent_decay=bool(more))
    rates = jnp.array(RATES)
    rule = make_optimizer(config, lambda step: rates[step], peak=max(RATES))
    form = split_blocks if is_split else lambda tree: tree
    step, current = jax.jit(rule.update), form(jax.tree.map(jnp.asarray, draws(0)))
    gradients = [draws(seed) for seed in (1, 2, 3)]
    state = rule.init(current)
    for gradient in gradients:
        updates, state = step(form(gradient), state, current)
        current = optax.apply_updates(current, updates)
    found, given = arrays(join_blocks(current)), [arrays(gradient) for gradient in gradients]
    for path, w in found.items():
        theirs = expected(name, path, [gradient[path] for gradient in given], config)
        np.testing.assert_allclose(w, theirs, rtol=1e-4, atol=2e-5, err_msg=path)


@pytest.fixture(scope="module")
def states() -> dict[str, Any]:
    """A state of each optimizer with a first moment in bfloat16, filled with numbers."""
    draw = np.random.default_rng(0)

    def some(x: Any) -> Array:
        return draw.integers(1, 100, x.shape).astype(x.dtype)

    with jax.numpy_dtype_promotion("standard"):
        rules = {
            name: make_optimizer(
                dataclasses.replace(CONFIG, name=name, first_moment="bfloat16"), jnp.float32
            )
            for name in NAMES
        }
        shapes = {name: jax.eval_shape(rule.init, draws(0)) for name, rule in rules.items()}
        split = {
            name: jax.eval_shape(rule.init, split_blocks(draws(0))) for name, rule in rules.items()
        }
    return {name: (jax.tree.map(some, shapes[name]), split[name]) for name in NAMES}


def test_states_are_split_and_joined_and_saved(states: dict[str, Any], tmp_path: Path) -> None:
    stacked = {name: state for name, (state, _) in states.items()}
    for name, (state, split) in states.items():
        filled = fill_blocks(split, state)
        assert jax.tree.map(jnp.shape, filled) == jax.tree.map(jnp.shape, split), name
        jax.tree.map(np.testing.assert_array_equal, join_blocks(filled), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, stacked)
        checkpoints.wait()
        _, restored = checkpoints.restore(stacked)
    assert jax.tree.structure(restored) == jax.tree.structure(stacked)
    for old, new in zip(jax.tree.leaves(stacked), jax.tree.leaves(restored), strict=True):
        assert old.dtype == new.dtype and old.tobytes() == new.tobytes()


def test_the_first_moment_alone_is_bfloat16(states: dict[str, Any]) -> None:
    count = sum(x.size for x in jax.tree.leaves(draws(0)))
    for name, (state, _) in states.items():
        halves = [x.size for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16]
        assert sum(halves) == count, name
        others = {str(x.dtype) for x in jax.tree.leaves(state)} - {"bfloat16"}
        assert others <= {"float32", "int32"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lamb", optax.ScaleByAdamState),
        ("adafactor", optax.FactoredState),
        ("muon", optax.contrib.MuonState),
    ],
)
def test_the_start_from_a_state_keeps_the_number_of_updates_of_moments(
    states: dict[str, Any], name: str, kind: Any
) -> None:
    reset = jax.tree.map(reset_count, states[name][0], is_leaf=has_moments)
    parts = jax.tree.leaves(reset, is_leaf=lambda part: isinstance(part, kind))
    counts = [part.count for part in parts if isinstance(part, kind)]
    assert counts and all(np.all(count > 0) for count in counts)
