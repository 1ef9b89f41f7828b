"""Small archives in the form of ImageNet's: a tar of tars to train on, a flat one held out."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import resource
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from occinv.data.tfds.prepare import TARS

# The first is cleaned by the builder: its images are a CMYK JPEG and a PNG in the real archive.
CLASSES = ("n02105855", "n01739381", "n01443537", "n02123045")
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"


@functools.cache
def validation_labels() -> list[str]:
    """The class of each image of the held-out archive, by its number less one."""
    return tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()


def encoded(number: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A small image, another for each number: a real photograph where OCCINV_IMAGES has some."""
    if folder := os.environ.get("OCCINV_IMAGES"):
        photographs = sorted(Path(folder).rglob("*.JPEG"))
        image = Image.open(photographs[number % len(photographs)]).convert("RGB").resize((48, 40))
    else:
        coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((48, 40))
    stream = io.BytesIO()
    image.convert(mode).save(stream, kind)
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def train_files(per_class: int) -> dict[str, bytes]:
    """The files of the archive to train on, by name; two of them are no RGB JPEG."""
    files = {
        f"{wnid}_{i}.JPEG": encoded(100 * label + i)
        for label, wnid in enumerate(CLASSES)
        for i in range(per_class)
    }
    return files | {CMYK: encoded(7, mode="CMYK"), PNG: encoded(8, kind="PNG")}


def held_out_files(per_class: int) -> dict[str, bytes]:
    """The files of the held-out archive, by name: the first of each class."""
    labels = np.array(validation_labels())
    numbers = np.concatenate([np.flatnonzero(labels == wnid)[:per_class] for wnid in CLASSES]) + 1
    return {f"ILSVRC2012_val_{n:08}.JPEG": encoded(int(n)) for n in sorted(numbers)}


def write_tars(folder: Path, train: Mapping[str, bytes], held_out: Mapping[str, bytes]) -> Path:
    """Both archives, in a folder that is made."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / TARS["train"], "w") as outer:
        for wnid in sorted({name[:9] for name in train}):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for name, content in train.items():
                    if name.startswith(wnid):
                        _add(tar, name, content)
            _add(outer, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(folder / TARS["validation"], "w") as tar:
        for name, content in held_out.items():
            _add(tar, name, content)
    return folder


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """In this block writing fails after so many bytes of a file, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
