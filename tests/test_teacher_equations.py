"""The losses of objectives that learn from an EMA teacher, against loops in float64.

The loops get what the papers take as given, features of the encoders and the views that were drawn.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
from numpy_vit import erf_gelu, norm, softmax
from test_equations import COUNT, IMAGES, SIDE, make, run, start
from test_token_equations import HEADS, attention, layers, linear, mlp

from occinv.models.position import sincos
from occinv.objectives.ibot import Logits
from occinv.rng import image_rngs
from occinv.schema import UserError
from occinv.transforms.color import Appearance
from occinv.transforms.view import whole

MOMENTUM = 0.6


def standard(x: np.ndarray) -> np.ndarray:
    """Layer norm of one vector without parameters, with PyTorch's epsilon."""
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)


def smooth_l1(first: np.ndarray, second: np.ndarray, beta: float) -> float:
    """The mean over the values of two vectors."""
    terms = []
    for d in np.abs(first - second):
        terms.append(d * d / (2 * beta) if d < beta else d - beta / 2)
    return sum(terms) / len(terms)


def check_teacher(found: dict[str, Any], momentum: float) -> None:
    """The EMA moved by one step toward what it follows."""
    before, after = found["before"]["target"], found["state"]["target"]
    online = {name: found["params"][name] for name in before}

    def check_leaf(old: np.ndarray, online: np.ndarray, new: np.ndarray) -> None:
        expected = momentum * old.astype(float) + (1 - momentum) * online
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)

    jax.tree.map(check_leaf, before, online, after)


def check(found: dict[str, Any], b: int, said: list[Any], truths: list[Any], beta: float) -> None:
    """Loss and metrics of image b, from vectors that were predicted and what they should be."""
    terms, cosines = [], []
    for predicted, truth in zip(said, truths, strict=True):
        terms.append(smooth_l1(predicted, truth, beta))
        cosines.append(predicted @ truth / np.linalg.norm(predicted) / np.linalg.norm(truth))
    assert found["loss"][b] == pytest.approx(np.mean(terms), rel=1e-4)
    metrics = found["metrics"]
    assert metrics["similarity"][b] == pytest.approx(np.mean(cosines), rel=1e-3, abs=1e-4)
    assert metrics["spread"][b] == pytest.approx(np.std(said, 0).mean(), rel=1e-4)


def test_data2vec() -> None:
    beta, last = 0.8, 2
    objective = make(
        "data2vec",
        depth=3,
        mask_ratio=0.375,
        min_rectangle=2,
        target_blocks=last,
        beta=beta,
        momentum=MOMENTUM,
        color=None,
    )

    def rest(params: Any, state: Any, views: Any) -> Any:
        blocks = objective.encode(state["target"], views[1]).blocks
        return objective.encode(params, views[0]).tokens, blocks

    found = run(objective, rest)
    check_teacher(found, MOMENTUM)
    visible, second = found["visible"]
    assert (visible.sum(1) == 10).all() and second.all()
    tokens, blocks = (z.astype(float) for z in found["rest"])
    q = {name: value.astype(float) for name, value in found["params"]["predictor"].items()}
    for b in range(IMAGES):
        said, truths = [], []
        for n in np.flatnonzero(~visible[b]):
            blocks_of = [standard(blocks[k, b, 1 + n]) for k in range(3 - last, 3)]
            truths.append(standard(sum(blocks_of) / last))
            said.append(tokens[b, 1 + n] @ q["kernel"] + q["bias"])
        check(found, b, said, truths, beta)


def predicted(q: Any, context: np.ndarray, shown: np.ndarray, block: np.ndarray) -> np.ndarray:
    """What I-JEPA's predictor says of one block [R] of an image: [R, D]."""
    position = sincos(SIDE, len(q["mask_token"]))[1:].astype(float)
    seen, missing = linear(context, q["embed"]) + position[shown], q["mask_token"] + position[block]
    x = np.concatenate([seen, missing])
    for layer in layers(q["blocks"]["scan"]):
        qkv = linear(norm(x, **layer["norm1"]), layer["attention"]["qkv"])
        mixed = attention(*qkv.reshape(len(x), 3, -1).swapaxes(0, 1))
        x = x + linear(mixed, layer["attention"]["out"])
        x = x + mlp(norm(x, **layer["norm2"]), layer)
    return linear(norm(x[len(shown) :], **q["norm"]), q["predict"])


