import numpy as np
import pytest
from PIL import Image

from occinv.data.sources import open_source, subset
from occinv.schema import UserError


def test_each_kind_opens(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    assert open_source("photos", train=True).name == "photos:32 (train regions)"
    assert open_source("photos:48", train=False).read(0).image.shape == (48, 48, 3)
    assert open_source("digits", train=False).name == "digits (test)"
    assert open_source(f"folder:{tmp_path}", train=True).name == f"folder:{tmp_path}"


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("photo", "did you mean 'photos'"),
        ("tdfs:mnist", "did you mean 'tfds'"),
        ("imagenet", "expected one of: digits, folder, photos, tfds"),
        ("folder:", "folder:PATH"),
        ("tfds", "tfds:NAME"),
        ("digits:8", "expected photos"),
        ("photos:large", "photos:TILE"),
        ("", "expected photos"),
    ],
)
def test_other_specs_are_refused(spec, hint):
    with pytest.raises(UserError, match=hint) as caught:
        open_source(spec, train=True)
    assert repr(spec) in str(caught.value)


def test_subset_is_balanced_nested_and_keeps_the_index_of_the_parent():
    digits = open_source("digits", train=True)
    ten, twenty = subset(digits, per_class=10), subset(digits, per_class=20)
    assert len(ten) == len(ten.labels) == 100 and ten.classes == digits.classes
    np.testing.assert_array_equal(np.bincount(ten.labels), [10] * 10)
    assert set(ten.chosen) < set(twenty.chosen)
    sample = ten.read(7)
    assert sample.index == ten.chosen[7] and sample.label == ten.labels[7]
    np.testing.assert_array_equal(sample.image, digits.images[sample.index])
    np.testing.assert_array_equal(ten.chosen, subset(digits, per_class=10).chosen)
    assert set(ten.chosen) != set(subset(digits, per_class=10, seed=1).chosen)


def test_subset_by_fraction():
    digits = open_source("digits", train=True)
    part = subset(digits, fraction=0.1)
    np.testing.assert_array_equal(
        np.bincount(part.labels), np.round(np.bincount(digits.labels) * 0.1)
    )
    assert part.name == "143 of 1442 images of digits (train)"
    assert len(subset(digits, fraction=1.0)) == len(digits)
    np.testing.assert_array_equal(np.bincount(subset(digits, fraction=1e-6).labels), [1] * 10)


def test_subset_of_unlabelled_images(tmp_path):
    for i in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    source = open_source(f"folder:{tmp_path}", train=True)
    assert len(subset(source, fraction=0.3)) == 3
    with pytest.raises(UserError, match="unlabelled"):
        subset(source, per_class=11)


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
def test_subset_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        subset(open_source("digits", train=True), **arguments)
