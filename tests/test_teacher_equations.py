"""The losses of objectives that learn from an EMA teacher, against loops in float64.

The loops get what the papers take as given: features of the encoders, and the views drawn.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_vit import erf_gelu, norm, softmax
from small_objectives import COUNT, IMAGES, SIDE, Found, make, make_batch, rngs_of, run, start
from test_token_equations import HEADS, attention, layers, linear, mlp

from occinv.models.position import sincos
from occinv.objectives import forward
from occinv.objectives.base import Context
from occinv.objectives.ibot import Logits
from occinv.schema import UserError
from occinv.transforms.color import Appearance
from occinv.transforms.view import whole

MOMENTUM = 0.6


def standard(x: np.ndarray) -> np.ndarray:
    """Return the layer norm of one vector without parameters, with PyTorch's epsilon."""
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)


def smooth_l1(first: np.ndarray, second: np.ndarray, beta: float) -> float:
    """Return the smoothed L1 distance of two vectors, averaged over their values."""
    terms = []
    for d in np.abs(first - second):
        terms.append(d * d / (2 * beta) if d < beta else d - beta / 2)
    return sum(terms) / len(terms)


def check_teacher(found: Found, momentum: float) -> None:
    """Check that the EMA target moved by one step toward the parameters."""
    before, after = found.before["target"], found.state["target"]
    online = {name: found.params[name] for name in before}

    def check_leaf(old: np.ndarray, online: np.ndarray, new: np.ndarray) -> None:
        expected = momentum * old.astype(float) + (1 - momentum) * online
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)

    jax.tree.map(check_leaf, before, online, after)


def check(found: Found, b: int, predictions: list[Any], targets: list[Any], beta: float) -> None:
    """Check loss and metrics of image b by its predicted vectors and their targets."""
    terms, cosines = [], []
    for predicted, target in zip(predictions, targets, strict=True):
        terms.append(smooth_l1(predicted, target, beta))
        cosines.append(predicted @ target / np.linalg.norm(predicted) / np.linalg.norm(target))
    assert found.loss[b] == pytest.approx(np.mean(terms), rel=1e-4)
    metrics = found.metrics
    assert metrics["similarity"][b] == pytest.approx(np.mean(cosines), rel=1e-3, abs=1e-4)
    assert metrics["spread"][b] == pytest.approx(np.std(predictions, 0).mean(), rel=1e-4)


def test_data2vec() -> None:
    beta, last = 0.8, 2
    objective = make(
        "data2vec",
        depth=3,
        mask_ratio=0.375,
        min_rectangle=2,
        average_top_k=last,
        beta=beta,
        momentum=MOMENTUM,
        color=None,
    )
    found = run(
        objective,
        lambda net, views, ctx: (net.encode(views[0]).tokens, ctx.target.encode(views[1]).blocks),
    )
    check_teacher(found, MOMENTUM)
    visible, second = found.visible
    assert (visible.sum(1) == 10).all() and second.all()
    tokens, blocks = (z.astype(float) for z in found.given)
    q = {name: value.astype(float) for name, value in found.params["predictor"].items()}
    for b in range(IMAGES):
        predictions, targets = [], []
        for n in np.flatnonzero(~visible[b]):
            blocks_of = [standard(blocks[k, b, 1 + n]) for k in range(3 - last, 3)]
            targets.append(standard(sum(blocks_of) / last))
            predictions.append(tokens[b, 1 + n] @ q["kernel"] + q["bias"])
        check(found, b, predictions, targets, beta)


