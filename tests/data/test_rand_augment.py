"""RandAugment: each operation against NumPy, what is drawn, and where the loader applies it."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.data import rand_augment as augment
from occinv.data.crop import Crop, RandomCrops
from occinv.data.loader import LoaderSpec, TrainLoader, sample_rng
from occinv.data.open_source import open_source
from occinv.data.order import sample_indices
from occinv.data.rand_augment import FILL, OPERATIONS, rand_augment

WIDTH, HEIGHT = 60, 40
NOISE = np.random.default_rng(0).integers(20, 230, (HEIGHT, WIDTH, 3)).astype(np.uint8)
LEVELS = (0.0, 0.5, 0.83, 0.9, 1.0)


def apply(name: str, level: float, sign: int = 1, pixels: np.ndarray = NOISE) -> np.ndarray:
    """The operation's result as int64, so that differences do not wrap around."""
    out = OPERATIONS[name](Image.fromarray(pixels), level, sign)
    assert out.mode == "RGB"
    return np.asarray(out).astype(int)


def test_there_are_the_fifteen_operations_of_timm() -> None:
    color = {"AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"}
    enhance = {"Color", "Contrast", "Brightness", "Sharpness"}
    geometry = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
    assert set(OPERATIONS) == color | enhance | geometry
    assert len(OPERATIONS) == 15


def test_autocontrast_stretches_each_channel_to_the_full_range() -> None:
    pixels = NOISE // np.array([1, 2, 3], np.uint8)
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    expected = (pixels - low) * 255 / (high - low)
    np.testing.assert_allclose(apply("AutoContrast", 0.9, pixels=pixels), expected, atol=1)


def test_equalize_gives_each_channel_an_even_distribution() -> None:
    pixels = (NOISE.astype(float) ** 2 / 255).astype(np.uint8)
    out = apply("Equalize", 0.9, pixels=pixels)
    np.testing.assert_array_equal(out, np.asarray(ImageOps.equalize(Image.fromarray(pixels))))
    for channel in range(3):
        below = [(pixels[..., channel] < value).mean() for value in pixels[..., channel].flat]
        shift = out[..., channel].ravel() - 255 * np.array(below)
        assert np.abs(shift).max() < 0.06 * 255  # whole numbers of pixels a step, 9 of 9.4


@pytest.mark.parametrize("level", LEVELS)
def test_invert_has_no_level(level: float) -> None:
    np.testing.assert_array_equal(apply("Invert", level), 255 - NOISE.astype(int))


@pytest.mark.parametrize(
    ("level", "mask"), [(0.0, 0xF0), (0.5, 0xC0), (0.74, 0xC0), (0.9, 0x80), (1.0, 0)]
)
def test_posterize_keeps_the_highest_bits(level: float, mask: int) -> None:
    np.testing.assert_array_equal(apply("Posterize", level), NOISE & mask)


@pytest.mark.parametrize(
    ("level", "threshold"), [(0.0, 256), (0.5, 128), (0.83, 44), (0.9, 26), (1.0, 0)]
)
def test_solarize_inverts_from_a_threshold_on(level: float, threshold: int) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = np.where(every < threshold, every, 255 - every)
    np.testing.assert_array_equal(apply("Solarize", level, pixels=every), expected)


@pytest.mark.parametrize(("level", "add"), [(0.0, 0), (0.5, 55), (0.83, 91), (0.9, 99), (1.0, 110)])
def test_solarize_add_lightens_the_dark_half(level: float, add: int) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = np.where(every < 128, np.minimum(every.astype(int) + add, 255), every)
    np.testing.assert_array_equal(apply("SolarizeAdd", level, pixels=every), expected)


