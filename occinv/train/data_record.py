"""The data of a run, written down in its workdir and compared at every start.

<workdir>/data.json     the number of images and classes, and a fingerprint, of each part
<workdir>/data.tsv.gz   part, name, bytes and class of each file, to say what has changed
<workdir>/images.tsv    the training images, if they are a subset of the source
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from occinv.data.changes import differences
from occinv.data.source import Source
from occinv.data.subset import Subset
from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.disk import read_json, write_bytes, write_json

log = logging.getLogger("occinv.train")

DATA, LISTING = "data.json", "data.tsv.gz"

Sources = Mapping[str, Source]  # the images by part: `training` and `validation`


def check_data(workdir: Path, sources: Sources, accept: bool = False) -> dict[str, Any] | None:
    """Compare the data with those that the run in `workdir` began with. No image is read.

    Args:
      workdir: The folder of the run.
      sources: The data now.
      accept: Log what has changed, instead of raising.

    Returns:
      The description that `write_data` takes; None if it is written already.

    Raises:
      UserError: The data have changed, or data.json is damaged.
    """
    now = {
        part: {
            "source": source.name,
            "images": len(source),
            "classes": len(source.classes),
            "fingerprint": source.fingerprint(),
        }
        for part, source in sources.items()
    }
    path = workdir / DATA
    if not path.exists():
        return now
    before = read_json(path)
    try:
        prints = {part: found["fingerprint"] for part, found in before.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}. Delete it if the data are the same."
        ) from error
    if prints == {part: found["fingerprint"] for part, found in now.items()}:
        return None
    changes = "; ".join(_changes(workdir, sources, before, now))
    text = f"{workdir}: the data has changed since the run began: {changes}"
    if not accept:
        raise UserError(
            f"{text}. Put the files back, or use another --workdir, or --accept-changed-data."
        )
    log.warning("%s", text)
    return now


def write_data(workdir: Path, sources: Sources, description: dict[str, Any]) -> None:
    """Write the description of the data, the names of their files, and the list of a subset."""
    training = sources["training"]
    if isinstance(training, Subset):
        files.record_images(workdir, training.lines())
    lines = (f"{part}\t{line}\n" for part, source in sources.items() for line in source.files())
    write_bytes(workdir / LISTING, gzip.compress("".join(lines).encode(), 1, mtime=0))
    write_json(workdir / DATA, description)  # last: without it the others do not count


def _changes(
    workdir: Path, sources: Sources, before: dict[str, Any], now: dict[str, Any]
) -> Iterator[str]:
    """Yield what has changed in each part of the data."""
    listed = _read_listing(workdir / LISTING)
    for part in sorted({*before, *now}):
        old, new = before.get(part), now.get(part)
        if old is None or new is None:
            yield f"{part}: {_count(old)}, now {_count(new)}"
        elif old["fingerprint"] != new["fingerprint"]:
            found = (
                [] if listed is None else differences(listed.get(part, []), sources[part].files())
            )
            counts = f"{_count(old)}, now {_count(new)}"
            yield f"{part}: {', '.join(found) or f'another choice of images ({counts})'}"


def _count(described: dict[str, Any] | None) -> str:
    if described is None:
        return "no images"
    return f"{described['images']} images of {described['classes']} classes"


def _read_listing(path: Path) -> dict[str, list[str]] | None:
    """Return the lines of each part, None if they cannot be read."""
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    lines: dict[str, list[str]] = {}
    for line in text.split("\n")[:-1]:
        part, _, rest = line.partition("\t")
        lines.setdefault(part, []).append(rest)
    return lines
