"""Batches as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from PIL import Image

from occinv.data import rand_augment as augment
from occinv.data.batch import Batch
from occinv.data.crop import Crop, RandomCrops, center_crop
from occinv.data.decode import Reduction
from occinv.data.order import sample_indices
from occinv.data.source import DecodeError, Sample, Source
from occinv.schema import UserError

logger = logging.getLogger("occinv.data")


class _CorruptImages:
    """Which images of a source could not be read, up to a limit; shared by threads."""

    def __init__(self, limit: int):
        self._limit = limit
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._names

    @property
    def names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(self._names.values()))

    def add(self, index: int, error: DecodeError) -> None:
        """Notes the image, or raises when it is one too many."""
        with self._lock:
            if index in self._names:
                return
            if self._limit == 0:
                raise error
            self._names[index] = error.name
            names = sorted(self._names.values())
        if len(names) > self._limit:
            raise UserError(
                f"{len(names)} images cannot be read, data.max_corrupt={self._limit} allows "
                f"{self._limit}: {', '.join(names)}"
            ) from error
        logger.warning("skipped (%d of at most %d): %s", len(names), self._limit, error)


class _Loader:
    """What both loaders share: the rows of this process, and prefetching."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: int,
        num_threads: int,
        max_corrupt: int,
        process_index: int,
        process_count: int,
        crop_scale: tuple[float, float],
        crop_ratio: tuple[float, float],
        flip: bool,
        crops: tuple[Crop, ...],
    ):
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"batch_size is {batch_size}, expected a multiple of the {process_count} "
                f"process{'es' if process_count > 1 else ''}"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index is {process_index} of {process_count} processes")
        self.source = source
        self.batch_size = batch_size
        self.image_size = image_size
        self._rows = batch_size // process_count
        self._first_row = process_index * self._rows
        self._num_threads = num_threads
        self._ahead = max(2, num_threads)  # a thread makes a whole batch
        self._corrupt = _CorruptImages(max_corrupt)
        self._crop_scale = crop_scale
        self._crop_ratio = crop_ratio
        self._flip = 0.5 if flip else 0.0
        self._crops = crops

    @property
    def corrupt(self) -> tuple[str, ...]:
        """The names of the images that could not be read so far in this process, sorted."""
        return self._corrupt.names

    @property
    def most_batches(self) -> int:
        """How many batches are in memory at most: those made ahead, and the one in use."""
        return 1 + (self._ahead + 1 if self._num_threads else 1)

    def _read(self, index: int, reduction: Reduction | None = None) -> Sample | None:
        """The sample, or None when it is corrupt, which is counted."""
        if index in self._corrupt:
            return None
        try:
            return self.source.read(index, reduction)
        except DecodeError as error:
            self._corrupt.add(index, error)
            return None

    def _empty(self) -> Batch:
        shape = (self._rows, self.image_size, self.image_size, 3)
        return Batch(
            image=np.zeros(shape, np.uint8),
            label=np.full(self._rows, -1, np.int32),
            index=np.full(self._rows, -1, np.int32),
            weight=np.zeros(self._rows, np.float32),
            crops=tuple(
                np.zeros((self._rows, crop.size, crop.size, 3), np.uint8) for crop in self._crops
            ),
        )

    def _random_crops(self, crops: Sequence[Crop], rng: np.random.Generator) -> RandomCrops:
        return RandomCrops(crops, rng, self._crop_scale, self._crop_ratio, self._flip)

    def _put(self, batch: Batch, row: int, sample: Sample, crops: Sequence[np.ndarray]) -> None:
        """Fills a row."""
        batch.label[row] = sample.label
        batch.index[row] = sample.index
        batch.weight[row] = 1
        for images, crop in zip((batch.image, *batch.crops), crops, strict=True):
            images[row] = crop

    def _prefetched(self, batch: Callable[[int], Batch], first: int, last: int) -> Iterator[Batch]:
        options = grain.ReadOptions(num_threads=self._num_threads, prefetch_buffer_size=self._ahead)
        if last <= first:
            return
        batches = iter(grain.MapDataset.range(first, last).map(batch).to_iter_dataset(options))
        try:
            yield from batches
        finally:
            batches.close()


