"""The paper in minutes, on images that come with scikit-learn.

For random initialisation, MAE, R-MAE, R-MAE†, R-MAE‡ and C-MAE: pretrain, fine-tune on labels, and
measure occlusion invariance (Figure 1) and the quality of reconstructions (Table 1). Every stage
has a workdir of its own, so that an interrupted reproduction goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from occinv import configuration, schema
from occinv.data.sources import open_source
from occinv.encoder import vit
from occinv.evaluate import run as measure
from occinv.evaluate.reconstruct import Triple
from occinv.objective.base import Setting, build
from occinv.progress import Progress
from occinv.report.html import write_html
from occinv.report.table import print_table
from occinv.schema import UserError, nearest
from occinv.train.loop import train
from occinv.train.workdir import METRICS, RESULT, check_folder, write_json
from occinv.train.writers import read_scalars

CONFIGS = configuration.CONFIGS.name
SECONDS = "seconds.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    name: str
    config: str | None  # pretraining; None: random initialisation
    overrides: tuple[str, ...] = ()
    cost: float = 0.0  # of pretraining, where fine-tuning costs 1: for the time left only
    paper: dict[str, Any] | None = None
    reconstructs: bool = True
    transformation: str = "patch masking"
    by_default: bool = True


ROWS = (
    Row("random", "Random init", None, paper={"accuracy": 80.9, "psnr": None, "epochs": 100}),
    Row("mae", "MAE", "mae", (), 1.5, {"accuracy": 83.1, "psnr": 22.2, "epochs": 100}),
    Row("rmae", "R-MAE", "rmae", (), 4.2, {"accuracy": 82.7, "psnr": 23.7, "epochs": 100}),
    Row(
        "rmae_independent",
        "R-MAE†",
        "rmae",
        ("--config.objective.t2=independent",),
        4.2,
        {"accuracy": 82.8, "psnr": 23.0, "epochs": 100},
    ),
    Row(
        "rmae_identity",
        "R-MAE‡",
        "rmae",
        ("--config.objective.t2=identity",),
        4.8,
        {"accuracy": 82.7, "psnr": 22.9, "epochs": 100},
    ),
    Row(
        "cmae",
        "C-MAE",
        "cmae",
        (),
        4.4,
        {"accuracy": 82.9, "psnr": None, "epochs": 100},
        reconstructs=False,
    ),
    Row(
        "mocov3",
        "MoCo v3",
        "mocov3",
        (),
        4.2,
        {"accuracy": 83.2, "psnr": None, "epochs": 300},
        reconstructs=False,
        transformation="crop, colour, blur",
        by_default=False,
    ),
    Row(
        "dino",
        "DINO",
        "dino",
        (),
        5.5,
        {"accuracy": 82.8, "psnr": None, "epochs": 800},
        reconstructs=False,
        transformation="crop, colour, blur",
        by_default=False,
    ),
)
MEASURING = 0.3  # cost of a row's CKA, PSNR and pictures


@dataclasses.dataclass(frozen=True)
class Stage:
    """One `occinv train`: what to run where, as one would type it."""

    config: str
    overrides: tuple[str, ...]
    workdir: Path

    @property
    def command(self) -> str:
        """The command that does just this."""
        words = ["occinv train", f"--config {self.config}", f"--workdir {self.workdir}"]
        return " ".join([*words, *self.overrides])

    @property
    def experiment(self) -> schema.Experiment:
        """The config, resolved."""
        name, _, variant = self.config.partition(":")
        path = configuration.CONFIGS.parent / name
        return schema.resolve(configuration.load(f"{path}:{variant}", self.overrides))


def pretraining(row: Row, workdir: Path, seed: int, variant: str) -> Stage | None:
    """The row's pretraining, or None for random initialisation."""
    if row.config is None:
        return None
    return Stage(
        f"{CONFIGS}/{row.config}.py:{variant}",
        (*row.overrides, f"--config.seed={seed}"),
        workdir / row.key / f"seed{seed}" / "pretrain",
    )


def finetuning(row: Row, workdir: Path, seed: int, variant: str) -> Stage:
    """The row's training on labels, from its pretrained encoder if it has one."""
    before = pretraining(row, workdir, seed, variant)
    start = () if before is None else (f"--config.init_from={before.workdir}",)
    return Stage(
        f"{CONFIGS}/{'supervised' if before is None else 'finetune'}.py:{variant}",
        (*start, f"--config.seed={seed}"),
        workdir / row.key / f"seed{seed}" / "finetune",
    )


