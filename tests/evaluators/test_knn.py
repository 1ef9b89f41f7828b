"""Weighted nearest neighbors against scikit-learn's."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from tiny_runs import make_images, start_several, tiny

from occinv.cli import main
from occinv.evaluators import knn as module
from occinv.evaluators.knn import Labeled, knn
from occinv.evaluators.run import evaluate_knn
from occinv.schema import UserError


def labeled(seed: int, count: int) -> Labeled:
    """Noisy clusters of seven classes on the unit sphere."""
    draw = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(7, 12))
    labels = draw.integers(0, 7, count).astype(np.int32)
    features = centers[labels] + 1.5 * draw.normal(size=(count, 12))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Labeled(features.astype(np.float32), labels)


@pytest.mark.parametrize("chunk", [65536, 37])
@pytest.mark.parametrize(
    ("neighbors", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (90, 0.3)]
)
def test_votes_are_those_of_scikit_learn(
    neighbors: int, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    training, validation = labeled(1, 100), labeled(2, 60)
    theirs = KNeighborsClassifier(
        neighbors,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(training.features, training.labels)
    votes = theirs.predict_proba(validation.features)
    ranked = np.argsort(-votes, axis=1)
    own = validation.labels[:, None]
    has_votes = np.take_along_axis(votes, own, 1)[:, 0] > 0
    expected = [((ranked[:, :n] == own).any(1) & has_votes).mean() for n in (1, 5)]
    assert knn(training, validation, neighbors, temperature) == pytest.approx(expected)
    assert 0.2 < expected[0] < 0.95


@pytest.mark.parametrize(
    ("neighbors", "temperature", "said"),
    [
        (0, 0.07, "--neighbors 0, expected 1 to 100"),
        (101, 0.07, "--neighbors 101"),
        (5, 0.0, "above 0"),
    ],
)
def test_mistakes(neighbors: int, temperature: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        knn(labeled(1, 100), labeled(2, 5), neighbors, temperature)


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images")
    run = tmp_path / "run"
    assert (
        main(["train", *tiny("mae", images, "train.duration.steps=2"), "--workdir", str(run)]) == 0
    )
    evaluate = ["evaluate", "knn", "--workdir", str(run), "--neighbors", "3"]
    capsys.readouterr()
    assert main(evaluate) == 0
    said = capsys.readouterr().out
    assert "by 3 neighbors among 24 images; 12 validation images" in said
    first, second = (p.communicate(timeout=200) for p in start_several(2, evaluate))
    assert said in first[0] and "neighbors" not in second[0], (first, second)
    # Even random features separate dark and light images. The last batch is padded.
    found = evaluate_knn(run, neighbors=3, pooling="class", batch_size=8)
    assert found.result.top1 == 1.0 and found.result.top5 == 1.0
    assert json.loads((run / "evaluate" / "knn.json").read_text()) == found.as_json()
    assert main([*evaluate, "--neighbors", "25"]) == 2
