"""The option `--config`, and the choices that `--help` lists."""

from __future__ import annotations

import argparse
import typing

from occinv.config import CONFIGS
from occinv.objectives import OBJECTIVES
from occinv.schema import Encoder


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and its overrides, which `run` gets as the argument `rest`."""
    # fmt: off
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:VARIANT]",
        help="Read the config from the function get_config(variant) of this file.")
    add("--config.FIELD=VALUE", action="store_true", dest="_",
        help="Set a field of the config. Repeat it for more fields.")
    parser.set_defaults(overrides="--config.")
    # fmt: on


def choices() -> str:
    """List configs, objectives, encoders, sources, examples and exit statuses for `--help`."""
    configs = (p.name for p in sorted(CONFIGS.glob("*.py")) if "get_config" in p.read_text())
    encoders = typing.get_args(typing.get_type_hints(Encoder)["name"])
    return f"""\
choices:
  configs      in configs/: {", ".join(configs)}
  variants     :tiny_imagenet, :quickstart and :smoke of each config
  objectives   {", ".join(OBJECTIVES)}, or your own as module:Class
  encoders     {", ".join(encoders)}
  data.source  photos, digits, folder:PATH, tfds:NAME[:SPLIT]

examples:
  occinv train --config configs/mae.py:smoke --workdir runs/try
  occinv train --config configs/mae.py --workdir runs/own \\
      --config.data.source=folder:PATH --config.train.batch_size=256

exit status:
  0            The command succeeded.
  1            The run failed (a loss that is not finite, a full or read-only disk, a deleted
               workdir, a process that died), or the plan does not fit. JAX may end the processes
               of a run with 134 instead.
  2            An argument or a config is wrong. Nothing was written.
  129, 130, 143
               SIGHUP, Ctrl-C or SIGTERM stopped the run after saving. Run the same command to
               continue.
"""
