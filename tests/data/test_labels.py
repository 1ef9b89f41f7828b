"""Labels of a flat folder from a file."""

import numpy as np
import pytest
from PIL import Image

from occinv.data.folder import open_folder
from occinv.data.listing import _log_once
from occinv.schema import UserError


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's form: classes of `train` in folders, those of `val` in no folder."""
    for wnid in ("n01", "n02", "n03"):
        save(tmp_path / "train" / wnid / f"{wnid}_1.png")
    for number in (1, 2, 3):
        save(tmp_path / "val" / f"ILSVRC2012_val_{number:08}.png")
    return tmp_path


LINES = [
    ("ILSVRC2012_val_00000003.png", "n03"),
    ("ILSVRC2012_val_00000001.png", "n03"),
    ("ILSVRC2012_val_00000002.png", "n01"),
]


@pytest.mark.parametrize(
    ("file", "separator", "heading"),
    [
        ("labels.csv", ",", "file,class\n"),
        ("labels.csv", ",", "\ufeff"),
        ("labels.tsv", "\t", ""),
        ("labels.txt", " ", "# the labels\n"),
    ],
)
def test_labels_of_validation_images(imagenet, file, separator, heading, caplog):
    text = "".join(f"{name}{separator}{label}\n" for name, label in LINES)
    (imagenet / "val" / file).write_text(heading + text + "\n", encoding="utf-8")
    _log_once.cache_clear()
    source = open_folder(str(imagenet), train=False)
    assert source.name.endswith("/val") and source.classes == ("n01", "n02", "n03")
    assert source.names == sorted(name for name, _ in LINES)
    assert source.labels.tolist() == [2, 0, 2] and source.labels.dtype == np.int32
    assert not caplog.messages
    assert open_folder(str(imagenet), train=True).labels.tolist() == [0, 1, 2]


def test_labels_of_a_flat_folder_for_training(imagenet):
    text = "".join(f"{name},{label}\n" for name, label in LINES)
    (imagenet / "val" / "labels.csv").write_text(text)
    source = open_folder(str(imagenet / "val"), train=True)
    assert source.classes == ("n01", "n03") and source.labels.tolist() == [1, 0, 1]
    flat = imagenet.parent / "flat"
    (imagenet / "val").rename(imagenet / "train_flat")
    flat.mkdir()
    for part in ("train", "val"):
        (flat / part).symlink_to(imagenet / "train_flat")
    validation = open_folder(str(flat), train=False)
    assert validation.classes == ("n01", "n03") and validation.labels.tolist() == [1, 0, 1]


def test_quotes_and_commas_in_names(tmp_path):
    save(tmp_path / "a, b.png")
    save(tmp_path / "c d.png")
    (tmp_path / "labels.csv").write_text('"a, b.png","big, ""red"""\nc d.png,small\n')
    source = open_folder(str(tmp_path), train=True)
    assert source.classes == ('big, "red"', "small") and source.labels.tolist() == [0, 1]
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.txt").write_text("a, b.png x\nc d.png y\n")
    assert open_folder(str(tmp_path), train=True).classes == ("x", "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png,a\n", r"labels.csv has no line for 1 images, such as '2.png'"),
        ("1.png,a\n2.png,b\n3.png,a\n", r"line 3: '3.png' is no image of .* \(did you mean"),
        ("1.png,a\n2.png,b\n1.png,a\n", r"line 3 repeats '1.png'"),
        ("1.png\n2.png,b\n", r"line 1: \['1.png'\], expected a file and its class"),
        ("1.png,a,b\n2.png,b\n", r"line 1: \['1.png', 'a', 'b'\], expected a file and its class"),
        ("1.png,\n2.png,b\n", r"line 1: \['1.png', ''\], expected"),
        ('1.png,"a\n', r"labels.csv cannot be read: "),
        ("file,class\nname,class\n1.png,a\n2.png,b\n", r"line 2: 'name' is no image"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, text, message):
    for name in ("1.png", "2.png"):
        save(tmp_path / name)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        open_folder(str(tmp_path), train=True)
    assert "\n" not in str(caught.value)


def test_files_of_labels_that_cannot_be_read(tmp_path):
    save(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_bytes(b"1.png,caf\xe9\n")
    with pytest.raises(UserError, match=r"labels.csv cannot be read: .*utf-8"):
        open_folder(str(tmp_path), train=True)
    (tmp_path / "labels.tsv").write_text("1.png\ta\n")
    with pytest.raises(UserError, match=r"holds labels.csv and labels.tsv, expected one of them"):
        open_folder(str(tmp_path), train=True)


def test_validation_images_need_the_classes_of_training(imagenet):
    with pytest.raises(UserError, match=r"val holds images without classes, .* in labels.csv"):
        open_folder(str(imagenet), train=False)
    text = "".join(f"{name},{label}\n" for name, label in LINES)
    (imagenet / "val" / "labels.csv").write_text(text.replace("n01", "n04"))
    with pytest.raises(UserError, match=r"val has a class 'n04' that .*train does not have"):
        open_folder(str(imagenet), train=False)
