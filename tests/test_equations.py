"""Eqs. 3, 5, 6, 8, 9 and 10 of the paper against loops over images, patches, tokens and values.

The loops are float64 NumPy, written from the paper. They get from the library only what the
equations take as given: features z, decoded patches d(z), and the views that were drawn.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import (
    COUNT,
    DECODER,
    HEADS,
    IMAGES,
    KEPT,
    PATCH,
    SIDE,
    Found,
    make,
    make_batch,
    rngs_of,
    run,
    start,
)

from occinv.models.vit import Features
from occinv.objectives import forward
from occinv.transforms.view import View

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
TOLERANCE = 1e-5


def target_patches(image: np.ndarray, *, per_patch: bool) -> np.ndarray:
    """Return the decoder's target patches [N, p·p·3] of one uint8 image [H, W, 3]."""
    patches = []
    for row in range(SIDE):
        for column in range(SIDE):
            values = []
            for y in range(row * PATCH, (row + 1) * PATCH):
                for x in range(column * PATCH, (column + 1) * PATCH):
                    for c in range(3):
                        values.append((float(image[y, x, c]) / 255 - MEAN[c]) / DEVIATION[c])
            if per_patch:
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                values = [(v - mean) / math.sqrt(variance + 1e-6) for v in values]
            patches.append(values)
    return np.array(patches, np.float64)


def squared_distance(first: np.ndarray, second: np.ndarray, counts: list[bool]) -> float:
    """Return the mean squared difference of values, averaged over the patches that count."""
    total, patches = 0.0, 0
    for n, counted in enumerate(counts):
        if counted:
            values = [(float(a) - float(b)) ** 2 for a, b in zip(first[n], second[n], strict=True)]
            total += sum(values) / len(values)
            patches += 1
    return total / patches


def check_removed_share(visible: np.ndarray, kept: int) -> None:
    assert [int(row.sum()) for row in visible] == [kept] * IMAGES


# Eqs. (2), (3): MAE


@pytest.mark.parametrize("per_patch", [True, False])
def test_equation_3_mae(per_patch: bool) -> None:
    objective = make("mae", normalize_target=per_patch, **DECODER)
    found = run(objective, lambda net, views, ctx: net.decode(net.encode(views[0]), views[0]))
    visible, decoded = found.visible[0], found.given
    check_removed_share(visible, KEPT)
    for b in range(IMAGES):
        target = target_patches(found.image[b], per_patch=per_patch)
        removed = [not seen for seen in visible[b]]
        expected = squared_distance(decoded[b], target, removed)
        assert found.loss[b] == pytest.approx(expected, rel=TOLERANCE)


# Eqs. (5), (6), (8): R-MAE

