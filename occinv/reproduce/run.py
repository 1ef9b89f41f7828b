"""A run of a table: its trials, their training stages and evaluations, and their folders."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax

from occinv import schema
from occinv.config import load_config
from occinv.evaluators.base import Evaluator
from occinv.evaluators.invariance import Invariance
from occinv.evaluators.occlusion_accuracy import OcclusionAccuracy
from occinv.evaluators.psnr import Psnr
from occinv.evaluators.reconstructions import Reconstructions
from occinv.objectives.base import objective_of
from occinv.reproduce.methods import Method
from occinv.reproduce.options import check_seeds
from occinv.reproduce.specs import LABEL_STAGES, SCALES, RowSpec, TableSpec
from occinv.schema import UserError
from occinv.train.disk import read_json
from occinv.train.workdir import RESULT

SECONDS, FAILED = "seconds.json", "failed.json"
# The progress bar of the whole table counts in units of one fine-tuning.
STAGE_COSTS = {"finetune": 1.0, "linear": 0.6, "tenth": 0.3}
EVALUATION_COST = 0.3


@dataclass(frozen=True)
class TableRun:
    """Everything that decides what `occinv reproduce` runs.

    Attributes:
      table: The table.
      rows: The chosen rows.
      workdir: The folder of all runs and tables.
      scale: A key of `SCALES`.
      seeds: Each row runs with seeds 0 to `seeds` - 1.
      length: The factor of every duration. A factor below 1 shortens the warm-up, too.
      overrides: `section.field=value` by stage (`pretrain`, `finetune`, `linear`, `tenth`), or for
        every stage (`config`).
      command: The typed command, for the report.
    """

    table: TableSpec
    rows: tuple[RowSpec, ...]
    workdir: Path
    scale: str
    seeds: int = 1
    length: float = 1.0
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        if not 0 < self.length < math.inf:
            raise UserError(f"--length {self.length}, expected a finite factor above 0")

    @property
    def folder(self) -> Path:
        """The folder of the table's results."""
        key = self.table.key
        return self.workdir if key == "quickstart" else self.workdir / key

    @property
    def trials(self) -> list[Trial]:
        """The trials of all rows, without repetitions: all rows with seed 0, then with seed 1."""
        methods = {row.method.key: row.method for row in self.rows if row.method is not None}
        return [
            Trial(method, seed, self) for seed in range(self.seeds) for method in methods.values()
        ]


@dataclass(frozen=True)
class Stage:
    """One training run of a trial, with the arguments of `occinv train`."""

    config: str
    overrides: tuple[str, ...]
    workdir: Path

    @property
    def command(self) -> str:
        """The command that runs only this stage."""
        words = ["occinv", "train", "--config", self.config, "--workdir", str(self.workdir)]
        return shlex.join([*words, *self.overrides])

    @property
    def experiment(self) -> schema.Experiment:
        """The resolved config."""
        return load_experiment(self.config, self.overrides)

    @property
    def seconds(self) -> float:
        """The training time so far, without the time that killed processes lost."""
        path = self.workdir / SECONDS
        seconds = read_json(path) if path.exists() else 0.0
        if not isinstance(seconds, float | int):
            raise UserError(f"{path} is damaged, expected a number. Move it away.")
        return seconds


# One evaluator for all trials: encoders of one shape share the floor of their invariance.
EVALUATORS: dict[str, Evaluator] = {
    "invariance": Invariance(),
    "occlusion": OcclusionAccuracy(removals=("random",)),
    "psnr": Psnr(),
    "reconstructions": Reconstructions(num_images=6),
}


class Measurement(NamedTuple):
    """An evaluation of a run: the name of the evaluator, itself, and the workdir of the run."""

    name: str
    evaluator: Evaluator
    workdir: Path


class Work(abc.ABC):
    """What one worker takes at a time: a trial of a table, or a run of a sweep.

    Attributes:
      folder: Its folder, with its lock.
      stages: Its training runs by name, in their order.
      evaluations: The output files of its evaluations by name.
      costs: The cost of each stage, in the unit of the progress bar.
      cost: The cost of all stages and evaluations.
      is_done: Whether all stages and evaluations are complete.
    """

    @property
    @abc.abstractmethod
    def folder(self) -> Path: ...

    @property
    @abc.abstractmethod
    def stages(self) -> dict[str, Stage]: ...

    @property
    @abc.abstractmethod
    def evaluations(self) -> dict[str, Path]: ...

    @abc.abstractmethod
    def measurement(self, name: str) -> Measurement:
        """Return the evaluation of this name."""

    @property
    def costs(self) -> dict[str, float]:
        return dict.fromkeys(self.stages, 1.0)

    @property
    def cost(self) -> float:
        return sum(self.costs.values())

    @property
    def is_done(self) -> bool:
        results = [stage.workdir / RESULT for stage in self.stages.values()]
        return all(path.exists() for path in (*results, *self.evaluations.values()))