def test_ijepa() -> None:
    fields = {"predictor_width": 8, "predictor_depth": 2, "predictor_heads": HEADS}
    objective: Any = make("ijepa", target_blocks=2, momentum=MOMENTUM, **fields)
    assert (objective.context_size, objective.target_size) == ((3, 3), (2, 1))

    def rest(params: Any, state: Any, views: Any) -> Any:
        context, image = views
        z1, z2 = objective.encode(params, context), objective.encode(state["target"], image)
        return z1.tokens[:, 1:], z2.tokens[:, 1:], context.blocks

    found = run(objective, rest, step=21)
    check_teacher(found, MOMENTUM + (1 - MOMENTUM) * 20 / 100)
    visible, second = found["visible"]
    assert (visible.sum(1) == 9 - 2 * 2).all() and second.all()
    tokens, features, blocks = found["rest"]
    q = jax.tree.map(lambda leaf: leaf.astype(float), found["params"]["predictor"])
    for b in range(IMAGES):
        said, truths = [], []
        for block in blocks[b]:
            assert not visible[b, block].any()
            said += list(predicted(q, tokens[b].astype(float), np.flatnonzero(visible[b]), block))
            truths += [standard(features[b, n].astype(float)) for n in block]
        check(found, b, said, truths, beta=1.0)


IBOT: dict[str, Any] = {
    "num_prototypes": 6,
    "head_hidden": 12,
    "bottleneck": 8,
    "local_crops": 1,
    "local_size": 8,
    "min_rectangle": 2,
}


def say(head: Any, tokens: np.ndarray) -> np.ndarray:
    """What DINO's head says of tokens [n, D]: [n, prototypes]."""
    x = tokens.astype(float)
    for layer in ("linear0", "linear1"):
        x = erf_gelu(linear(x, head[layer]))
    x = linear(x, head["linear2"])
    prototypes, scale = head["last"]["kernel"].astype(float), head["last"]["scale"].astype(float)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ (prototypes / np.linalg.norm(prototypes, axis=0)) * scale


def surprise(student: np.ndarray, teacher: np.ndarray, center: np.ndarray, heat: float) -> float:
    """-Σ p log q of logits [prototypes]; the student's temperature is 0.1."""
    p, q = softmax((teacher - center) / heat), softmax(student / 0.1)
    return -sum(p[k] * math.log(q[k]) for k in range(len(p)))


def test_ibot(monkeypatch: pytest.MonkeyPatch) -> None:
    # Colors are DINO's, and take longest to compile.
    monkeypatch.setattr(Appearance, "__call__", lambda self, keys, pixels: pixels)
    step, views = 5, 2 + IBOT["local_crops"]
    warm = {"teacher_temperature": 0.07, "warmup": {"steps": 10}}
    objective: Any = make("ibot", momentum=MOMENTUM, **warm, **IBOT)

    def rest(params: Any, state: Any, views: Any) -> Any:
        wholes = [whole(view.pixels, COUNT) for view in views[:2]]
        return [
            [objective.encode(weights, view).tokens for view in seen]
            for weights, seen in ((params, views), (state["target"], wholes))
        ]

    found = run(objective, rest, step=step)
    slow = 1 - (1 - MOMENTUM) * (math.cos(math.pi * (step - 1) / 100) + 1) / 2
    check_teacher(found, slow)
    heat = 0.04 + 0.03 * step / 9
    before, after, visible = found["before"], found["state"], found["visible"]
    centers = {name: before[name].astype(float) for name in ("center", "patch_center")}
    student, teacher = (
        [[say(head, image) for image in view] for view in tokens]
        for head, tokens in zip(
            (found["params"]["head"], after["target"]["head"]), found["rest"], strict=True
        )
    )
    removed = [[np.flatnonzero(~seen) for seen in of_view] for of_view in visible]
    assert {len(ns) > 0 for ns in removed[0] + removed[1]} == {True, False}
    assert (visible[0] != visible[1]).any()  # drawn for each crop by itself
    assert all(seen.all() for seen in visible[2:])
    for b in range(IMAGES):
        of_class = [
            surprise(student[i][b][0], teacher[j][b][0], centers["center"], heat)
            for j in range(2)
            for i in range(views)
            if i != j
        ]
        of_patches = []
        for j in range(2):
            terms = [
                surprise(student[j][b][1 + n], teacher[j][b][1 + n], centers["patch_center"], heat)
                for n in removed[j][b]
            ]
            of_patches.append(sum(terms) / max(1, len(terms)))
        metrics = found["metrics"]
        assert metrics["class_loss"][b] == pytest.approx(np.mean(of_class), rel=1e-4)
        assert metrics["patch_loss"][b] == pytest.approx(np.mean(of_patches), rel=1e-4)
        total = np.mean(of_class) + np.mean(of_patches)
        assert found["loss"][b] == pytest.approx(total, rel=1e-4)
    for name, tokens in (("center", slice(0, 1)), ("patch_center", slice(1, None))):
        seen = np.mean([image[tokens].mean(0) for view in teacher for image in view], 0)
        expected = 0.9 * centers[name] + 0.1 * seen
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-6)


