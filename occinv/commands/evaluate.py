"""`occinv evaluate`: measure trained encoders and draw their outputs."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from occinv.commands.processes import add_processes, join

EVALUATORS = {
    "cka": "Measure the CKA of occluded and full images by block and drop ratio (Figure 1).",
    "knn": "Measure the accuracy of weighted nearest neighbors on frozen features.",
    "psnr": "Measure the PSNR of reconstructions in dB (Table 1).",
    "reconstruct": "Draw original, masked and reconstructed images.",
    "attention": "Draw the attention of the class token for each head.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv evaluate`."""
    # fmt: off
    evaluators = parser.add_subparsers(dest="evaluator", required=True, metavar="EVALUATOR")
    parsers = {name: evaluators.add_parser(name, help=text) for name, text in EVALUATORS.items()}
    for name, evaluator in parsers.items():
        add = evaluator.add_argument
        add("--workdir", required=True, type=Path, metavar="DIR",
            nargs="+" if name == "cka" else None,
            help="Evaluate the run in this folder" + (", or several." if name == "cka" else "."))
        add("--source",
            help="Use these images, as in data.source (default: the run's validation images).")
        if name in ("reconstruct", "attention"):
            add("--count", type=int, default=8, metavar="N",
                help="Draw N images (default: %(default)s).")
        else:
            add("--num-images", type=int, metavar="N",
                help="Use N images, spread over the source (default: all).")
        if name in ("cka", "psnr", "reconstruct"):
            add("--seed", type=int, default=0,
                help="Draw the masks from this seed (default: %(default)s).")
        add_processes(evaluator)
    add = parsers["cka"].add_argument
    add("--tokens", choices=("visible", "mean", "class"), default="visible",
        help="Compare these tokens (default: %(default)s).")
    add("--removed", choices=("drop", "mask_token"), default="drop",
        help="Drop masked patches, or put the mask token in their place (default: %(default)s).")
    add = parsers["knn"].add_argument
    add("--neighbors", type=int, default=20, metavar="K",
        help="Number of neighbors (default: %(default)s).")
    add("--temperature", type=float, default=0.07,
        help="Temperature of the vote weights (default: %(default)s).")
    add("--pooling", choices=("mean", "class"), default="mean",
        help="Use the mean patch token or the class token (default: %(default)s).")
    add = parsers["attention"].add_argument
    add("--block", type=int, default=-1,
        help="Draw this transformer block: 1 is the first, -1 the last (default).")
    # fmt: on


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run `occinv evaluate` and return the exit status."""
    from occinv.evaluators import run as evaluators

    console = join(options)
    say = functools.partial(console.print, soft_wrap=True)
    workdir, source = options.workdir, options.source
    match options.evaluator:
        case "cka":
            found = evaluators.evaluate_cka(
                workdir, source=source, num_images=options.num_images, seed=options.seed,
                tokens=options.tokens, removed=options.removed,
            )  # fmt: skip
            if not console.quiet:
                from occinv.report.figures import save_cka
                from occinv.report.table import print_cka

                models = [model.as_json() for model in found]
                print_cka(models)
                say(save_cka(models, evaluators.folder(workdir[0]) / "cka.png"))
        case "knn":
            knn = evaluators.evaluate_knn(
                workdir, source=source, num_images=options.num_images, neighbors=options.neighbors,
                temperature=options.temperature, pooling=options.pooling,
            ).result  # fmt: skip
            say(
                f"{workdir}: top-1 {100 * knn.top1:.1f} %, top-5 {100 * knn.top5:.1f} %, by "
                f"{knn.neighbors} neighbors among {knn.training_images} images; "
                f"{knn.images} validation images"
            )
        case "psnr":
            psnr = evaluators.evaluate_psnr(
                workdir, source=source, num_images=options.num_images, seed=options.seed
            ).result
            say(
                f"{workdir}: {psnr.whole:.2f} dB over whole images with visible patches pasted, "
                f"{psnr.removed:.2f} dB over masked patches; {psnr.images} images"
            )
        case "reconstruct":
            say(
                evaluators.evaluate_reconstruct(
                    workdir, options.count, source=source, seed=options.seed
                )
            )
        case "attention":
            say(
                evaluators.evaluate_attention(
                    workdir, options.count, source=source, block=options.block
                )
            )
    return 0
