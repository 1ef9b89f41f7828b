"""A method with a seed: its pretraining, the trainings on labels after it, and their workdirs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.evaluators.psnr import Reconstructs
from occinv.report.runs import objective_of
from occinv.reproduce.definition import SCALES, TRAINED, Row, Table
from occinv.reproduce.methods import Method
from occinv.schema import Duration, UserError, nearest
from occinv.train.workdir import RESULT

RUNS = ("pretrain", *TRAINED)
TITLES = {
    "pretrain": "pretraining",
    "finetune": "fine-tuning",
    "linear": "linear probe",
    "tenth": "fine-tuning on 10 %",
}
COSTS = {"finetune": 1.0, "linear": 0.6, "tenth": 0.3}
MEASURING = 0.3  # cost of a trial's CKA, PSNR and pictures
SECONDS, FAILED = "seconds.json", "failed.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides every run of a table, beside its rows.

    Attributes:
      workdir: of all runs and tables.
      scale: a key of `SCALES`.
      length: times every duration and warm-up, for a machine with little time.
      overrides: `section.field=value` by the run it is for: a key of RUNS, or `config` for all.
    """

    table: Table
    workdir: Path
    scale: str
    length: float = 1.0
    overrides: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise UserError(f"--length {self.length}, expected a factor above 0")

    @property
    def folder(self) -> Path:
        """Of the table's results; the quickstart has no other tables beside it."""
        key = self.table.key
        return self.workdir if key == "quickstart" else self.workdir / key


@dataclasses.dataclass(frozen=True)
class Stage:
    """One `occinv train`: what to run where, as one would type it."""

    config: str
    overrides: tuple[str, ...]
    workdir: Path

    @property
    def command(self) -> str:
        """The command that does just this."""
        words = ["occinv", "train", "--config", self.config, "--workdir", str(self.workdir)]
        return shlex.join([*words, *self.overrides])

    @property
    def experiment(self) -> schema.Experiment:
        """The config, resolved."""
        return schema.resolve(load(self.config, self.overrides))

    @property
    def seconds(self) -> float:
        """In which it has run so far, over all interruptions but kills."""
        path = self.workdir / SECONDS
        return json.loads(path.read_text()) if path.exists() else 0.0


def load(config: str, overrides: tuple[str, ...] = ()) -> dict:
    """As `load_config`, for a config of ours wherever one stands."""
    name, _, variant = config.partition(":")
    path = CONFIGS.parent / name
    return load_config(f"{path}:{variant}", overrides)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A method with a seed, under a plan."""

    method: Method
    seed: int
    plan: Plan

    @property
    def folder(self) -> Path:
        """Of everything of this trial."""
        group = self.plan.workdir / "runs" / self.plan.table.group
        return group / self.method.key / f"seed{self.seed}"

    @property
    def encoder(self) -> Path | None:
        """The workdir of the pretrained encoder, or None for random initialization."""
        if self.method.start is not None:
            return self.method.start
        return None if self.method.config is None else self.folder / "pretrain"

    @property
    def additions(self) -> tuple[str, ...]:
        """What the pretrained ViT has and a plain one has not, for whatever starts from it.

        BEiT's relative position, which all blocks share, becomes one for each block.
        """
        if self.method.config is None:
            return ()
        encoder = self.stage("pretrain").experiment.encoder
        found = {
            "layer_scale": encoder.layer_scale,
            "relative_position": encoder.relative_position and "block",
        }
        return tuple(f"encoder.{name}={value}" for name, value in found.items() if value)

    @property
    def stages(self) -> dict[str, Stage]:
        """The trainings that the table's columns need, in their order."""
        table = self.plan.table
        wanted = [run for run in TRAINED if run in table.columns]
        before = () if self.method.config is None else ("pretrain",)
        return {run: self.stage(run) for run in (*before, *wanted)}

    @property
    def measured(self) -> dict[str, Path]:
        """The files of what is measured of its encoders, by name."""
        table, encoder = self.plan.table, self.encoder
        wanted = {
            "cka_pretrained.json": table.has_cka and encoder is not None,
            "cka_finetuned.json": table.has_cka and "finetune" in table.columns,
            "reconstructions.png": "psnr" in table.columns and self.method.reconstructs,
            "psnr.json": "psnr" in table.columns and self.method.reconstructs,
        }
        files = [self.folder / "measured" / name for name, is_wanted in wanted.items() if is_wanted]
        return {file.stem: file for file in files}

    @property
    def is_done(self) -> bool:
        """Whether everything that the table asks of it is there."""
        results = [stage.workdir / RESULT for stage in self.stages.values()]
        return all(path.exists() for path in (*results, *self.measured.values()))

    @property
    def costs(self) -> dict[str, float]:
        """Of each of its trainings, in units of a fine-tuning."""
        method = self.method
        longer = method.length if self.encoder is None else 1.0
        all_costs = {"pretrain": method.cost * method.length}
        all_costs |= {run: cost * longer for run, cost in COSTS.items()}
        return {run: all_costs[run] for run in self.stages}

    @property
    def cost(self) -> float:
        """Of everything."""
        return sum(self.costs.values()) + MEASURING

    def __str__(self) -> str:
        return self.method.key + (f", seed {self.seed}" if self.seed else "")

    def stage(self, run: str) -> Stage:
        """A run of this trial by its name in RUNS."""
        variant = SCALES[self.plan.scale][0]
        method = self.method
        length = self.plan.length
        own: tuple[str, ...] = ()
        if run == "pretrain":
            assert method.config is not None
            config, own = method.config, method.overrides
            length *= method.length
        else:
            is_random = self.encoder is None
            config = "linear" if run == "linear" else "supervised" if is_random else "finetune"
            if is_random and run != "linear":
                length *= method.length
            if run == "tenth":
                own = ("data.fraction=0.1",)
            if run == "linear":
                own = (f"objective.pooling={method.pooling}",)
            if self.encoder is not None:
                own = (f"init_from={self.encoder}", *self.additions, *own)
        spec = f"{CONFIGS.name}/{config}.py:{variant}"
        fields = (
            *own,
            *stretched(spec, length),
            *self.plan.table.overrides,
            *self.plan.overrides.get("config", ()),
            *self.plan.overrides.get(run, ()),
            f"seed={self.seed}",
        )
        return Stage(spec, tuple(f"--config.{field}" for field in fields), self.folder / run)