def reproduce(
    workdir: Path, *, seeds: int = 1, rows: str | None = None, variant: str = "quickstart"
) -> int:
    """Runs and measures what is missing, and reports: the exit status.

    Args:
      workdir: of everything; `results.json` is written there after every row, and `report.html`
        at the end or when stopped.
      seeds: each row is run with seeds 0 to `seeds` - 1.
      rows: keys of rows, separated by commas; None: those of the paper's own methods and MAE;
        `all`: MoCo v3 and DINO too.
      variant: of the configs.

    Raises UserError for an unknown row, less than one seed, and a workdir that is a file.
    """
    chosen = choose(rows)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}, expected 1 or more")
    check_folder(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # Fine-tuning is the same program in every row: compile it once, and never again on a restart.
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    started = time.monotonic()
    total = seeds * sum(row.cost + 1 + MEASURING for row in chosen)
    with Progress(total) as progress:
        for seed in range(seeds):
            for row in chosen:
                stopped_by = run_row(row, workdir, seed, variant, progress)
                results = collect(chosen, workdir, seeds, variant, time.monotonic() - started)
                write_json(workdir / "results.json", results)
                if stopped_by is not None:
                    write_html(results, workdir)
                    progress.say("stopped and saved; run the same command to go on")
                    return 128 + stopped_by
    write_html(results, workdir)
    print_table(results)
    progress.say(f"report: {workdir / 'report.html'}")
    return 0


def choose(rows: str | None) -> list[Row]:
    """The rows with these keys, in the table's order. Raises UserError for an unknown key."""
    known = {row.key: row for row in ROWS}
    if rows is None:
        return [row for row in ROWS if row.by_default]
    keys = list(known) if rows == "all" else rows.split(",")
    for key in keys:
        if key not in known:
            raise UserError(f"--rows has {key!r}{nearest(key, [*known, 'all'])}")
    return [row for row in ROWS if row.key in keys]


def run_row(row: Row, workdir: Path, seed: int, variant: str, progress: Progress) -> int | None:
    """Runs and measures one row: None, or the signal that stopped it."""
    before = pretraining(row, workdir, seed, variant)
    after = finetuning(row, workdir, seed, variant)
    for stage, cost in ((before, row.cost), (after, 1.0)):
        if stage is None:
            continue
        name = f"{row.name}, {stage.workdir.name}" + (f", seed {seed}" if seed else "")
        is_finished, begun = (stage.workdir / RESULT).exists(), time.monotonic()
        outcome = train(stage.experiment, stage.workdir, progress.stage(name, cost))
        if is_finished:
            progress.done(cost)
        else:
            seconds = time.monotonic() - begun
            write_json(stage.workdir / SECONDS, seconds_spent(stage) + seconds)
        if outcome.stopped_by is not None:
            return outcome.stopped_by
    for stage in (before, after):
        if stage is None:
            continue
        if not (stage.workdir / "evaluate" / "cka.json").exists():
            measure.evaluate_cka([stage.workdir])
        is_pictured = (stage.workdir / "evaluate" / "psnr.json").exists()
        if stage is before and row.reconstructs and not is_pictured:
            measure.evaluate_reconstruct(stage.workdir, 6)
            measure.evaluate_psnr(stage.workdir)
    progress.done(MEASURING)
    return None


def seconds_spent(stage: Stage) -> float:
    """Seconds in which the stage has run so far, over all interruptions but kills."""
    path = stage.workdir / SECONDS
    return json.loads(path.read_text()) if path.exists() else 0.0


def collect(
    rows: list[Row], workdir: Path, seeds: int, variant: str, seconds: float
) -> dict[str, Any]:
    """What stands in the workdir, as `results.json` (see occinv.report.results)."""
    some = finetuning(rows[0], workdir, 0, variant).experiment
    source = open_source(some.data.source, train=True)
    test = open_source(some.data.source, train=False)
    encoder = some.encoder
    size = vit.build(encoder, some.data.image_size)
    title = "quickstart"
    return {
        "title": title,
        "command": f"occinv reproduce {title} --workdir {workdir} --seeds {seeds}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPU cores, {jax.default_backend()}, JAX {jax.__version__}, "
        f"Python {platform.python_version()}",
        "seconds": seconds,
        "settings": {
            "data": f"{some.data.source}: {len(source.classes)} classes, {len(source)} training "
            f"and {len(test)} test images of {some.data.image_size}² pixels",
            "num_test": len(test),
            "encoder": f"ViT of {size.depth} blocks, {size.width} wide, patches of "
            f"{size.patch_size}² pixels",
            "seeds": list(range(seeds)),
        },
        "notes": [
            "C-MAE is its variant of Tables 3 and 4 that drops patches and compares their mean. As "
            "in Table 2, with mask tokens, it falls behind at this length: see docs/results.md."
        ]
        if any(row.config == "cmae" for row in rows)
        else [],
        "rows": [describe(row, workdir, seeds, variant) for row in rows],
    }


def describe(row: Row, workdir: Path, seeds: int, variant: str) -> dict[str, Any]:
    """One row of `results.json`; what has not been run is null."""
    first = pretraining(row, workdir, 0, variant) or finetuning(row, workdir, 0, variant)
    experiment = first.experiment
    encoder = vit.build(experiment.encoder, experiment.data.image_size)
    objective = build(experiment.objective, Setting(encoder, num_classes=2, total_steps=1))
    before = [pretraining(row, workdir, seed, variant) for seed in range(seeds)]
    after = [finetuning(row, workdir, seed, variant) for seed in range(seeds)]
    accuracies = [
        json.loads((stage.workdir / RESULT).read_text())["metrics"]["top1"]
        for stage in after
        if (stage.workdir / RESULT).exists()
    ]
    psnr = read_measured(before, "psnr")
    cka = {
        when: mean_curves([found["models"][0] for found in read_measured(stages, "cka")])
        for when, stages in (("pretrained", before), ("finetuned", after))
    }
    return {
        "name": row.name,
        "key": row.key,
        "framework": "–" if row.config is None else objective.framework,
        "transformation": "–" if row.config is None else row.transformation,
        **dict(zip(("t1", "t2", "target", "measure"), objective.axes, strict=True)),
        "status": "done" if len(accuracies) == seeds and cka["finetuned"] else "running",
        "error": None,
        "pretrain": before[0] and describe_stage(before[0]),
        "finetune": describe_stage(after[0]),
        "accuracy": float(np.mean(accuracies)) if accuracies else None,
        "accuracies": accuracies,
        "psnr": float(np.mean([found["whole"] for found in psnr])) if psnr else None,
        "psnr_removed": float(np.mean([found["removed"] for found in psnr])) if psnr else None,
        "cka": cka,
        "reconstructions": pictures(before[0], workdir) if psnr else [],
        "paper": row.paper,
    }


def read_measured(stages: list[Any], measured: str) -> list[dict[str, Any]]:
    """What `evaluate` has written for these stages, as far as it has."""
    paths = [stage.workdir / "evaluate" / f"{measured}.json" for stage in stages if stage]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def mean_curves(models: list[dict[str, Any]]) -> dict[str, Any] | None:
    """CKA curves averaged over seeds, with the values of each seed beside them."""
    if not models:
        return None
    values = np.array([model["values"] for model in models], float)
    return {
        "ratios": models[0]["ratios"],
        "blocks": models[0]["blocks"],
        "values": values.mean(0).tolist(),
        "by_seed": values.tolist(),
    }


def describe_stage(stage: Stage) -> dict[str, Any]:
    """How a stage is run, and how it went."""
    experiment = stage.experiment
    lines = read_scalars(stage.workdir / METRICS) if (stage.workdir / METRICS).exists() else []
    return {
        "duration": str(experiment.train.duration),
        "command": stage.command,
        "config": json.dumps(dataclasses.asdict(experiment), indent=1),
        "seconds": seconds_spent(stage) or None,
        "parameters": next((line["parameters"] for line in lines if "parameters" in line), None),
        "loss": [[line["step"], line["loss"]] for line in lines if "loss" in line],
        "accuracy": [[line["step"], line["eval/top1"]] for line in lines if "eval/top1" in line],
    }


def pictures(stage: Stage | None, workdir: Path) -> list[dict[str, str]]:
    """Paths, relative to `workdir`, of the reconstructions of a pretraining stage."""
    assert stage is not None
    folder = stage.workdir / "evaluate" / "reconstructions"
    numbers = sorted({path.name.split("_")[0] for path in folder.glob("*.png")})
    return [
        {
            kind: str((folder / f"{number}_{kind}.png").relative_to(workdir))
            for kind in Triple._fields
        }
        for number in numbers
    ]
