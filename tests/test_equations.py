"""Eqs. 3, 5, 6, 8, 9 and 10 of the paper against loops over images, patches, tokens and values.

The loops are float64 NumPy, written from the paper. They get from the library what the equations
take as given (features z, decoded patches d(z), the views that were drawn), and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv import schema
from occinv.data.batch import Batch
from occinv.data.crop import Crop
from occinv.models import vit
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.rng import image_rngs

PATCH, SIDE, IMAGES = 4, 4, 5
COUNT = SIDE * SIDE
KEPT = COUNT // 4  # mask ratio 0.75
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
DECODER = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
HEADS = {"head_hidden": 12, "head_out": 8}
TOLERANCE = 1e-5
# Compiling is most of the time of these tests, and LLVM's effort most of compiling.


def make(name: str, layer_scale: float | None = None, depth: int = 1, **fields: Any) -> Objective:
    encoder = schema.Encoder(
        name="micro", patch_size=PATCH, width=16, depth=depth, heads=2, layer_scale=layer_scale
    )
    setting = Setting(vit.make_vit(encoder, SIDE * PATCH), num_classes=3, total_steps=100)
    return make_objective({"name": name, **fields}, setting)


def make_batch(images: int = IMAGES, crops: tuple[Crop, ...] = ()) -> Batch:
    rng = np.random.default_rng(0)
    size = SIDE * PATCH
    # Squared, so that patches differ in mean and deviation.
    values = rng.random((images, size, size, 3)) ** 2 * rng.random((images, size, 1, 1)) * 255
    return Batch(
        image=values.astype(np.uint8),
        label=np.zeros(images, np.int32),
        index=np.arange(images, dtype=np.int32),
        weight=np.ones(images, np.float32),
        crops=tuple(
            rng.integers(0, 256, (images, crop.size, crop.size, 3), np.uint8) for crop in crops
        ),
    )


def start(objective: Objective) -> tuple[Any, Any]:
    """Parameters and state with no zeros, ones or copies that would hide what they multiply."""
    rng = np.random.default_rng(1)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        noise = 0.2 * rng.standard_normal(leaf.shape).astype(np.float32)
        return noise + np.float32(path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(objective.init, jax.random.key(0)))


def recording(objective: Objective, views: list[Any]) -> Objective:
    """The same objective; it puts what its T1 and T2 return in `views`, or takes it from there."""

    class Recording(type(objective)):  # type: ignore[misc]
        def transform(self, pixels: Any, keys: Any) -> Any:
            views[:] = views or super().transform(pixels, keys)
            return tuple(views)

    fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    return Recording(**fields)


def run(objective: Objective, rest: Callable[..., Any], *, step: int = 3) -> dict[str, Any]:
    """`terms` of the batch, the views they were computed from, and `rest(params, state, views)`."""
    params, state = start(objective)

    def everything(params: Any, state: Any, batch: Batch) -> dict[str, Any]:
        views: list[Any] = []
        recorder = recording(objective, views)
        keys = image_rngs(jax.random.key(7), jnp.int32(step), IMAGES)
        state = recorder.advance(params, state, jnp.int32(step))
        terms = recorder.terms(params, state, batch, keys)
        return {
            "loss": terms.loss,
            "metrics": terms.metrics,
            "state": terms.state,
            "visible": [view.visible for view in views],
            "rest": rest(params, terms.state, views),
        }

    batch = make_batch(crops=objective.crops)
    found = jax.device_get(jax.jit(everything)(params, state, batch))
    return {**found, "image": batch.image, "params": params, "before": state}


def target_patches(image: np.ndarray, *, per_patch: bool) -> np.ndarray:
    """One uint8 image [H, W, 3] to what the decoder should say of it: [N, p·p·3]."""
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
    """The mean over the patches that count of the mean squared difference of their values."""
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

    def rest(params: Any, state: Any, views: Any) -> Any:
        return objective.decode(params, objective.encode(params, views[0]), views[0])

    found = run(objective, rest)
    visible, decoded = found["visible"][0], found["rest"]
    check_removed_share(visible, KEPT)
    for b in range(IMAGES):
        target = target_patches(found["image"][b], per_patch=per_patch)
        removed = [not seen for seen in visible[b]]
        expected = squared_distance(decoded[b], target, removed)
        assert found["loss"][b] == pytest.approx(expected, rel=TOLERANCE)


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

    def rest(params: Any, state: Any, views: Any) -> Any:
        return [objective.decode(params, objective.encode(params, view), view) for view in views]

    found = run(objective, rest)
    first_visible, second_visible = found["visible"]
    first, second = found["rest"]
    check_removed_share(first_visible, KEPT)
    for b in range(IMAGES):
        target = target_patches(found["image"][b], per_patch=True)
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
        assert found["metrics"]["distance"][b] == pytest.approx(distance, rel=TOLERANCE)
        assert found["metrics"]["constraint"][b] == pytest.approx(constraint, rel=TOLERANCE)
        expected = distance + weight * constraint  # Eq. (8)
        assert found["loss"][b] == pytest.approx(expected, rel=TOLERANCE)
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
    """Two layers with the exact GELU between them."""
    hidden = dense([float(v) for v in x], params["in"])
    hidden = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden]
    return dense(hidden, params["out"])


def cosine(first: list[float], second: list[float]) -> float:
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first)) / math.sqrt(sum(b * b for b in second))


def chosen_tokens(z: np.ndarray, tokens: str) -> list[np.ndarray]:
    """Of [1 + N, D], class token first: what the loss is taken on."""
    z = z.astype(np.float64)
    return {
        "class": [z[0]],
        "patch": list(z[1:]),
        "mean": [sum(z[1:]) / len(z[1:])],
        "patch+class": list(z),
    }[tokens]


def contrast(queries: list, keys: list, fields: dict[str, Any]) -> list[float]:
    """Eq. (9) of each image, from q(p(z1)) and p'(z2) as nested lists [B][T] of vectors."""
    losses = []
    for b in range(len(queries)):
        total = 0.0
        for t, query in enumerate(queries[b]):
            positive = cosine(query, keys[b][t])
            if fields.get("similarity") == "byol":
                total += 2 - 2 * positive
                continue
            temperature = fields.get("temperature", 0.2)
            denominator = 0.0
            for j in range(len(keys)):
                for u in range(len(keys[j])):
                    counts = {"position": u == t, "image": j == b, "batch": True}
                    if counts[fields.get("negatives", "position")]:
                        denominator += math.exp(cosine(query, keys[j][u]) / temperature)
            total += -math.log(math.exp(positive / temperature) / denominator)
        losses.append(total / len(queries[b]))
    return losses


