"""The command line: parse, resolve, call. Heavy imports wait until a command needs them.

Exit status: 0 done; 1 the run failed (a loss that is no number), or a plan does not fit; 2 a
mistake in what was given; 130 and 143 stopped by Ctrl-C and SIGTERM after saving: the same command
goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from occinv import schema
from occinv.arguments import make_parser
from occinv.config import load_config
from occinv.reproduce.definition import SCALES
from occinv.reproduce.tables import TABLES, choose, make_table
from occinv.schema import UserError, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("occinv").setLevel(logging.INFO)
    try:
        options, rest = make_parser().parse_known_args(arguments)
        unknown = [a for a in rest if not a.startswith("--config.")]
        if options.command != "reproduce" and (
            unknown or (rest and options.command not in ("train", "plan"))
        ):
            known = ("--config", "--workdir", "--source", "--seed", "--seeds", "--rows",
                     "--from", "--to", "--heads", "--decoder-heads", "--pixel-range", "--topology",
                     "--num-images", "--num-classes", "--search", "--out", "--data-dir",
                     "--manual-dir", "--format", "--expect")  # fmt: skip
            word = (unknown or rest)[0]
            raise UserError(f"unknown argument {word!r}{nearest(word.split('=')[0], known)}")
        options.typed = list(sys.argv[1:] if arguments is None else arguments)
        return _COMMANDS[options.command](options, rest)
    except UserError as error:
        return _failed(2, error)
    except KeyboardInterrupt:
        return _failed(130, "interrupted at once; what was saved before stays")
    except Exception as error:
        if not _is_one_of_several():
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _failed(1, f"this or another process has failed, so all end: {first_line}")


def _failed(status: int, reason: object) -> int:
    """Says why, and returns the status; one of several processes ends there and then.

    Its regular end would wait for the others, who wait for it.
    """
    print(f"occinv: {reason}", file=sys.stderr, flush=True)
    if _is_one_of_several():
        sys.stdout.flush()
        os._exit(status)
    return status


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    experiment = schema.resolve(load_config(options.config, overrides))
    from occinv.progress import Progress
    from occinv.train.loop import NonFinite, train

    console = _join(options)
    say = functools.partial(console.print, soft_wrap=True)
    try:
        with Progress(console=console) as progress:
            outcome = train(experiment, options.workdir, progress.stage(options.workdir.name))
    except NonFinite as error:
        return _failed(1, error)
    if outcome.stopped_by is not None and outcome.step < outcome.steps:
        say(
            f"stopped and saved at step {outcome.step} of {outcome.steps} in {options.workdir}; "
            "run the same command to go on"
        )
        return 128 + outcome.stopped_by
    measured = ", ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    say(f"{options.workdir}: {outcome.step} steps done" + (f"; {measured}" if measured else ""))
    return 0


def _data(options: argparse.Namespace, rest: list[str]) -> int:
    if options.deed == "convert":
        from occinv.data.tfds.convert import convert

        for line in convert(options.source, options.data_dir):
            print(line, flush=True)
        return 0
    expect = None
    if options.expect is not None:
        try:
            pairs = (part.split("=") for part in options.expect.split(","))
            expect = {split: int(count) for split, count in pairs}
        except ValueError as error:
            raise UserError(
                f"--expect {options.expect!r}, expected such as train=1281167,validation=50000"
            ) from error
    from occinv.data.tfds.check import check
    from occinv.data.tfds.prepare import prepare

    if options.deed == "prepare":
        print(prepare(options.name, options.data_dir, options.manual_dir, options.format))
    for line in check(options.name, options.data_dir, expect):
        print(line, flush=True)
    return 0


def _plan(options: argparse.Namespace, overrides: list[str]) -> int:
    experiment = schema.resolve(load_config(options.config, overrides))
    for name in ("num_images", "num_classes"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}, expected 1 or more")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an accelerator here is none of its business
    from occinv.plan.chips import parse, slice_devices
    from occinv.plan.plan import make_plan, search
    from occinv.plan.show import print_plan

    chip, _ = parse(options.topology)
    devices = slice_devices(options.topology)
    given = experiment, devices, chip, options.num_classes, options.num_images
    plans = []
    for plan in search(*given) if options.search else [make_plan(*given)]:
        print_plan(plan, options.topology, chip)
        plans.append({"topology": options.topology, **plan.as_dict(chip)})
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = {**plans[-1], "tried_before": plans[:-1]}
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if plans[-1]["fits"] else 1


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from occinv.evaluators import run

    console = _join(options)
    say = functools.partial(console.print, soft_wrap=True)
    chosen: dict[str, Any] = {"source": options.source}
    if options.measure == "knn":
        for name in ("num_images", "neighbors", "temperature", "pooling"):
            chosen[name] = getattr(options, name)
        found = run.evaluate_knn(options.workdir, **chosen)
        say(
            f"{options.workdir}: top-1 {100 * found['top1']:.1f} %, top-5 "
            f"{100 * found['top5']:.1f} %, by {found['neighbors']} neighbors among "
            f"{found['training_images']} images; {found['images']} held out"
        )
        return 0
    if options.measure == "attention":
        say(run.evaluate_attention(options.workdir, options.count, block=options.block, **chosen))
        return 0
    chosen["seed"] = options.seed
    if options.measure == "reconstruct":
        say(run.evaluate_reconstruct(options.workdir, options.count, **chosen))
        return 0
    chosen["num_images"] = options.num_images
    if options.measure == "psnr":
        found = run.evaluate_psnr(options.workdir, **chosen)
        say(
            f"{options.workdir}: {found['whole']:.2f} dB (visible patches pasted), "
            f"{found['removed']:.2f} dB over removed patches alone; {found['images']} images"
        )
        return 0
    found = run.evaluate_cka(
        options.workdir, tokens=options.tokens, removed=options.removed, **chosen
    )
    if not console.quiet:
        from occinv.report.figures import save_cka
        from occinv.report.table import print_cka

        print_cka(found["models"])
        say(save_cka(found["models"], run.folder(options.workdir[0]) / "cka.png"))
    return 0


def _join(options: argparse.Namespace) -> Any:
    """Makes this one of several processes, if it is to be: where it may print.

    Process 0 speaks for all; the others only warn.
    """
    import jax
    from rich.console import Console

    from occinv import parallel

    given = options.coordinator, options.num_processes, options.process_id
    if options.distributed or given != (None, None, None):
        parallel.join(*given)
    if jax.process_index() == 0:
        # It shows paths and errors, as they are.
        return Console(highlight=False, markup=False, emoji=False)
    logging.getLogger("occinv").setLevel(logging.WARNING)
    return Console(quiet=True)


def _reproduce(options: argparse.Namespace, rest: list[str]) -> int:
    scale = options.scale or ("quickstart" if options.table == "quickstart" else "")
    if not scale and options.table in TABLES:
        raise UserError(f"--scale is missing: give one of {', '.join(SCALES)}")
    table = make_table(options.table, scale, options.images)
    rows = choose(table, options.rows)
    from occinv.reproduce.trial import Plan, added, parse_overrides
    from occinv.reproduce.work import Share, reproduce

    rows = (*rows, *(added(row) for row in options.add))
    plan = Plan(table, options.workdir, scale, options.length, parse_overrides(rest))
    share = Share() if options.jobs is None else Share.parse(options.jobs)
    command = shlex.join(["occinv", *options.typed])
    return reproduce(plan, rows, options.seeds, command, share, _join(options))


def _list(options: argparse.Namespace, rest: list[str]) -> int:
    from occinv.report.objectives import print_objectives

    print_objectives()
    return 0


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    from occinv.report.runs import compare, report
    from occinv.report.table import markdown_table

    if options.markdown:
        print(markdown_table(compare(options.folders)))
    else:
        print(report(options.folders))
    return 0


def _weights(options: argparse.Namespace, rest: list[str]) -> int:
    if options.way == "export":
        from occinv.weights.exporting import export_weights

        print(export_weights(options.workdir, options.to, options.file))
        return 0
    from occinv.weights.importing import import_weights

    print(
        import_weights(
            options.file,
            options.origin,
            options.to,
            heads=options.heads,
            decoder_heads=options.decoder_heads,
            pixel_range=options.pixel_range,
        )
    )
    return 0


_COMMANDS = {
    "train": _train,
    "data": _data,
    "plan": _plan,
    "evaluate": _evaluate,
    "reproduce": _reproduce,
    "list": _list,
    "report": _report,
    "weights": _weights,
}
