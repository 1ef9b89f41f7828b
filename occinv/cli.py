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
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from occinv import schema
from occinv.configuration import CONFIGS, load
from occinv.objective import OBJECTIVES
from occinv.reproduce.definition import SCALES
from occinv.reproduce.tables import TABLES, choose, make_table
from occinv.schema import UserError, nearest
from occinv.weights import Origin, Target


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _choices() -> str:
    encoders = typing.get_args(typing.get_type_hints(schema.Encoder)["name"])
    configs = [p.name for p in sorted(CONFIGS.glob("*.py")) if "get_config" in p.read_text()]
    return "\n".join(
        [
            "what can be chosen:",
            f"  configs      {', '.join(configs)} in configs/, each with :smoke",
            f"  objectives   {', '.join(OBJECTIVES)}, or module:Class of your own",
            f"  encoders     {', '.join(encoders)}",
            "  data.source  photos, digits, folder:PATH, tfds:NAME[:SPLIT]",
            "",
            "  occinv train --config configs/mae.py:smoke --workdir runs/try",
            "  occinv train --config configs/mae.py --workdir runs/own \\",
            "      --config.data.source=folder:PATH --config.train.batch_size=256",
            "",
            "exit status: 0 done, 1 failed, 2 wrong input (nothing written), 130 or 143 stopped",
            "by Ctrl-C or SIGTERM after saving: run the same command again to go on.",
        ]
    )


