"""Figure 1 of the paper from published checkpoints: import them, measure CKA, and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax

from occinv.config import CONFIG
from occinv.data.open_source import open_source
from occinv.evaluate import evaluate_run
from occinv.evaluators.base import make_evaluator
from occinv.report.compare import compare
from occinv.report.html import write_html
from occinv.report.matrix import print_results
from occinv.schema import UserError
from occinv.train.records import read_records, record_file
from occinv.weights.import_weights import import_weights


def parse_published(text: str) -> dict[str, Path]:
    """Parse `NAME=FILE,...` into files by name.

    Raises:
      UserError: Another form, a name twice, or a file that does not exist.
    """
    found: dict[str, Path] = {}
    for part in text.split(","):
        name, _, file = part.partition("=")
        if not name or not file or "/" in name or name.startswith("."):
            raise UserError(f"--published {part!r}, expected NAME=FILE, such as mae=mae_base.pth")
        if name in found:
            raise UserError(f"--published has {name} twice; give each encoder another name")
        if not Path(file).expanduser().exists():
            raise UserError(f"--published {name}={file}: there is no such file")
        found[name] = Path(file).expanduser()
    return found


def published_figure(
    files: Mapping[str, Path],
    source: str,
    folder: Path,
    num_images: int | None = None,
    command: str = "",
) -> Path:
    """Draw CKA under occlusion of published encoders, with the floor of untrained ones.

    It does what `occinv weights import`, `occinv evaluate invariance` and `occinv report` do. What
    is already imported or measured is not repeated.

    Args:
      files: The checkpoints by name, as `occinv weights import` reads them.
      source: The images, as in `data.source`.
      folder: The folder of the imported encoders and of the page.
      num_images: Measure on so many images, spread over the source; None: all.
      command: The typed command, for the page.

    Returns:
      The path of the page.

    Raises:
      UserError: A file has no ViT that ours can represent, the images cannot be opened, or several
        processes run this.
    """
    if jax.process_count() > 1:
        raise UserError(f"--published on {jax.process_count()} processes, expected one")
    opened = open_source(source, train=False)
    evaluator = make_evaluator("invariance", {"source": source, "num_images": num_images})
    workdirs = [folder / name for name in files]
    for workdir, file in zip(workdirs, files.values(), strict=True):
        if not (workdir / CONFIG).exists():
            print(import_weights(file, "auto", workdir))
    for workdir in workdirs:
        known = [each.images for each in read_records(record_file(workdir, "invariance"))]
        count = num_images or len(opened)
        if not any(x.count == count and x.name.endswith(opened.name) for x in known):
            print(f"{workdir}: {evaluate_run('invariance', evaluator, workdir).text}", flush=True)
    results = compare(workdirs)
    results.title, results.command = "figure1", command
    results.subject = "Does occlusion change the features of an image?"
    # The data of an imported run are a guess.
    results.settings = {"data": f"{num_images or len(opened)} images of {opened.name}"}
    print_results(results)
    return write_html(results, folder)
