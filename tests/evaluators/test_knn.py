"""Weighted nearest neighbors against scikit-learn's, and leave-one-out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_models import at_most_by_chance, noise_images, save_run
from sklearn.neighbors import KNeighborsClassifier
from tiny_runs import make_images, run, start_several, tiny

from occinv.cli import main
from occinv.data.identity import unpack
from occinv.evaluate import evaluate
from occinv.evaluators import knn as module
from occinv.evaluators.base import Record
from occinv.evaluators.features import Labeled, own_rows
from occinv.evaluators.knn import knn
from occinv.schema import UserError
from occinv.train.records import read_records

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

MAE = {"name": "mae", "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
IMAGES = 60


def labeled(seed: int, count: int) -> Labeled:
    """Noisy clusters of seven classes on the unit sphere."""
    draw = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(7, 12))
    labels = draw.integers(0, 7, count).astype(np.int32)
    features = centers[labels] + 1.5 * draw.normal(size=(count, 12))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Labeled(features.astype(np.float32), labels, np.arange(count))


def by_scikit_learn(
    training: Labeled, queries: Labeled, neighbors: int, temperature: float
) -> np.ndarray:
    """Whether the own label is the best, or among the best five: bool [n, 2]."""
    theirs = KNeighborsClassifier(
        neighbors,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(training.features, training.labels)
    votes = theirs.predict_proba(queries.features)
    ranked = theirs.classes_[np.argsort(-votes, axis=1)]
    own = queries.labels[:, None]
    place = np.searchsorted(theirs.classes_, own)
    has_votes = np.take_along_axis(votes, place, 1)[:, 0] > 0
    return np.stack([(ranked[:, :n] == own).any(1) & has_votes for n in (1, 5)], 1)


@pytest.mark.parametrize("chunk", [65536, 37])
@pytest.mark.parametrize(
    ("neighbors", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (90, 0.3)]
)
def test_votes_are_those_of_scikit_learn(
    neighbors: int, temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "QUERIES", 25)
    training, validation = labeled(1, 100), labeled(2, 60)
    expected = by_scikit_learn(training, validation, neighbors, temperature)
    found = knn(training, validation, neighbors, temperature)
    np.testing.assert_array_equal(found, expected)
    assert 0.2 < expected[:, 0].mean() < 0.95


@pytest.mark.parametrize("chunk", [65536, 16])
@pytest.mark.parametrize("neighbors", [1, 20, 39])
def test_only_the_query_itself_has_no_vote(
    neighbors: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some queries are training images, in another order; the others are not."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "QUERIES", 7)
    training, others = labeled(1, 40), labeled(2, 15)
    chosen = np.random.default_rng(3).permutation(40)[:25]
    queries = Labeled(
        np.concatenate([training.features[chosen], others.features]),
        np.concatenate([training.labels[chosen], others.labels]),
        np.arange(40),
    )
    own = np.append(chosen, np.full(15, -1))
    found = knn(training, queries, neighbors, 0.5, own)
    for query in range(40):
        rest = np.delete(np.arange(40), own[query]) if own[query] >= 0 else np.arange(40)
        bank = Labeled(training.features[rest], training.labels[rest], rest)
        one = Labeled(*(field[query : query + 1] for field in queries))
        expected = by_scikit_learn(bank, one, neighbors, 0.5)[0]
        np.testing.assert_array_equal(found[query], expected, err_msg=str(query))
    assert knn(training, queries, 1, 0.5)[:25].all()  # the fault that this prevents


def test_a_tie_is_a_miss_and_so_is_a_class_without_votes() -> None:
    same = np.array([[1.0, 0.0]] * 4, np.float32)
    training = Labeled(same, np.array([0, 0, 1, 1], np.int32), np.arange(4))
    queries = Labeled(same[:3], np.array([0, 1, 2], np.int32), np.arange(3))
    np.testing.assert_array_equal(
        knn(training, queries, 4, 0.07), [[False, True], [False, True], [False, False]]
    )


def test_the_own_row_is_that_of_the_same_image_where_both_have_features() -> None:
    """Images 1 of the training source and 0 of the queries' source cannot be read."""
    training = Labeled(np.zeros((3, 2)), np.zeros(3), np.array([0, 2, 3]))
    queries = Labeled(np.zeros((4, 2)), np.zeros(4), np.array([1, 2, 3, 4]))
    places = [0, 3, 1, -1, 2]  # of the queries' images 0 to 4 in the training source
    np.testing.assert_array_equal(own_rows(training, queries, places), [2, -1, -1, 1])


