"""The types of `results.json`, and the numbers that tables, figures and findings read from it.

`occinv reproduce` writes the file, and `occinv report` builds the same types from workdirs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, Le

from occinv.evaluators import quoted_place
from occinv.paths import as_path, in_bucket
from occinv.report.checks import check_numbers
from occinv.schema import UserError
from occinv.train.disk import read_json

FILE = "results.json"
MISSING = "–"  # the text of a cell without a value
PAPER_SETTING = "ViT-B, ImageNet"  # the model and the data of most of the paper's numbers

# A row has two encoders and up to four training stages. Keys are those of `Row`, values are titles.
ENCODERS = {"pretrained": "pretrained", "finetuned": "fine-tuned"}
STAGES = {
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "tenth": "Fine-tuning on 10 % of the labels",
    "linear": "Linear probe",
}

Layout = Literal["table", "axes", "batch"]
Points = list[tuple[int, float | None]]  # (step, value); None is not finite
Settings = dict[str, str | int | list[int]]


@dataclass(frozen=True)
class Column:
    """A quantity that is measured for every row.

    Attributes:
      key: The key in `Row.values` and `Row.paper`.
      heading: The heading of its table column.
      unit: `%`, `dB`, or empty. Accuracies are stored in [0, 1] and printed in %.
      about: A phrase that defines it, for the table's caption.
      decimals: The digits after the point.
    """

    key: str
    heading: str
    unit: str
    about: str = ""
    decimals: Annotated[int, Ge(0), Le(9)] = 1


PSNR = Column("psnr", "PSNR dB", "dB", "reconstruction with the visible patches pasted")
KNN = Column("knn", "k-NN %", "%", "top-1 of weighted nearest neighbors of the frozen encoder")
RETRIEVAL = Column(
    "retrieval",
    "Retr. %",
    "%",
    "how often an occluded image finds itself among the full images of a minibatch, as for CKA",
)
OCCLUSION = Column(
    "occlusion",
    "Occl. %",
    "%",
    "mean top-1 as more and more patches are removed at random",
)
PSNR_REMOVED = Column("psnr_removed", "PSNR dB, removed patches", "dB")


@dataclass(frozen=True)
class Claim:
    """A statement of the paper about two rows.

    Attributes:
      text: The statement as a sentence.
      row: The key of the row it is about.
      than: The key of the row it is compared with.
      column: The key of the column that decides.
      relation: `above`: `row` has the larger value. `equal`: they differ by at most `within`.
      within: The margin of `equal`, in points (%) or in the column's unit.
      conclusion: The conclusion of the paper that it tests: the title of its part of the figure.
    """

    text: str
    row: str
    than: str
    column: str = "finetune"
    relation: Literal["above", "equal"] = "above"
    within: float = 1.0
    conclusion: str = ""


@dataclass
class StageRecord:
    """The settings and the outcome of one training stage.

    Attributes:
      duration: The configured length, such as `20 epochs`; None for imported weights.
      command: The command that repeats it; None if unknown.
      config: The resolved config as JSON text; None if the run is not available.
      seconds: The training time so far; None if it was not recorded.
      step_seconds: The time in training steps by the logged speed; None if unknown or `seconds` is
        known.
      parameters: The number of parameters; None before the first step.
      loss: Training loss by step.
      accuracy: Top-1 in [0, 1] on the validation images by step.
      monitors: The agreement of contrastive losses and the monitors of `train.monitors` that have
        one number, by name and step.
    """

    duration: str | None = None
    command: str | None = None
    config: str | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    parameters: int | None = None
    loss: Points = field(default_factory=list)
    accuracy: Points = field(default_factory=list)
    monitors: dict[str, Points] = field(default_factory=dict)


@dataclass
class CkaCurves:
    """Linear CKA between the features of full and occluded images.

    Attributes:
      ratios: The R fractions of dropped patches.
      blocks: The L transformer blocks, 1 is the first.
      values: [R, L], the mean over seeds.
      by_seed: [seeds, R, L]; empty for a single run.
      token: The compared features: the `class` token or the `mean` patch token.
      floor: [R, L], the highest value of untrained encoders of the same shape; empty if unknown.
    """

    ratios: list[float]
    blocks: list[int]
    values: list[list[float]]
    by_seed: list[list[list[float]]] = field(default_factory=list)
    token: str = "class"
    floor: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError unless every curve has R x L numbers."""
        expected = [len(self.blocks)] * len(self.ratios)
        curves = [self.values, *self.by_seed, *([self.floor] if self.floor else [])]
        if not self.ratios or not self.blocks or any([*map(len, c)] != expected for c in curves):
            raise ValueError(
                f"CKA curves of another shape than {len(self.ratios)} ratios x "
                f"{len(self.blocks)} blocks"
            )