def predict(q: Any, context: np.ndarray, shown: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Return the prediction [R, D] of I-JEPA's predictor for one target rectangle [R]."""
    position = sincos(SIDE, len(q["mask_token"]))[1:].astype(float)
    seen = linear(context, q["embed"]) + position[shown]
    x = np.concatenate([seen, q["mask_token"] + position[patches]])
    for layer in layers(q["blocks"]["scan"]):
        qkv = linear(norm(x, **layer["norm1"]), layer["attention"]["qkv"])
        mixed = attention(*qkv.reshape(len(x), 3, -1).swapaxes(0, 1))
        x = x + linear(mixed, layer["attention"]["out"])
        x = x + mlp(norm(x, **layer["norm2"]), layer)
    return linear(norm(x[len(shown) :], **q["norm"]), q["predict"])


def test_ijepa() -> None:
    fields = {"predictor_width": 8, "predictor_depth": 2, "predictor_heads": HEADS}
    objective = make("ijepa", num_targets=2, momentum=MOMENTUM, **fields)
    assert (objective.context_size, objective.target_size) == ((3, 3), (2, 1))

    def given(net: Any, views: Any, ctx: Context) -> Any:
        context, image = views
        z1, z2 = net.encode(context), ctx.target.encode(image)
        return z1.tokens[:, 1:], z2.tokens[:, 1:], context.targets

    found = run(objective, given, step=21)
    check_teacher(found, MOMENTUM + (1 - MOMENTUM) * 20 / 100)
    visible, second = found.visible
    assert (visible.sum(1) == 9 - 2 * 2).all() and second.all()
    tokens, features, rectangles = found.given
    q = jax.tree.map(lambda leaf: leaf.astype(float), found.params["predictor"])
    for b in range(IMAGES):
        predictions, targets = [], []
        for patches in rectangles[b]:
            assert not visible[b, patches].any()
            shown = np.flatnonzero(visible[b])
            predictions += list(predict(q, tokens[b].astype(float), shown, patches))
            targets += [standard(features[b, n].astype(float)) for n in patches]
        check(found, b, predictions, targets, beta=1.0)


IBOT: dict[str, Any] = {
    "num_prototypes": 6,
    "head_hidden": 12,
    "bottleneck": 8,
    "local_crops": 1,
    "local_size": 8,
    "min_rectangle": 2,
}


def logits_of(head: Any, tokens: np.ndarray) -> np.ndarray:
    """Return the output of DINO's head for tokens [n, D]: [n, prototypes]."""
    x = tokens.astype(float)
    for layer in ("linear0", "linear1"):
        x = erf_gelu(linear(x, head[layer]))
    x = linear(x, head["linear2"])
    prototypes, scale = head["last"]["kernel"].astype(float), head["last"]["scale"].astype(float)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ (prototypes / np.linalg.norm(prototypes, axis=0)) * scale


def distillation(
    student: np.ndarray, teacher: np.ndarray, center: np.ndarray, temperature: float
) -> float:
    """Return -Σ p log q of logits [prototypes]; the student's temperature is 0.1."""
    p, q = softmax((teacher - center) / temperature), softmax(student / 0.1)
    return -sum(p[k] * math.log(q[k]) for k in range(len(p)))


def test_ibot(monkeypatch: pytest.MonkeyPatch) -> None:
    # The augmentation of colors takes longest to compile, and it is the same as DINO's.
    monkeypatch.setattr(Appearance, "__call__", lambda self, rng, pixels: pixels)
    step, views = 5, 2 + IBOT["local_crops"]
    warm = {"teacher_temperature": 0.07, "warmup": {"steps": 10}}
    objective = make("ibot", momentum=MOMENTUM, **warm, **IBOT)

    def given(net: Any, views: Any, ctx: Context) -> Any:
        wholes = [whole(view.pixels, COUNT) for view in views[:2]]
        return [
            [encoder.encode(view).tokens for view in seen]
            for encoder, seen in ((net, views), (ctx.target, wholes))
        ]

    found = run(objective, given, step=step)
    check_teacher(found, 1 - (1 - MOMENTUM) * (math.cos(math.pi * (step - 1) / 100) + 1) / 2)
    temperature = 0.04 + 0.03 * step / 9
    before, after, visible = found.before, found.state, found.visible
    centers = {name: before[name].astype(float) for name in ("center", "patch_center")}
    student, teacher = (
        [[logits_of(head, image) for image in view] for view in tokens]
        for head, tokens in zip(
            (found.params["head"], after["target"]["head"]), found.given, strict=True
        )
    )
    removed = [[np.flatnonzero(~seen) for seen in of_view] for of_view in visible]
    assert {len(ns) > 0 for ns in removed[0] + removed[1]} == {True, False}
    assert (visible[0] != visible[1]).any()  # each crop has its own draw
    assert all(seen.all() for seen in visible[2:])
    for b in range(IMAGES):
        of_class = [
            distillation(student[i][b][0], teacher[j][b][0], centers["center"], temperature)
            for j in range(2)
            for i in range(views)
            if i != j
        ]
        of_patches = []
        for j in range(2):
            terms = [
                distillation(
                    student[j][b][1 + n],
                    teacher[j][b][1 + n],
                    centers["patch_center"],
                    temperature,
                )
                for n in removed[j][b]
            ]
            of_patches.append(sum(terms) / max(1, len(terms)))
        assert found.metrics["class_loss"][b] == pytest.approx(np.mean(of_class), rel=1e-4)
        assert found.metrics["patch_loss"][b] == pytest.approx(np.mean(of_patches), rel=1e-4)
        total = np.mean(of_class) + np.mean(of_patches)
        assert found.loss[b] == pytest.approx(total, rel=1e-4)
    for name, tokens in (("center", slice(0, 1)), ("patch_center", slice(1, None))):
        seen = np.mean([image[tokens].mean(0) for view in teacher for image in view], 0)
        expected = 0.9 * centers[name] + 0.1 * seen
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-6)


