"""MSN's loss against a loop in float64, which follows Eqs. (1) and (2) of the paper.

The loop gets the class tokens of the encoders.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_vit import erf_gelu, softmax
from small_objectives import COUNT, IMAGES, make, make_batch, rngs_of, run, start
from test_teacher_equations import MOMENTUM, check_teacher
from test_token_equations import linear

from occinv.objectives import forward
from occinv.objectives.base import Context, Terms
from occinv.objectives.msn import MSN
from occinv.schema import UserError
from occinv.transforms.color import Appearance, ColorJitter

FIELDS: dict[str, Any] = {
    "mask_ratio": 0.25,
    "focal_crops": 2,
    "focal_size": 8,
    "num_prototypes": 6,
    "head_hidden": 12,
    "head_out": 8,
    # Not the defaults, so that a factor of 1 hides nothing.
    "temperature": 0.15,
    "sharpening": 0.4,
    "me_max_weight": 0.7,
}


def project(head: Any, tokens: np.ndarray) -> np.ndarray:
    """Return p of tokens [n, D], whose batch norm sees these n and no others: [n, out]."""
    x = tokens.astype(float)
    for layer in ("0", "1"):
        x = x @ head[f"linear{layer}"]["kernel"]
        x = (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-5)
        x = erf_gelu(x * head[f"norm{layer}"]["scale"] + head[f"norm{layer}"]["bias"])
    return linear(x, head["linear2"])


def assign(vectors: np.ndarray, prototypes: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities of prototypes [D, K] for vectors [n, D]: [n, K]."""
    rows = []
    for vector in vectors:
        lengths = np.linalg.norm(prototypes, axis=0) * np.linalg.norm(vector)
        rows.append(softmax(vector @ prototypes / lengths / temperature))
    return np.array(rows)


def balance(q: np.ndarray) -> np.ndarray:
    """Return q [B, K] after three iterations of Sinkhorn-Knopp."""
    q = q / q.sum()
    for _ in range(3):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for b in range(len(q)):
            q[b] /= q[b].sum() * len(q)
    return q * len(q)