VARIANTS = {
    "complement": {"t2": "complement"},
    "independent": {"t2": "independent"},
    "identity": {"t2": "identity", "constraint_region": "all"},
    "identity, removed": {"t2": "identity", "constraint_region": "removed"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equations_5_6_8_rmae(variant: str) -> None:
    weight = 0.3
    objective = make("rmae", constraint_weight=weight, **VARIANTS[variant], **DECODER)
    found = run(
        objective, lambda net, views, ctx: [net.decode(net.encode(view), view) for view in views]
    )
    first_visible, second_visible = found.visible
    first, second = found.given
    check_removed_share(first_visible, KEPT)
    for b in range(IMAGES):
        target = target_patches(found.image[b], per_patch=True)
        region = []
        for n in range(COUNT):
            removed_by_t1, shown_by_t2 = not first_visible[b, n], bool(second_visible[b, n])
            if variant == "complement":  # Eq. (6)
                assert shown_by_t2 == removed_by_t1
            if variant.startswith("identity"):
                assert shown_by_t2
            region.append(removed_by_t1 and shown_by_t2)
        distance = squared_distance(first[b], second[b], region)  # Eq. (5)
        every = variant == "identity"
        constraint = squared_distance(second[b], target, [True] * COUNT if every else region)
        assert found.metrics["distance"][b] == pytest.approx(distance, rel=TOLERANCE)
        assert found.metrics["constraint"][b] == pytest.approx(constraint, rel=TOLERANCE)
        expected = distance + weight * constraint  # Eq. (8)
        assert found.loss[b] == pytest.approx(expected, rel=TOLERANCE)
    if variant == "independent":
        check_removed_share(second_visible, COUNT - KEPT)


# Eqs. (9), (10), (11): C-MAE

CHOICES = (
    {
        f"{tokens}, {negatives}": {"tokens": tokens, "negatives": negatives}
        for tokens in ("patch", "class", "mean", "patch+class")
        for negatives in ("position", "image", "batch")
        if not (negatives == "image" and tokens in ("class", "mean"))
    }
    | {f"{tokens}, BYOL": {"tokens": tokens, "similarity": "byol"} for tokens in ("patch", "class")}
    | {
        "one way": {"symmetric": False},
        "colder": {"temperature": 0.05, "symmetric": False},
    }
)
MOMENTUM = 0.6


def dense(x: list[float], layer: Any) -> list[float]:
    kernel, bias = np.asarray(layer["kernel"], float), np.asarray(layer["bias"], float)
    return [sum(x[i] * kernel[i, o] for i in range(len(x))) + bias[o] for o in range(len(bias))]


def head(x: np.ndarray, params: Any) -> list[float]:
    """Apply two linear layers with the exact GELU between them."""
    hidden = dense([float(v) for v in x], params["in"])
    hidden = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden]
    return dense(hidden, params["out"])


def cosine(first: list[float], second: list[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first)) / math.sqrt(sum(b * b for b in second))


def chosen_tokens(z: np.ndarray, tokens: str) -> list[np.ndarray]:
    """Return the tokens that the loss is taken on, of [1 + N, D] with the class token first."""
    z = z.astype(np.float64)
    return {
        "class": [z[0]],
        "patch": list(z[1:]),
        "mean": [sum(z[1:]) / len(z[1:])],
        "patch+class": list(z),
    }[tokens]


def contrast(queries: list, keys: list, fields: dict[str, Any]) -> list[float]:
    """Compute Eq. (9) of each image, from q(p(z1)) and p'(z2) as nested lists [B][T] of vectors.

    A token that does not exist is None. The mean is over the tokens that exist on both sides.
    """
    losses = []
    for b in range(len(queries)):
        total, count = 0.0, 0
        for t, query in enumerate(queries[b]):
            if query is None or keys[b][t] is None:
                continue
            count += 1
            positive = cosine(query, keys[b][t])
            if fields.get("similarity") == "byol":
                total += 2 - 2 * positive
                continue
            temperature = fields.get("temperature", 0.2)
            denominator = 0.0
            for j in range(len(keys)):
                for u in range(len(keys[j])):
                    counts = {"position": u == t, "image": j == b, "batch": True}
                    if counts[fields.get("negatives", "position")] and keys[j][u] is not None:
                        denominator += math.exp(cosine(query, keys[j][u]) / temperature)
            total += -math.log(math.exp(positive / temperature) / denominator)
        losses.append(total / count)
    return losses


def check_contrast(found: Found, fields: dict[str, Any]) -> None:
    tokens = fields.get("tokens", "patch")
    online, target = found.given
    heads, kept_heads = found.params, found.state["target"]

    def queries(view: int) -> list:
        return [
            [
                head(np.array(head(z, heads["projector"])), heads["predictor"])
                for z in chosen_tokens(online[view][b], tokens)
            ]
            for b in range(IMAGES)
        ]

    def keys(view: int) -> list:
        return [
            [head(z, kept_heads["projector"]) for z in chosen_tokens(target[view][b], tokens)]
            for b in range(IMAGES)
        ]

    expected = contrast(queries(0), keys(1), fields)
    if fields.get("symmetric", True):
        swapped = contrast(queries(1), keys(0), fields)
        expected = [(a + b) / 2 for a, b in zip(expected, swapped, strict=True)]
    np.testing.assert_allclose(found.loss, expected, rtol=TOLERANCE)


class EncodesOnce:
    """Networks that take the features of a view from `memory`, if these are there already."""

    def __init__(self, net: Any, memory: dict[int, Features]) -> None:
        self.net, self.memory = net, memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def encode(self, view: View, rng: Any = None) -> Features:
        if id(view) not in self.memory:
            self.memory[id(view)] = self.net.encode(view)
        return self.memory[id(view)]


def run_contrastive(variants: dict[str, dict[str, Any]], **fields: Any) -> dict[str, Found]:
    """Compute all `variants` of one encoder in one program, which encodes each view only once."""
    objectives = {
        name: make("cmae", momentum=MOMENTUM, **HEADS, **fields, **choice)
        for name, choice in variants.items()
    }
    first = next(iter(objectives.values()))
    params, before = start(first)
    batch, at = make_batch(), jnp.int32(3)

    def everything(params: Any, state: Any) -> Any:
        state = forward.update_target(first, params, state, at)
        views, _ = forward.represent(first, params, state, batch, rngs_of(), at)
        online: dict[int, Features] = {}
        target: dict[int, Features] = {}
        terms = {}
        for name, objective in objectives.items():
            net, ctx = forward.bind(objective, params, state, batch, rngs_of(), at)
            net = EncodesOnce(net, online)
            ctx = dataclasses.replace(ctx, target=EncodesOnce(ctx.target, target))
            z = objective.features(net, views, ctx)
            terms[name] = objective.loss(net, z, views, ctx)
        encoders = net, ctx.target
        tokens = [[encoder.encode(view).tokens for view in views] for encoder in encoders]
        return terms, state, [view.visible for view in views], tokens

    terms, after, visible, tokens = jax.device_get(jax.jit(everything)(params, before))
    return {
        name: Found(
            loss=term.loss,
            metrics=term.metrics,
            state=after,
            visible=visible,
            given=tokens,
            image=batch.image,
            params=params,
            before=before,
        )
        for name, term in terms.items()
    }


@pytest.fixture(scope="module")
def contrastive() -> dict[str, Found]:
    return run_contrastive(CHOICES)


def test_equation_6_cmae_halves(contrastive: dict[str, Found]) -> None:
    first, second = contrastive["one way"].visible
    check_removed_share(first, KEPT)
    for b in range(IMAGES):
        for n in range(COUNT):
            assert bool(first[b, n]) != bool(second[b, n])


def test_the_target_of_cmae_moves_before_the_forward_pass(contrastive: dict[str, Found]) -> None:
    found = contrastive["one way"]
    online = {name: found.params[name] for name in ("encoder", "projector")}
    expected = jax.tree.map(
        lambda old, new: MOMENTUM * old.astype(float) + (1 - MOMENTUM) * new.astype(float),
        found.before["target"],
        online,
    )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7),
        found.state["target"],
        expected,
    )


