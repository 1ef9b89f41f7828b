"""`occinv weights`: import and export checkpoints of other libraries, and accept old ones."""

from __future__ import annotations

import argparse
import typing

from occinv.commands.options import to_path
from occinv.weights import Origin, Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv weights`."""
    # fmt: off
    directions = parser.add_subparsers(dest="direction", required=True, metavar="DIRECTION")
    add = directions.add_parser("import", help="Make a workdir from a checkpoint.").add_argument
    add("file", type=to_path, metavar="FILE",
        help="Read this file (.pth, .pkl, .safetensors or .npz) or folder (with config.json).")
    add("--from", dest="origin", default="auto", choices=typing.get_args(Origin),
        help="Name the code that wrote the checkpoint (default: auto, which recognizes it).")
    add("--to", required=True, type=to_path, metavar="DIR", help="New workdir.")
    add("--heads", type=int, help="Set the number of attention heads, if the file lacks it.")
    add("--decoder-heads", type=int, metavar="HEADS",
        help="Set the number of attention heads of the decoder, if the file lacks it.")
    add("--pixel-range", choices=("imagenet", "half"),
        help="Normalize pixels by ImageNet's mean and standard deviation, or (half) to [-1, 1].")
    add("--grid", type=_grid, metavar="HxW",
        help="Set the rows and columns of patches, if the number of positions is ambiguous.")
    add("--prefix", help="Take the ViT whose keys begin with this, if the file has several.")
    add = directions.add_parser("export", help="Write an encoder for another library.").add_argument
    add("--to", required=True, choices=typing.get_args(Target),
        help="Write for timm (safetensors), huggingface (a folder) or big_vision (npz).")
    add("workdir", type=to_path, metavar="DIR",
        help="Export the encoder of the run in this folder.")
    add("file", type=to_path, metavar="FILE", help="Write this new file or folder.")
    add = directions.add_parser("accept", help="Trust checkpoints without a manifest.").add_argument
    add("workdir", type=to_path, metavar="DIR",
        help="Write manifests for the checkpoints in this folder that have none, as they are.")
    # fmt: on


def _grid(text: str) -> tuple[int, int]:
    """Parse HxW."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a grid. Expected HxW, as in 14x14.")
    return int(height), int(width)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv weights` and return the exit status."""
    if options.direction == "accept":
        from occinv.train.lock import lock_workdir
        from occinv.train.workdir import accept, read_config

        read_config(options.workdir)
        with lock_workdir(options.workdir, "Wait until it ends."):
            steps = ", ".join(map(str, accept(options.workdir))) or "no checkpoint"
        print(f"{options.workdir}: wrote the manifest of {steps}")
        return 0
    if options.direction == "export":
        from occinv.weights.export_weights import export_weights

        print(export_weights(options.workdir, options.to, options.file))
        return 0
    from occinv.weights.import_weights import import_weights

    print(
        import_weights(
            options.file,
            options.origin,
            options.to,
            heads=options.heads,
            decoder_heads=options.decoder_heads,
            pixel_range=options.pixel_range,
            grid=options.grid,
            prefix=options.prefix,
        )
    )
    return 0
