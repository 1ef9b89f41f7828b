"""From the records of evaluators to the columns, curves and floor of a table.

Two numbers are in one column only if they were made in the same way: on the same images, by the
same protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from occinv.data.identity import Images, unpack
from occinv.evaluators import quoted_place
from occinv.evaluators.base import Record
from occinv.report.checks import is_valid
from occinv.report.results import (
    KNN,
    OCCLUSION,
    PSNR,
    PSNR_REMOVED,
    RETRIEVAL,
    CkaCurves,
    Column,
    Row,
)
from occinv.schema import UserError
from occinv.train.records import FOLDER, read_records
from occinv.train.workdir import RESULT, read_result


class Quantity(NamedTuple):
    """A number of a record that is a column of tables: the column, and the name in the record."""

    column: Column
    value: str


# By evaluator. `finetune` and `linear` are the accuracies that training itself measures.
QUANTITIES = {
    "finetune": [
        Quantity(Column("finetune", "FT %", "%", "top-1 after training on labels"), "top1")
    ],
    "linear": [Quantity(Column("linear", "Linear %", "%", "top-1 of a linear probe"), "top1")],
    "probe": [Quantity(Column("probe", "Probe %", "%", "top-1 of a fitted linear probe"), "top1")],
    "knn": [Quantity(KNN, "top1")],
    "occlusion": [Quantity(OCCLUSION, "area_random")],
    "psnr": [Quantity(PSNR, "whole"), Quantity(PSNR_REMOVED, "removed")],
    "invariance": [Quantity(RETRIEVAL, "retrieval")],
}


def records_of(workdir: Path, stage: str) -> list[Record]:
    """Return every record of a run, with that of its last evaluation in training.

    Raises:
      UserError: A file is damaged.
    """
    found = []
    for path in sorted((workdir / FOLDER).glob("*.json")):
        for record in read_records(path):
            if record.evaluator in QUANTITIES:
                _check(record, path)
                found.append(record)
    result = read_result(workdir)
    if result is None or stage not in QUANTITIES:
        return found
    if "images" in result and "top1" in result["metrics"]:
        images, values = Images(**result["images"]), {"top1": result["metrics"]["top1"]}
        record = Record(stage, str(workdir), stage, result["step"], images, {}, "", values, {})
        _check(record, workdir / RESULT)
        found.append(record)
    return found


def _check(record: Record, path: Path) -> None:
    """Raise UserError unless a record holds what tables read from it: the file may be damaged."""
    try:
        for quantity in QUANTITIES[record.evaluator]:
            value = record.values.get(quantity.value)
            if value is not None and not is_valid(value, quantity.column):
                raise ValueError(f"{quantity.value} is {value}")
        if record.images.count < 1:
            raise ValueError(f"there are {record.images.count} images")
        if record.evaluator == "invariance":
            row = Row("", "", cka={"pretrained": curves_of([record])})
            for each in (row, *floor_rows([record])):
                pydantic.TypeAdapter(Row).validate_python(asdict(each))  # types of its numbers
        elif record.protocol.get("classifier") == "own":
            unpack(next(iter(record.details["hits"].values()))[0])
        elif isinstance(hits := record.details.get("hits"), str):
            unpack(hits)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has a damaged record of {record.evaluator} ({error!r}). Move the file away, "
            "and measure again."
        ) from None


class Columns:
    """The columns that a set of records needs: one for each quantity and making.

    Attributes:
      makings: By evaluator, the different makings with their records, the most common first.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        found: dict[str, dict[Any, list[Record]]] = {}
        for record in records:
            found.setdefault(record.evaluator, {}).setdefault(record.making, []).append(record)
        self.makings = {
            name: sorted(members.values(), key=len, reverse=True) for name, members in found.items()
        }

    def number(self, record: Record) -> int:
        """The place of a record's making, from 0."""
        makings = self.makings[record.evaluator]
        return next(i for i, found in enumerate(makings) if found[0].making == record.making)

    def key(self, record: Record, quantity: Quantity) -> str:
        """The key of a record's column. The most common making has the plain key."""
        number = self.number(record)
        return quantity.column.key + (f"_{number + 1}" if number else "")

    @property
    def columns(self) -> list[Column]:
        """Every column, except the details that only the page shows."""
        return [
            replace(
                quantity.column,
                key=self.key(made[0], quantity),
                heading=quantity.column.heading + f" ({number})" * (len(makings) > 1),
                about=f"{quantity.column.about}, {self.describe(made[0])}",
            )
            for name, quantities in QUANTITIES.items()
            for makings in [self.makings.get(name, [])]
            for number, made in enumerate(makings, 1)
            for quantity in quantities
            if quantity.column != PSNR_REMOVED
        ]

    def describe(self, record: Record) -> str:
        """The images of a record, and the facts in which other makings differ."""
        others = [dict(made[0].making) for made in self.makings[record.evaluator]]
        differing = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in record.making
            if name != "images" and any(other.get(name) != value for other in others)
        ]
        images = f"{record.images.count} images of {record.images.name}"
        return ", ".join([images, *differing])


