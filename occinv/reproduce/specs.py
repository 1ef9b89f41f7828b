"""The specification of a table: its rows, its columns, and the paper's numbers and claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from occinv.report import course
from occinv.report.results import (
    ENCODERS,
    OCCLUSION,
    PAPER_SETTING,
    PSNR,
    RETRIEVAL,
    Claim,
    Column,
    Layout,
)
from occinv.reproduce.methods import Method


class Scale(NamedTuple):
    """The size of the experiments: a variant of the configs, and the images of Tables 7 and 8."""

    variant: str
    num_images: int


SCALES = {
    "smoke": Scale("smoke", 10),
    "quickstart": Scale("quickstart", 10),
    "small": Scale("tiny_imagenet", 20),
    "paper": Scale("imagenet", 1000),
}

LINEAR = ("linear", "linear_published", "linear_class", "linear_mean")
LABEL_STAGES = ("linear", "finetune", "tenth")  # columns that need a training stage of their own
COLUMNS = {
    column.key: column
    for column in (
        Column(
            "linear",
            "Linear %",
            "%",
            "top-1 of a linear probe of the frozen encoder, of the token that the objective "
            "trains, at the best of its learning rates",
        ),
        Column("linear_published", "Publ. rate %", "%", "the same at the published rate"),
        Column(
            "linear_class", "Lin. class %", "%", "linear probe of the class token, at its best rate"
        ),
        Column(
            "linear_mean", "Lin. mean %", "%", "linear probe of the mean token, at its best rate"
        ),
        Column("finetune", "FT %", "%", "top-1 after fine-tuning on all labels"),
        Column("tenth", "10 % FT %", "%", "top-1 after fine-tuning on 10 % of the labels"),
        PSNR,
        RETRIEVAL,
        OCCLUSION,
        *course.COLUMNS,
    )
}
BOTH = tuple(ENCODERS)


@dataclass(frozen=True)
class RowSpec:
    """One row of a table.

    Attributes:
      name: The name in the paper.
      method: How the encoder is pretrained; None for a published number that is not reproduced.
      paper: The paper's numbers by column key.
      epochs: The epochs of the paper's pretraining, or of its supervised training.
      by_default: Whether it runs without `--rows`.
      row_key: The name for `--rows`; None uses the method's key.
      batch_size, curve, budgets: Those of the `Row`.
    """

    name: str
    method: Method | None
    paper: Mapping[str, float] = field(default_factory=dict)
    epochs: int | None = 100
    by_default: bool = True
    row_key: str | None = None
    batch_size: int | None = None
    curve: str = ""
    budgets: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name for `--rows`."""
        return self.row_key or (self.method.key if self.method else self.name)


@dataclass(frozen=True)
class TableSpec:
    """One table.

    Attributes:
      key: The name on the command line, such as `table4`.
      subject: The title of its page.
      rows: All rows, in the order of the paper.
      columns: Keys of `COLUMNS`.
      cka: The encoders whose CKA under occlusion is measured: keys of `ENCODERS`.
      layout: How it is printed, as in `Results`.
      row_by_name: Makes a row that is not in `rows` from its `--rows` name, or raises UserError.
      claims: The paper's statements about its rows.
      overrides: `section.field=value` for every run.
      subfolder: The folder of its runs, if other tables cannot share them.
      notes: Sentences for the caption.
      paper_setting: The model and the data of the paper's numbers.
      at_once: The images of pretraining that a device computes at once: larger batches are computed
        in parts, where the loss allows it. None: as the config says.
    """

    key: str
    subject: str
    rows: tuple[RowSpec, ...]
    columns: tuple[str, ...]
    cka: tuple[str, ...] = ()
    layout: Layout = "table"
    row_by_name: Callable[[str], RowSpec] | None = None
    claims: tuple[Claim, ...] = ()
    overrides: tuple[str, ...] = ()
    subfolder: str = ""
    notes: tuple[str, ...] = ()
    paper_setting: str = PAPER_SETTING
    at_once: int | None = None