class Cka(NamedTuple):
    """One CKA value, the share of dropped patches, the compared token, and the floor, if known."""

    value: float
    ratio: float
    token: str
    floor: float | None


@dataclass
class Row:
    """One row of a table: an encoder, its training stages, and its measurements.

    Attributes:
      key: The unique name in `--rows` and in claims.
      transformation: One word for T1 and T2, such as `patch masking`.
      status: Whether all stages and evaluations are complete.
      pretrain, finetune, tenth, linear: The stages; None if the row does not have one.
      values: One number per finished seed, by column key. Accuracies are in [0, 1], PSNR in dB.
      seeds: The seeds of the values by column key, and of the CKA curves by key of `ENCODERS`;
        missing: 0, 1, 2, …
      hits: For each seed the images that are classified correctly, as `pack` writes them, by
        column key.
      on_training: The keys of columns that were measured on training images.
      paper: The paper's numbers by column key, in % and dB.
      paper_epochs: The epochs of the paper's pretraining.
      cka: CKA curves by the keys of `ENCODERS`.
      reconstructions: Paths of pictures by kind: `original`, `masked`, `reconstructed`.
      is_floor: Whether it is an encoder that has not learned anything, for comparison.
      batch_size: The images of a pretraining step, in a table of batch sizes.
      curve: The name of its curve over the batch size: its objective.
      budgets: The comparisons of batch sizes that it is part of: `equal epochs`, `equal steps`.
    """

    name: str
    key: str
    framework: str = MISSING
    transformation: str = MISSING
    t1: str = MISSING
    t2: str = MISSING
    target: str = MISSING
    measure: str = MISSING
    status: Literal["done", "running", "failed"] = "done"
    error: str | None = None
    pretrain: StageRecord | None = None
    finetune: StageRecord | None = None
    tenth: StageRecord | None = None
    linear: StageRecord | None = None
    values: dict[str, list[float]] = field(default_factory=dict)
    seeds: dict[str, list[int]] = field(default_factory=dict)
    hits: dict[str, list[str]] = field(default_factory=dict)
    on_training: list[str] = field(default_factory=list)
    paper: dict[str, float] = field(default_factory=dict)
    paper_epochs: int | None = None
    cka: dict[str, CkaCurves | None] = field(default_factory=dict)
    reconstructions: list[dict[str, str]] = field(default_factory=list)
    is_floor: bool = False
    batch_size: int | None = None
    curve: str = ""
    budgets: list[str] = field(default_factory=list)

    @property
    def stages(self) -> dict[str, StageRecord]:
        """The records of its stages by the keys of `STAGES`."""
        return {key: stage for key in STAGES if (stage := getattr(self, key)) is not None}

    @property
    def seconds(self) -> float | None:
        """The time of all stages; None if it was not recorded."""
        known = [stage.seconds for stage in self.stages.values() if stage.seconds is not None]
        return sum(known) if known else None

    @property
    def step_seconds(self) -> float | None:
        """The time of all stages in training steps; None if it is unknown for any of them."""
        known = [stage.step_seconds for stage in self.stages.values()]
        return sum(filter(None, known)) if known and None not in known else None

    def seed_values(self, column: Column) -> list[float]:
        """One measured value per finished seed, in the column's unit."""
        scale = 100 if column.unit == "%" else 1
        return [scale * value for value in self.values.get(column.key, ())]

    def paper_difference(self, column: Column) -> float | None:
        """Our mean minus the paper's number, in the column's unit; None if either is missing."""
        ours, paper = self.seed_values(column), self.paper.get(column.key)
        return mean_and_std(ours)[0] - paper if ours and paper is not None else None

    def last_block_cka(self, encoder: str) -> Cka | None:
        """Return the CKA at the last block, at the ratio of `quoted_place`.

        None if it was not measured.
        """
        curves = self.cka.get(encoder)
        if curves is None or not curves.ratios:
            return None
        place = quoted_place(curves.ratios)
        floor = curves.floor[place][-1] if curves.floor else None
        return Cka(curves.values[place][-1], curves.ratios[place], curves.token, floor)


