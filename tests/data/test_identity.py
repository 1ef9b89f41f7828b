"""Which images are measured, and whether the model was trained on them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from example_models import noise_images

from occinv.data.folder import open_folder
from occinv.data.identity import digest, identify, keys, pack, rows_in, unpack
from occinv.data.open_source import open_source
from occinv.data.source import Source
from occinv.data.subset import Subset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a part for training and a part for validation, with the same file names."""
    folder = tmp_path_factory.mktemp("images")
    noise_images(folder / "train", seed=0, count=4)
    noise_images(folder / "val", seed=1, count=4)
    return folder


def opened(path: Path | str, train: bool = True) -> Source:
    return open_folder(str(path), train=train)


def some(source: Source, *indices: int) -> Subset:
    return Subset(source, np.array(indices))


class Records:
    """Images of a data set whose names take long to read, as those of tfds."""

    def __init__(self, part: str) -> None:
        self.name, self.classes, self.labels = f"records ({part})", (), np.zeros(5, np.int32)

    def __len__(self) -> int:
        return 5

    @property
    def names(self) -> list[str]:
        raise AssertionError("the names were read")


def test_names_of_records_are_not_read() -> None:
    training, validation = Records("train"), Records("validation")
    assert identify(validation, training, is_own=True).split == "validation"
    assert identify(some(training, 1), training, is_own=True).split == "training"
    assert digest(training) != digest(validation)
    assert rows_in(some(training, 3, 1), training) == [3, 1]


def test_own_validation_images(root: Path) -> None:
    training, validation = opened(root), opened(root, train=False)
    assert list(training.names) == list(validation.names)
    found = identify(validation, training, is_own=True)
    assert (found.split, found.count, found.name) == ("validation", 12, f"folder:{root / 'val'}")
    assert identify(some(validation, 3, 5), training, is_own=True).split == "validation"
    assert identify(validation, some(training, 0, 1), is_own=True).split == "validation"
    assert rows_in(validation, training) == [-1] * 12


def test_images_from_elsewhere(root: Path, tmp_path: Path) -> None:
    training = opened(root)
    elsewhere = opened(noise_images(tmp_path / "elsewhere", seed=2, count=3))
    assert identify(elsewhere, training, is_own=False).split == "other"
    # The same folder again, but not because the config names it.
    assert identify(opened(root, train=False), training, is_own=False).split == "other"


def test_training_images_that_are_not_known(root: Path) -> None:
    source = opened(root)
    assert identify(source, None, is_own=True).split == "validation"
    found = identify(source, None, is_own=False)
    assert found.split == "other" and found.digest == identify(source, source, False).digest


@pytest.mark.parametrize("is_own", [True, False])
def test_the_same_folder_by_any_path(
    root: Path, tmp_path: Path, is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = opened(root)
    (tmp_path / "link").symlink_to(root / "train")
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("HOME", str(root))
    paths = (root / "train", tmp_path / "link", f"{root.name}/train", "~/train", f"{root}//train/")
    for path in paths:
        source = opened(path)
        assert identify(source, training, is_own).split == "training", path
        assert identify(some(source, 5), training, is_own).split == "training", path
        assert rows_in(some(source, 5, 2), training) == [5, 2]
    # A class of the folder, as images without labels.
    assert identify(opened(root / "train" / "b"), training, is_own).split == "training"
    assert rows_in(opened(root / "train" / "b"), training) == [4, 5, 6, 7]


def test_a_copy_of_the_folder(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "train", tmp_path / "copy")
    training, copy = opened(root), opened(tmp_path / "copy")
    assert not set(keys(copy)) & set(keys(training))
    assert identify(copy, training, is_own=True).split == "training"
    assert rows_in(copy, training) == list(range(12))
    assert rows_in(some(copy, 1, 2), some(training, 1, 2)) == [0, 1]


def test_a_copy_with_unreadable_images_is_a_copy(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "train", tmp_path / "copy")
    (tmp_path / "copy" / "a" / "00.png").write_bytes(b"")
    assert identify(opened(tmp_path / "copy"), opened(root), is_own=True).split == "training"
    os.remove(tmp_path / "copy" / "a" / "00.png")
    assert identify(opened(tmp_path / "copy"), opened(root), is_own=True).split == "validation"


def test_subsets_that_overlap(root: Path) -> None:
    training = opened(root)
    first, second, third = (some(training, *chosen) for chosen in ((0, 2, 4, 6), (6, 1, 2), (7, 8)))
    assert identify(second, first, is_own=True).split == "training"
    assert identify(third, first, is_own=True).split == "validation"
    assert rows_in(second, first) == [3, -1, 1]
    assert rows_in(first, second) == [-1, 2, -1, 0]
    assert rows_in(first, training) == [0, 2, 4, 6]
    of_subset = Subset(first, np.array([3, 1]))
    assert rows_in(of_subset, training) == [6, 2]


@pytest.mark.parametrize("name", ["digits", "photos:16"])
def test_embedded_images(name: str) -> None:
    training, validation = (open_source(name, train=train) for train in (True, False))
    assert identify(validation, training, is_own=True).split == "validation"
    assert identify(training, training, is_own=False).split == "training"
    assert identify(some(training, 3), some(training, 3, 4), is_own=False).split == "training"
    assert identify(some(training, 3), some(training, 4), is_own=False).split == "other"
    assert rows_in(some(training, 3, 7, 4), some(training, 4, 3)) == [1, -1, 0]
    assert rows_in(validation, training) == [-1] * len(validation)


def test_the_digest_is_of_the_file_names(root: Path, tmp_path: Path) -> None:
    training = opened(root)
    shutil.copytree(root / "train", tmp_path / "copy")
    assert digest(opened(tmp_path / "copy")) == digest(training)  # in any place
    assert identify(training, training, is_own=False).digest == digest(training)
    (tmp_path / "copy" / "a" / "00.png").rename(tmp_path / "copy" / "a" / "new.png")
    digests = {
        digest(source)
        for source in (
            training,
            opened(tmp_path / "copy"),
            some(training, 0, 1),
            some(training, 0, 2),
            open_source("digits", train=True),
            open_source("digits", train=False),
            open_source("photos:16", train=False),
        )
    }
    assert len(digests) == 7
    assert all(len(each) == 12 for each in digests)
    assert digest(some(training, 0, 1)) == digest(some(training, 0, 1))


@pytest.mark.parametrize("count", [1, 8, 13])
def test_hits_are_packed_by_image(count: int) -> None:
    generator = np.random.default_rng(count)
    row = generator.permutation(count)[: max(1, count - 2)]
    hits = generator.random(len(row)) < 0.5
    text = pack(hits, row, count)
    expected = np.zeros(count, bool)
    expected[row] = hits
    np.testing.assert_array_equal(unpack(text), expected)
    assert len(text) == len(f"{count}:") + 2 * -(-count // 8)
