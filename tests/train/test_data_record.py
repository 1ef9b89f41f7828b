"""The data of a run, compared at every start."""

import json
import logging
import os

import numpy as np
import pytest

from occinv.data.changes import differences
from occinv.data.embedded import digits
from occinv.data.folder import open_folder
from occinv.data.subset import Subset, select
from occinv.schema import Data, UserError
from occinv.train.data_record import DATA, LISTING, check_data, write_data
from occinv.train.workdir import IMAGES


@pytest.fixture
def pets(tmp_path):
    """Files of two classes, which no test here decodes."""
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"):
        path = tmp_path / "pets" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image" * len(name))
    (tmp_path / "run").mkdir()
    return tmp_path / "pets" / "train"


def record(pets, accept=False, **chosen):
    """Compare and write down, as a start of a run does; return whether something was written."""
    workdir = pets.parent.parent / "run"
    source = select(open_folder(str(pets), train=True), Data("", **chosen), 0)
    sources = {"training": source}
    description = check_data(workdir, sources, accept)
    if description is not None:
        write_data(workdir, sources, description)
    return description is not None


CHANGES = {
    "added": (lambda p: (p / "cat/0.png").write_bytes(b"x"), r"1 file added \(cat/0.png\)"),
    "removed": (lambda p: (p / "cat/2.png").unlink(), r"1 file removed \(cat/2.png\)"),
    "renamed": (
        lambda p: (p / "cat/2.png").rename(p / "cat/9.png"),
        r"1 file added \(cat/9.png\), 1 file removed \(cat/2.png\)",
    ),
    "replaced": (
        lambda p: (p / "dog/3.png").write_bytes(b"x"),
        r"1 file of another size \(dog/3.png\)",
    ),
    "moved": (
        lambda p: (p / "dog/3.png").rename(p / "cat/3.png"),
        r"1 file of another class \(dog/3.png to cat/3.png\)",
    ),
    "escaped": (
        lambda p: (p / "cat/\x1b\n.png").write_bytes(b"x"),
        r"1 file added \(cat/\\x1b\\n.png\)",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_files_are_named(pets, kind, caplog):
    assert record(pets) and not record(pets)
    change, message = CHANGES[kind]
    change(pets)
    with pytest.raises(UserError, match=rf"since the run began: training: {message}\. ") as caught:
        record(pets)
    assert str(caught.value).isprintable()
    with pytest.raises(UserError):  # nothing was written
        record(pets)
    with caplog.at_level(logging.WARNING, logger="occinv.train"):
        assert record(pets, accept=True)
    assert str(caught.value).startswith(caplog.messages[0])
    assert not record(pets)  # the change is the new state


def test_a_moved_folder_is_the_same_data(pets):
    record(pets)
    os.utime(pets / "cat" / "1.png", (0, 0))
    moved = pets.rename(pets.parent / "elsewhere")
    assert not record(moved)


def test_other_labels_of_the_same_files(tmp_path):
    (tmp_path / "pets" / "run").mkdir(parents=True)
    pets = tmp_path / "pets" / "flat" / "images"
    pets.mkdir(parents=True)
    for name in "12":
        (pets / f"{name}.png").write_bytes(b"image")
    (pets / "labels.csv").write_text("1.png,cat\n2.png,dog\n")
    record(pets)
    (pets / "labels.csv").write_text("1.png,dog\n2.png,cat\n")
    message = r"2 files of another class \(1.png from cat to dog, ...\)"
    with pytest.raises(UserError, match=message):
        record(pets)


def test_a_subset_is_written_down_and_held_to(pets, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "list.txt").write_text("1.png\n")
    chosen = {"list": str(tmp_path / "list.txt")}
    record(pets, **chosen)
    assert (run / IMAGES).read_text() == "index\tclass\tfile\n0\tcat\tcat/1.png\n"
    (tmp_path / "list.txt").write_text("2.png\n")
    message = r"training: another choice of images \(1 images of 2 classes, now 1 images of 2 cl"
    with pytest.raises(UserError, match=message):
        record(pets, **chosen)
    record(pets, accept=True, **chosen)
    assert "cat/2.png" in (run / IMAGES).read_text()


def test_parts_that_came_or_went(tmp_path):
    train, val = digits(True), digits(False)
    sources = {"training": train, "validation": val}
    write_data(tmp_path, sources, check_data(tmp_path, sources))
    with pytest.raises(UserError, match="validation: 355 images of 10 classes, now no images"):
        check_data(tmp_path, {"training": train})
    part = Subset(val, np.arange(10))
    with pytest.raises(UserError, match=r"validation: another choice .*\(355 .* now 10 images"):
        check_data(tmp_path, {"training": train, "validation": part})


def test_damaged_records(pets, tmp_path):
    record(pets)
    (tmp_path / "run" / LISTING).write_bytes(b"\x1f\x8bcut")
    assert not record(pets)
    (pets / "cat" / "2.png").unlink()
    with pytest.raises(UserError, match=r"training: .*\(4 images of 2 classes, now 3 images of 2"):
        record(pets)
    said = r"run/data.json .*(Delete it if|move it away)"
    for content in ("", "{", "[]", '{"training": {}}', '{"training": 1}'):
        (tmp_path / "run" / DATA).write_text(content)
        with pytest.raises(UserError, match=said) as caught:
            record(pets)
        assert "\n" not in str(caught.value)


def test_no_image_is_opened(pets, monkeypatch):
    opened = []
    monkeypatch.setattr("occinv.data.folder.Path.read_bytes", opened.append)
    source = open_folder(str(pets), train=True)
    assert len(source.fingerprint()) == 64 and not opened


def test_what_is_written_is_json(pets, tmp_path):
    record(pets)
    found = json.loads((tmp_path / "run" / DATA).read_text())["training"]
    assert (found["images"], found["classes"], len(found["fingerprint"])) == (4, 2, 64)


def test_a_file_that_moves_within_its_class_is_no_other_class():
    before, now = ["cat/a/1.png\t5\tcat"], ["cat/b/1.png\t5\tcat"]
    assert differences(before, now) == [
        "1 file added (cat/b/1.png)",
        "1 file removed (cat/a/1.png)",
    ]
    assert differences(now, now) == []