def fill(row: Row, records: Sequence[Record], columns: Columns, seed: int) -> None:
    """Add the numbers of one run of a method to its row."""
    for record in records:
        for quantity in QUANTITIES[record.evaluator]:
            value = record.values.get(quantity.value)
            if value is None:
                continue
            key = columns.key(record, quantity)
            row.values.setdefault(key, []).append(value)
            row.seeds.setdefault(key, []).append(seed)
            if record.images.split == "training" and key not in row.on_training:
                row.on_training.append(key)
            if (packed := hits_of(record, records)) is not None:
                row.hits.setdefault(key, []).append(packed)


def hits_of(record: Record, records: Sequence[Record]) -> str | None:
    """The images that a record classifies correctly, if they were kept.

    Training does not keep those of its last evaluation. They are those of the occlusion accuracy of
    the run's own classifier, with no patch removed, if it was measured on the same images.
    """
    if record.evaluator == "finetune":
        for other in records:
            is_own = other.protocol.get("classifier") == "own"
            if is_own and (other.images, other.step) == (record.images, record.step):
                return next(iter(other.details["hits"].values()))[0]
    hits = record.details.get("hits")
    return hits if isinstance(hits, str) else None


def curves_of(records: Sequence[Record]) -> CkaCurves | None:
    """Average the CKA curves of several seeds, by the token that the objective trains."""
    if not records:
        return None
    first = records[0].details
    token = first["token"]
    values = np.array([record.details["cka"][token] for record in records], float)
    floors = [
        curves["cka"][token]
        for record in records
        for name, curves in record.details["floor"].items()
        if name != "blind"
    ]
    return CkaCurves(
        ratios=first["ratios"],
        blocks=first["blocks"],
        values=values.mean(0).tolist(),
        by_seed=values.tolist() if len(values) > 1 else [],
        token=token,
        floor=np.array(floors, float).max(0).tolist() if floors else [],
    )


def floor_rows(records: Iterable[Record]) -> list[Row]:
    """Rows of the encoders that have learned nothing: untrained ones, and one blind to the image.

    Rows for each token that any record is judged by, from the first record of this token.
    """
    of_token: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record.evaluator == "invariance" and record.details.get("floor"):
            of_token.setdefault(record.details["token"], record.details["floor"])
    rows = []
    for token, floor in of_token.items():
        kinds = {"Untrained": [n for n in floor if n != "blind"], "Blind": ["blind"]}
        for kind, names in kinds.items():
            if not (members := [floor[name] for name in names if name in floor]):
                continue
            # The highest value, as in every floor: no untrained encoder exceeds it.
            values = np.array([member["cka"][token] for member in members], float).max(0)
            title = f"{kind} encoder" + (f", {token} token" if len(of_token) > 1 else "")
            row = Row(title, f"{kind.lower()}_{token}", is_floor=True)
            row.cka = {
                "pretrained": CkaCurves(
                    ratios=members[0]["ratios"],
                    blocks=members[0]["blocks"],
                    values=values.tolist(),
                    token=token,
                )
            }
            place = quoted_place(members[0]["ratios"])
            row.values["retrieval"] = [max(m["retrieval"][token][place][-1] for m in members)]
            rows.append(row)
    return rows
