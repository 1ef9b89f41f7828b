"""`occinv plan`: compute the memory and the time of a run on TPUs or GPUs, without one."""

from __future__ import annotations

import argparse
import itertools
import json
import os

from occinv import schema
from occinv.commands.options import add_config, to_path
from occinv.config import load_config
from occinv.schema import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv plan`."""
    # fmt: off
    add_config(parser)
    add = parser.add_argument
    add("--topology", required=True, metavar="SLICE",
        help="Plan for this TPU slice, such as v5e:16x16, or these GPUs, such as h100:8 or, for 4 "
             "nodes of 8, h100:4x8.")
    add("--num-images", type=int, default=1281167, metavar="N",
        help="Count N images in an epoch (default: %(default)s, as in ImageNet).")
    add("--num-classes", type=int, default=1000, metavar="N",
        help="Number of classes (default: %(default)s).")
    add("--search", action="store_true",
        help="Change fsdp, remat and accumulate until the run fits.")
    add("--out", type=to_path, metavar="FILE", help="Also write the plan as JSON to this file.")
    # fmt: on


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `occinv plan` and return the exit status: 0 if the run fits, else 1."""
    experiment = schema.resolve(load_config(options.config, overrides))
    for name in ("num_images", "num_classes"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}, expected 1 or more")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a plan needs no accelerator of this machine
    from occinv.plan.chips import describe_slice
    from occinv.plan.plan import search
    from occinv.plan.show import print_plan

    slice_ = describe_slice(options.topology)
    found = search(experiment, slice_, options.num_classes, options.num_images)
    plans = []
    for plan in itertools.islice(found, None if options.search else 1):
        print_plan(plan)
        plans.append(plan.as_json())
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {**plans[-1], "tried_before": plans[:-1]}
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if plans[-1]["fits"] else 1
