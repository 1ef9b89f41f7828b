"""Speed and fidelity of the input pipeline against Pillow's, as ratios measured in one run.

    make bench                                             images made from scikit-image's
    OCCINV_IMAGES=FOLDER .venv/bin/python benchmarks/input_pipeline.py [PART ...]

PART: rates, fidelity, threads, waiting, memory, or workers, the only one that has to be asked for.
FOLDER is one of `data.source=folder:FOLDER`. Rates are for a core: of the time that the thread was
on it, the best of several rounds in turn. OpenCV and tf.data take part where they are installed.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import simplejpeg
from PIL import Image

from occinv.data import crop, decode
from occinv.data.embedded import photos
from occinv.data.folder import open_folder
from occinv.data.loader import LoaderSpec, TrainLoader, sample_rng
from occinv.data.source import Reduction, Sample, Source
from occinv.models import vit
from occinv.schema import Encoder
from occinv.transforms.view import IMAGENET_MEAN, IMAGENET_STD

SIZE = 224
IMAGES = 96  # of each size
ROUNDS = 7
Pixels = np.ndarray


# The images: those of a folder, or photographs cut from one package; and larger ones made of them.


def originals() -> list[bytes]:
    """Encoded images, of the folder OCCINV_IMAGES or from scikit-image's photographs."""
    if folder := os.environ.get("OCCINV_IMAGES"):
        source = open_folder(folder, train=True)
        every = max(1, len(source) // IMAGES)
        paths = [Path(source.folder) / path for path in source.names[::every]]
        return [path.read_bytes() for path in paths[:IMAGES]]
    tiles = photos(True, 128).images
    wholes = [
        np.concatenate([np.concatenate(row, 1) for row in six], 0)
        for six in (
            tiles[start : start + 6].reshape(2, 3, 128, 128, 3) for start in range(0, 6 * IMAGES, 6)
        )
    ]
    return [simplejpeg.encode_jpeg(whole, quality=95, colorsubsampling="420") for whole in wholes]


def mosaic(images: list[bytes], width: int, height: int) -> list[bytes]:
    """Images of another size with the detail of real ones: side by side, cut to the size."""
    tiles = itertools.cycle(decode.decode_rgb(image, "image") for image in images)
    made = []
    for _ in range(max(4, IMAGES * 500 * 375 // (width * height))):
        whole, top = np.empty((height, width, 3), np.uint8), 0
        while top < height:
            left, rows = 0, 200
            while left < width:
                tile = next(tiles)[: min(rows, height - top), : width - left]
                whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
                left += tile.shape[1]
            top += rows
        made.append(simplejpeg.encode_jpeg(whole, quality=95, colorsubsampling="420"))
    return made


def images_by_size() -> dict[str, list[bytes]]:
    images = originals()
    larger = ((500, 375), (1000, 750), (2000, 1500))
    return {"as they are": images} | {f"{w} x {h}": mosaic(images, w, h) for w, h in larger}


# The ways to a crop. Each draws the same box for the same number.


def box_of(width: int, height: int, number: int) -> tuple[tuple[int, int, int, int], bool]:
    """The crop (left, top, right, bottom) of image `number`, and whether it is mirrored."""
    rng = sample_rng(0, number)
    return crop.crop_box(width, height, rng, (0.2, 1.0)), rng.random() < 0.5


def by_pillow(encoded: bytes, number: int) -> Pixels:
    """What torchvision does with PIL images."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert("RGB")
    box, is_mirrored = box_of(*image.size, number)
    image = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if is_mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def by_pillow_to_float(encoded: bytes, number: int) -> Pixels:
    """With torchvision's ToTensor and Normalize, which occinv leaves to the device."""
    chw = by_pillow(encoded, number).transpose(2, 0, 1).astype(np.float32, order="C")
    chw /= 255
    chw -= np.float32(IMAGENET_MEAN)[:, None, None]
    chw /= np.float32(IMAGENET_STD)[:, None, None]
    return chw


def random_crop(number: int) -> crop.RandomCrops:
    return crop.RandomCrops([crop.Crop(SIZE)], sample_rng(0, number), (0.2, 1.0), 0.5)


def by_occinv(encoded: bytes, number: int) -> Pixels:
    """The way of `TrainLoader`."""
    crops = random_crop(number)
    (cropped,) = crops.cut(decode.decode_rgb(encoded, "image"))
    return cropped


def without_fast_resize(encoded: bytes, number: int) -> Pixels:
    """occinv where the faster resize has no wheel."""
    with mock.patch.object(crop, "_resizer", None):
        return by_occinv(encoded, number)


def scaled(encoded: bytes, number: int) -> Pixels:
    """The way of `TrainLoader` with `data.scaled_decoding`."""
    crops = random_crop(number)
    (cropped,) = crops.cut(decode.decode_rgb(encoded, "image", crops.reduction))
    return cropped


def by_opencv(encoded: bytes, number: int) -> Pixels:
    """OpenCV's cubic, or its area mean where the crop shrinks. Neither is Pillow's filter."""
    import cv2

    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    box, is_mirrored = box_of(image.shape[1], image.shape[0], number)
    part = image[box[1] : box[3], box[0] : box[2]]
    method = cv2.INTER_AREA if min(part.shape[:2]) > SIZE else cv2.INTER_CUBIC
    resized = cv2.resize(part, (SIZE, SIZE), interpolation=method)
    return cv2.flip(resized, 1) if is_mirrored else resized


WAYS: dict[str, Callable[[bytes, int], Pixels]] = {
    "Pillow": by_pillow,
    "Pillow, to float and normalized": by_pillow_to_float,
    "occinv": by_occinv,
    "occinv, data.scaled_decoding": scaled,
    "occinv, resize by Pillow": without_fast_resize,
}
if importlib.util.find_spec("cv2"):
    WAYS["tried: OpenCV"] = by_opencv


def seconds_by_tf(images: list[bytes]) -> float:
    """tf.data with its own random boxes of the same distribution, on one thread."""
    import tensorflow as tf

    def one(encoded):  # type: ignore[no-untyped-def]
        begin, shape, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4]),
            area_range=(0.2, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        (top, left, _), (height, width, _) = tf.unstack(begin), tf.unstack(shape)
        image = tf.image.decode_and_crop_jpeg(encoded, [top, left, height, width], channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), "bicubic", antialias=True)
        image = tf.image.random_flip_left_right(image)
        return tf.saturate_cast(tf.round(image), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(images).map(one)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    list(data.with_options(options).take(3))
    began = time.process_time()
    list(data.with_options(options))
    return (time.process_time() - began) / len(images)


def rates() -> None:
    """Images a second of a core, by the size of the images."""
    by_size = images_by_size()
    has_tf = importlib.util.find_spec("tensorflow") is not None
    table: dict[str, list[float]] = {name: [] for name in WAYS}
    if has_tf:
        table["tf.data, its own boxes"] = []
    for encoded in by_size.values():
        best = dict.fromkeys(table, float("inf"))
        for _ in range(ROUNDS):
            for name, way in WAYS.items():
                began = time.thread_time()
                for number, image in enumerate(encoded):
                    way(image, number)
                best[name] = min(best[name], (time.thread_time() - began) / len(encoded))
            if has_tf:
                name = "tf.data, its own boxes"
                best[name] = min(best[name], seconds_by_tf(encoded))
        for name, seconds in best.items():
            table[name].append(best["Pillow"] / seconds)
        own = f"{1 / best['occinv']:.0f} images/s by occinv here"
        print(f"{len(encoded)} JPEGs, {np.mean([*map(len, encoded)]) / 1024:.0f} KiB each: {own}")
    print(f"\nimages/s of a core, Pillow = 1\n{'':36}" + "".join(f"{s:>13}" for s in by_size))
    for name, ratios in table.items():
        print(f"{name:36}" + "".join(f"{ratio:13.2f}" for ratio in ratios))


def fidelity() -> None:
    """How far crops are from Pillow's, in levels of 255 and in features of a fixed encoder."""
    encoder = vit.make_vit(Encoder(name="small"), SIZE)
    params = jax.jit(encoder.init)(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32))
    tokens = jax.jit(lambda x: encoder.apply(params, x.astype(np.float32) / 255).tokens)

    def again(encoded: bytes, quality: int) -> bytes:
        pixels = decode.decode_rgb(encoded, "image")
        return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")

    def best_quality(encoded: bytes, number: int) -> Pixels:
        return by_pillow(again(encoded, 95), number)

    cases: dict[str, tuple[Callable[[bytes, int], Pixels], Callable[[bytes, int], Pixels]]] = {
        name: (by_pillow, way) for name, way in WAYS.items() if not name.startswith("Pillow")
    }
    cases["JPEG of quality 90, not 95"] = (best_quality, lambda e, n: by_pillow(again(e, 90), n))
    cases["another crop of the image"] = (by_pillow, lambda e, n: by_pillow(e, n + 10**6))
    for size, encoded in images_by_size().items():
        encoded = encoded[:24]
        print(f"\n{size:36}{'mean error':>12}{'largest':>12}{'of features':>12}")
        for name, ways in cases.items():
            theirs, ours = (np.stack([w(e, n) for n, e in enumerate(encoded)]) for w in ways)
            error = np.abs(ours.astype(int) - theirs)
            wanted, found = np.asarray(tokens(theirs)), np.asarray(tokens(ours))
            distances = np.linalg.norm(found - wanted, axis=(1, 2))
            relative = (distances / np.linalg.norm(wanted, axis=(1, 2))).mean()
            print(f"{name:36}{error.mean():12.4f}{error.max():12d}{relative:12.5f}")


class Repeated:
    """Some encoded images, again and again, as a source of `count`."""

    name, classes, names = "repeated", (), ()

    def __init__(self, encoded: list[bytes], count: int = 10**6):
        self.encoded, self.count = encoded, count
        self.labels = np.full(count, -1, np.int32)

    def __len__(self) -> int:
        return self.count

    def prefetch(self, indices: Sequence[int]) -> None:
        """Do nothing: the images are in memory."""

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        encoded = self.encoded[index % len(self.encoded)]
        return Sample(decode.decode_rgb(encoded, "image", reduction), -1, index)


def loader(source: Source, num_threads: int, batch_size: int = 32) -> TrainLoader:
    spec = LoaderSpec(batch_size=batch_size, image_size=SIZE, num_threads=num_threads)
    return TrainLoader(source, spec)


def for_an_image(batches: Iterator, clock: Callable[[], Any], count: int = 24) -> Any:
    """How far a clock goes for an image, over `count` batches after the first few."""
    for _ in range(4):
        first = next(batches)
    began = clock()
    for _ in range(count):
        next(batches)
    gone = clock() - began
    if close := getattr(batches, "close", None):
        close()
    return gone / (count * len(first.image))


def rate(batches: Iterator) -> float:
    """Images a second."""
    return 1 / for_an_image(batches, time.perf_counter)


def usage() -> np.ndarray:
    """How often this process was put to sleep, its page faults, and its seconds on a core."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([used.ru_nvcsw, used.ru_minflt, used.ru_utime + used.ru_stime])


@contextlib.contextmanager
def without_native_code(encoded: list[bytes]) -> Iterator[None]:
    """Decoding and resizing take no time, so that what is left is what Python takes."""
    image = decode.decode_rgb(encoded[0], "image")
    small = crop.resize(image, SIZE, SIZE)
    with (
        mock.patch.object(decode.simplejpeg, "decode_jpeg", lambda *_, **__: image),
        mock.patch.object(crop, "resize", lambda *_: small),
    ):
        yield


def by_threads(encoded: list[bytes], count: int) -> float:
    """Images a second of one process."""
    return rate(loader(Repeated(encoded), count).batches(0, 10**6))


def threads() -> None:
    """Scaling over threads, and the most cores that one process can use.

    Beside it the most that the machine gives: processes of one thread each, which share nothing.
    """
    encoded = originals()
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {}
    for _ in range(3):
        for count in sorted({1, 2, cores, 2 * cores}):
            rates.setdefault(f"{count} threads", []).append(by_threads(encoded, count))
        with multiprocessing.get_context("fork").Pool(cores) as pool:
            found = pool.starmap(by_threads, [(encoded, 1)] * cores, chunksize=1)
        rates.setdefault(f"{cores} processes of one thread", []).append(sum(found))
    print(f"\n{cores} cores, images/s, one thread = 1")
    for name, found in rates.items():
        print(f"{name:36}{max(found) / max(rates['1 threads']):13.2f}")
    alone = 0.0
    for count in (1, 2):
        used = for_an_image(loader(Repeated(encoded), count).batches(0, 10**6), usage)
        alone = alone or used[2]
        print(
            f"{count} threads, for an image: put to sleep {used[0]:.2f} times, "
            f"{used[1]:.1f} page faults, {used[2] / alone:.2f} of the time on a core"
        )

    def seconds() -> float:
        batch = loader(Repeated(encoded), 0).batch
        began = time.thread_time()
        batch(0)
        batch(1)
        return time.thread_time() - began

    whole, held = float("inf"), float("inf")
    for _ in range(ROUNDS):
        whole = min(whole, seconds())
        with without_native_code(encoded):
            held = min(held, seconds())
    print(f"Python holds its lock for at most {held / whole:.0%} of the time of an image:")
    print(f"one process can use at least {whole / held:.0f} cores")


def workers() -> None:
    """The rates of threads and of worker processes, after what they made ahead."""
    cores, seconds = len(os.sched_getaffinity(0)), 3.0
    sources: dict[str, tuple[Source, int]] = {
        "photographs": (Repeated(originals()), SIZE),
        "tiles of 64 pixels": (photos(True, 64), 64),
    }
    for name, (source, size) in sources.items():
        alone = 0.0
        for threads, processes in ((1, 0), (8, 0), (cores, 0), (0, cores)):
            spec = LoaderSpec(
                batch_size=128, image_size=size, num_threads=threads, num_workers=processes
            )
            batches = TrainLoader(source, spec).batches(0, 10**6)
            for _ in range(4 * (threads + processes)):
                next(batches)
            began, count = time.perf_counter(), 0
            while (gone := time.perf_counter() - began) < seconds:
                count += len(next(batches).image)
            batches.close()
            alone = alone or count / gone
            made_by = f"{processes} workers" if processes else f"{threads} threads"
            print(f"{name}, {size} pixels, {made_by:12} {count / gone / alone:6.2f}", flush=True)
    print(f"images a second on {cores} cores, one thread = 1")


def waiting() -> None:
    """The share of a step that waits for data, for a device that needs a part of the rate."""
    encoded, count = originals(), len(os.sched_getaffinity(0))
    batches = functools.partial(loader(Repeated(encoded), count).batches, 0, 10**6)

    def share(part: float) -> float:
        step, waited, ahead = 32 / (part * rate(batches())), 0.0, batches()
        for number in range(40):
            if number == 10:  # those made before the first step are used up
                began, waited = time.perf_counter(), 0.0
            asked = time.perf_counter()
            next(ahead)
            waited += time.perf_counter() - asked
            time.sleep(step)  # as an accelerator does, it leaves the host's cores alone
        ahead.close()
        return waited / (time.perf_counter() - began)

    print(
        f"\n{count} threads\n{'device takes, of their rate':30}{'share of a step that waits':>30}"
    )
    for part in (0.25, 0.5, 0.75, 1.0, 1.5):
        print(f"{part:30.0%}{min(share(part) for _ in range(3)):30.1%}")


def memory(count: int = 50_000) -> None:
    """The most memory over `count` images, beside the loader's bound."""
    tiles = photos(True, 64).images
    encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(tile)) for tile in tiles]
    num_threads, batch_size = 4, 256
    ahead = loader(Repeated(encoded), num_threads, batch_size).batches(0, 10**6)
    batch = sum(part.nbytes for part in jax.tree.leaves(next(ahead)))
    most: list[int] = []
    for number in range(-(-count // batch_size)):
        next(ahead)
        if number % 20 == 0:
            most.append(resident())
    ahead.close()
    print(f"\n{count} images, batches of {batch_size}, {num_threads} threads; in batches of memory")
    print(
        f"after the first {20 * batch_size}, the most above the least: "
        f"{(max(most[1:]) - min(most[1:])) / batch:.1f}"
    )


def resident() -> int:
    """Bytes of this process in memory."""
    if (status := Path("/proc/self/statm")).exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PARTS = (rates, fidelity, threads, waiting, memory)


def main(*names: str) -> None:
    """Runs the parts of these names."""
    by_name = {part.__name__: part for part in (*PARTS, workers)}
    for part in [by_name[name] for name in names] or PARTS:
        part()


if __name__ == "__main__":
    main(*sys.argv[1:])
