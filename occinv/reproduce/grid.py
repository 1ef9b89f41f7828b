"""The free grid as a table: a row for each combination of axes that can work."""

from __future__ import annotations

from occinv.objectives.grid_axes import Combination, all_combinations, valid_combinations
from occinv.reproduce.definition import Row, Table
from occinv.reproduce.methods import RANDOM, Method
from occinv.schema import UserError, nearest

WORDS = {
    "identity": "none",
    "jitter": "color",
    "crop": "crop",
    "masking": "patch masking",
    "blocks": "masking of blocks",
}


def grid_table() -> Table:
    """The paper's two parts of an image under every target and M, and what to set against them.

    A row of any other combination that can work has its name.
    """
    return Table(
        key="grid",
        subject="T1, T2, target and M, each free",
        rows=(
            Row("Random init", RANDOM, epochs=None),
            *(row_of(point) for point in valid_combinations() if is_in_table(point)),
        ),
        columns=("finetune",),
        has_cka=True,
        by_axes=True,
        other=row_named,
        notes=(
            "All are pretrained alike, whatever the settings that an objective was published with.",
        ),
    )


def is_in_table(point: Combination) -> bool:
    """Whether its row runs unless rows are named."""
    views = point[:2]
    if views == ("masking", "identity"):
        return point.targets in ("ids", "ema")
    is_siamese = point.targets == "ema" or point.similarity in ("infonce", "byol")
    return views == ("masking", "masking") or (views == ("crop", "crop") and is_siamese)


def row_of(point: Combination) -> Row:
    """The row of one combination; its key is the combination's name."""
    t1, t2, targets, similarity = point
    method = Method(
        f"grid_{point.name}",
        "grid",
        tuple(f"objective.{axis}={value}" for axis, value in point._asdict().items()),
        cost=1.5 if targets == "pixels" else 4.0,
        transformation=WORDS[t2 if t1 == "identity" else t1],
        pooling="mean",
    )
    name = f"{t1} → {t2}, {targets}, {similarity}"
    return Row(name, method, epochs=None, own_key=point.name)


def row_named(name: str) -> Row:
    """The row of the combination of that name. Raises UserError where there is none that works."""
    points = {point.name: point for point in all_combinations()}
    if name not in points:
        raise UserError(
            f"--rows has {name!r}{nearest(name, points)}, expected T1-T2-target-M such as "
            "masking-identity-ema-byol"
        )
    if (refusal := points[name].refusal) is not None:
        raise UserError(f"--rows has {name!r}: {refusal}")
    return row_of(points[name])
