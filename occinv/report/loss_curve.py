"""The logged values of a loss as a curve, weighted by the number of steps of each value."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from occinv.report.results import Points


class Curve(NamedTuple):
    """Logged values by step, each of shape [N].

    Attributes:
      steps: The step at which each value was logged.
      values: The mean over the steps since the value before; NaN is a gap.
      num_steps: The number of steps that each value covers.
    """

    steps: np.ndarray
    values: np.ndarray
    num_steps: np.ndarray


def read_curve(points: Points) -> Curve:
    """The logged values of a loss.

    A run also logs at its last step, and then the last value may cover fewer steps than the others.
    It is merged with the value before it; otherwise its larger noise is a hook at the curve's end.
    """
    steps, logged = zip(*points, strict=True)
    values = np.array(logged, float)
    values[~np.isfinite(values)] = np.nan
    curve = Curve(np.array(steps), values, np.diff(steps, prepend=0).clip(1))
    last, counts = values[-2:], curve.num_steps[-2:]
    if len(last) < 2 or counts[1] >= counts[0] or np.isnan(last).any():
        return curve
    return Curve(
        np.delete(curve.steps, -2),
        np.append(values[:-2], np.average(last, weights=counts)),
        np.append(curve.num_steps[:-2], counts.sum()),
    )


def moving_mean(curve: Curve, width: int) -> np.ndarray:
    """The mean over the steps of `width` neighboring values; gaps stay gaps and count nothing.

    At both ends the mean is over the values that exist, so the ends are not pulled to zero.
    """
    is_finite = np.isfinite(curve.values)
    counts = np.where(is_finite, curve.num_steps, 0.0)
    kernel = np.ones(width)
    totals = np.convolve(counts * np.nan_to_num(curve.values), kernel, "same")
    counted = np.convolve(counts, kernel, "same")
    return np.divide(totals, counted, out=np.full_like(totals, np.nan), where=is_finite)
