"""`occinv train`: pretrain, fine-tune or train a model from scratch."""

from __future__ import annotations

import argparse
import functools

from occinv import schema
from occinv.commands.options import add_config, choices, to_path
from occinv.commands.processes import add_processes, fail, join
from occinv.config import extended_config, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv train`."""
    parser.epilog = choices()
    add_config(parser, required=False)
    text = "Save the run to this folder. Continue the run that is already in it."
    parser.add_argument("--workdir", required=True, type=to_path, metavar="DIR", help=text)
    text = "Continue although files of the data were added, removed or changed since the start."
    parser.add_argument("--accept-changed-data", action="store_true", help=text)
    text = (
        "Continue the run in the folder to a longer train.duration or train.stop_after. Without "
        "--config, every other field is that of the run."
    )
    parser.add_argument("--extend", action="store_true", help=text)
    add_processes(parser)


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `occinv train` and return the exit status."""
    if options.config is None and not options.extend:
        options.parser.error("the following arguments are required: --config")
    if options.config is None:
        config = extended_config(options.workdir, overrides)
    else:
        config = load_config(options.config, overrides)
    experiment = schema.resolve(config)
    from occinv.progress import Progress
    from occinv.train.extend import extend
    from occinv.train.loop import NonFinite, train

    console = join(options)
    say = functools.partial(console.print, soft_wrap=True)
    if options.extend and (extended := extend(experiment, options.workdir)):
        say(f"{options.workdir}: {extended}")
    try:
        with Progress(console=console) as progress:
            watch = progress.stage(options.workdir.name)
            outcome = train(experiment, options.workdir, watch, options.accept_changed_data)
    except NonFinite as error:
        return fail(1, error)
    if outcome.stopped_by is not None and outcome.step < outcome.steps:
        say(
            f"stopped and saved at step {outcome.step} of {outcome.steps} in {options.workdir}; "
            "run the same command to continue"
        )
        return 128 + outcome.stopped_by
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    say(
        f"{options.workdir}: {outcome.step} steps done"
        + (f"; validation {metrics}" if metrics else "")
    )
    return 0