@dataclass
class Results:
    """The content of `results.json`.

    Attributes:
      title: The table's key, such as `table4`.
      subject: The title of the page.
      created: Date and time in ISO format.
      seconds: The time of all training stages.
      settings: Facts about data and encoder in words. `num_test` is the number of validation
        images.
      paper_setting: The model and the data of the paper's numbers.
      notes: Sentences for the caption.
      layout: `table`; `axes`, a matrix of T1, T2 and target by M; or `batch`, a matrix of
        objectives by batch size.
      same_data: Whether all rows were measured on the same data, so that they can be compared.
    """

    title: str
    columns: list[Column]
    rows: list[Row]
    subject: str = ""
    command: str = ""
    created: str | None = None
    machine: str | None = None
    seconds: float | None = None
    settings: Settings = field(default_factory=dict)
    paper_setting: str = PAPER_SETTING
    notes: list[str] = field(default_factory=list)
    layout: Layout = "table"
    claims: list[Claim] = field(default_factory=list)
    same_data: bool = True

    @property
    def baseline(self) -> Row | None:
        """The first row if it has no pretraining and the data are the same; else None.

        Its encoder starts from random weights, so its fine-tuned model is supervised from scratch.
        """
        first = self.rows[0] if self.rows else None
        if first is None or not self.same_data or first.pretrain is not None or first.is_floor:
            return None
        return first

    @property
    def methods(self) -> list[Row]:
        """Every row but the baseline."""
        return [row for row in self.rows if row is not self.baseline]

    @property
    def occluding(self) -> list[Row]:
        """The rows that mask patches, which the paper's claims are about."""
        return [row for row in self.methods if "masking" in row.transformation]

    @property
    def cka_encoders(self) -> list[str]:
        """The keys of `ENCODERS` for which any row has CKA curves."""
        return [key for key in ENCODERS if any(row.cka.get(key) for row in self.rows)]

    @property
    def seed_counts(self) -> list[int]:
        """The different numbers of seeds in the cells of the table, in increasing order."""
        rows = [row for row in self.rows if not row.is_floor]
        counts = {len(row.seed_values(column)) for row in rows for column in self.columns}
        return sorted(counts - {0})

    def column(self, key: str) -> Column | None:
        """The column with this key, or None."""
        return next((column for column in self.columns if column.key == key), None)

    @property
    def has_numbers(self) -> bool:
        """Whether any row has a number in a column of the table (for page.html)."""
        return bool(self.seed_counts or self.cka_encoders)

    def has_paper(self, *columns: Column) -> bool:
        """Whether the paper has a number in any of these columns."""
        return any(column.key in row.paper for row in self.rows for column in columns)


def load_results(folder: str | Path) -> Results:
    """Read `folder/results.json`.

    Raises:
      UserError: The file does not exist, is not a results file of this version, or names a picture
        outside the folder.
    """
    import pydantic  # here, so that `occinv reproduce --help` stays fast

    folder = as_path(folder)
    path = folder / FILE
    try:
        results = pydantic.TypeAdapter(Results).validate_python(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Run `occinv reproduce` to write it.") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path} is not a results file of this version: {place}: {first['msg']}. Run "
            "`occinv reproduce` again."
        ) from None
    try:
        check_numbers(results)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Run `occinv reproduce` again.") from None
    within = folder.resolve()
    for row in results.rows:
        for picture in (name for triple in row.reconstructions for name in triple.values()):
            # The page embeds the pictures, and a folder may come from somebody else.
            is_path = "\0" not in picture and not in_bucket(picture)
            if not is_path or not (within / picture).resolve().is_relative_to(within):
                raise UserError(f"{path} names the picture {picture!r}, which is not in {folder}.")
    return results


def setting_name(key: str) -> str:
    """The name of a setting in words."""
    return "validation images" if key == "num_test" else key.replace("_", " ")


def percent(fraction: float) -> str:
    """`0.75` as `75 %`."""
    return f"{100 * fraction:.0f} %"


def mean_and_std(values: list[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation (n - 1), which is None for a single value."""
    return sum(values) / len(values), statistics.stdev(values) if len(values) > 1 else None
