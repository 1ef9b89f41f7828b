"""`occinv sweep`: run a config with every setting of a sweep, and compare the settings."""

from __future__ import annotations

import argparse
import shlex

from occinv.commands.options import add_config, to_path
from occinv.commands.processes import add_processes, join
from occinv.config import load_sweep

EPILOG = """\
The settings are those of the function sweep() of the config file, times those of --set. Finished
runs are not repeated and interrupted runs continue. Several workers may share a workdir.

examples:
  occinv sweep --config mae:smoke --workdir runs/ratios --seeds 2 \\
      --set objective.mask_ratio=0.5,0.75
  occinv sweep --config my.py --workdir /shared/ratios --seeds 3 --jobs 2 of 4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv sweep`."""
    # fmt: off
    parser.epilog = EPILOG
    add_config(parser)
    add = parser.add_argument
    add("--workdir", required=True, type=to_path, metavar="DIR",
        help="Save every run to a folder in this folder, and the report to it.")
    add("--set", action="append", default=[], metavar="FIELD=VALUE,...",
        help="Sweep these values of a field. Repeat it for the product of several fields.")
    add("--seeds", type=int, default=1, metavar="N",
        help="Run each setting with N seeds (default: %(default)s).")
    add("--jobs", nargs=3, metavar=("K", "of", "N"),
        help="Start as worker K of N workers that share the workdir.")
    add("--metric", metavar="NAME",
        help="Compare this metric of the last evaluation: top1, loss, LABEL/VALUE of an "
             "evaluator, which measures finished runs, too (default: an accuracy, else the loss).")
    add_processes(parser)
    # fmt: on


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `occinv sweep` and return the exit status."""
    swept = load_sweep(options.config)
    from occinv.reproduce.options import parse_jobs
    from occinv.reproduce.sweep import Sweep, read_settings, run_sweep

    sweep = Sweep(
        options.config,
        read_settings(swept, options.set),
        options.workdir,
        options.seeds,
        tuple(overrides),
        options.metric,
        command=shlex.join(["occinv", *options.arguments]),
    )
    return run_sweep(sweep, parse_jobs(options.jobs), join(options))
