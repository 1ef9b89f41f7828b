"""Linear probes against scikit-learn and closed forms in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from example_models import at_most_by_chance, noise_images, save_run
from sklearn.linear_model import LogisticRegression

from occinv.data.identity import unpack
from occinv.data.open_source import open_source
from occinv.evaluate import evaluate
from occinv.evaluators import probe as module
from occinv.evaluators.base import Record
from occinv.evaluators.features import Labeled
from occinv.evaluators.probe import ALPHAS, CS, fit_logistic, logistic, logits, ridge, zeros
from occinv.schema import UserError

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

MAE = {"name": "mae", "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
CLASSES, WIDTH = 4, 6
Fit = Callable[[Labeled, np.ndarray, int], tuple[np.ndarray, float]]


def labeled(seed: int, count: int = 80, noise: float = 1.0) -> Labeled:
    """Noisy clusters of four classes on the unit sphere, not balanced."""
    draw = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    labels = draw.choice(CLASSES, count, p=[0.4, 0.3, 0.2, 0.1]).astype(np.int32)
    features = centers[labels] + noise * draw.normal(size=(count, WIDTH))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Labeled(features.astype(np.float32), labels, np.arange(count))


@pytest.mark.parametrize("c", [0.01, 1.0, 10.0])
def test_logistic_regression_is_that_of_scikit_learn(c: float) -> None:
    training, queries = labeled(1), labeled(2)
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
    theirs.fit(training.features.astype(np.float64), training.labels)
    weights = fit_logistic(
        jnp.asarray(training.features), jnp.asarray(training.labels), c, zeros(WIDTH, CLASSES)
    )
    np.testing.assert_allclose(weights["kernel"], theirs.coef_.T, atol=3e-3)
    bias = np.asarray(weights["bias"])
    np.testing.assert_allclose(
        bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=3e-3
    )
    found = np.asarray(logits(weights, jnp.asarray(queries.features))).argmax(1)
    np.testing.assert_array_equal(found, theirs.predict(queries.features))
    assert abs(theirs.coef_).max() > 1e-2


def test_the_start_of_logistic_regression_does_not_matter() -> None:
    x, y = (jnp.asarray(each) for each in labeled(1)[:2])
    far = {"kernel": jnp.full((WIDTH, CLASSES), 3.0), "bias": jnp.arange(4.0)}
    first, second = (fit_logistic(x, y, 1.0, start) for start in (zeros(WIDTH, CLASSES), far))
    np.testing.assert_allclose(first["kernel"], second["kernel"], atol=3e-3)


def held_out_accuracy(training: Labeled, c: float) -> float:
    """The accuracy of scikit-learn on the tenth of the images that chooses C."""
    order = np.random.default_rng(0).permutation(len(training.labels))
    count = round(0.1 * len(order))
    held, kept = order[:count], order[count:]
    x, y = training.features.astype(np.float64), training.labels
    fitted = LogisticRegression(C=c, tol=1e-6, max_iter=10_000).fit(x[kept], y[kept])
    return fitted.score(x[held], y[held])


def test_logistic_chooses_c_on_training_images_that_it_was_not_fitted_to() -> None:
    training, queries = labeled(3, count=200, noise=2.0), labeled(4, noise=2.0)
    predicted, c = logistic(training, queries.features)
    accuracy = [held_out_accuracy(training, each) for each in CS]
    assert c == CS[int(np.argmax(accuracy))]
    assert len(set(accuracy)) > 2
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
    theirs.fit(training.features.astype(np.float64), training.labels)  # on all of them
    np.testing.assert_array_equal(predicted, theirs.predict(queries.features))


def closed_form(x: np.ndarray, labels: np.ndarray, queries: np.ndarray, alpha: float) -> np.ndarray:
    """The outputs of a ridge regression of ±1 targets with an intercept, in float64."""
    targets = np.where(labels[:, None] == np.arange(CLASSES), 1.0, -1.0)
    center, mean = x.mean(0), targets.mean(0)
    a = (x - center).T @ (x - center) + alpha * np.eye(x.shape[1])
    weights = np.linalg.solve(a, (x - center).T @ (targets - mean))
    return (queries - center) @ weights + mean


def test_ridge_is_the_closed_form_at_the_best_penalty_of_leave_one_out() -> None:
    training, queries = labeled(1, noise=3.0), labeled(2, noise=3.0)
    predicted, alpha = ridge(training, queries.features)
    x = training.features.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, y = (x - mean) / deviation, training.labels
    targets = np.where(y[:, None] == np.arange(CLASSES), 1.0, -1.0)
    errors = []
    for each in ALPHAS:
        squared = [
            (closed_form(np.delete(x, i, 0), np.delete(y, i), x[i : i + 1], each) - targets[i]) ** 2
            for i in range(len(y))
        ]
        errors.append(np.mean(squared))
    assert alpha == ALPHAS[int(np.argmin(errors))]
    assert 0 < int(np.argmin(errors)) < len(ALPHAS) - 1
    expected = closed_form(x, y, (queries.features - mean) / deviation, alpha).argmax(1)
    np.testing.assert_array_equal(predicted, expected)
    accuracy = (predicted == queries.labels).mean()
    assert 0.3 < accuracy < 0.95


@pytest.mark.parametrize("fit", [ridge, logistic])
def test_the_penalty_and_each_prediction_do_not_depend_on_the_queries(fit: Fit) -> None:
    training, queries = labeled(1), labeled(2).features
    predicted, penalty = fit(training, queries)
    others = np.concatenate([queries[:3], 100 + queries[3:20]])
    again, same = fit(training, others)
    assert same == penalty
    np.testing.assert_array_equal(again[:3], predicted[:3])


# Runs.


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of random pixels in a part for training and a part for validation."""
    folder = tmp_path_factory.mktemp("data")
    noise_images(folder / "train", seed=0)
    noise_images(folder / "val", seed=1)
    return folder


