"""Linear probes of frozen features: ridge regression, logistic regression, and few-shot."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from occinv.data.identity import pack, rows_in
from occinv.data.selections import per_class
from occinv.data.source import Source
from occinv.evaluators.base import Result, Subject, option
from occinv.evaluators.features import FeatureEvaluator, Labeled
from occinv.schema import Count, Seed, UserError

ALPHAS = tuple(10.0**power for power in range(-3, 7))  # of the ridge, for standardized features
CS = tuple(10.0**power for power in range(-6, 6))  # inverse penalties; DINOv2 tries 45 of them
HELD_OUT = 0.1  # share of the training images that chooses C, as in DINOv2
STEPS = 1000  # of L-BFGS for each C
TOLERANCE = 1e-5  # of the gradient's largest entry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(FeatureEvaluator):
    """Top-1 accuracy of a linear classifier that is fitted to frozen features of training images.

    The penalty is chosen on training images alone. `ridge` regresses the one-hot labels on
    standardized features, as big_vision's few-shot evaluator, and chooses its penalty by
    leave-one-out. `logistic` is multinomial logistic regression on features of length 1, as in
    DINOv2, and chooses its penalty on 10 % of the training images.
    """

    classifier: Literal["ridge", "logistic"] = option(
        "ridge", "Fit a ridge regression in closed form, or a logistic regression."
    )
    shots: Count | None = option(None, "Fit on N images of each class (default: all).")
    seed: Seed = option(0, "Choose the images of few shots from this seed.")

    def check(self, subject: Subject) -> None:
        super().check(subject)
        if self.source is None and (images := subject.open(None)[1]).split == "training":
            raise UserError(
                f"a probe needs validation images, but {images.name} are the training images; give "
                "others with --source, or the same to measure on them all the same"
            )

    def measure(self, subject: Subject, images: Source) -> Result:
        known = self.training_images(subject, images)
        if self.shots is not None:
            known = per_class(known, self.shots, self.seed)
        training, queries = (self.extract(subject, each) for each in (known, images))
        fit = ridge if self.classifier == "ridge" else logistic
        predicted, penalty = fit(training, queries.features)
        hits = predicted == queries.labels
        is_same = max(rows_in(images, known)) >= 0
        made = self.made(subject, known, training) | {"fitted_to_queries": is_same}
        text = (
            f"top-1 {hits.mean():.1%}, chance {1 / len(images.classes):.1%}, {self.classifier} "
            f"regression on {len(training.labels)} training images, {made['token']} token; "
            f"{len(hits)} images" + ", of which it was fitted to some or all" * is_same
        )
        details = {"hits": pack(hits, queries.row, len(images)), "penalty": penalty}
        return Result({"top1": float(hits.mean())}, text, details, made)


def ridge(training: Labeled, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit scikit-learn's RidgeClassifierCV to standardized features.

    Returns:
      The predicted class of each query, int [n], and the chosen penalty.
    """
    from sklearn.linear_model import RidgeClassifierCV

    mean, deviation = training.features.mean(0), training.features.std(0) + 1e-6
    model = RidgeClassifierCV(ALPHAS).fit((training.features - mean) / deviation, training.labels)
    return model.predict((queries - mean) / deviation), float(model.alpha_)


def logistic(training: Labeled, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit multinomial logistic regressions from the strongest penalty to the weakest.

    Returns:
      The predicted class of each query, int [n], and the chosen C.
    """
    draw = np.random.default_rng(0)
    order = draw.permutation(len(training.labels))
    count = max(1, round(HELD_OUT * len(order)))
    held, kept = order[:count], order[count:]
    if not len(kept):
        held = kept = order
    x, y = jnp.asarray(training.features), jnp.asarray(training.labels)
    classes = int(training.labels.max()) + 1
    weights: Any = zeros(x.shape[1], classes)
    accuracy = []
    for c in CS:
        weights = fit_logistic(x[kept], y[kept], c, weights)
        predicted = np.asarray(logits(weights, x[held]).argmax(1))
        accuracy.append(float((predicted == training.labels[held]).mean()))
    best = CS[int(np.argmax(accuracy))]
    weights = fit_logistic(x, y, best, zeros(x.shape[1], classes))
    return np.asarray(logits(weights, jnp.asarray(queries)).argmax(1)), best


def zeros(width: int, classes: int) -> dict[str, jax.Array]:
    """Return the weights of a classifier that prefers no class."""
    return {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}


def logits(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return float32 [n, classes] of features [n, D]."""
    return jnp.matmul(x, weights["kernel"], precision="highest") + weights["bias"]


@functools.partial(jax.jit, donate_argnames="weights")
def fit_logistic(x: jax.Array, y: jax.Array, c: float, weights: Any) -> Any:
    """Minimize Σ cross-entropy + |kernel|² / 2c over n images by L-BFGS, from `weights`.

    Args:
      x, y: float32 [n, D] and int32 [n].
      c: The inverse penalty, as C of scikit-learn's LogisticRegression.
      weights: As `zeros` returns them.
    """

    def loss(weights: Any) -> jax.Array:
        errors = optax.softmax_cross_entropy_with_integer_labels(logits(weights, x), y)
        return errors.mean() + jnp.square(weights["kernel"]).sum() / (2 * c * len(y))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any) -> Any:
        weights, state, number, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        update, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        steepest = jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(gradient)]).max()
        return optax.apply_updates(weights, update), state, number + 1, steepest

    def goes_on(carry: Any) -> jax.Array:
        _, _, number, steepest = carry
        return (number < STEPS) & (steepest > TOLERANCE)

    start = weights, solver.init(weights), jnp.int32(0), jnp.float32(jnp.inf)
    return jax.lax.while_loop(goes_on, step, start)[0]
