"""The records of evaluators in a workdir.

<workdir>/evaluate/NAME.json   the records of the evaluator NAME, one for each making
<workdir>/evaluate/NAME.png    its pictures, and each of them in a folder NAME
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import pydantic

from occinv.evaluators.base import Record, Result
from occinv.evaluators.pictures import save_pictures
from occinv.schema import UserError
from occinv.train.disk import read_json, write_json
from occinv.train.workdir import check_folder

FOLDER = "evaluate"
PICTURE = 128  # pixels a side of a picture in a grid, about


def record_file(workdir: Path, name: str) -> Path:
    """Return the file of the records of an evaluator: a name of `EVALUATORS`, or module:Class."""
    return workdir / FOLDER / f"{name.rpartition(':')[2]}.json"


def check_record_file(path: Path) -> None:
    """Raise UserError, before a measurement, if its record cannot be added to a file."""
    check_folder(path.parent)
    read_records(path)


def write_record(path: Path, record: Record, result: Result) -> Path | None:
    """Add a record to a file, and draw its pictures beside it; return the path of the grid."""
    if jax.process_index() == 0:
        others = [r for r in read_records(path) if r.making != record.making]
        write_json(path, [dataclasses.asdict(each) for each in [*others, record]])
    if not result.pictures:
        return None
    grid = path.with_suffix(".png")
    if jax.process_index() == 0:
        height = len(next(iter(result.pictures[0].values())))
        scale = max(1, round(PICTURE / height))
        save_pictures(grid, result.pictures, scale, result.captions)
    return grid


def read_records(path: Path) -> list[Record]:
    """Read the records of a file; a missing file has none.

    Raises:
      UserError: The file has other content.
    """
    if not path.exists():
        return []
    try:
        return pydantic.TypeAdapter(list[Record]).validate_python(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path} has no records of this version of occinv ({place}: {first['msg']}). Move it "
            "away."
        ) from None
