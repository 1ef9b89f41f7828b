"""Noise in place of images: the control for pretraining on few images (docs/study.md)."""

from __future__ import annotations

import numpy as np

from occinv.data.source import Reduction, Sample, Source
from occinv.schema import UserError


class Noise(Source):
    """Color noise whose amplitude falls with 1 / frequency, as that of photographs does.

    It has the correlations between near pixels that photographs have, and nothing else of them.

    Args:
      size: `COUNTxSIDE`: the number of images, and their pixels a side.
      train: Whether these are training images; there are no others.
    """

    def __init__(self, size: str, *, train: bool) -> None:
        count, _, side = size.partition("x")
        if not (count.isdecimal() and side.isdecimal() and int(count) and int(side)):
            raise UserError(f"noise {size!r}, expected COUNTxSIDE, such as 1000x64")
        self.name, self.classes = f"noise of {count} images, {side}² pixels", ()
        self.count, self.side = int(count), int(side)
        self.labels = np.full(self.count, -1, np.int32)

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Draw image `index`: the same one at every call."""
        side, draw = self.side, np.random.default_rng([20221128, index])
        rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
        frequency = np.hypot(rows, columns)
        frequency[0, 0] = np.inf  # the mean is set below
        spectrum = np.fft.rfft2(draw.standard_normal((3, side, side))) / frequency
        pixels = np.fft.irfft2(spectrum, (side, side))
        pixels *= 60 / np.maximum(pixels.std((1, 2), keepdims=True), 1e-9)  # as of photographs
        image = np.clip(pixels + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        return Sample(np.ascontiguousarray(image), -1, index)
