"""Further crops of every image: two views and multi-crop."""

import numpy as np

from occinv.data.crop import Crop
from occinv.data.loader import EvalLoader, LoaderSpec, TrainLoader
from occinv.data.open_source import open_source

CROPS = (Crop(32), Crop(16, (0.05, 0.2)), Crop(16, (0.05, 0.2)))


def loader(**options: object) -> TrainLoader:
    source = open_source("photos", train=True)
    settings = {"batch_size": 6, "image_size": 32, "seed": 3, "num_threads": 0, **options}
    return TrainLoader(source, LoaderSpec(**settings))  # type: ignore[arg-type]


def test_the_first_crop_is_what_it_is_without_further_ones() -> None:
    alone, batch = loader().batch(5), loader(crops=CROPS).batch(5)
    np.testing.assert_array_equal(batch.image, alone.image)
    np.testing.assert_array_equal(batch.index, alone.index)
    assert alone.crops == ()
    assert [crop.shape for crop in batch.crops] == [(6, 32, 32, 3), (6, 16, 16, 3), (6, 16, 16, 3)]


def test_every_crop_is_drawn_anew() -> None:
    batch = loader(crops=CROPS).batch(0)
    images = [batch.image, batch.crops[0]]
    assert all((a != b).any() for a, b in zip(*images, strict=True))
    assert all((a != b).any() for a, b in zip(*batch.crops[1:], strict=True))


def test_crops_do_not_depend_on_the_number_of_processes() -> None:
    whole = loader(crops=CROPS).batch(2)
    for process in range(2):
        part = loader(crops=CROPS, process_index=process, process_count=2).batch(2)
        for ours, theirs in zip(part.crops, whole.crops, strict=True):
            np.testing.assert_array_equal(ours, theirs[3 * process : 3 * process + 3])


def test_a_small_scale_shows_a_small_part() -> None:
    batch = loader(crops=(Crop(32, (0.02, 0.05)),), crop_scale=(1.0, 1.0)).batch(1)

    def detail(images: np.ndarray) -> float:
        return float(np.abs(np.diff(images.astype(float), axis=2)).mean())

    assert detail(batch.crops[0]) < 0.7 * detail(batch.image)


def test_evaluation_draws_the_same_crops_each_time() -> None:
    source = open_source("photos", train=False)
    spec = LoaderSpec(batch_size=4, image_size=32, num_threads=0, crops=CROPS)
    first, again = (EvalLoader(source, spec).batch(1) for _ in range(2))
    for one, other in zip(first.crops, again.crops, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (first.crops[0] != first.image).any()
