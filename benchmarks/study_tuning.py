"""Tune the study (docs/study.md): fine-tuned accuracy by learning rate, λ and momentum.

    python benchmarks/study_tuning.py --scale quickstart --workdir runs/tuning

One value changes at a time, the others are START. Several copies of this command share the work. It
prints a table of what is done.
"""

import argparse
import dataclasses
import re
import statistics
from pathlib import Path

from occinv.reproduce.methods import CMAE, MAE, RANDOM, RMAE, Method
from occinv.reproduce.run import TableRun, Trial
from occinv.reproduce.run_table import Written, run_all
from occinv.reproduce.study import study_table
from occinv.train.disk import read_json
from occinv.train.workdir import RESULT

RATE = "optimizer.base_lr"
LAMBDA, MOMENTUM = "objective.constraint_weight", "objective.momentum"
VALUES = {  # by scale, then by setting, or the stage of a base_lr, or field
    "quickstart": {
        "pretrain": (0.004, 0.008, 0.016, 0.032),
        "finetune": (0.002, 0.004, 0.008, 0.016, 0.032),
        LAMBDA: (0.1, 1.0, 10.0),
        MOMENTUM: (0.9, 0.98, 0.996),
    },
    "small": {
        "pretrain": (0.002, 0.004, 0.008, 0.016),
        "finetune": (0.002, 0.004, 0.008, 0.016),
        "rmae, pretrain: optimizer.base_lr": (0.002, 0.004, 0.008, 0.016, 0.032),
        LAMBDA: (0.1, 1.0, 10.0),
        MOMENTUM: (0.98, 0.996),
    },
}
START = {
    "quickstart": {"pretrain": 0.016, "finetune": 0.008},
    "small": {"pretrain": 0.008, "finetune": 0.004},
}
TUNED = (  # R-MAE and C-MAE are fine-tuned as MAE is
    *((method, "pretrain", RATE) for method in (MAE, RMAE, CMAE)),
    *((method, "finetune", RATE) for method in (RANDOM, MAE)),
    (RMAE, "pretrain", LAMBDA),
    (CMAE, "pretrain", MOMENTUM),
)
CONFIGURED = {LAMBDA: 1.0, MOMENTUM: 0.996}  # set by the config, so not by an override


def settings(scale: str) -> dict[str, tuple[Method, dict[str, tuple[str, ...]]]]:
    """The settings by name: a method, and overrides by stage, equal if the settings are."""
    named = {}
    for method, stage, field in TUNED:
        setting = f"{method.key}, {stage}: {field}"
        by_stage = VALUES[scale][stage if field == RATE else field]
        for value in VALUES[scale].get(setting, by_stage):
            fields = {key: {RATE: rate} for key, rate in START[scale].items()}
            if value != CONFIGURED.get(field):
                fields[stage][field] = value
            overrides = {
                key: tuple(f"{name}={number:g}" for name, number in changed.items())
                for key, changed in fields.items()
            }
            named[f"{setting}={value:g}"] = method, overrides
    return named


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", choices=VALUES, default="quickstart")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--length", type=float, default=1.0)
    parser.add_argument("--seeds", default="100,101")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    table = dataclasses.replace(study_table(options.scale), columns=("finetune",), cka=())
    trials: dict[str, list[Trial]] = {}
    for name, (method, overrides) in settings(options.scale).items():
        changed = "_".join(f"{stage}_{'_'.join(words)}" for stage, words in overrides.items())
        folder = options.workdir / re.sub(r"[^\w.]+", "_", f"{method.key}_{changed}")
        run = TableRun(table, (), folder, options.scale, length=options.length, overrides=overrides)
        trials[name] = [Trial(method, seed, run) for seed in seeds]

    def write(is_last: bool) -> Written:
        return Written(all(t.is_done for ts in trials.values() for t in ts), options.workdir)

    by_seed = [trial for group in zip(*trials.values(), strict=True) for trial in group]
    run_all(by_seed, options.workdir, write)
    print("| setting |", *(f"seed {seed} |" for seed in seeds), "mean |")
    print("| --- |" + " ---: |" * (len(seeds) + 1))
    for name, group in trials.items():
        if all(trial.is_done for trial in group):
            results = (read_json(t.stages["finetune"].workdir / RESULT) for t in group)
            top1 = [100 * result["metrics"]["top1"] for result in results]
            print(f"| {name} |", *(f"{value:.1f} |" for value in (*top1, statistics.mean(top1))))


if __name__ == "__main__":
    main()
