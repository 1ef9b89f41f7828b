"""The loss of mixed labels, and evaluation, which draws nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import make, rngs_of

from occinv.data.batch import Batch
from occinv.objectives import forward
from occinv.objectives.base import Context
from occinv.transforms.view import View

IMAGES, CLASSES, SIZE = 6, 4, 8


def classification(drop_path: float = 0.0, **fields: Any) -> Any:
    return make(
        "classification", depth=2, drop_path=drop_path, size=SIZE, num_classes=CLASSES, **fields
    )


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
    net = objective.networks.bind({"params": {"head": head}})
    ctx = Context(rngs_of(0, IMAGES), jnp.int32(0), jnp.asarray(label), jnp.ones(IMAGES), {}, None)
    loss = objective.loss(net, net.head(tokens), (view,), ctx).loss

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
    params, state = forward.init(objective, jax.random.key(0))
    params["head"]["linear"]["kernel"] *= 1e5  # its first values are near 0 and would hide a change
    draw = np.random.default_rng(1)
    batch = Batch(
        draw.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8),
        np.arange(IMAGES) % CLASSES,
        np.arange(IMAGES),
        np.ones(IMAGES, np.float32),
    )

    def evaluated(which: Any, step: int) -> dict[str, float]:
        rng = rngs_of(step, IMAGES, seed=0)
        found = forward.evaluate(which, params, state, batch, rng, jnp.int32(0))
        return {name: float(value.compute()) for name, value in found.items()}

    for_evaluation = forward.for_evaluation(objective)
    found = evaluated(for_evaluation, 0)
    assert found == evaluated(for_evaluation, 1)
    assert found == pytest.approx(evaluated(plain, 0), rel=1e-5)
    assert for_evaluation.couples == "nothing"  # so that the padded last batch counts
    rng = rngs_of(0, IMAGES, seed=0)
    training, _ = forward.mean_loss(objective, params, state, batch, rng, jnp.int32(0))
    assert abs(float(training) - found["loss"]) > 1e-3
