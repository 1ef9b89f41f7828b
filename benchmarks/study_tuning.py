"""Tune the study (docs/study.md): fine-tuned accuracy around each config's values, seeds 100, 101.

    python benchmarks/study_tuning.py --scale quickstart --workdir runs/tuning
    python benchmarks/study_tuning.py --scale small --workdir runs/tuning --length 0.5 --seeds 100

One value changes at a time. Several copies of this command share the work. It prints a table at the
end of what is done.
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

RATES = (0.25, 0.5, 1, 2)  # factors of the config's base_lr
VALUES = {
    RMAE: ("pretrain", "objective.constraint_weight", (0.1, 1.0, 10.0)),
    CMAE: ("pretrain", "objective.momentum", (0.9, 0.98, 0.996)),
}


def settings(run: TableRun) -> dict[str, tuple[Method, str, str]]:
    """The settings by name: a method, a stage and an override of it."""
    found = {}

    def add(method: Method, stage: str, field: str, values: tuple[float, ...]) -> None:
        for value in values:
            override = f"{field}={value:g}"
            found[f"{method.key}, {stage}: {override}"] = (method, stage, override)

    for method in (RANDOM, MAE, RMAE, CMAE):
        for stage in (*(("pretrain",) if method.config else ()), "finetune"):
            if stage == "finetune" and method in (RMAE, CMAE):
                continue  # as MAE
            trial = Trial(method, 0, run)
            rate = trial.stages[stage].experiment.optimizer.base_lr
            add(method, stage, "optimizer.base_lr", tuple(rate * factor for factor in RATES))
        if method in VALUES:
            add(method, *VALUES[method])
    return found


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", default="quickstart")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--length", type=float, default=1.0)
    parser.add_argument("--seeds", default="100,101")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    table = dataclasses.replace(study_table(options.scale), columns=("finetune",), cka=())
    run = TableRun(table, (), options.workdir, options.scale, length=options.length)
    trials = {
        name: [
            Trial(
                method,
                seed,
                dataclasses.replace(
                    run,
                    workdir=options.workdir / re.sub(r"\W+", "_", name),
                    overrides={stage: (override,)},
                ),
            )
            for seed in seeds
        ]
        for name, (method, stage, override) in settings(run).items()
    }

    def write(is_last: bool) -> Written:
        return Written(all(t.is_done for ts in trials.values() for t in ts), options.workdir)

    run_all(
        [trial for seeded in zip(*trials.values(), strict=True) for trial in seeded],
        options.workdir,
        write,
    )
    print("| setting |", *(f"seed {seed} |" for seed in seeds), "mean |")
    print("| --- |" + " ---: |" * (len(seeds) + 1))
    for name, group in trials.items():
        if all(trial.is_done for trial in group):
            top1 = [
                read_json(t.stages["finetune"].workdir / RESULT)["metrics"]["top1"] for t in group
            ]
            cells = [f"{100 * value:.1f} |" for value in (*top1, statistics.mean(top1))]
            print(f"| {name} |", *cells)


if __name__ == "__main__":
    main()