_REPRODUCE = """\
what is there is not run again, what was interrupted goes on, and any number of workers may
share a workdir. Fields of every run are set with --config.FIELD=VALUE, those of one kind of run
with --pretrain.FIELD=VALUE, --finetune., --linear. or --tenth. in place of it:

  occinv reproduce table4 --scale smoke --workdir runs/try
  occinv reproduce table3 --scale small --workdir runs/small --seeds 3 \\
      --config.data.source=folder:tiny_imagenet_20 --pretrain.train.batch_size=256
  occinv reproduce table1 --scale paper --workdir /shared/paper --jobs 2 of 4
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="occinv",
        description="Occlusion-invariant and siamese pretraining of vision transformers in JAX.",
        epilog=_choices(),
        formatter_class=form,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="pretrain, fine-tune or train from scratch",
                                epilog=_choices(), formatter_class=form)  # fmt: skip
    train.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    train.add_argument("--workdir", required=True, type=Path)
    train.add_argument("--config.FIELD=VALUE", dest="_", help="set a field of the config")
    _add_processes(train)

    data = commands.add_parser("data", help="prepare, check and convert data sets for training")
    deeds = data.add_subparsers(dest="deed", required=True, metavar="DEED")
    made = deeds.add_parser("prepare", help="make a data set of its archives, and check it")
    checked = deeds.add_parser("check", help="read every record, decode an image of each class")
    for deed in (made, checked):
        deed.add_argument("name", help="as in data.source=tfds:NAME, such as imagenet2012")
        deed.add_argument("--data-dir", metavar="DIR", help="where tfds keeps its data sets")
        deed.add_argument("--expect", metavar="SPLIT=COUNT,...", help="other counts than published")
    made.add_argument("--manual-dir", metavar="DIR", help="of archives that were got by hand")
    made.add_argument("--format", default="array_record", help="array_record (default), tfrecord")
    converted = deeds.add_parser("convert", help="make array_record of tfrecord; goes on if killed")
    converted.add_argument("source", metavar="SRC", help="the folder of dataset_info.json")
    converted.add_argument("data_dir", metavar="DST", help="where tfds keeps its data sets")

    plan = commands.add_parser("plan", help="what a run needs on a TPU slice, without a TPU")
    plan.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    plan.add_argument("--topology", required=True, metavar="SLICE", help="such as v5e:16x16")
    plan.add_argument("--config.FIELD=VALUE", dest="_", help="set a field of the config")
    plan.add_argument("--num-images", type=int, default=1281167, metavar="N",
                      help="in an epoch (default: ImageNet's)")  # fmt: skip
    plan.add_argument("--num-classes", type=int, default=1000, metavar="N")
    plan.add_argument("--search", action="store_true",
                      help="if it does not fit, try what makes it smaller")  # fmt: skip
    plan.add_argument("--out", type=Path, metavar="FILE", help="write it as JSON, too")

    evaluate = commands.add_parser("evaluate", help="measure trained encoders")
    measures = evaluate.add_subparsers(dest="measure", required=True, metavar="MEASURE")
    for name, text in (
        ("cka", "linear CKA of occluded and full images, by block and drop ratio (Figure 1)"),
        ("knn", "accuracy of weighted nearest neighbours among frozen features"),
        ("psnr", "quality of reconstructions in dB (Table 1)"),
        ("reconstruct", "pictures: original, masked, reconstructed"),
        ("attention", "pictures: what the class token attends to, head by head"),
    ):
        measure = measures.add_parser(name, help=text)
        many = "+" if name == "cka" else None
        measure.add_argument("--workdir", required=True, type=Path, nargs=many)
        measure.add_argument("--source", help="other images than the run's own held-out ones")
        if name == "knn":
            measure.add_argument("--neighbours", type=int, default=20)
            measure.add_argument("--temperature", type=float, default=0.07)
            measure.add_argument("--pooling", choices=("mean", "class"), default="mean")
        elif name == "attention":
            measure.add_argument("--block", type=int, default=-1,
                                 help="1 is the first, -1 the last (default)")  # fmt: skip
        else:
            measure.add_argument("--seed", type=int, default=0)
        if name in ("reconstruct", "attention"):
            measure.add_argument("--count", type=int, default=8)
        else:
            measure.add_argument("--num-images", type=int, help="only the first so many")
        if name == "cka":
            measure.add_argument(
                "--tokens", choices=("visible", "mean", "class"), default="visible"
            )
            measure.add_argument("--removed", choices=("drop", "mask_token"), default="drop",
                                 help="how removed patches enter the encoder")  # fmt: skip

    reproduce = commands.add_parser("reproduce", help="a table of the paper, as one command",
                                    epilog=_REPRODUCE, formatter_class=form)  # fmt: skip
    reproduce.add_argument("table", metavar="TABLE", help=", ".join(TABLES))
    reproduce.add_argument("--workdir", required=True, type=Path,
                           help="tables share the runs in it")  # fmt: skip
    reproduce.add_argument("--scale", help=f"{', '.join(SCALES)}: a variant of every config")
    reproduce.add_argument("--rows", help="only these, separated by commas, or all")
    reproduce.add_argument("--seeds", type=int, default=1, help="how many seeds for every row")
    reproduce.add_argument("--length", type=float, default=1.0, metavar="FACTOR",
                           help="times every training's length")  # fmt: skip
    reproduce.add_argument("--images", type=int, metavar="N",
                           help="that Tables 7 and 8 pretrain on")  # fmt: skip
    reproduce.add_argument("--jobs", nargs=3, metavar=("K", "of", "N"),
                           help="worker K of N that share the workdir")  # fmt: skip
    reproduce.add_argument("--add", action="append", default=[], metavar="NAME=WORKDIR",
                           help="a row more, of an encoder that is there")  # fmt: skip
    _add_processes(reproduce)

    commands.add_parser("list", help="every objective: T1, T2, target, M, its paper, its config")

    report = commands.add_parser("report", help="compare runs, or what `reproduce` has measured")
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    report.add_argument("--markdown", action="store_true", help="print the table as Markdown only")

    weights = commands.add_parser("weights", help="other people's checkpoints, in and out")
    ways = weights.add_subparsers(dest="way", required=True, metavar="WAY")
    taken = ways.add_parser("import", help="make a workdir of a .pth, safetensors or npz file")
    taken.add_argument("file", type=Path)
    taken.add_argument("--from", dest="origin", required=True, choices=typing.get_args(Origin),
                       help="whose names and layouts it has")  # fmt: skip
    taken.add_argument("--to", required=True, type=Path, metavar="WORKDIR", help="a new folder")
    taken.add_argument("--heads", type=int, help="of attention, where the file does not tell")
    taken.add_argument("--decoder-heads", type=int)
    taken.add_argument("--pixel-range", choices=("imagenet", "half"),
                       help="normalised by ImageNet's statistics, or to [-1, 1]")  # fmt: skip
    given = ways.add_parser("export", help="write a run's encoder for another library")
    given.add_argument("--to", required=True, choices=typing.get_args(Target),
                       help="timm: safetensors; big_vision: npz")  # fmt: skip
    given.add_argument("workdir", type=Path)
    given.add_argument("file", type=Path)
    return parser


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
    experiment = schema.resolve(load(options.config, overrides))
    from occinv.progress import Progress
    from occinv.train.loop import NonFinite, train

    console = _join(options)
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
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
        from occinv.data.convert import convert

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
    from occinv.data.check import check
    from occinv.data.prepare import prepare

    if options.deed == "prepare":
        print(prepare(options.name, options.data_dir, options.manual_dir, options.format))
    for line in check(options.name, options.data_dir, expect):
        print(line, flush=True)
    return 0


def _plan(options: argparse.Namespace, overrides: list[str]) -> int:
    experiment = schema.resolve(load(options.config, overrides))
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
    from occinv.evaluate import run

    chosen: dict[str, Any] = {"source": options.source}
    if options.measure == "knn":
        for name in ("num_images", "neighbours", "temperature", "pooling"):
            chosen[name] = getattr(options, name)
        found = run.evaluate_knn(options.workdir, **chosen)
        print(
            f"{options.workdir}: top-1 {100 * found['top1']:.1f} %, top-5 "
            f"{100 * found['top5']:.1f} %, by {found['neighbours']} neighbours among "
            f"{found['training_images']} images; {found['images']} held out"
        )
        return 0
    if options.measure == "attention":
        print(run.evaluate_attention(options.workdir, options.count, block=options.block, **chosen))
        return 0
    chosen["seed"] = options.seed
    if options.measure == "reconstruct":
        print(run.evaluate_reconstruct(options.workdir, options.count, **chosen))
        return 0
    chosen["num_images"] = options.num_images
    if options.measure == "psnr":
        found = run.evaluate_psnr(options.workdir, **chosen)
        print(
            f"{options.workdir}: {found['whole']:.2f} dB (visible patches pasted), "
            f"{found['removed']:.2f} dB over removed patches alone; {found['images']} images"
        )
        return 0
    found = run.evaluate_cka(
        options.workdir, tokens=options.tokens, removed=options.removed, **chosen
    )
    from occinv.report.figures import save_cka
    from occinv.report.table import print_cka

    print_cka(found["models"])
    print(save_cka(found["models"], run.folder(options.workdir[0]) / "cka.png"))
    return 0


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several processes")
    group.add_argument("--distributed", action="store_true",
                       help="one that SLURM, Cloud TPU or Kubernetes has started")  # fmt: skip
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, without a cluster")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 to N - 1")


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
        return Console()
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
