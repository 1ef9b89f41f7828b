"""What the command line understands: every command and its options, without what they call."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path
from typing import NoReturn

from occinv import schema
from occinv.config import CONFIGS
from occinv.objectives import OBJECTIVES
from occinv.reproduce.definition import SCALES
from occinv.reproduce.tables import TABLES
from occinv.schema import UserError
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
        ("knn", "accuracy of weighted nearest neighbors among frozen features"),
        ("psnr", "quality of reconstructions in dB (Table 1)"),
        ("reconstruct", "pictures: original, masked, reconstructed"),
        ("attention", "pictures: what the class token attends to, head by head"),
    ):
        measure = measures.add_parser(name, help=text)
        many = "+" if name == "cka" else None
        measure.add_argument("--workdir", required=True, type=Path, nargs=many)
        measure.add_argument("--source", help="other images than the run's own held-out ones")
        if name == "knn":
            measure.add_argument("--neighbors", type=int, default=20)
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
        _add_processes(measure)

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
                       help="normalized by ImageNet's statistics, or to [-1, 1]")  # fmt: skip
    given = ways.add_parser("export", help="write a run's encoder for another library")
    given.add_argument("--to", required=True, choices=typing.get_args(Target),
                       help="timm: safetensors; big_vision: npz")  # fmt: skip
    given.add_argument("workdir", type=Path)
    given.add_argument("file", type=Path)
    return parser


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several processes")
    group.add_argument("--distributed", action="store_true",
                       help="one that SLURM, Cloud TPU or Kubernetes has started")  # fmt: skip
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, without a cluster")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 to N - 1")
