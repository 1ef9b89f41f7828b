"""Parts of a source: balanced by class, or few images."""

import numpy as np
import pytest
from PIL import Image

from occinv.data.selection import balanced, few, select
from occinv.data.sources import open_source
from occinv.schema import Data, UserError


def test_a_balanced_part_is_balanced_nested_and_keeps_the_index_of_the_parent():
    digits = open_source("digits", train=True)
    ten, twenty = balanced(digits, per_class=10), balanced(digits, per_class=20)
    assert len(ten) == len(ten.labels) == 100 and ten.classes == digits.classes
    np.testing.assert_array_equal(np.bincount(ten.labels), [10] * 10)
    assert set(ten.chosen) < set(twenty.chosen)
    sample = ten.read(7)
    assert sample.index == ten.chosen[7] and sample.label == ten.labels[7]
    np.testing.assert_array_equal(sample.image, digits.images[sample.index])
    np.testing.assert_array_equal(ten.chosen, balanced(digits, per_class=10).chosen)
    assert set(ten.chosen) != set(balanced(digits, per_class=10, seed=1).chosen)


def test_a_balanced_part_by_fraction():
    digits = open_source("digits", train=True)
    part = balanced(digits, fraction=0.1)
    np.testing.assert_array_equal(
        np.bincount(part.labels), np.round(np.bincount(digits.labels) * 0.1)
    )
    assert part.name == "143 of 1442 images of digits (train)"
    assert len(balanced(digits, fraction=1.0)) == len(digits)
    np.testing.assert_array_equal(np.bincount(balanced(digits, fraction=1e-6).labels), [1] * 10)


def test_a_balanced_part_of_unlabelled_images(tmp_path):
    for i in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    source = open_source(f"folder:{tmp_path}", train=True)
    assert len(balanced(source, fraction=0.3)) == 3
    with pytest.raises(UserError, match="unlabelled"):
        balanced(source, per_class=11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of per_class"),
        ({"per_class": 1, "fraction": 0.1}, "one of per_class"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"per_class": 0}, "per_class is 0"),
        ({"per_class": 1000}, "per_class is 1000, expected 1 to .* class '0' of digits"),
    ],
)
def test_a_balanced_part_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        balanced(open_source("digits", train=True), **arguments)


CHOICES = ("random", "one_class", "one_per_class")


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", train=True)


@pytest.mark.parametrize("choose", CHOICES)
def test_few_images_follow_from_the_seed(digits, choose):
    first, again, other = (few(digits, 8, choose, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.chosen, again.chosen)
    assert len(first) == len(set(first.chosen)) == 8
    assert set(first.chosen) != set(other.chosen)
    assert np.all(np.diff(first.chosen) > 0)


def test_few_images_are_chosen_as_asked(digits):
    assert len(set(few(digits, 20, "one_class").labels)) == 1
    assert len({few(digits, 20, "one_class", seed).labels[0] for seed in range(8)}) > 1
    assert sorted(few(digits, 10, "one_per_class").labels) == list(range(10))
    assert len(set(few(digits, 6, "one_per_class").labels)) == 6
    assert len(set(few(digits, 200, "random").labels)) > 1


@pytest.mark.parametrize("choose", CHOICES)
def test_few_images_are_nested(digits, choose):
    assert set(few(digits, 3, choose).chosen) < set(few(digits, 9, choose).chosen)


@pytest.mark.parametrize(
    ("count", "choose", "message"),
    [
        (1443, "random", "num_images=1443.*expected 1 to 1442, all of them in digits"),
        (11, "one_per_class", "num_images=11.*expected 1 to 10, its classes in digits"),
        (200, "one_class", "num_images=200.*expected 1 to 147, those of the largest class"),
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
        select(digits, Data("digits", num_images=3, choose="one_class"), 5).chosen,
        few(digits, 3, "one_class", 5).chosen,
    )
    np.testing.assert_array_equal(
        select(digits, Data("digits", per_class=3), 5).chosen,
        balanced(digits, per_class=3, seed=5).chosen,
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
