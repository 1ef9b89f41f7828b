"""`occinv reproduce`: run a table of the paper."""

from __future__ import annotations

import argparse
import os
import shlex

from occinv.commands.options import to_path
from occinv.commands.processes import add_processes, join
from occinv.reproduce.specs import SCALES
from occinv.reproduce.tables import TABLES, choose, make_table
from occinv.schema import UserError

EPILOG = """\
Finished runs are not repeated and interrupted runs continue. Several workers may share a workdir.
Set a field of every run with --config.FIELD=VALUE. Set a field of one kind of run with
--pretrain.FIELD=VALUE, --finetune.FIELD=VALUE, --linear.FIELD=VALUE or --tenth.FIELD=VALUE.

examples:
  occinv reproduce table4 --scale smoke --workdir runs/try
  occinv reproduce table3 --scale small --workdir runs/small --seeds 3 \\
      --config.data.source=folder:tiny_imagenet_20 --pretrain.train.batch_size=256
  occinv reproduce table1 --scale paper --workdir /shared/paper --jobs 2 of 4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv reproduce`."""
    # fmt: off
    parser.epilog = EPILOG
    add = parser.add_argument
    add("table", metavar="TABLE", help=f"Run this table: {', '.join(TABLES)}.")
    add("--workdir", required=True, type=to_path, metavar="DIR",
        help="Save all runs to this folder. Tables in one folder share their runs.")
    add("--scale", help=f"Run at this scale: {', '.join(SCALES)}.")
    add("--rows", metavar="KEY,...",
        help="Row keys, or all (default: all rows; in quickstart the first four).")
    add("--seeds", type=int, default=1, metavar="N",
        help="Run each row with N seeds (default: %(default)s).")
    add("--length", type=float, default=1.0, metavar="FACTOR",
        help="Multiply the duration of every training by FACTOR, and its warm-up if FACTOR is "
             "below 1 (default: %(default)s).")
    add("--images", type=int, metavar="N",
        help="Pretrain on N images in Tables 7 and 8 (default: depends on --scale). With "
             "--published, measure on N images (default: all).")
    add("--published", metavar="NAME=FILE,...",
        help="In figure1, show the encoders in these checkpoints of other libraries, on the images "
             "of --config.data.source.")
    add("--plan", metavar="SLICE",
        help="Plan the pretraining of each row at scale paper on this TPU slice or these GPUs, as "
             "occinv plan does, instead of running it.")
    add("--jobs", nargs=3, metavar=("K", "of", "N"),
        help="Start as worker K of N workers that share the workdir.")
    add("--add", action="append", default=[], metavar="NAME=WORKDIR",
        help="Add a row for the encoder of an existing run.")
    add_processes(parser)
    parser.set_defaults(overrides="")  # `parse_overrides` checks them
    # fmt: on


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv reproduce` and return the exit status."""
    if options.published is not None:
        return run_published(options, rest)
    scale = options.scale or ("quickstart" if options.table == "quickstart" else "")
    if not scale and options.table in TABLES:
        raise UserError(f"--scale is missing. Give one of {', '.join(SCALES)}")
    table = make_table(options.table, scale, options.images)
    rows = choose(table, options.rows)
    from occinv.reproduce.options import parse_added_row, parse_jobs, parse_overrides
    from occinv.reproduce.run import TableRun
    from occinv.reproduce.run_table import reproduce

    run = TableRun(
        table,
        (*rows, *map(parse_added_row, options.add)),
        options.workdir,
        scale,
        options.seeds,
        options.length,
        parse_overrides(rest),
        command=shlex.join(["occinv", *options.arguments]),
    )
    if options.plan is not None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # it needs no accelerator of this machine
        from occinv.plan.chips import describe_slice
        from occinv.reproduce.plan_table import plan_table

        return plan_table(run, describe_slice(options.plan))
    return reproduce(run, parse_jobs(options.jobs), join(options))


def run_published(options: argparse.Namespace, rest: list[str]) -> int:
    """Draw Figure 1 of published checkpoints and return the exit status."""
    start = "--config.data.source="
    others = [argument for argument in rest if not argument.startswith(start)]
    if options.table != "figure1":
        raise UserError(f"--published with {options.table}, expected figure1")
    if others:
        raise UserError(f"--published trains nothing, so it takes no {others[0]}; leave it out")
    if len(rest) != 1:
        raise UserError(f"--published needs images; add {start}SOURCE, such as folder:PATH")
    from occinv.reproduce.published import parse_published, published_figure

    files = parse_published(options.published)
    join(options)
    source = rest[0].removeprefix(start)
    command = shlex.join(["occinv", *options.arguments])
    print(published_figure(files, source, options.workdir, options.images, command))
    return 0
