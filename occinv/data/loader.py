"""Loaders: batch n is a pure function of n, so a loader has no state to save or restore."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import grain
import numpy as np
from PIL import Image

from occinv.data.batch import Batch
from occinv.data.crop import Crop, RandomCrops, center_crop
from occinv.data.decode import with_channels
from occinv.data.order import sample_indices
from occinv.data.source import DecodeError, Reduction, Sample, Source
from occinv.schema import UserError
from occinv.size import Size, sides

logger = logging.getLogger("occinv.data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """The settings of a loader.

    Attributes:
      batch_size: The number of images in a batch over all processes.
      image_size: The size of the first crop in pixels.
      channels: The channels of the crops.
      crop_scale: The range of the area of a random crop, as a fraction of the image.
      flip: Whether each random crop is mirrored with probability 1/2.
      crops: Further random crops of every image, drawn after the first.
      num_threads: The number of batches made in parallel, ahead of use; 0 makes each batch on
        demand.
      num_workers: The number of processes that make batches, in place of threads.
      max_corrupt: The maximum number of unreadable images per process. Training replaces such an
        image by the next readable sample of the order; evaluation turns its row into padding.
      process_index: The index of this process. Its first row is process_index * batch_size /
        process_count.
      process_count: The number of processes that share a batch.
      seed: The seed of the order and of the crops, for training.
      rand_augment: Whether training applies RandAugment to the first crop. Its random numbers come
        after those of the crops, which therefore stay the same.
      scaled_decoding: Whether training decodes a JPEG at 1/2, 1/4 or 1/8 of its size if that
        enlarges no crop. The crops show the same parts in slightly different pixels: see
        docs/data.md.
      resize_ratio: For evaluation: see `center_crop`.

    Raises:
      UserError: The processes cannot share the batch evenly, or a value is out of range.
    """

    batch_size: int
    image_size: Size
    channels: int = 3
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    crops: tuple[Crop, ...] = ()
    num_threads: int = 8
    num_workers: int = 0
    max_corrupt: int = 0
    process_index: int = 0
    process_count: int = 1
    seed: int = 0
    rand_augment: bool = False
    scaled_decoding: bool = False
    resize_ratio: float = 0.875

    def __post_init__(self) -> None:
        size, count = self.batch_size, self.process_count
        if not 0 <= self.process_index < count:
            raise ValueError(f"process_index={self.process_index}, expected 0 to {count - 1}")
        if size < 1:
            raise UserError(f"batch_size={size}, expected 1 or more")
        if size % count:
            near = size - size % count
            fits = f"{near} or {near + count}" if near else f"{count}"
            raise UserError(f"batch_size={size} is not divisible by {count} processes. Use {fits}.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}, expected 0 to 2**63 - 1")
        if not 0 < self.resize_ratio <= 1:
            raise UserError(f"resize_ratio={self.resize_ratio}, expected a number in (0, 1]")


_Cropped = tuple[Sample, list[np.ndarray]]  # a sample, its first crop and its further crops


class _Loader(ABC):
    """Makes the rows of this process, skips corrupt images, and makes batches ahead.

    A copy in a worker process leaves counting corrupt images to the main process.

    Raises:
      UserError: More images than `max_corrupt` cannot be read.
    """

    def __init__(self, source: Source, spec: LoaderSpec):
        self.source = source
        self.spec = spec
        self.seed = spec.seed
        self._rows = spec.batch_size // spec.process_count
        self._first_row = spec.process_index * self._rows
        self._corrupt: dict[int, DecodeError] = {}  # by index
        self._lock: threading.Lock | None = threading.Lock()  # None in a worker, with one thread

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    @abstractmethod
    def batch(self, number: int, /) -> Batch:
        """Make this process's rows of a batch. Raises UserError, see the class."""

    def check_first(self) -> None:
        """Read the first image, so that a run on unreadable data ends before it writes anything.

        Raises UserError, see the class.
        """
        self._read(0)

    def _read(self, index: int, reduction: Reduction | None = None) -> Sample | None:
        """Read a sample with `channels`. Return None for a corrupt image, which is counted."""
        if index in self._corrupt:
            return None
        try:
            sample = self.source.read(index, reduction)
        except DecodeError as error:
            self._skip(index, error)
            return None
        return dataclasses.replace(sample, image=with_channels(sample.image, self.spec.channels))

    def _skip(self, index: int, error: DecodeError) -> None:
        if self._lock is None:  # a worker, whose errors go to the main process
            self._corrupt[index] = error
            return
        limit = self.spec.max_corrupt
        with self._lock:
            if index in self._corrupt:
                return
            names = sorted([*(known.name for known in self._corrupt.values()), error.name])
            if len(names) <= limit:
                self._corrupt[index] = error
        if len(names) > limit:
            others = f" {len(names)} images cannot be read: {', '.join(names)}." if limit else ""
            raise UserError(
                f"{error}.{others} Repair them, or raise data.max_corrupt={limit} to skip them."
            ) from error
        logger.warning("skipped (%d of at most %d): %s", len(names), limit, error)

    def _crops(self, crops: Sequence[Crop], rng: np.random.Generator) -> RandomCrops:
        return RandomCrops(crops, rng, self.spec.crop_scale, 0.5 if self.spec.flip else 0.0)

    def _empty(self) -> Batch:
        """Make a batch of padding."""

        def zeros(size: Size) -> np.ndarray:
            return np.zeros((self._rows, *sides(size), self.spec.channels), np.uint8)

        return Batch(
            image=zeros(self.spec.image_size),
            label=np.full(self._rows, -1, np.int32),
            index=np.full(self._rows, -1, np.int32),
            weight=np.zeros(self._rows, np.float32),
            crops=tuple(zeros(crop.size) for crop in self.spec.crops),
        )

    def _fill(self, indices: Sequence[int], rows: Iterable[_Cropped | None]) -> Batch:
        """Make a batch of `rows`. They are lazy; they read `indices`. None leaves padding."""
        self.source.prefetch(indices)
        batch = self._empty()
        for row, found in enumerate(rows):
            if found is not None:
                sample, crops = found
                batch.label[row] = sample.label
                batch.index[row] = sample.index
                batch.weight[row] = 1
                for images, crop in zip((batch.image, *batch.crops), crops, strict=True):
                    images[row] = crop
        return batch

    def _made_ahead(self, first: int, last: int) -> Generator[Batch]:
        """Yield the batches first to last - 1 in order, made ahead by processes or threads."""
        if last <= first:
            return
        made: Generator[Batch]
        if self.spec.num_workers:
            made = self._from_workers(first, last)
        else:
            threads = self.spec.num_threads  # a thread makes a whole batch
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
            numbers = grain.MapDataset.range(first, last)
            made = iter(numbers.map(self.batch).to_iter_dataset(options))
        with contextlib.closing(made):
            yield from made

    def _from_workers(self, first: int, last: int) -> Generator[Batch]:
        from occinv.data.workers import made_by_workers

        made = made_by_workers(self._with_errors, first, last, self.spec.num_workers)
        with contextlib.closing(made):
            for batch, errors in made:
                for error in errors:
                    self._skip(error.index, error)
                yield batch

    def _with_errors(self, number: int) -> tuple[Batch, list[DecodeError]]:
        """Make a batch in a worker. Also return the error of each image not met before."""
        known = len(self._corrupt)
        batch = self.batch(number)
        return batch, list(self._corrupt.values())[known:]


