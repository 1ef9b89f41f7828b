"""DALL·E's encoder against the one in the official code of BEiT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from official import agrees, group

from occinv.models.tokenizers.dalle import SHRINKS, Dalle
from occinv.weights.import_dalle import read_dalle
from occinv.weights.import_report import ImportReport


@pytest.fixture(scope="module")
def dalle(reference: Path) -> Any:
    return np.load(reference / "dalle.npz")


@pytest.fixture(scope="module")
def dalle_outcome(dalle: Any) -> Any:
    """The logits and ids of the file's images."""
    run = read_dalle(group(dalle, "W"), ImportReport())
    section = dict(run.experiment.objective["tokenizer"])
    section.pop("name")
    # An image of this size is not resized before the encoder.
    tokenizer = Dalle(image_size=dalle["x"].shape[-1], patch_size=SHRINKS, **section)
    pixels = dalle["x"].transpose(0, 2, 3, 1)
    compute = jax.jit(lambda: [f(run.params, pixels) for f in (tokenizer.logits, tokenizer.ids)])
    return jax.device_get(compute())


def official_logits(file: Any) -> np.ndarray:
    """Return the official logits as [B, N, num_ids]."""
    images, num_ids, *_ = file["y"].shape
    return file["y"].reshape(images, num_ids, -1).swapaxes(1, 2)


def test_dalles_logits(dalle: Any, dalle_outcome: Any) -> None:
    agrees("DALL·E: logits of the encoder", dalle_outcome[0], official_logits(dalle))


def test_dalles_ids(dalle: Any, dalle_outcome: Any) -> None:
    _, ids = dalle_outcome
    logits = official_logits(dalle)
    chosen = np.take_along_axis(logits, ids[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(chosen, logits.max(-1), rtol=1e-4)  # equal, or tied but for rounding
