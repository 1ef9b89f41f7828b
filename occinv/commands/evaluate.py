"""`occinv evaluate`: measure trained encoders and draw their outputs."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any

from occinv.commands.options import to_path
from occinv.commands.processes import add_processes, join


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subparser for each evaluator, whose options are the fields of its class."""
    from occinv.evaluators import EVALUATORS
    from occinv.evaluators.base import evaluator_class

    evaluators = parser.add_subparsers(dest="evaluator", required=True, metavar="EVALUATOR")
    for name in EVALUATORS:
        cls = evaluator_class(name)
        about = (cls.__doc__ or "").partition("\n")[0]
        evaluator = evaluators.add_parser(name, help=about, description=about)
        # fmt: off
        add = evaluator.add_argument
        add("--workdir", required=True, type=to_path, nargs="+", metavar="DIR",
            help="Evaluate the run in this folder, or several.")
        add("--out", type=to_path, metavar="FILE",
            help="Write the record of a single run here (default: evaluate/NAME.json in DIR).")
        # fmt: on
        add_fields(evaluator, cls)
        add_processes(evaluator)


def add_fields(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add an option for each field of an evaluator. Options that are not given are not set."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint, about = hints[field.name], field.metadata["help"]
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] or [hint]
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": field.name}
        default = field.default
        if typing.get_origin(hint) is typing.Literal:
            settings["choices"] = typing.get_args(hint)
        elif typing.get_origin(hint) is tuple:
            # The evaluator checks that texts are among the values of a Literal.
            kind = str if typing.get_origin(kinds[0]) is typing.Literal else kinds[0]
            settings |= {"type": _tuple_of(kind), "metavar": "A,B,..."}
            default = ",".join(map(str, typing.cast(tuple, field.default)))
        elif hint is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings |= {"type": kinds[0], "metavar": {int: "N"}.get(kinds[0], "VALUE")}
        if default is not None:
            about = f"{about.removesuffix('.')} (default: {default})."
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=about, **settings)


def _tuple_of(kind: type) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    parse.__name__ = f"list of {kind.__name__}"
    return parse


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv evaluate` and return the exit status."""
    from occinv.evaluate import evaluate_run
    from occinv.evaluators.base import evaluator_class, make_evaluator
    from occinv.schema import UserError
    from occinv.train.records import record_file
    from occinv.train.workdir import workdir_of

    name, workdirs = options.evaluator, options.workdir
    if options.out is not None and len(workdirs) > 1:
        raise UserError(f"--out {options.out} with {len(workdirs)} runs, expected one run")
    console = join(options)
    fields = {field.name for field in dataclasses.fields(evaluator_class(name))}
    evaluator = make_evaluator(name, {k: v for k, v in vars(options).items() if k in fields})
    records = []
    for workdir in workdirs:
        found = evaluate_run(name, evaluator, workdir, options.out)
        records.append(found.record)
        console.print(f"{workdir}: {found.text}", soft_wrap=True)
        if found.record.images.split == "training":
            console.print(
                f"{workdir}: measured on {found.record.images.name}, the training images of the "
                "run. Give others with --source, or train with data.eval_source.",
                soft_wrap=True,
            )
        if found.pictures is not None:
            console.print(found.pictures, soft_wrap=True)
    if name == "invariance" and not console.quiet:
        from occinv.report.figures import save_cka
        from occinv.report.table import print_invariance

        print_invariance(records)
        path = options.out or record_file(workdir_of(workdirs[0]), name)
        if options.out is None and records[0].protocol["removed"] == "mask_token":
            path = path.with_stem(f"{name}_mask_token")  # beside the figure of dropped patches
        console.print(save_cka(records, path.with_suffix(".png")), soft_wrap=True)
    return 0