@pytest.fixture(scope="module")
def workdir(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run") / "mae", MAE, source=f"folder:{noise}")


def measured(workdir: Path, **options: Any) -> Record:
    (found,) = evaluate("probe", [workdir], **{"batch_size": 16, **options})
    return found.record


def top1(record: Record) -> float:
    assert record.values["top1"] is not None
    return record.values["top1"]


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_labels_of_noise_can_only_be_guessed(workdir: Path, classifier: str) -> None:
    record = measured(workdir, classifier=classifier)
    assert (record.images.split, record.images.count) == ("validation", 60)
    assert top1(record) <= at_most_by_chance(1 / 3, 60)
    assert top1(record) == unpack(record.details["hits"]).mean()
    assert record.protocol["training_images"] == 60
    assert record.protocol["token"] == "class"
    assert record.protocol["fitted_to_queries"] is False
    # Some queries instead of all choose no other penalty.
    part = measured(workdir, classifier=classifier, num_images=6)
    assert part.details["penalty"] == record.details["penalty"]


def test_shots_are_images_of_each_class(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Labeled] = []

    def fit(training: Labeled, queries: np.ndarray) -> tuple[np.ndarray, float]:
        fitted.append(training)
        return np.zeros(len(queries), int), 1.0

    monkeypatch.setattr(module, "ridge", fit)
    few, more, other = (
        measured(workdir, shots=shots, seed=seed) for shots, seed in ((2, 0), (5, 0), (2, 1))
    )
    for found, record, shots in zip(fitted, (few, more, other), (2, 5, 2), strict=True):
        np.testing.assert_array_equal(np.bincount(found.labels), [shots] * 3)
        assert record.protocol["training_images"] == 3 * shots
        assert (record.protocol["shots"], record.images) == (shots, few.images)
    features = [{row.tobytes() for row in found.features} for found in fitted]
    assert features[0] != features[2]
    assert top1(few) == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="has 20 images"):
        measured(workdir, shots=21)


def test_training_images_are_refused_unless_they_are_given(noise: Path, tmp_path: Path) -> None:
    """They are refused before anything is measured, and no record is written."""
    images = noise / "train"
    workdir = save_run(tmp_path / "run", MAE, source=f"folder:{images}")
    with pytest.raises(UserError, match=r"needs validation images, but .*/train are the train"):
        measured(workdir)
    with pytest.raises(UserError, match="needs validation images"):
        measured(workdir, num_images=5)
    assert not (workdir / "evaluate").exists()
    (found,) = evaluate("probe", [workdir], source=f"folder:{images}", batch_size=16)
    assert found.record.images.split == "training"
    assert found.record.protocol["fitted_to_queries"] is True
    assert "60 images, of which it was fitted to some or all" in found.text
    assert top1(found.record) > at_most_by_chance(1 / 3, 60)


def test_images_of_another_data_set_that_it_is_fitted_to_are_recorded(
    noise: Path, tmp_path: Path
) -> None:
    workdir = save_run(tmp_path / "run", MAE, source="digits")
    record = measured(workdir, source=f"folder:{noise / 'train'}")
    assert record.images.split == "other" and record.protocol["fitted_to_queries"] is True
    record = measured(workdir, source=f"folder:{noise}")
    assert record.images.split == "other" and record.protocol["fitted_to_queries"] is False


def test_different_classes_and_no_labels_are_refused(noise: Path, tmp_path: Path) -> None:
    folder = noise / "train" / "a"
    unlabeled = save_run(tmp_path / "unlabeled", MAE, classes=(), source=f"folder:{folder}")
    with pytest.raises(UserError, match="has no labels"):
        measured(unlabeled)
    workdir = save_run(tmp_path / "run", MAE, source=f"folder:{noise}", eval_source="digits")
    with pytest.raises(UserError, match="different classes"):
        measured(workdir)
    assert open_source("digits", train=False).classes != ("a", "b", "c")