# Gradients: the formulation has no stop-gradient except on C-MAE's target


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mae", DECODER),
        ("rmae", DECODER),
        # The target does not move, so the loss depends on the parameters through z1 alone.
        ("cmae", {"momentum": 1.0, **HEADS}),
    ],
    ids=["mae", "rmae", "cmae"],
)
def test_gradient_is_the_slope_of_the_loss(name: str, fields: dict[str, Any]) -> None:
    """A stop-gradient would change the gradient but not the slope. C-MAE's target has one."""
    objective = make(name, **fields)
    params, state = start(objective)
    batch = make_batch()

    def loss(params: Any, state: Any) -> jax.Array:
        return forward.mean_loss(objective, params, state, batch, rngs_of(), jnp.int32(3))[0]

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    gradient, of_state = jax.device_get(both(params, state)[1])
    assert not any(g.any() for g in jax.tree.leaves(of_state))  # C-MAE's target has no gradient
    # Component by component: f and d must each have their whole slope.
    for component in params:
        length = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient[component])))
        step = 2e-2 / length  # along the gradient, so that rounding is small beside the change

        ahead, behind = (
            jax.tree.map(
                lambda p, g, by=sign * step: (p + by * g).astype(np.float32),
                params[component],
                gradient[component],
            )
            for sign in (1, -1)
        )
        rise = both({**params, component: ahead}, state)[0]
        fall = both({**params, component: behind}, state)[0]
        slope = float(rise - fall) / (2 * step * length)
        assert slope == pytest.approx(length, rel=1e-2), component
