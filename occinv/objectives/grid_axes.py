"""The axes of the free grid by name: which combinations work, and why others are refused."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, get_args

Transformation = Literal["identity", "jitter", "crop", "masking", "rectangles"]
Targets = Literal["pixels", "ids", "encoder", "ema"]
Similarity = Literal[
    "pixel_l2", "decoder_distance", "infonce", "byol", "cross_entropy", "smoothed_l1"
]
OCCLUSIONS = ("masking", "rectangles")  # the transformations that remove patches
GIVEN = {"pixels": "pixel_l2", "ids": "cross_entropy"}  # targets without an encoder, and their M


class Combination(NamedTuple):
    """One point of the grid."""

    t1: Transformation
    t2: Transformation
    targets: Targets
    similarity: Similarity

    @property
    def name(self) -> str:
        """The axes joined, such as `masking-identity-ema-smoothed_l1`."""
        return "-".join(self)

    @property
    def refusal(self) -> str | None:
        """The reason why this cannot work, and what to change, in one line; None if it works."""
        is_given = self.targets in GIVEN
        if is_given and self.similarity != GIVEN[self.targets]:
            reason = f"it is no measure of {self.targets}"
            return self._clash("similarity", "targets", reason, "similarity", GIVEN[self.targets])
        if self.similarity == "pixel_l2" and not is_given:
            reason = "it is no measure of features"
            return self._clash("similarity", "targets", reason, "similarity", "decoder_distance")
        if "crop" in self[:2] and (is_given or self.similarity == "decoder_distance"):
            crop = "t1" if self.t1 == "crop" else "t2"
            what = "targets" if is_given else "similarity"
            return self._clash(crop, what, "crops share no patch to compare", crop, "masking")
        if self.t1 == self.t2 == "identity":
            reason = "the two views are the same, so no invariance is learned"
            return self._clash("t1", "t2", reason, "t1", "masking")
        if is_given and self.t2 == "jitter":
            reason = "the colors that T2 draws cannot be predicted from T1"
            return self._clash("t2", "targets", reason, "t2", "identity")
        if is_given and self.t1 == "identity":
            reason = "T1 shows the target, so nothing is predicted"
            return self._clash("t1", "targets", reason, "t1", "masking")
        return None

    def _clash(self, first: str, second: str, reason: str, change: str, to: str) -> str:
        values = self._asdict()
        return (
            f"objective.{first}={values[first]!r} with objective.{second}={values[second]!r}: "
            f"{reason}; use objective.{change}={to!r}"
        )


def all_combinations() -> tuple[Combination, ...]:
    """Return every point of the grid, whether it works or not."""
    axes = Transformation, Transformation, Targets, Similarity
    return tuple(Combination(*point) for point in itertools.product(*map(get_args, axes)))


def valid_combinations() -> tuple[Combination, ...]:
    """Return the combinations that work."""
    return tuple(point for point in all_combinations() if point.refusal is None)