def check_contrast(found: dict[str, Any], fields: dict[str, Any]) -> None:
    tokens = fields.get("tokens", "patch")
    online, target = found["rest"]
    heads, kept_heads = found["params"], found["state"]["target"]

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
    np.testing.assert_allclose(found["loss"], expected, rtol=TOLERANCE)


def run_contrastive(variants: dict[str, dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """All `variants` of one encoder in one program, which then encodes the views only once."""
    objectives = {
        name: make("cmae", momentum=MOMENTUM, **HEADS, **fields, **choice)
        for name, choice in variants.items()
    }
    first = next(iter(objectives.values()))

    params, state = start(first)
    batch = make_batch()

    def everything(params: Any, state: Any) -> Any:
        views: list[Any] = []
        keys = image_rngs(jax.random.key(7), jnp.int32(3), IMAGES)
        state = first.advance(params, state, jnp.int32(3))
        terms = {
            name: recording(objective, views).terms(params, state, batch, keys)
            for name, objective in objectives.items()
        }
        after = terms[next(iter(terms))].state
        return {
            "loss": {name: term.loss for name, term in terms.items()},
            "state": after,
            "visible": [view.visible for view in views],
            "rest": [
                [first.encode(weights, view).tokens for view in views]
                for weights in (params, after["target"])
            ],
        }

    found = jax.device_get(jax.jit(everything)(params, state))
    return {**found, "params": params, "before": state}


@pytest.fixture(scope="module")
def contrastive() -> dict[str, Any]:
    return run_contrastive(CHOICES)


@pytest.fixture(scope="module")
def contrastive_of_dropped_patches() -> dict[str, Any]:
    return run_contrastive(WITHOUT_MASK_TOKEN, mask_token=False)


WITHOUT_MASK_TOKEN = {"mean": {"tokens": "mean"}, "class, BYOL": CHOICES["class, BYOL"]}


@pytest.mark.parametrize("choice", CHOICES)
def test_equations_9_10_cmae(contrastive: dict[str, Any], choice: str) -> None:
    found = {**contrastive, "loss": contrastive["loss"][choice]}
    check_contrast(found, CHOICES[choice])


@pytest.mark.parametrize("choice", WITHOUT_MASK_TOKEN)
def test_equations_9_10_cmae_without_mask_token(
    contrastive_of_dropped_patches: dict[str, Any], choice: str
) -> None:
    shared = contrastive_of_dropped_patches
    online, _ = shared["rest"]
    assert [z.shape[1] for z in online] == [1 + KEPT, 1 + COUNT - KEPT]
    found = {**shared, "loss": shared["loss"][choice]}
    check_contrast(found, WITHOUT_MASK_TOKEN[choice])


def test_equation_6_cmae_halves(contrastive: dict[str, Any]) -> None:
    first, second = contrastive["visible"]
    check_removed_share(first, KEPT)
    for b in range(IMAGES):
        for n in range(COUNT):
            assert bool(first[b, n]) != bool(second[b, n])


def test_the_target_of_cmae_moves_before_the_forward_pass(contrastive: dict[str, Any]) -> None:
    online = {name: contrastive["params"][name] for name in ("encoder", "projector")}
    expected = jax.tree.map(
        lambda old, new: MOMENTUM * old.astype(float) + (1 - MOMENTUM) * new.astype(float),
        contrastive["before"]["target"],
        online,
    )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7),
        contrastive["state"]["target"],
        expected,
    )


# Gradients: the formulation has no stop-gradient but that of C-MAE's target


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mae", DECODER),
        ("rmae", DECODER),
        # A target that stands still: what is left depends on the online branch alone.
        ("cmae", {"momentum": 1.0, **HEADS}),
    ],
    ids=["mae", "rmae", "cmae"],
)
def test_gradient_is_the_slope_of_the_loss(name: str, fields: dict[str, Any]) -> None:
    """A stop-gradient would change the gradient and not the slope; C-MAE's target has one."""
    objective = make(name, **fields)
    params, state = start(objective)
    batch = make_batch()

    def loss(params: Any, state: Any) -> jax.Array:
        keys = image_rngs(jax.random.key(7), jnp.int32(3), IMAGES)
        return objective.loss(params, state, batch, keys, jnp.int32(3))[0]

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    gradient, of_state = jax.device_get(both(params, state)[1])
    assert not any(g.any() for g in jax.tree.leaves(of_state))  # C-MAE's target has no gradient
    # Component by component: f and d each must have all of their slope.
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
