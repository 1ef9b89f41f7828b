"""What a table is: its rows, what is measured of them, and what the paper says of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from occinv.reproduce.methods import Method

# What a scale is: a variant of the configs, and how many images Tables 7 and 8 pretrain on.
SCALES = {
    "smoke": ("smoke", 10),
    "quickstart": ("quickstart", 10),
    "small": ("tiny_imagenet", 20),
    "paper": ("imagenet", 1000),
}


class Column(NamedTuple):
    """Something that is measured of every row."""

    key: str
    heading: str
    unit: str
    about: str


COLUMNS = {
    column.key: column
    for column in (
        Column("linear", "Linear %", "%", "top-1 of a linear probe of the frozen encoder"),
        Column("finetune", "FT %", "%", "top-1 after fine-tuning on all labels"),
        Column("tenth", "10 % FT %", "%", "top-1 after fine-tuning on 10 % of the labels"),
        Column("psnr", "PSNR dB", "dB", "reconstruction with the visible patches pasted"),
    )
}
TRAINED = ("linear", "finetune", "tenth")  # columns that are a training of their own


class Claim(NamedTuple):
    """What the paper says of two rows: one `above` the other, or `level` within so many points."""

    text: str
    row: str
    than: str
    column: str = "finetune"
    relation: Literal["above", "level"] = "above"
    within: float = 1.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
      name: as the paper has it.
      method: how it is pretrained; None: a published figure of something that is not here.
      paper: the paper's figures by column.
      epochs: of the paper's pretraining (or supervised training).
      by_default: whether it runs unless it is named.
      own_key: its name for `--rows`, where that is not the method's.
    """

    name: str
    method: Method | None
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    epochs: int | None = 100
    by_default: bool = True
    own_key: str | None = None

    @property
    def key(self) -> str:
        """Its name for `--rows`."""
        if self.own_key is not None:
            return self.own_key
        return self.method.key if self.method else self.name.lower()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table at some scale.

    Attributes:
      columns: keys of `COLUMNS`.
      has_cka: whether occlusion invariance is measured of every row.
      by_axes: whether it is printed as a matrix, T1, T2 and target by M.
      other: makes the row of a name for `--rows` that none of `rows` has, or raises UserError.
      overrides: for every run of the table, such as another encoder.
      group: of the folder of its runs, where other tables cannot share them.
      notes: what a reader of the result has to know.
      paper_setting: what the paper's figures were found with.
    """

    key: str
    subject: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    has_cka: bool = False
    by_axes: bool = False
    other: Callable[[str], Row] | None = None
    claims: tuple[Claim, ...] = ()
    overrides: tuple[str, ...] = ()
    group: str = ""
    notes: tuple[str, ...] = ()
    paper_setting: str = "ViT-B, ImageNet"