def trials_of(plan: Plan, rows: Sequence[Row], seeds: int) -> list[Trial]:
    """Every trial of the rows once, all rows of a seed before the next seed."""
    methods = {row.method.key: row.method for row in rows if row.method is not None}
    return [Trial(method, seed, plan) for seed in range(seeds) for method in methods.values()]


def stretched(spec: str, length: float) -> tuple[str, ...]:
    """The overrides that make a config's training `length` times as long, warm-up and all."""
    if length == 1:
        return ()
    config = load(spec)
    found = []
    for section, field in (("train", "duration"), ("optimizer", "warmup")):
        default = dataclasses.asdict(Duration())
        for unit, value in {**default, **config.get(section, {}).get(field, {})}.items():
            if value is not None:
                longer = value * length
                longer = longer if unit == "epochs" else round(longer)
                if field == "duration" and unit != "epochs":
                    longer = max(1, longer)
                found.append(f"{section}.{field}.{unit}={longer:.6g}")
    return tuple(found)


def parse_overrides(arguments: list[str]) -> dict[str, tuple[str, ...]]:
    """`--config.FIELD=VALUE` for every run, `--pretrain.FIELD=VALUE` and so on for one kind.

    Raises UserError for anything else.
    """
    kinds = ("config", *RUNS)
    found: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        kind, dot, field = argument.removeprefix("--").partition(".")
        if not argument.startswith("--") or not dot or "=" not in field:
            raise UserError(
                f"unknown argument {argument!r}, expected --config.section.field=value, or "
                f"--{{{','.join(RUNS)}}}.section.field=value for runs of one kind"
            )
        if kind not in kinds:
            raise UserError(f"unknown argument {argument!r}{nearest(kind, kinds)}")
        found[kind] = (*found.get(kind, ()), field)
    return found


def added(spec: str) -> Row:
    """The row `NAME=WORKDIR` of an encoder that is there: a run of ours, or imported weights.

    Raises UserError for another form, and where there is no run.
    """
    name, equals, folder = spec.partition("=")
    if not equals or not name or not folder:
        raise UserError(f"--add {spec!r}, expected NAME=WORKDIR")
    start = Path(folder).expanduser()
    objective = objective_of(start)
    masks = "removed" in objective.axes.t1
    key = "".join(c if c.isalnum() else "_" for c in name.lower())
    method = Method(
        f"added_{key}",
        None,
        transformation="patch masking" if masks else objective.axes.t1,
        reconstructs=masks and isinstance(objective, Reconstructs),
        start=start,
    )
    return Row(name, method, epochs=None, own_key=key)
