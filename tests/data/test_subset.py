"""Parts of a source: balanced by class, or few images."""

import numpy as np
import pytest
from PIL import Image

from occinv.data.open_source import open_source
from occinv.data.selections import CLASS_LISTS, few, fraction, listed, per_class
from occinv.data.subset import select
from occinv.schema import Data, UserError


def test_a_balanced_part_is_balanced_nested_and_keeps_the_index_of_the_parent():
    digits = open_source("digits", train=True)
    ten, twenty = per_class(digits, 10), per_class(digits, 20)
    assert len(ten) == len(ten.labels) == 100 and ten.classes == digits.classes
    np.testing.assert_array_equal(np.bincount(ten.labels), [10] * 10)
    assert set(ten.indices) < set(twenty.indices)
    sample = ten.read(7)
    assert sample.index == ten.indices[7] and sample.label == ten.labels[7]
    np.testing.assert_array_equal(sample.image, digits.images[sample.index])
    np.testing.assert_array_equal(ten.indices, per_class(digits, 10).indices)
    assert set(ten.indices) != set(per_class(digits, 10, seed=1).indices)


def test_a_balanced_part_by_fraction():
    digits = open_source("digits", train=True)
    part = fraction(digits, 0.1)
    np.testing.assert_array_equal(
        np.bincount(part.labels), np.round(np.bincount(digits.labels) * 0.1)
    )
    assert part.name == "143 of 1442 images of digits (train)"
    assert len(fraction(digits, 1.0)) == len(digits)
    np.testing.assert_array_equal(np.bincount(fraction(digits, 1e-6).labels), [1] * 10)


def test_a_balanced_part_of_unlabeled_images(tmp_path):
    for i in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    source = open_source(f"folder:{tmp_path}", train=True)
    assert len(fraction(source, 0.3)) == 3
    with pytest.raises(UserError, match="unlabeled"):
        per_class(source, 11)


@pytest.mark.parametrize("count", [0, 1000])
def test_a_balanced_part_of_classes_that_are_too_small(count):
    message = rf"per_class={count}: class '0' of digits .train. has 143 images\. Use 1 to 143\."
    with pytest.raises(UserError, match=message):
        per_class(open_source("digits", train=True), count)


CHOICES = ("random", "one_class", "one_per_class")


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", train=True)


