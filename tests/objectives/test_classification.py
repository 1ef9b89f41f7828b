"""Mixed labels, and what evaluation leaves out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv import schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives.base import Setting, make_objective
from occinv.rng import image_rngs
from occinv.transforms.view import View

IMAGES, CLASSES, SIZE = 6, 4, 8


def classification(drop_path: float = 0.0, **fields: Any) -> Any:
    encoder = schema.Encoder(
        name="micro", patch_size=4, width=16, depth=2, heads=2, drop_path=drop_path
    )
    setting = Setting(vit.make_vit(encoder, SIZE), CLASSES, total_steps=1)
    return make_objective({"name": "classification", **fields}, setting)


def test_a_mixed_image_has_both_labels() -> None:
    objective = classification(mixup=0.8, label_smoothing=0.1)
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(16, CLASSES)).astype("f4")
    tokens = draw.normal(size=(IMAGES, 5, 16)).astype("f4")
    share = draw.random(IMAGES).astype("f4")
    label = np.array([0, 1, 2, 3, 1, 0])
    head = {
        "norm": {"scale": np.ones(16, "f4"), "bias": np.zeros(16, "f4")},
        "linear": {"kernel": kernel, "bias": np.zeros(CLASSES, "f4")},
    }
    view = View(jnp.zeros((IMAGES, SIZE, SIZE, 3)), jnp.ones((IMAGES, 4), bool), 4, share)
    z1 = vit.Features(jnp.asarray(tokens), jnp.zeros(()))
    loss, _ = objective.measure({"head": head}, {}, z1, jnp.asarray(label), view, view)

    pooled = tokens[:, 1:].mean(1).astype("f8")
    pooled = (pooled - pooled.mean(1, keepdims=True)) / pooled.std(1, keepdims=True)
    logits = pooled @ kernel
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for i in range(IMAGES):
        target = np.full(CLASSES, 0.1 / CLASSES)
        target[label[i]] += 0.9 * share[i]
        target[label[IMAGES - 1 - i]] += 0.9 * (1 - share[i])
        assert loss[i] == pytest.approx(-(target * log_probability[i]).sum(), rel=1e-4)


def test_evaluation_draws_nothing() -> None:
    drawn = {"mixup": 0.8, "cutmix": 1.0, "erase": 1.0, "label_smoothing": 0.1}
    objective = classification(drop_path=0.9, **drawn)
    plain = classification(label_smoothing=0.0)
    params, state = objective.init(jax.random.key(0))
    params["head"]["linear"]["kernel"] *= 1e5  # it starts near zero, where nothing shows
    draw = np.random.default_rng(1)
    batch = Batch(
        draw.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8),
        np.arange(IMAGES) % CLASSES,
        np.arange(IMAGES),
        np.ones(IMAGES, np.float32),
    )

    def evaluated(which: Any, step: int) -> dict[str, float]:
        keys = image_rngs(jax.random.key(0), jnp.int32(step), IMAGES)
        return {k: float(v) for k, v in which.evaluate(params, state, batch, keys).items()}

    found = evaluated(objective.for_evaluation, 0)
    assert found == evaluated(objective.for_evaluation, 1)
    assert found == pytest.approx(evaluated(plain, 0), rel=1e-5)
    assert not objective.for_evaluation.couples_batch  # so that the last, padded batch counts
    keys = image_rngs(jax.random.key(0), jnp.int32(0), IMAGES)
    training, _ = objective.loss(params, state, batch, keys, jnp.int32(0))
    assert abs(float(training) - found["loss"] / IMAGES) > 1e-3