def test_padding_does_not_move_ibots_centers() -> None:
    objective = make("ibot", **{**IBOT, "local_crops": 0})
    draw = np.random.default_rng(0)
    teacher = [
        Logits(*(draw.random((4, *shape)).astype(np.float32) for shape in ((6,), (COUNT, 6))))
        for _ in range(2)
    ]
    state = {"center": np.zeros(6, np.float32), "patch_center": np.ones(6, np.float32)}
    weight = np.array([1, 0, 1, 0], np.float32)
    ctx = Context(rngs_of(0, 4), jnp.int32(0), np.zeros(4, np.int32), weight, state, None)
    views = (whole(np.zeros((4, 16, 16, 3), np.float32), COUNT),) * 2
    moved = objective.loss(None, (teacher, teacher), views, ctx).state
    real = [Logits(z.of_class[::2], z.of_patches[::2]) for z in teacher]
    classes, patches = (
        np.mean([z[k] for z in real], axis=axes) for k, axes in ((0, (0, 1)), (1, (0, 1, 2)))
    )
    np.testing.assert_allclose(moved["center"], 0.1 * classes, rtol=1e-5)
    np.testing.assert_allclose(moved["patch_center"], 0.9 + 0.1 * patches, rtol=1e-5)


def test_which_patches_ibot_removes() -> None:
    objective = make("ibot", mask_ratio=(0.25, 0.75), mask_probability=0.8, **IBOT)
    images = 300
    pixels = np.zeros((images, 16, 16, 3), np.float32)
    draw = jax.jit(lambda rng: objective.masked(whole(pixels, COUNT), rng).visible)
    visible = np.asarray(draw(rngs_of(0, images, seed=0)))
    removed = COUNT - visible.sum(1)
    assert abs((removed == 0).mean() - 0.2) < 0.05
    some = removed[removed > 0]
    assert set(some) == set(range(4, 12))
    assert len({row.tobytes() for row in visible}) > 0.6 * images


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"mask_ratio": (0.5, 0.1)}, "objective.mask_ratio=(0.5, 0.1), expected 0 <= low <= high"),
        ({"mask_ratio": (0.5, 1.0)}, "objective.mask_ratio[1]=1.0, expected a number < 1"),
        (
            {"mask_probability": 1.5},
            "objective.mask_probability=1.5, expected a number <= 1",
        ),
        ({"local_size": 6}, "objective.local_size=6 is not divisible by encoder.patch_size=4"),
    ],
)
def test_ibot_refuses_impossible_fields(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("ibot", **{**IBOT, **fields})
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ibot", IBOT),
        ("msn", {"num_prototypes": 6, "focal_crops": 1, "focal_size": 8}),
        ("data2vec", {"min_rectangle": 2, "average_top_k": 1}),
        ("ijepa", {"num_targets": 2, "predictor_width": 8, "predictor_heads": HEADS}),
    ],
)
def test_no_gradient_flows_through_the_teacher(name: str, fields: dict[str, Any]) -> None:
    """Neither to the parameters nor to the EMA target itself."""
    objective = make(name, **fields)
    params, state = start(objective)
    batch, at = make_batch(objective), jnp.int32(3)

    def total(params: Any, state: Any) -> jax.Array:
        _, (_, z2) = forward.represent(objective, params, state, batch, rngs_of(), at)
        return sum((z * 0.5).sum() + (z**3).sum() for z in jax.tree.leaves(z2))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(params, state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("average_top_k", 2, "objective.average_top_k=2, expected 1 to 1, the number of the enc"),
        ("average_top_k", 0, "objective.average_top_k=0, expected a number >= 1"),
        ("beta", 0.0, "objective.beta=0.0, expected a number > 0"),
        ("mask_ratio", 1.0, "objective.mask_ratio=1.0, expected a number < 1"),
    ],
)
def test_data2vec_refuses_impossible_fields(field: str, value: float, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("data2vec", **{"average_top_k": 1, field: value})
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_targets": 5}, "objective.num_targets=5 of 2 × 1 patches leave nothing of a context"),
        ({"target_scale": 0.01}, "objective.num_targets=4 of 0 × 0 patches leave nothing of a con"),
        ({"num_targets": 0}, "objective.num_targets=0, expected a number >= 1"),
        ({"target_aspect": -1.0}, "objective.target_aspect=-1.0, expected a number > 0"),
        ({"predictor_width": 10}, "objective.predictor_width=10, expected a multiple of 4 and of"),
        ({"predictor_heads": 7}, "a multiple of 4 and of objective.predictor_heads=7"),
    ],
)
def test_ijepa_refuses_impossible_fields(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("ijepa", **fields)
    assert complaint in str(error.value)