class TrainLoader(_Loader):
    """Shuffled, randomly cropped and mirrored images, for ever.

    Batch number `step` is a pure function of (seed, step): its sample at position p of the global
    batch is number i = step * batch_size + p of `sample_indices`, and what is done to sample i
    depends on (seed, i) only. So the batches are the same for every number of processes and
    threads, and after any restart.

    batch_size:  global, over all processes. This process makes rows
                 process_index * batch_size / process_count onwards.
    image_size:  pixels a side of the crop.
    crop_scale, crop_ratio, flip: see `random_resized_crop`; `flip` mirrors with probability 1/2.
    num_threads: batches made at the same time ahead of use; 0 makes each when it is asked for.
    crops:       further random crops of every image, drawn after the first.
    rand_augment: changes the first crop by `augment.rand_augment`, which draws last, so that the
                 crops are those of a loader without it.
    scaled_decoding: decodes a JPEG at 1/2, 1/4 or 1/8 of its size where no crop of it is enlarged
                 by that. Crops show the same parts, faster and in other pixels: docs/data.md.
    max_corrupt: so many different images may fail to decode. Each is replaced by the next sample of
                 the order that can be read, logged once and listed in `corrupt`; one more is an
                 error that names them all. The count starts anew with each process.
    Raises: UserError when `seed` is negative or the processes cannot share the batch evenly.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: int,
        seed: int,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        num_threads: int = 8,
        max_corrupt: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        crops: tuple[Crop, ...] = (),
        rand_augment: bool = False,
        scaled_decoding: bool = False,
    ):
        super().__init__(
            source,
            batch_size=batch_size,
            image_size=image_size,
            num_threads=num_threads,
            max_corrupt=max_corrupt,
            process_index=process_index,
            process_count=process_count,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            flip=flip,
            crops=crops,
        )
        if not 0 <= seed < 2**63:
            raise UserError(f"seed is {seed}, expected a whole number of 0 or more")
        self.seed = seed
        self._rand_augment = rand_augment
        self._scaled_decoding = scaled_decoding
        self._all_crops = (Crop(image_size), *crops)

    def batch(self, step: int) -> Batch:
        """This process's rows of batch number `step`. Raises DecodeError, see `max_corrupt`."""
        batch = self._empty()
        first = step * self.batch_size + self._first_row
        indices = sample_indices(self.seed, len(self.source), first, self._rows).tolist()
        self.source.expect(indices)
        for row, index in enumerate(indices):
            number = first + row
            sample, crops = self._read_and_crop(index, number) or self._next_readable(number)
            self._put(batch, row, sample, crops)
        return batch

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Batches first_step .. last_step - 1 in order, made ahead by threads."""
        return self._prefetched(self.batch, first_step, last_step)

    def _read_and_crop(self, index: int, number: int) -> tuple[Sample, list[np.ndarray]] | None:
        """Image `index` as sample `number`, or None when it is corrupt."""
        rng = _crop_generator(self.seed, number)
        crops = self._random_crops(self._all_crops, rng)
        sample = self._read(index, crops.reduction if self._scaled_decoding else None)
        if sample is None:
            return None
        image, *others = crops.cut(sample.image)
        if self._rand_augment:
            image = np.asarray(augment.rand_augment(Image.fromarray(image), rng))
        return sample, [image, *others]

    def _next_readable(self, number: int) -> tuple[Sample, list[np.ndarray]]:
        # Two epochs hold the whole of one permutation, so every image is tried.
        count = len(self.source)
        for index in sample_indices(self.seed, count, number + 1, 2 * count).tolist():
            if found := self._read_and_crop(index, number):
                return found
        raise UserError(f"none of the {count} images of {self.source.name} can be read")


def _crop_generator(seed: int, number: int) -> np.random.Generator:
    # A counter-based generator jumps to sample `number`: each has 2**64 draws of its own.
    return np.random.Generator(np.random.Philox(key=seed, counter=number << 64))


class EvalLoader(_Loader):
    """Every image exactly once, in order, at a fixed central crop. Further `crops` are random,
    but the same each time.

    batch_size: global. The last batch is filled up with zeros: weight 0, label and index -1.
    resize_ratio: see `center_crop`.
    max_corrupt: so many images may fail to decode; their rows are padding too.
    The other arguments and errors are those of TrainLoader; len() is the number of batches.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: int,
        resize_ratio: float = 0.875,
        num_threads: int = 8,
        max_corrupt: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        crops: tuple[Crop, ...] = (),
    ):
        super().__init__(
            source,
            batch_size=batch_size,
            image_size=image_size,
            num_threads=num_threads,
            max_corrupt=max_corrupt,
            process_index=process_index,
            process_count=process_count,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            flip=flip,
            crops=crops,
        )
        if not 0 < resize_ratio <= 1:
            raise UserError(f"resize_ratio is {resize_ratio}, expected above 0 and at most 1")
        self._resize_ratio = resize_ratio

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def batch(self, number: int) -> Batch:
        """This process's rows of batch `number`, 0 <= number < len. Raises DecodeError."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        batch = self._empty()
        first = number * self.batch_size + self._first_row
        indices = range(first, min(first + self._rows, len(self.source)))
        self.source.expect(indices)
        for row, index in enumerate(indices):
            if (sample := self._read(index)) is not None:
                image = center_crop(sample.image, self.image_size, self._resize_ratio)
                others = self._random_crops(self._crops, _crop_generator(0, index))
                self._put(batch, row, sample, [image, *others.cut(sample.image)])
        return batch

    def batches(self) -> Iterator[Batch]:
        """All batches in order, made ahead by threads."""
        return self._prefetched(self.batch, 0, len(self))