def test_ibots_centers_do_not_move_by_padding() -> None:
    objective: Any = make("ibot", **IBOT)
    draw = np.random.default_rng(0)
    targets = {
        j: Logits(*(draw.random((4, *shape)).astype(np.float32) for shape in ((6,), (COUNT, 6))))
        for j in range(2)
    }
    state = {"center": np.zeros(6, np.float32), "patch_center": np.ones(6, np.float32)}
    moved = objective.observe(state, {}, targets, np.array([1, 0, 1, 0], np.float32))
    real = [Logits(z.of_class[::2], z.of_patches[::2]) for z in targets.values()]
    classes, patches = (
        np.mean([z[k] for z in real], axis=axes) for k, axes in ((0, (0, 1)), (1, (0, 1, 2)))
    )
    np.testing.assert_allclose(moved["center"], 0.1 * classes, rtol=1e-5)
    np.testing.assert_allclose(moved["patch_center"], 0.9 + 0.1 * patches, rtol=1e-5)


def test_what_ibots_student_lacks() -> None:
    objective: Any = make("ibot", mask_ratio=(0.25, 0.75), mask_probability=0.8, **IBOT)
    images = 300
    keys = image_rngs(jax.random.key(0), jax.numpy.int32(0), images)
    pixels = np.zeros((images, 16, 16, 3), np.float32)
    visible = jax.jit(lambda keys: objective.masked(whole(pixels, COUNT), keys).visible)(keys)
    removed = COUNT - np.asarray(visible).sum(1)
    assert abs((removed == 0).mean() - 0.2) < 0.05
    some = removed[removed > 0]
    assert set(some) == set(range(4, 12))
    assert len({row.tobytes() for row in np.asarray(visible)}) > 0.6 * images


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"mask_ratio": (0.5, 0.1)}, "objective.mask_ratio=(0.5, 0.1), expected 0 <= low <= high"),
        ({"mask_ratio": (0.5, 1.0)}, "objective.mask_ratio=(0.5, 1.0), expected 0 <= low <= high"),
        (
            {"mask_probability": 1.5},
            "objective.mask_probability=1.5, expected a number from 0 to 1",
        ),
        ({"local_size": 6}, "objective.local_size=6 is not divisible by encoder.patch_size=4"),
    ],
)
def test_what_ibot_cannot_be(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("ibot", **{**IBOT, **fields})
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ibot", IBOT),
        ("data2vec", {"min_rectangle": 2, "target_blocks": 1}),
        ("ijepa", {"target_blocks": 2, "predictor_width": 8, "predictor_heads": HEADS}),
    ],
)
def test_no_gradient_flows_through_the_teacher(name: str, fields: dict[str, Any]) -> None:
    objective: Any = make(name, **fields)
    params, state = start(objective)
    pixels = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)

    def total(params: Any, state: Any) -> jax.Array:
        z2 = objective.target(params, state, whole(pixels, COUNT), None, None)
        return sum((z * pixels.mean()).sum() + (z**3).sum() for z in jax.tree.leaves(z2))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(params, state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("target_blocks", 2, "objective.target_blocks=2, expected 1 to 1, the blocks of the enc"),
        ("target_blocks", 0, "objective.target_blocks=0, expected 1 to 1, the blocks of the enc"),
        ("beta", 0.0, "objective.beta=0.0, expected a positive number"),
        ("mask_ratio", 1.0, "mask ratio 1.0, expected a number strictly between 0 and 1"),
    ],
)
def test_what_data2vec_cannot_be(field: str, value: float, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("data2vec", **{"target_blocks": 1, field: value})
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"target_blocks": 5}, "objective.target_blocks=5 of 2 × 1 patches in a context of 3 × 3"),
        ({"target_scale": 0.01}, "objective.target_blocks=4 of 0 × 0 patches in a context of 3 ×"),
        ({"target_blocks": 0}, "objective.target_blocks=0, expected more than 0"),
        ({"target_aspect": -1.0}, "objective.target_aspect=-1.0, expected more than 0"),
        ({"predictor_width": 10}, "objective.predictor_width=10, expected a multiple of 4 and of"),
        ({"predictor_heads": 7}, "a multiple of 4 and of objective.predictor_heads=7"),
    ],
)
def test_what_ijepa_cannot_be(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("ijepa", **fields)
    assert complaint in str(error.value)
