"""Noise images have the spectrum of photographs, and are the same at every call."""

import numpy as np
import pytest

from occinv.data.open_source import open_source
from occinv.schema import UserError


def test_noise_has_the_spectrum_of_photographs() -> None:
    source = open_source("occinv.data.noise:Noise:20x64", train=True)
    assert len(source) == 20
    assert source.classes == ()
    images = np.stack([source.read(index).image for index in range(20)])
    assert images.shape == (20, 64, 64, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[7], source.read(7).image)
    assert len({image.tobytes() for image in images}) == 20
    values = images.astype(float)
    values -= values.mean((1, 2), keepdims=True)
    power = np.square(np.abs(np.fft.rfft(values, axis=2))).mean((0, 1, 3))
    # Along a line, the power of 1/f noise in two dimensions falls with 1 / frequency.
    slope = np.polyfit(np.log(np.arange(2, 24)), np.log(power[2:24]), 1)[0]
    assert -1.4 < slope < -0.8
    assert abs(np.corrcoef(values[..., 0].ravel(), values[..., 1].ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("size", ["20", "20x", "0x8", "ax8"])
def test_another_size_is_an_error(size: str) -> None:
    with pytest.raises(UserError, match="expected COUNTxSIDE"):
        open_source(f"occinv.data.noise:Noise:{size}", train=True)