def targets_of(objective: MSN, head: Any, tokens: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Return the sharpened targets [B, K] of tokens [B, D]."""
    q = assign(project(head, tokens), prototypes, objective.temperature)
    q = q ** (1 / objective.sharpening)
    q = q / q.sum(1, keepdims=True)
    return balance(q) if objective.sinkhorn else q


def msn(
    objective: MSN, head: Any, anchors: list[np.ndarray], prototypes: np.ndarray, q: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the cross-entropies [B] with targets q, and the me-max term.

    `anchors` are tokens [B, V, D], those of one size together.
    """
    losses, predictions = np.zeros(len(q)), []
    for tokens in anchors:
        flat = project(head, tokens.reshape(-1, tokens.shape[-1]))
        predictions.append(
            assign(flat, prototypes, objective.temperature).reshape(*tokens.shape[:2], -1)
        )
    p = np.concatenate(predictions, 1)
    mean = np.zeros(p.shape[2])
    for b in range(p.shape[0]):
        for v in range(p.shape[1]):
            losses[b] -= sum(q[b] * np.log(p[b, v])) / p.shape[1]
            mean += p[b, v] / p.shape[0] / p.shape[1]
    return losses, math.log(len(mean)) + sum(mean * np.log(mean))


@pytest.mark.parametrize("sinkhorn", [True, False])
def test_msn(monkeypatch: pytest.MonkeyPatch, sinkhorn: bool) -> None:
    # The augmentation of colors takes longest to compile.
    monkeypatch.setattr(Appearance, "__call__", lambda self, rng, pixels: pixels)
    objective, step = make("msn", momentum=MOMENTUM, sinkhorn=sinkhorn, **FIELDS), 21

    def given(net: Any, views: Any, ctx: Context) -> Any:
        *anchors, target = views
        tokens = [net.encode(view).tokens[:, 0] for view in anchors]
        return tokens, ctx.target.encode(target).tokens[:, 0], [view.pixels for view in views]

    found = run(objective, given, step=step)
    check_teacher(found, MOMENTUM + (1 - MOMENTUM) * (step - 1) / 100)
    tokens, target, pixels = found.given
    batch = make_batch(objective)
    for shown, image in zip(pixels, (batch.image, *batch.crops), strict=True):
        np.testing.assert_allclose(shown, image / 255, atol=1e-6)
    large, *others = found.visible
    assert (large.sum(1) == COUNT * 3 // 4).all() and all(seen.all() for seen in others)
    assert len({row.tobytes() for row in large}) == IMAGES

    prototypes = found.params["prototypes"]["prototypes"].astype(float)
    q = targets_of(objective, found.state["target"]["head"], target, prototypes)
    groups = [tokens[0][:, None], np.stack(tokens[1:], 1)]
    losses, gap = msn(objective, found.params["head"], groups, prototypes, q)
    assert gap > 0.01
    np.testing.assert_allclose(found.metrics["cross_entropy"], losses, rtol=1e-4)
    np.testing.assert_allclose(found.metrics["me_max"], [gap] * IMAGES, rtol=1e-3)
    np.testing.assert_allclose(found.loss, losses + 0.7 * gap, rtol=1e-4)
    entropy = [-sum(row * np.log(row)) for row in q]
    np.testing.assert_allclose(found.metrics["teacher_entropy"], entropy, rtol=1e-3)


def given_tokens(objective: MSN) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw class tokens of the anchors, by size, and of the target."""
    draw, width = np.random.default_rng(2), objective.setting.encoder.width
    shapes = (IMAGES, 1, width), (IMAGES, objective.focal_crops, width), (IMAGES, width)
    first, focal, target = (draw.standard_normal(shape).astype(np.float32) for shape in shapes)
    return [first, focal], target


def loss_of_tokens(
    objective: MSN, params: Any, state: Any, z: Any, weight: np.ndarray | None = None
) -> Terms:
    """Return the loss of class tokens; an image of the batch has weight 1, unless given."""
    batch = make_batch(images=len(z[1]))
    if weight is not None:
        batch = batch.replace(weight=weight)
    net, ctx = forward.bind(objective, params, state, batch, rngs_of(3, len(z[1])), jnp.int32(3))
    return objective.loss(net, z, (), ctx)


def test_msns_prototypes_and_projector_learn_from_the_anchors_alone() -> None:
    objective = make("msn", **FIELDS)
    (params, state), z = start(objective), given_tokens(objective)

    def total(params: Any, state: Any) -> jax.Array:
        return loss_of_tokens(objective, params, state, z).loss.mean()

    of_params, of_state = jax.jit(jax.grad(total, argnums=(0, 1)))(params, state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_state))
    anchors, target = z
    prototypes = params["prototypes"]["prototypes"].astype(float)
    q = targets_of(objective, state["target"]["head"], target, prototypes)
    expected, size = np.zeros(prototypes.shape), 1e-5
    for place in np.ndindex(*prototypes.shape):
        around = []
        for change in (size, -size):
            moved = prototypes.copy()
            moved[place] += change
            losses, gap = msn(objective, params["head"], anchors, moved, q)
            around.append(losses.mean() + 0.7 * gap)
        expected[place] = (around[0] - around[1]) / (2 * size)
    found = of_params["prototypes"]["prototypes"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_msn_counts_an_image_by_its_weight_and_padding_not_at_all() -> None:
    objective = make("msn", **FIELDS)
    (params, state), z = start(objective), given_tokens(objective)
    weight = np.array([2, 0, 1, 1, 0], np.float32)
    alone = jax.tree.map(lambda tokens: tokens[np.array([0, 0, 2, 3])], z)
    padded, real = (
        jax.jit(lambda z, weight=w: loss_of_tokens(objective, params, state, z, weight))(tokens)
        for tokens, w in ((z, weight), (alone, None))
    )
    for found, expected in (
        (padded.loss, real.loss),
        *zip(padded.metrics.values(), real.metrics.values(), strict=True),
    ):
        np.testing.assert_allclose(found[np.array([0, 0, 2, 3])], expected, rtol=1e-4)


def test_msn_without_focal_crops() -> None:
    objective = make("msn", **{**FIELDS, "focal_crops": 0})
    assert [crop.size for crop in objective.crops] == [16]
    shapes = jax.eval_shape(
        lambda *state: forward.terms_of(
            objective, *state, make_batch(objective), rngs_of(), jnp.int32(0)
        ),
        *start(objective),
    )
    assert shapes.loss.shape == (IMAGES,)


def test_msns_crops_share_one_augmentation() -> None:
    objective = make("msn", **FIELDS)
    jitter = (0.4, 0.4, 0.4, 0.1, 0.8, 0.2)
    assert dataclasses.astuple(objective.appearance) == (jitter, 0.5, 0.0, (0.1, 2.0))
    assert objective.appearance.color == ColorJitter()


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("mask_ratio", 1.0, "objective.mask_ratio=1.0, expected a number < 1"),
        ("focal_size", 6, "objective.focal_size=6 is not divisible by encoder.patch_size=4"),
        ("temperature", 0.0, "objective.temperature=0.0, expected a number >= 0.0001"),
        ("sharpening", 0.0, "objective.sharpening=0.0, expected a number >= 0.0001"),
        ("me_max_weight", -1.0, "objective.me_max_weight=-1.0, expected a number >= 0"),
    ],
)
def test_msn_refuses_impossible_fields(field: str, value: float, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("msn", **{**FIELDS, field: value})
    assert complaint in str(error.value)