class TrainLoader(_Loader):
    """Shuffled images with random crops, without end.

    The batch of step n is a pure function of (seed, n). Its sample at position p of the global
    batch is sample i = n * batch_size + p of `sample_indices`, and the crops of sample i depend on
    (seed, i) alone. Therefore the batches are the same for any number of processes and threads,
    and after any restart.
    """

    def batch(self, step: int, /) -> Batch:
        """Make this process's rows of the batch of `step`. Raises UserError, see `_Loader`."""
        first = step * self.spec.batch_size + self._first_row
        indices = sample_indices(self.seed, len(self.source), first, self._rows).tolist()
        rows = (
            self._cropped(index, number) or self._next_readable(number)
            for number, index in enumerate(indices, first)
        )
        return self._fill(indices, rows)

    def batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """Yield the batches first_step to last_step - 1 in order, made ahead."""
        return self._made_ahead(first_step, last_step)

    def _cropped(self, index: int, number: int) -> _Cropped | None:
        """Crop image `index` as sample `number`. Return None for a corrupt image."""
        rng = sample_rng(self.seed, number)
        crops = self._crops((Crop(self.spec.image_size), *self.spec.crops), rng)
        sample = self._read(index, crops.reduction if self.spec.scaled_decoding else None)
        if sample is None:
            return None
        image, *others = crops.cut(sample.image)
        if self.spec.rand_augment:
            from occinv.data.rand_augment import rand_augment

            image = np.asarray(rand_augment(Image.fromarray(image), rng))
        return sample, [image, *others]

    def _next_readable(self, number: int) -> _Cropped:
        # 2 · count samples always cover every image.
        count = len(self.source)
        for index in sample_indices(self.seed, count, number + 1, 2 * count).tolist():
            if found := self._cropped(index, number):
                return found
        raise UserError(f"none of the {count} images of {self.source.name} can be read")


def sample_rng(seed: int, number: int) -> np.random.Generator:
    """Return the generator of sample `number`, which has 2**64 draws of its own."""
    # Philox can jump to any sample.
    return np.random.Generator(np.random.Philox(key=seed, counter=number << 64))


class EvalLoader(_Loader):
    """Every image exactly once, in order, with a fixed central crop.

    The last batch is filled with padding: weight 0, label and index -1. Further `crops` are random
    but the same in each pass. `len` is the number of batches.
    """

    def __len__(self) -> int:
        return -(-len(self.source) // self.spec.batch_size)

    def batch(self, number: int, /) -> Batch:
        """Make this process's rows of batch `number` < len. Raises UserError, see `_Loader`."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        first = number * self.spec.batch_size + self._first_row
        indices = range(first, min(first + self._rows, len(self.source)))
        return self._fill(indices, map(self._cropped, indices))

    def batches(self) -> Generator[Batch]:
        """Yield all batches in order, made ahead."""
        return self._made_ahead(0, len(self))

    def _cropped(self, index: int) -> _Cropped | None:
        sample = self._read(index)
        if sample is None:
            return None
        image = center_crop(sample.image, self.spec.image_size, self.spec.resize_ratio)
        others = self._crops(self.spec.crops, sample_rng(0, index)).cut(sample.image)
        return sample, [image, *others]