@pytest.mark.parametrize(
    ("neighbors", "own", "said"),
    [
        (0, None, "neighbors=0, expected 1 to 100, the number of training images"),
        (101, None, "neighbors=101"),
        (100, np.arange(5), "neighbors=100, expected 1 to 99, the number of other training images"),
    ],
)
def test_mistakes(neighbors: int, own: np.ndarray | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        knn(labeled(1, 100), labeled(2, 5), neighbors, 0.07, own)


# Runs on images without validation part. Labels of noise can only be guessed.


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_images(tmp_path_factory.mktemp("data") / "noise")


def measured(workdir: Path, **options: Any) -> Record:
    (found,) = evaluate("knn", [workdir], **{"neighbors": 1, "batch_size": 16, **options})
    return found.record


def assert_by_chance(record: Record) -> None:
    assert record.protocol["leave_one_out"] is True
    assert record.values["top1"] is not None
    assert record.values["top1"] <= at_most_by_chance(1 / 3, record.images.count)
    hits = unpack(record.details["hits"])
    assert record.values["top1"] == pytest.approx(hits.mean())


def test_no_image_votes_for_itself(noise: Path, tmp_path: Path) -> None:
    workdir = save_run(tmp_path / "run", MAE, source=f"folder:{noise}")
    own = measured(workdir)
    assert (own.images.count, own.images.split) == (IMAGES, "training")
    assert own.protocol["training_images"] == IMAGES
    assert_by_chance(own)
    given = measured(workdir, source=f"folder:{noise}")
    assert given.values == own.values and given.images == own.images
    part = measured(workdir, num_images=21)
    assert (part.images.count, part.images.split) == (21, "training")
    assert_by_chance(part)


def test_no_image_votes_for_its_copy(noise: Path, tmp_path: Path) -> None:
    """A copy of the training folder has the same file names."""
    copy = tmp_path / "copy"
    shutil.copytree(noise, copy)
    workdir = save_run(
        tmp_path / "run", MAE, source=f"folder:{noise}", eval_source=f"folder:{copy}"
    )
    record = measured(workdir)
    assert (record.images.name, record.images.split) == (f"folder:{copy}", "training")
    assert_by_chance(record)
    # The model was trained on part of the images; the neighbors are all of them.
    workdir = save_run(tmp_path / "part", MAE, source=f"folder:{noise}", num_images=9)
    record = measured(workdir)
    assert (record.images.split, record.protocol["training_images"]) == ("training", IMAGES)
    assert_by_chance(record)


def test_other_images_of_the_same_classes_have_all_neighbors(noise: Path, tmp_path: Path) -> None:
    workdir = save_run(tmp_path / "run", MAE, source="digits")
    transfer = measured(workdir, source=f"folder:{noise}")  # also leave-one-out
    assert transfer.images.split == "other"
    assert_by_chance(transfer)
    other = noise_images(tmp_path / "other", seed=1, count=4)
    workdir = save_run(
        tmp_path / "two", MAE, source=f"folder:{noise}", eval_source=f"folder:{other}"
    )
    record = measured(workdir, neighbors=IMAGES)
    assert record.images.split == "validation"
    assert record.protocol["leave_one_out"] is False
    same_count = noise_images(tmp_path / "same count", seed=2)
    (same_count / "a" / "00.png").rename(same_count / "a" / "new.png")
    workdir = save_run(
        tmp_path / "three", MAE, source=f"folder:{same_count}", eval_source=f"folder:{other}"
    )
    again = measured(workdir, neighbors=IMAGES)
    assert again.images == record.images
    assert again.making != record.making  # their neighbors are other images


def test_images_without_labels_are_refused(noise: Path, tmp_path: Path) -> None:
    workdir = save_run(tmp_path / "run", MAE, classes=(), source=f"folder:{noise / 'a'}")
    with pytest.raises(UserError, match=r"noise/a has no labels.*--source"):
        measured(workdir)
    labeled = save_run(tmp_path / "labeled", MAE, source=f"folder:{noise}")
    with pytest.raises(UserError, match="the images have no labels"):
        measured(labeled, source=f"folder:{noise / 'a'}")


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(tmp_path / "images")
    workdir = tmp_path / "run"
    run(tiny("mae", images, "train.duration.steps=2"), workdir)
    command = ["evaluate", "knn", "--workdir", str(workdir), "--neighbors", "3"]
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "by 3 neighbors among 24 training images, class token; 12 images" in said
    first, second = (p.communicate(timeout=200) for p in start_several(2, command))
    assert said in first[0] and "neighbors" not in second[0], (first, second)
    # Even random features separate dark and light images. The last batch is padded.
    (found,) = evaluate("knn", [workdir], neighbors=3, pooling="mean", batch_size=8)
    assert found.record.values == {"top1": 1.0, "top5": 1.0}
    assert unpack(found.record.details["hits"]).all()
    path = workdir / "evaluate" / "knn.json"
    assert len(json.loads(path.read_text())) == 2
    last = read_records(path)[-1]
    assert (last.making, last.values) == (found.record.making, found.record.values)
    capsys.readouterr()
    assert main([*command, "--neighbors", "25"]) == 2
    assert capsys.readouterr().err.startswith("occinv: neighbors=25, expected 1 to 24")
