"""The manifest of a checkpoint: the checksum of every file, the step, and the run it belongs to.

    {"step": 300, "run": "5be0...", "config": "91ac...", "files": {"params/...": {...}, ...}}

A checkpoint loads only if it equals its manifest. So a flipped bit, a missing file, a renamed or
exchanged folder and a checkpoint of another run are all noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from occinv.paths import files_in, in_bucket, remove_folder
from occinv.train.disk import write_json

MANIFEST = "manifest.json"
READS = 16  # files of a bucket that are read at once
# Orbax writes these two files after the manifest, as it commits the step. They hold the time of the
# commit and are not needed to restore. `Checkpoints.wait` adds them to the manifest.
COMMIT = "commit_success.txt"
LATE = ("_CHECKPOINT_METADATA", COMMIT)

Files = Mapping[str, Mapping[str, Any]]  # path in the step -> sha256 and size


class RunIdentity(NamedTuple):
    """What distinguishes a run from all others.

    Attributes:
      run: A random text, drawn when the run began.
      config: A hash of the fields of the config that its results depend on, and of its classes.
    """

    run: str
    config: str


class Damaged(Exception):
    """A step on disk differs from its manifest. The message names the file and the difference."""


def entry(path: Path) -> dict[str, Any]:
    """Return the manifest entry of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "size": file.tell()}


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest entry of every file of a step, by its path in the step."""
    own = (MANIFEST, MANIFEST + ".tmp")
    found = {path.relative_to(folder).as_posix(): path for path in files_in(folder)}
    paths = {name: path for name, path in found.items() if name not in own}
    # The files of a bucket are read together, because each request takes long.
    with ThreadPoolExecutor(READS if in_bucket(folder) else 1) as pool:
        return dict(zip(paths, pool.map(entry, paths.values()), strict=True))


def write_manifest(folder: Path, step: int, run: RunIdentity | None, files: Files) -> None:
    """Write the manifest of a step; `run` is None for checkpoints outside of a run."""
    identity = {} if run is None else run._asdict()
    write_json(folder / MANIFEST, {"step": step, **identity, "files": files}, indent=None)


def flush(folder: Path) -> None:
    """Flush every file of a step, and the folders with their names, to the disk.

    So a step that has its final name is complete after a power loss, too.
    """
    if in_bucket(folder):
        return
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def delete_step(folder: Path) -> None:
    """Delete a step. If the process is killed, Orbax removes the rest at the next start."""
    if in_bucket(folder):  # where a step without this file is not complete
        (folder / COMMIT).unlink(missing_ok=True)
        remove_folder(folder)
        return
    unfinished = folder.with_name(f"{folder.name}.orbax-checkpoint-tmp")
    remove_folder(unfinished)
    shutil.rmtree(folder.rename(unfinished))


def put_aside(folder: Path, steps: Iterable[int]) -> None:
    """Rename damaged steps in a folder of checkpoints to `<step>.damaged`, which may exist."""
    for step in steps:
        aside = folder / f"{step}.damaged"
        remove_folder(aside)
        (folder / str(step)).rename(aside)


def add_late_files(folder: Path) -> None:
    """Add the files to the manifest that Orbax wrote after it."""
    flush(folder)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"] |= {name: entry(folder / name) for name in LATE if (folder / name).exists()}
    write_json(folder / MANIFEST, manifest, indent=None)


def verify(folder: Path, step: int, run: RunIdentity | None) -> None:
    """Check a step against its manifest. If `run` is None, it may belong to any run.

    Raises:
      Damaged: A file differs, the folder holds another step, or the step is of another run.
    """
    manifest = read_manifest(folder)
    found = manifest.get("step")
    if found is None or (run is not None and "run" not in manifest):
        raise Damaged(f"{MANIFEST}: has no step or run; {_how_to_accept(folder)}")
    if found != step:
        raise Damaged(f"{MANIFEST}: the folder holds step {found}, renamed or copied")
    if run is not None:
        for name, ours in run._asdict().items():
            if manifest.get(name) != ours:
                raise Damaged(
                    f"{MANIFEST}: the checkpoint is of another {name}, {manifest.get(name)} "
                    f"instead of {ours}"
                )
    _compare(manifest["files"], list_files(folder))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a step. Raises Damaged if it is missing or not readable."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        manifest["files"] = {name: dict(each) for name, each in manifest["files"].items()}
    except FileNotFoundError:
        raise Damaged(
            f"{MANIFEST}: missing, so damage would not be noticed; {_how_to_accept(folder)}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST}: not readable") from error
    return manifest


def seal(folder: Path, step: int, run: RunIdentity) -> bool:
    """Write the manifest of a step that has none, or an old one; return whether it did.

    Raises:
      Damaged: The files differ from an old manifest, which names neither the step nor the run.
    """
    actual = list_files(folder)
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if "run" in manifest:
            return False
        _compare(manifest["files"], actual)
    write_manifest(folder, step, run, actual)
    return True


def _how_to_accept(folder: Path) -> str:
    return f"`occinv weights accept {folder.parent.parent}` trusts it as it is"


def _compare(expected: Files, actual: Files) -> None:
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            raise Damaged(f"{name}: missing")
        if name not in expected:
            if name not in LATE:
                raise Damaged(f"{name}: not in {MANIFEST}")
        elif expected[name] != actual[name]:
            raise Damaged(f"{name}: checksum or size ({actual[name]['size']} bytes) differs")
