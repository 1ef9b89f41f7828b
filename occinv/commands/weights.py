"""`occinv weights`: import and export checkpoints of other libraries, and accept old ones."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path

from occinv.weights import Origin, Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv weights`."""
    # fmt: off
    directions = parser.add_subparsers(dest="direction", required=True, metavar="DIRECTION")
    add = directions.add_parser("import", help="Make a workdir from a checkpoint.").add_argument
    add("file", type=Path, metavar="FILE", help="Read this file: .pth, .pkl, .safetensors or .npz.")
    add("--from", dest="origin", required=True, choices=typing.get_args(Origin),
        help="Source of the checkpoint.")
    add("--to", required=True, type=Path, metavar="DIR", help="New workdir.")
    add("--heads", type=int, help="Set the number of attention heads, if the file lacks it.")
    add("--decoder-heads", type=int, metavar="HEADS",
        help="Set the number of attention heads of the decoder, if the file lacks it.")
    add("--pixel-range", choices=("imagenet", "half"),
        help="Normalize pixels by ImageNet's mean and standard deviation, or (half) to [-1, 1].")
    add = directions.add_parser("export", help="Write an encoder for another library.").add_argument
    add("--to", required=True, choices=typing.get_args(Target),
        help="Write a file for timm (safetensors) or big_vision (npz).")
    add("workdir", type=Path, metavar="DIR", help="Export the encoder of the run in this folder.")
    add("file", type=Path, metavar="FILE", help="Write this new file.")
    add = directions.add_parser("accept", help="Trust checkpoints without a manifest.").add_argument
    add("workdir", type=Path, metavar="DIR",
        help="Write manifests for the checkpoints in this folder that have none, as they are.")
    # fmt: on


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
        )
    )
    return 0