@pytest.mark.parametrize("choose", CHOICES)
def test_few_images_follow_from_the_seed(digits, choose):
    first, again, other = (few(digits, 8, choose, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.indices, again.indices)
    assert len(first) == len(set(first.indices)) == 8
    assert set(first.indices) != set(other.indices)
    assert np.all(np.diff(first.indices) > 0)


def test_few_images_are_chosen_as_asked(digits):
    assert len(set(few(digits, 20, "one_class").labels)) == 1
    assert len({few(digits, 20, "one_class", seed).labels[0] for seed in range(8)}) > 1
    assert sorted(few(digits, 10, "one_per_class").labels) == list(range(10))
    assert len(set(few(digits, 6, "one_per_class").labels)) == 6
    assert len(set(few(digits, 200, "random").labels)) > 1


@pytest.mark.parametrize("choose", CHOICES)
def test_few_images_are_nested(digits, choose):
    assert set(few(digits, 3, choose).indices) < set(few(digits, 9, choose).indices)


@pytest.mark.parametrize(
    ("count", "choose", "message"),
    [
        (1443, "random", "num_images=1443.*digits .train. has 1442 images. Use 1 to 1442"),
        (11, "one_per_class", "num_images=11.*digits .train. has 10 classes. Use 1 to 10"),
        (200, "one_class", "num_images=200.*has 147 images in its largest class. Use 1 to 147"),
        (0, "random", "num_images=0"),
        (0, "one_class", "num_images=0"),
    ],
)
def test_few_images_that_there_are_not(digits, count, choose, message):
    with pytest.raises(UserError, match=message):
        few(digits, count, choose)


def test_the_config_says_which_part(digits):
    assert select(digits, Data("digits"), 0) is digits
    np.testing.assert_array_equal(
        select(digits, Data("digits", num_images=3, choose="one_class"), 5).indices,
        few(digits, 3, "one_class", 5).indices,
    )
    np.testing.assert_array_equal(
        select(digits, Data("digits", per_class=3), 5).indices,
        per_class(digits, 3, seed=5).indices,
    )


def test_a_part_says_which_images_it_has(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    part = few(open_source(f"folder:{tmp_path}", train=True), 2, "one_per_class")
    lines = [line.split("\t") for line in part.lines()]
    assert [name for _, name, _ in lines] == ["cat", "dog"]
    for (index, name, path), label in zip(lines, part.labels, strict=True):
        assert int(index) // 3 == label and path.startswith(f"{name}/")


@pytest.fixture
def animals(tmp_path):
    """Three images of each of three classes; every class has a file 0.png."""
    for name in ("ant", "bee", "cat"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        for i in range(3):
            file = f"{i}.png" if i == 0 else f"{name}_{i}.png"
            Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "animals" / name / file)
    return tmp_path / "animals"


def test_some_classes_are_counted_anew(animals):
    (animals.parent / "mine.txt").write_text("cat\nant\n")
    for wanted in ("cat,ant", str(animals.parent / "mine.txt")):
        part = open_source(f"folder:{animals}", train=True, classes=wanted)
        assert part.classes == ("ant", "cat")
        np.testing.assert_array_equal(part.labels, [0, 0, 0, 1, 1, 1])
        assert [part.read(i).index for i in range(6)] == [0, 1, 2, 6, 7, 8]
        assert [part.read(i).label for i in range(6)] == [0, 0, 0, 1, 1, 1]
        assert part.names[3] == "cat/0.png"
    four = few(part, 4)  # so that there is a cat among them
    assert [four.read(i).label for i in range(4)] == four.labels.tolist()
    for line, i in zip(four.lines(), range(4), strict=True):
        index, name, file = line.split("\t")
        assert int(index) == four.read(i).index and file.startswith(f"{name}/")
        assert open_source(f"folder:{animals}", train=True).names[int(index)] == file


def test_the_hundred_classes_of_imagenet100(tmp_path):
    wnids = CLASS_LISTS["imagenet100"].read_text().split()
    assert len(set(wnids)) == 100 and all(len(w) == 9 and w[0] == "n" for w in wnids)
    for wnid in [*wnids, "n99999999"]:
        (tmp_path / wnid).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / wnid / "0.png")
    part = open_source(f"folder:{tmp_path}", train=True, classes="imagenet100")
    assert part.classes == tuple(sorted(wnids))
    np.testing.assert_array_equal(part.labels, np.arange(100))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "ant,caat",
            r"data.classes='ant,caat': folder:.* has no class 'caat' \(did you mean 'cat'",
        ),
        ("imagenet10", r"no class 'imagenet10' \(did you mean 'imagenet100'"),
        ("missing.txt", "data.classes='missing.txt' cannot be read: .*No such file"),
        ("~nobody-here/x.txt", "cannot be read: Could not determine home directory"),
    ],
)
def test_classes_that_there_are_not(animals, wanted, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"folder:{animals}", train=True, classes=wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "lines",
    [
        "2\n3\n",
        "3\n2\n",
        "index\tclass\tfile\n2\tant\tant/ant_2.png\n3\tbee\tbee/0.png\n",
        "ant_2.png\nbee/0.png\n",
    ],
)
def test_a_list_of_images(animals, lines):
    (animals.parent / "list.tsv").write_text(lines)
    source = open_source(f"folder:{animals}", train=True)
    part = select(source, Data("", list=str(animals.parent / "list.tsv")), 0)
    assert [part.read(i).index for i in range(len(part))] == [2, 3]


def test_a_list_counts_as_the_source_does_and_takes_what_a_run_wrote(animals, digits):
    bees = open_source(f"folder:{animals}", train=True, classes="bee,cat")
    (animals.parent / "list.txt").write_text("4\n")
    part = select(bees, Data("", list=str(animals.parent / "list.txt")), 0)
    assert part.read(0).index == 4 and part.names[0] == "bee/bee_1.png"
    ten = few(digits, 10)
    (animals.parent / "images.tsv").write_text("".join(f"{line}\n" for line in ten.lines()))
    again = select(digits, Data("", list=str(animals.parent / "images.tsv")), 0)
    np.testing.assert_array_equal(again.indices, ten.indices)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1\n9\n", "line 2: '9' is no image of folder:"),
        ("ant_1.png\nant_3.png\n", r"line 2: 'ant_3.png' is no image.*did you mean 'ant_[12].png'"),
        ("0.png\n", "line 1: '0.png' is the name of several images"),
        ("1\nant/ant_1.png\n", "line 2: 'ant/ant_1.png' repeats line 1"),
        ("", "lists no image"),
    ],
)
def test_a_list_that_cannot_be(animals, lines, message):
    (animals.parent / "list.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        listed(open_source(f"folder:{animals}", train=True), str(animals.parent / "list.txt"))
