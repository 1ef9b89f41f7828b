"""From the records of evaluators to the columns, curves and floor of a table.

Two numbers are in one column only if they were made in the same way: on the same images, by the
same protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occinv.data.identity import Images
from occinv.evaluators.base import Record
from occinv.report.results import (
    OCCLUSION,
    PSNR,
    PSNR_REMOVED,
    QUOTED_DROP_RATIO,
    RETRIEVAL,
    CkaCurves,
    Column,
    Row,
)
from occinv.train.records import FOLDER, read_records
from occinv.train.workdir import RESULT


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
    "knn": [Quantity(Column("knn", "k-NN %", "%", "top-1 of weighted nearest neighbors"), "top1")],
    "occlusion": [Quantity(OCCLUSION, "area_random")],
    "psnr": [Quantity(PSNR, "whole"), Quantity(PSNR_REMOVED, "removed")],
    "invariance": [Quantity(RETRIEVAL, "retrieval")],
}
# Facts of a protocol that do not change what a number means.
INCIDENTAL = (
    "batch_size",
    "untrained",
    "floors",
    "pooling",
)  # `token` is the pooling that was used


def records_of(workdir: Path, stage: str) -> list[Record]:
    """Return every record of a run, with that of its last evaluation in training."""
    found = [
        record
        for path in sorted((workdir / FOLDER).glob("*.json"))
        for record in read_records(path)
        if record.evaluator in QUANTITIES
    ]
    result = json.loads((workdir / RESULT).read_text()) if (workdir / RESULT).exists() else {}
    if "top1" in result.get("metrics", {}):
        images = Images(**result["images"]) if "images" in result else Images("", 0, "", "other")
        values = {"top1": result["metrics"]["top1"]}
        found.append(Record(stage, str(workdir), stage, result["step"], images, {}, "", values, {}))
    return found


def making(record: Record) -> tuple[tuple[str, Any], ...]:
    """What two records must share to be in one column, as names and values."""
    protocol = {k: v for k, v in record.protocol.items() if k not in INCIDENTAL}
    if record.evaluator == "invariance":
        del protocol["token"]  # each objective is judged by the token that it trains
        protocol["batch_size"] = record.protocol.get("batch_size")  # retrieval is among a batch
    images = {"images": f"{record.images.count} images of {record.images.name}"}
    digest = {"digest": record.images.digest}
    return tuple((k, str(v)) for k, v in (images | digest | protocol).items())


class Columns:
    """The columns that a set of records needs: one for each quantity and making."""

    def __init__(self, records: Iterable[Record]) -> None:
        makings: dict[str, dict[tuple[tuple[str, Any], ...], int]] = {}
        for record in records:
            of_evaluator = makings.setdefault(record.evaluator, {})
            of_evaluator[making(record)] = of_evaluator.get(making(record), 0) + 1
        # The most common making has the plain name.
        self.order = {
            name: sorted(counts, key=lambda made: -counts[made]) for name, counts in makings.items()
        }

    def key(self, record: Record, quantity: Quantity) -> str:
        """The key of a record's column."""
        number = self.order[record.evaluator].index(making(record)) + 1
        return quantity.column.key + (f"_{number}" if number > 1 else "")

    @property
    def columns(self) -> list[Column]:
        """Every column, except the details that only the page shows."""
        found = []
        for name in (each for each in QUANTITIES if each in self.order):
            for number, made in enumerate(self.order[name], 1):
                for quantity in QUANTITIES[name]:
                    if quantity.column == PSNR_REMOVED:
                        continue
                    column, several = quantity.column, len(self.order[name]) > 1
                    found.append(
                        Column(
                            column.key + (f"_{number}" if number > 1 else ""),
                            column.heading + (f" ({number})" if several else ""),
                            column.unit,
                            f"{column.about}, {describe(made, self.order[name])}",
                        )
                    )
        return found


def describe(made: Sequence[tuple[str, Any]], others: Sequence[Sequence[tuple[str, Any]]]) -> str:
    """The images of a making, and each fact of its protocol in which other makings differ."""
    facts = dict(made)
    differing = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in facts.items()
        if name not in ("images", "digest")
        and any(dict(other).get(name) != value for other in others)
    ]
    digests = {dict(o)["digest"] for o in others if dict(o)["images"] == facts["images"]}
    if len(digests) > 1:
        differing.append(f"files {facts['digest']}")
    return ", ".join([facts["images"], *differing])


def fill(row: Row, records: Sequence[Record], columns: Columns) -> None:
    """Put the numbers of a run's records into its row."""
    for record in records:
        for quantity in QUANTITIES[record.evaluator]:
            value = record.values.get(quantity.value)
            if value is None:
                continue
            key = columns.key(record, quantity)
            row.values[key] = [value]
            if record.images.split == "training":
                row.on_training.append(key)
            if (packed := hits_of(record, records)) is not None:
                row.hits[key] = [packed]


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
    token = records[0].protocol["token"]
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


def nearest_place(ratios: Sequence[float]) -> int:
    """The place of the ratio that is nearest to the one that tables quote."""
    return min(range(len(ratios)), key=lambda place: abs(ratios[place] - QUOTED_DROP_RATIO))


def floor_rows(records: Iterable[Record]) -> list[Row]:
    """Rows of the encoders that have not learned: untrained ones, and one blind to the image.

    Rows for each token that any record is judged by, from the first record of this token.
    """
    of_token: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record.evaluator == "invariance" and record.details.get("floor"):
            of_token.setdefault(record.protocol["token"], record.details["floor"])
    rows = []
    for token, floor in of_token.items():
        kinds = {"Untrained": [n for n in floor if n != "blind"], "Blind": ["blind"]}
        for kind, names in kinds.items():
            if not (members := [floor[name] for name in names if name in floor]):
                continue
            values = np.array([member["cka"][token] for member in members], float)
            title = f"{kind} encoder" + (f", {token} token" if len(of_token) > 1 else "")
            row = Row(title, f"{kind.lower()}_{token}", is_floor=True)
            row.cka = {
                "pretrained": CkaCurves(
                    ratios=members[0]["ratios"],
                    blocks=members[0]["blocks"],
                    values=values.mean(0).tolist(),
                    by_seed=values.tolist() if len(values) > 1 else [],
                    token=token,
                )
            }
            place = nearest_place(members[0]["ratios"])
            row.values["retrieval"] = [m["retrieval"][token][place][-1] for m in members]
            rows.append(row)
    return rows
