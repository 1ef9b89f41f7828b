"""What the formats of a data set cost, as ratios of times measured in one run.

    make bench            on images that it draws
    .venv/bin/python benchmarks/data_formats.py FOLDER    on the JPEGs below a folder

The unit is an epoch: every image read, decoded and cropped once. All is time of the processor, with
the files in memory: of a disk or a bucket that is slower, add its own.
"""

import functools
import io
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from occinv.data.loader import LoaderSpec, TrainLoader
from occinv.data.open_source import open_source
from occinv.data.tfds.prepare import prepare
from occinv.data.tfds.prepared import FORMATS
from occinv.data.tfds.source import open_all

COUNT = 256
ROUNDS = 4


@functools.cache
def images() -> list[bytes]:
    """Encoded images: some of a folder's, or of the size that ImageNet's have on average."""
    if len(sys.argv) > 1:
        files = sorted(Path(sys.argv[1]).rglob("*.JPEG"))
        return [file.read_bytes() for file in files[:: max(1, len(files) // COUNT)][:COUNT]]
    encoded = []
    for number in range(COUNT):
        draw = np.random.default_rng(number)
        smooth = Image.fromarray(draw.integers(0, 256, (35, 40, 3), np.uint8)).resize((400, 350))
        pixels = np.asarray(smooth, np.int16) + draw.integers(-12, 13, (350, 400, 1))
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    return encoded


class OccinvBenchmark(tfds.core.GeneratorBasedBuilder):
    """The images as a data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, image in enumerate(images()):
            yield number, {"image": io.BytesIO(image), "label": number % 10}


def seconds(do) -> float:
    """Of the processor, the least of ROUNDS: what else the machine does adds to both."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        do()
        times.append(time.process_time() - begun)
    return min(times)


def measure(file_format: str, data_dir: str) -> None:
    """Prepares the data set in a format, and prints what it costs."""
    prepare("occinv_benchmark", data_dir, None, file_format)

    def opened():
        return open_source("tfds:occinv_benchmark", train=True, data_dir=data_dir)

    source = opened()
    loader = TrainLoader(source, LoaderSpec(batch_size=64, image_size=224, num_threads=0))
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    first, late = (
        seconds(lambda step=step: [loader.batch(step + i) for i in range(4)])
        for step in (0, 1_000_000)
    )
    epoch = seconds(lambda: [loader.batch(step) for step in range(len(source) // 64)])
    for what, cost in (
        (
            "one pass over all records, for the index",
            seconds(lambda: open_all("occinv_benchmark", data_dir)["train"].labels) / epoch,
        ),
        (
            "all records in a random order",
            seconds(lambda: [source._records[i] for i in order]) / epoch,
        ),
        ("opening it again, with the index", seconds(lambda: opened().labels) / epoch),
        ("batch 1,000,000 against batch 0", late / first),
    ):
        print(f"{file_format:13} {what:42} {cost:.3f}")


def main() -> None:
    """Measures each format."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    print(
        f"{len(images())} images of {np.mean([len(i) for i in images()]) / 1000:.0f} kB; in epochs:"
    )
    with tempfile.TemporaryDirectory() as folder:
        for file_format in FORMATS:
            measure(file_format, f"{folder}/{file_format}")


if __name__ == "__main__":
    main()