def gray(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma [H, W, 1], rounded."""
    return np.floor(pixels @ np.array([0.299, 0.587, 0.114]) + 0.5)[..., None]


def smooth(pixels: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels with a weight of 5 for the middle; the border stays."""
    out = pixels.copy()
    near = [np.roll(pixels, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    out[1:-1, 1:-1] = np.floor((sum(near) + 4 * pixels) / 13 + 0.5)[1:-1, 1:-1]
    return out


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_enhancements_move_away_from_the_image_either_way(level: float, sign: int) -> None:
    pixels = NOISE.astype(float)
    factor = max(0.1, 1 + sign * 0.9 * level)
    for name, degenerate in {
        "Brightness": np.zeros_like(pixels),
        "Contrast": np.full_like(pixels, np.floor(gray(pixels).mean() + 0.5)),
        "Color": np.broadcast_to(gray(pixels), pixels.shape),
        "Sharpness": smooth(pixels),
    }.items():
        out = apply(name, level, sign)
        expected = np.clip(degenerate + factor * (pixels - degenerate), 0, 255)
        np.testing.assert_allclose(out, expected, atol=2, err_msg=name)
        theirs = getattr(ImageEnhance, name)(Image.fromarray(NOISE)).enhance(factor)
        np.testing.assert_array_equal(out, np.asarray(theirs), err_msg=name)


def source_of(name: str, level: float, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """From where each pixel [H, W] is taken: (x, y), measured from the corner of the image."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    amount = sign * level
    if name == "ShearX":
        return x + 0.3 * amount * y, y
    if name == "ShearY":
        return x, y + 0.3 * amount * x
    if name == "TranslateXRel":
        return x + 0.45 * amount * WIDTH, y
    if name == "TranslateYRel":
        return x, y + 0.45 * amount * HEIGHT
    angle = math.radians(30 * amount)  # counter-clockwise on the screen, about the middle
    right, down = x - WIDTH / 2, y - HEIGHT / 2
    return (
        right * math.cos(angle) - down * math.sin(angle) + WIDTH / 2,
        right * math.sin(angle) + down * math.cos(angle) + HEIGHT / 2,
    )


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("level", [0.5, 0.87, 1.0])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_geometry_shows_what_was_elsewhere(name: str, level: float, sign: int) -> None:
    """On a ramp, where a pixel's value is its place."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    ramp = np.stack([4 * x, 6 * y, 30 + x + 3 * y], axis=2).astype(np.uint8)
    out = apply(name, level, sign, ramp)
    x, y = source_of(name, level, sign)
    expected = np.stack([4 * x, 6 * y, 30 + x + 3 * y], axis=2)
    inside = (x > 2) & (x < WIDTH - 2) & (y > 2) & (y < HEIGHT - 2)
    outside = (x < -1e-6) | (x > WIDTH + 1e-6) | (y < -1e-6) | (y > HEIGHT + 1e-6)
    assert inside.sum() > 500 and outside.sum() > 50
    # Pillow rounds down, and its cubic (a = -1) bends a ramp by up to 0.1 pixels, so by 0.6.
    np.testing.assert_allclose(out[inside] + 0.5, expected[inside], atol=0.5 + 0.6)
    assert (out[outside] == FILL).all()


@pytest.mark.parametrize("sign", [-1, 1])
def test_geometry_is_bicubic(sign: int) -> None:
    factor, turned = sign * 0.9, Image.fromarray(NOISE).rotate(sign * 27, Image.Resampling.BICUBIC)
    middle = np.s_[12:28, 20:40]
    np.testing.assert_array_equal(apply("Rotate", 0.9, sign)[middle], np.asarray(turned)[middle])
    for name, matrix in {
        "ShearX": (1, 0.3 * factor, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, 0.3 * factor, 1, 0),
        "TranslateXRel": (1, 0, 0.45 * factor * WIDTH, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, 0.45 * factor * HEIGHT),
    }.items():
        theirs = Image.fromarray(NOISE).transform(
            (WIDTH, HEIGHT),
            Image.Transform.AFFINE,
            matrix,
            resample=Image.Resampling.BICUBIC,
            fillcolor=tuple(round(255 * mean) for mean in (0.485, 0.456, 0.406)),
        )
        np.testing.assert_array_equal(apply(name, 0.9, sign), np.asarray(theirs), err_msg=name)


Drawn = tuple[str, float, int]
IMAGES = 8000


@pytest.fixture(scope="module")
def drawn() -> Iterator[list[list[Drawn]]]:
    """What was applied to each of 8000 images, in order, with nothing done to them."""
    now: list[Drawn] = []

    def recorder(name: str) -> augment.Operation:
        return lambda image, level, sign: now.append((name, level, sign)) or image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "OPERATIONS", {name: recorder(name) for name in OPERATIONS})
        rng, image, images = np.random.default_rng(1), Image.new("RGB", (2, 2)), []
        for _ in range(IMAGES):
            now.clear()
            assert rand_augment(image, rng) is image
            images.append(list(now))
    yield images


def within(count: int, total: int, probability: float) -> bool:
    """Is a count within 4.5 deviations of its binomial mean?"""
    spread = math.sqrt(total * probability * (1 - probability))
    return abs(count - total * probability) < 4.5 * spread


def test_two_operations_are_each_applied_half_the_time(drawn: list[list[Drawn]]) -> None:
    numbers = Counter(map(len, drawn))
    assert set(numbers) == {0, 1, 2}
    assert all(within(numbers[n], IMAGES, p) for n, p in ((0, 0.25), (1, 0.5), (2, 0.25)))


def test_operations_are_uniform_and_drawn_with_replacement(drawn: list[list[Drawn]]) -> None:
    names = Counter(name for image in drawn for name, _, _ in image)
    total = names.total()
    assert set(names) == set(OPERATIONS)
    assert all(within(count, total, 1 / 15) for count in names.values()), names
    pairs = [image for image in drawn if len(image) == 2]
    same = sum(first[0] == second[0] for first, second in pairs)
    assert within(same, len(pairs), 1 / 15)


def test_the_sign_is_even_and_independent(drawn: list[list[Drawn]]) -> None:
    for name in OPERATIONS:
        signs = [sign for image in drawn for n, _, sign in image if n == name]
        assert set(signs) == {-1, 1}
        assert within(signs.count(1), len(signs), 0.5), name
    pairs = [image for image in drawn if len(image) == 2]
    assert within(sum(a[2] == b[2] for a, b in pairs), len(pairs), 0.5)


def test_the_level_is_normal_and_clipped(drawn: list[list[Drawn]]) -> None:
    levels = np.array([level for image in drawn for _, level, _ in image])
    for deviations, share in ((-2, 0.02275), (-1, 0.15866), (0, 0.5), (1, 0.84134)):
        below = int((levels < 0.9 + 0.05 * deviations).sum())
        assert within(below, len(levels), share), deviations
    assert levels.max() == 1.0
    assert within(int((levels == 1.0).sum()), len(levels), 0.02275)
    pairs = np.array([[a[1], b[1]] for a, b in (image for image in drawn if len(image) == 2)])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.1


@pytest.mark.parametrize(("setting", "value"), [("COUNT", 0), ("PROBABILITY", 0.0)])
def test_nothing_is_applied(monkeypatch: pytest.MonkeyPatch, setting: str, value: float) -> None:
    monkeypatch.setattr(augment, setting, value)
    image = Image.fromarray(NOISE)
    assert rand_augment(image, np.random.default_rng(2)) is image


def test_the_level_is_the_magnitude_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    image, rng, levels = Image.fromarray(NOISE), np.random.default_rng(2), []
    operation = {"one": lambda image, level, _: levels.append(level) or image}
    monkeypatch.setattr(augment, "OPERATIONS", operation)
    for name, value in (("DEVIATION", 0.0), ("COUNT", 3), ("PROBABILITY", 1.0)):
        monkeypatch.setattr(augment, name, value)
    for magnitude in (-3.0, 4.0, 12.0):
        monkeypatch.setattr(augment, "MAGNITUDE", magnitude)
        rand_augment(image, rng)
    assert levels == [0.0] * 3 + [0.4] * 3 + [1.0] * 3


def test_the_result_is_a_function_of_the_generator_alone() -> None:
    image = Image.fromarray(NOISE)
    once, again = (
        [np.asarray(rand_augment(image, np.random.default_rng(seed))) for seed in range(40)]
        for _ in range(2)
    )
    assert all((a == b).all() for a, b in zip(once, again, strict=True))
    assert len({out.tobytes() for out in once}) > 25  # a quarter is left as it is
    np.testing.assert_array_equal(np.asarray(image), NOISE)


CROPS = (Crop(32), Crop(16, (0.05, 0.2)))


def loader(**options: object) -> TrainLoader:
    source = open_source("photos", train=True)
    settings = {"batch_size": 12, "image_size": 32, "seed": 3, "num_threads": 0, **options}
    return TrainLoader(source, LoaderSpec(**settings))  # type: ignore[arg-type]


def test_without_it_a_batch_is_its_crops() -> None:
    ours = loader()
    batch = ours.batch(2)
    for row, index in enumerate(sample_indices(3, len(ours.source), 24, 12).tolist()):
        crops = RandomCrops([Crop(32)], sample_rng(3, 24 + row), (0.2, 1.0), 0.5)
        (image,) = crops.cut(ours.source.read(index).image)
        np.testing.assert_array_equal(batch.image[row], image)


def test_it_changes_the_first_crop_and_nothing_else() -> None:
    plain, batch = loader(crops=CROPS).batch(2), loader(crops=CROPS, rand_augment=True).batch(2)
    for name in ("index", "label", "weight"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(plain, name))
    for ours, theirs in zip(batch.crops, plain.crops, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    source, changed = open_source("photos", train=True), 0
    for row, index in enumerate(plain.index.tolist()):
        rng = sample_rng(3, 24 + row)
        RandomCrops([Crop(32), *CROPS], rng, (0.2, 1.0), 0.5).cut(source.read(index).image)
        expected = rand_augment(Image.fromarray(plain.image[row]), rng)
        np.testing.assert_array_equal(batch.image[row], np.asarray(expected))
        changed += not np.array_equal(batch.image[row], plain.image[row])
    assert 4 <= changed <= 12


def test_it_does_not_depend_on_the_number_of_processes_or_threads() -> None:
    whole = loader(rand_augment=True).batch(2)
    for process in range(3):
        part = loader(rand_augment=True, process_index=process, process_count=3).batch(2)
        np.testing.assert_array_equal(part.image, whole.image[4 * process : 4 * process + 4])
    (threaded,) = loader(rand_augment=True, num_threads=2).batches(2, 3)
    np.testing.assert_array_equal(threaded.image, whole.image)


def test_a_config_asks_for_it_in_training_only() -> None:
    from occinv.train.prepare import prepare

    runs = [
        prepare(schema.resolve(load_config(str(CONFIGS / "finetune.py:smoke"), overrides)))
        for overrides in ([], ["--config.data.rand_augment=True"])
    ]
    plain, ours = (run.loader.batch(0).image for run in runs)
    assert (plain != ours).any(axis=(1, 2, 3)).sum() >= 4
    plain, ours = (run.validation.batch(0).image for run in runs)  # type: ignore[union-attr]
    np.testing.assert_array_equal(plain, ours)