@dataclass(frozen=True)
class Trial(Work):
    """One method with one seed."""

    method: Method
    seed: int
    run: TableRun

    def __str__(self) -> str:
        return self.method.key + (f", seed {self.seed}" if self.seed else "")

    @property
    def folder(self) -> Path:
        """The folder of its stages and evaluations."""
        runs = self.run.workdir / "runs" / self.run.table.subfolder
        return runs / self.method.key / f"seed{self.seed}"

    @property
    def encoder(self) -> Path | None:
        """The workdir of the pretrained encoder; None for random initialization."""
        if self.method.workdir is not None:
            return self.method.workdir
        return None if self.method.config is None else self.folder / "pretrain"

    @functools.cached_property
    def stages(self) -> dict[str, Stage]:
        """The stages that the table's columns need, in the order in which they run."""
        before = () if self.method.config is None else ("pretrain",)
        columns = self.run.table.columns
        return {s: self.stage(s) for s in (*before, *(s for s in LABEL_STAGES if s in columns))}

    def stage(self, name: str) -> Stage:
        """The stage `pretrain`, `linear`, `finetune` or `tenth`."""
        method, run = self.method, self.run
        if name == "pretrain":
            config, fields, length = method.config, method.overrides, method.length
            warmup = min(1, length) if method.warmup is None else method.warmup
        else:
            config = "linear" if name == "linear" else "finetune" if self.encoder else "supervised"
            length = method.length if config == "supervised" else 1.0
            warmup = min(1, length)
            fields = {
                "linear": (f"objective.pooling={method.pooling}",),
                "tenth": ("data.fraction=0.1",),
            }.get(name, ())
            if self.encoder:
                fields = (f"init_from={self.encoder}", *self.encoder_overrides, *fields)
        spec = f"{config}:{SCALES[run.scale].variant}"
        fields = (
            *fields,
            *scale_durations(spec, length * run.length, warmup * min(1, run.length)),
            *run.table.overrides,
            *run.overrides.get("config", ()),
            *run.overrides.get(name, ()),
            *(method.fixed if name == "pretrain" else ()),
            f"seed={self.seed}",
        )
        overrides = tuple(f"--config.{field}" for field in fields)
        if name == "pretrain" and run.table.at_once is not None:
            overrides += watched(load_experiment(spec, overrides), run.table.at_once)
        return Stage(spec, overrides, self.folder / name)

    @property
    def encoder_overrides(self) -> tuple[str, ...]:
        """Config fields of the pretrained encoder that a plain ViT does not have.

        The blocks of BEiT share one relative position; in fine-tuning each block has its own.
        """
        if self.method.config is None:
            return ()
        encoder = self.stage("pretrain").experiment.encoder
        values = {
            "layer_scale": encoder.layer_scale,
            "relative_position": encoder.relative_position and "block",
        }
        return tuple(f"encoder.{name}={value}" for name, value in values.items() if value)

    @property
    def evaluations(self) -> dict[str, Path]:
        """The output file of each evaluation that the table needs."""
        table = self.run.table
        reconstructs = "psnr" in table.columns and self.method.reconstructs
        needed = {
            "invariance_pretrained.json": "pretrained" in table.cka and self.encoder is not None,
            "invariance_finetuned.json": "finetuned" in table.cka and "finetune" in table.columns,
            "occlusion.json": "occlusion" in table.columns or "finetuned" in table.cka,
            "reconstructions.png": reconstructs,
            "psnr.json": reconstructs,
        }
        files = [self.folder / "measured" / name for name, is_needed in needed.items() if is_needed]
        return {file.stem: file for file in files}

    def measurement(self, name: str) -> Measurement:
        kind = name.partition("_")[0]
        workdir = self.encoder or Path()
        if name in ("invariance_finetuned", "occlusion"):
            workdir = self.stages["finetune"].workdir
        return Measurement(kind, EVALUATORS[kind], workdir)

    @property
    def costs(self) -> dict[str, float]:
        """The cost of each stage."""
        method = self.method
        factor = method.length if self.encoder is None else 1.0
        costs = {stage: cost * factor for stage, cost in STAGE_COSTS.items()}
        costs["pretrain"] = method.cost * method.length
        return {stage: costs[stage] for stage in self.stages}

    @property
    def cost(self) -> float:
        """The cost of all stages and evaluations."""
        return super().cost + EVALUATION_COST


def read_failure(path: Path) -> str:
    """Return why a run failed, from its FAILED.

    Raises:
      UserError: The file is damaged.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "error" not in content:
        raise UserError(f"{path} is damaged: it has no error. Move it away.")
    return str(content["error"])


def load_experiment(config: str, overrides: tuple[str, ...] = ()) -> schema.Experiment:
    """Load and resolve a config."""
    return schema.resolve(load_config(config, overrides))


def watched(experiment: schema.Experiment, at_once: int) -> tuple[str, ...]:
    """The overrides for a table of batch sizes: ten k-NN evaluations, and a batch in parts.

    Args:
      experiment: The pretraining.
      at_once: The images that a device computes at once. If the loss has no parts, transformer
        blocks are recomputed instead.
    """
    unit, value = next((u, v) for u, v in vars(experiment.train.duration).items() if v is not None)
    every = {unit: value / 10 if unit == "epochs" else max(1, value // 10)}
    overrides = [f"--config.evals={ {'knn': {'every': every}} }"]
    batch, devices = experiment.train.batch_size, jax.device_count()
    if batch > at_once * devices:
        if objective_of(experiment).couples == "features":
            return (*overrides, "--config.train.remat=True")
        parts = (n for n in range(2, batch) if batch % (n * devices) == 0)
        fewest = next((n for n in parts if batch <= n * devices * at_once), 1)
        overrides.append(f"--config.train.accumulate={fewest}")
    return tuple(overrides)


def scale_durations(config: str, length: float, warmup: float) -> tuple[str, ...]:
    """The overrides that multiply the duration of a config by `length`, its warm-up by `warmup`."""
    if length == warmup == 1:
        return ()
    experiment = load_experiment(config)
    durations = {
        "train.duration": (experiment.train.duration, length),
        "optimizer.warmup": (experiment.optimizer.warmup, warmup),
    }
    found = []
    for path, (duration, factor) in durations.items():
        for unit, value in dataclasses.asdict(duration).items():
            ratio = factor / length if unit == "share" else factor
            if value is not None and ratio != 1:
                scaled = value * ratio
                if unit in ("steps", "examples"):
                    scaled = max(int(path == "train.duration"), round(scaled))
                found.append(f"{path}.{unit}={scaled:.6g}")
    return tuple(found)
