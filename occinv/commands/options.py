"""The option `--config`, and the choices that `--help` lists."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path

from occinv.config import list_configs
from occinv.objectives import OBJECTIVES
from occinv.paths import as_path
from occinv.schema import Encoder
from occinv.text import is_safe


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--config` and its overrides, which `run` gets as the argument `rest`."""
    # fmt: off
    add = parser.add_argument
    add("--config", required=required, metavar="CONFIG[:VARIANT][,FIELD=VALUE...]",
        help="Use this config of occinv, or the function get_config(variant) of a file.")
    # fmt: on
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--config.FIELD=VALUE`, which `run` gets as the argument `rest`."""
    # fmt: off
    parser.add_argument(
        "--config.FIELD=VALUE", action="store_true", dest="_",
        help="Set a field of the config. Repeat it for more fields.")
    # fmt: on
    parser.set_defaults(overrides="--config.")


def to_path(text: str) -> Path:
    """Return the path that an argument names. It may be in a bucket.

    Raises:
      ArgumentTypeError: The text is empty or has control codes.
      UserError: As `as_path`.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty, expected a file or a folder")
    if not is_safe(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} has a control code, a line break or a byte that is not UTF-8. Rename it, or "
            "use another path"
        )
    return as_path(text)


def choices() -> str:
    """List configs, objectives, encoders, sources, examples and exit statuses for `--help`."""
    encoders = typing.get_args(typing.get_type_hints(Encoder)["name"])
    return f"""\
choices:
  configs      {", ".join(list_configs())}, or your own file
  variants     :tiny_imagenet, :quickstart and :smoke of each config
  objectives   {", ".join(OBJECTIVES)}, or your own as module:Class
  encoders     {", ".join(encoders)}
  data.source  photos, digits, folder:PATH, arrow:PATH, tfds:NAME[:SPLIT], or module:Class

examples:
  occinv train --config mae:smoke --workdir runs/try
  occinv train --config mae --workdir runs/own \\
      --config.data.source=folder:PATH --config.train.batch_size=256

exit status:
  0            The command succeeded.
  1            The run failed (a loss that is not finite, an image that cannot be read, a full or
               read-only disk, a deleted workdir, a process that died), or the plan does not fit.
               JAX may end the processes of a run with 134 instead.
  2            An argument or a config is wrong. Nothing was written.
  129, 130, 143
               SIGHUP, Ctrl-C or SIGTERM stopped the run after saving. Run the same command to
               continue.
"""
