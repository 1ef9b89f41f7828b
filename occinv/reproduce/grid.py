"""The grid as a table: one row for each valid combination of T1, T2, target and M."""

from __future__ import annotations

from occinv.objectives.grid_axes import Combination, all_combinations, valid_combinations
from occinv.reproduce.methods import RANDOM, Method
from occinv.reproduce.specs import BOTH, RowSpec, TableSpec
from occinv.schema import UserError, nearest

TRANSFORMATIONS = {
    "identity": "none",
    "jitter": "color",
    "crop": "crop",
    "masking": "patch masking",
    "rectangles": "rectangle masking",
}


def grid_table() -> TableSpec:
    """The table of the grid. `--rows` accepts the names of all valid combinations."""
    return TableSpec(
        key="grid",
        subject="Combinations of T1, T2, target and M",
        rows=(
            RowSpec("Random init", RANDOM, epochs=None),
            *(make_row(point) for point in valid_combinations() if is_default(point)),
        ),
        columns=("finetune",),
        cka=BOTH,
        layout="axes",
        row_by_name=row_by_name,
        notes=("All rows are pretrained with one recipe, not with their published settings.",),
    )


def is_default(point: Combination) -> bool:
    """Whether a combination runs without `--rows`.

    These are complementary masks under every target and M; masked against full images with the
    targets `ids` and `ema`; and two crops with siamese targets or measures.
    """
    views = point[:2]
    if views == ("masking", "identity"):
        return point.targets in ("ids", "ema")
    is_siamese = point.targets == "ema" or point.similarity in ("infonce", "byol")
    return views == ("masking", "masking") or (views == ("crop", "crop") and is_siamese)


def make_row(point: Combination) -> RowSpec:
    """The row of one combination. Its key is the combination's name."""
    t1, t2, targets, similarity = point
    method = Method(
        f"grid_{point.name}",
        "grid",
        tuple(f"objective.{axis}={value}" for axis, value in point._asdict().items()),
        cost=1.5 if targets == "pixels" else 4.0,
        transformation=TRANSFORMATIONS[t2 if t1 == "identity" else t1],
        pooling="mean",
    )
    name = f"{t1} → {t2}, {targets}, {similarity}"
    return RowSpec(name, method, epochs=None, row_key=point.name)


def row_by_name(name: str) -> RowSpec:
    """The row of the combination with this name.

    Raises:
      UserError: The combination does not exist or cannot be trained.
    """
    points = {point.name: point for point in all_combinations()}
    if name not in points:
        raise UserError(
            f"--rows has {name!r}{nearest(name, points)}, expected T1-T2-target-M such as "
            "masking-identity-ema-byol"
        )
    if (refusal := points[name].refusal) is not None:
        raise UserError(f"--rows has {name!r}: {refusal}")
    return make_row(points[name])
