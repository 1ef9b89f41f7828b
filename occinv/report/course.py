"""How a training went: its final loss, its speed, and where it was unstable."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from occinv.report.results import KNN, Column

WINDOW = 20  # logged values before a value, whose median it is compared with
NORM_SPIKE, LOSS_SPIKE = 3.0, 1.5  # factors of that median
DIP = 2.0  # points of k-NN accuracy

COLUMNS = (
    KNN,
    Column("loss", "Loss", "", "mean of the last tenth of the logged training losses", decimals=3),
    Column("nonfinite", "Non-finite", "", "logged losses that are not finite", decimals=0),
    Column(
        "spikes",
        "Spikes",
        "",
        f"logged gradient norms above {NORM_SPIKE:g} times, or losses above {LOSS_SPIKE:g} times "
        f"the median of the {WINDOW} before",
        decimals=0,
    ),
    Column(
        "dips",
        "Dips",
        "",
        f"evaluations in training whose k-NN accuracy is more than {DIP:g} points below the best "
        "before, as MoCo v3 is known to have",
        decimals=0,
    ),
    Column("speed", "Images/s", "", "median speed of the training steps", decimals=0),
)


def course_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the values of `COLUMNS` that the log of a training has, by column key.

    Args:
      lines: The lines of metrics.jsonl, as `read_scalars` reads them. None counts as not finite.
    """
    losses, norms = (
        [line[name] for line in lines if name in line] for name in ("loss", "gradient_norm")
    )
    finite = [loss for loss in losses if is_finite(loss)]
    found: dict[str, float] = {}
    if losses:
        found["nonfinite"] = len(losses) - len(finite)
        found["spikes"] = len(spikes(norms, NORM_SPIKE) | spikes(losses, LOSS_SPIKE))
    if finite:
        found["loss"] = statistics.fmean(finite[-max(1, len(finite) // 10) :])
    accuracies = [100 * line["knn/top1"] for line in lines if "knn/top1" in line]
    if accuracies:
        found["knn"] = accuracies[-1] / 100
        best = [max(accuracies[:place]) for place in range(1, len(accuracies))]
        falls = (top - value for top, value in zip(best, accuracies[1:], strict=True))
        found["dips"] = sum(fall > DIP for fall in falls)
    if speeds := [line["images_per_second"] for line in lines if line.get("images_per_second")]:
        found["speed"] = statistics.median(speeds)
    return found


def spikes(values: Sequence[float | None], factor: float) -> set[int]:
    """Return the places of values above `factor` times the median of the `WINDOW` before."""
    found = set()
    for place in range(WINDOW, len(values)):
        before = [value for value in values[place - WINDOW : place] if is_finite(value)]
        value = values[place]
        if before and is_finite(value) and value > factor * statistics.median(before):
            found.add(place)
    return found


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether a logged value is a finite number."""
    return value is not None and math.isfinite(value)
