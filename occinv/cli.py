"""Parse the command line and call a subcommand.

The options and the code of each subcommand are in occinv/commands/. Only the module of the chosen
subcommand is imported. It imports JAX after the config has been checked.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from occinv.commands.options import choices
from occinv.commands.processes import fail, is_one_of_several
from occinv.schema import UserError, nearest
from occinv.sections import UnknownField
from occinv.text import message
from occinv.train.disk import RunFailed, bucket_problem, disk_problem
from occinv.version import __version__

COMMANDS = {
    "train": "Pretrain, fine-tune or train a model from scratch.",
    "config": "Print a config with the origin of every value, or the fields of configs.",
    "data": "Prepare, check and convert data sets.",
    "plan": "Compute memory and time of a run on TPUs or GPUs, without one.",
    "evaluate": "Measure trained encoders and draw their outputs.",
    "reproduce": "Run a table of the paper.",
    "sweep": "Run a config with every setting of a sweep, and compare the settings.",
    "list": "List every objective with its T1, T2, target and M.",
    "report": "Compare runs, or show the results of `occinv reproduce`.",
    "weights": "Import and export checkpoints of other libraries.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status, which `occinv --help` explains."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("occinv").setLevel(logging.INFO)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options, rest = make_parser(arguments[:1]).parse_known_args(arguments)
        for word in rest:
            if options.overrides is None or not word.startswith(options.overrides):
                raise UserError(_unknown(word, options))
        options.arguments = arguments
        status: int = options.run(options, rest)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        from occinv.progress import discard_output

        discard_output()
        return 128 + signal.SIGPIPE
    except UnknownField as error:
        from occinv.commands.config import explain  # here, because most runs do without

        return fail(2, explain(error))
    except UserError as error:
        return fail(2, error)
    except KeyboardInterrupt:
        return fail(130, "interrupted; checkpoints and results that were saved before are kept")
    except RunFailed as error:
        return fail(1, error)
    except Exception as error:
        if problem := disk_problem(error) or bucket_problem(error):
            return fail(1, problem)
        if not is_one_of_several():
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return fail(1, f"A process failed; stopping all processes: {first_line}")


def _unknown(word: str, options: argparse.Namespace) -> str:
    known = re.findall(r"--[a-z][a-z-]+(?![\w.-])", options.parser.format_usage())
    fields = "; set a field of the config with --config.FIELD=VALUE" if options.overrides else ""
    return f"unknown argument {word!r}{nearest(word.split('=')[0], [*known, '--help'])}{fields}"


def make_parser(names: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Return the parser of all subcommands, with the options of the subcommands in `names`."""
    parser = _Parser(
        prog="occinv",
        description="Occlusion-invariant and siamese pretraining of vision transformers in JAX.",
        epilog=choices(),
    )
    version = f"occinv {__version__}"
    parser.add_argument(
        "--version", action="version", version=version, help="Print the version and exit."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=text)
        if name in names:
            module = importlib.import_module(f"occinv.commands.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


class _OneLine(logging.Formatter):
    """Formats a message as one line without control codes. A traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return message(super().formatMessage(record))


class _Parser(argparse.ArgumentParser):
    """A parser that raises UserError.

    The parsed options have two more attributes: `parser` is the parser of the innermost subcommand,
    and `overrides` is the prefix of arguments that it accepts besides its options, or None.
    """

    def __init__(self, **settings: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=form, allow_abbrev=False, **settings)
        self.set_defaults(parser=self, overrides=None)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")
