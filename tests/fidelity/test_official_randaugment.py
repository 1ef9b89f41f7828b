"""Each operation of RandAugment against timm's auto_augment.py, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from official import agrees
from PIL import Image

from occinv.data.rand_augment import OPERATIONS


def test_the_operations_of_randaugment(reference: Path) -> None:
    file = np.load(reference / "randaugment.npz")
    image, compared = Image.fromarray(file["img"]), {}
    for name in file.files:
        if name == "img":
            continue
        official, level, sign = name.split("|")
        operation = official.removesuffix("Increasing")
        found = OPERATIONS[operation](image, float(level) / 10, int(sign))
        expected = {name: file[name].astype(float)}
        agrees("RandAugment: the 15 operations", {name: np.asarray(found)}, expected, 0)
        compared.setdefault(operation, set()).add((level, sign))
    assert set(compared) == set(OPERATIONS)
    for settings in compared.values():  # each at several levels, and with both signs
        levels, signs = map(set, zip(*settings, strict=True))
        assert len(levels) > 1 and signs == {"1", "-1"}
