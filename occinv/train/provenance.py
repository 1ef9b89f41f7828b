"""How and where a run was started: `provenance.json` in its workdir."""

from __future__ import annotations

import logging
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jaxlib

from occinv.schema import UserError
from occinv.train.disk import read_json, write_json
from occinv.version import __version__

FILE = "provenance.json"

log = logging.getLogger("occinv.train")


def record_start(workdir: Path) -> None:
    """Append the facts of this start to `provenance.json`; the other processes write nothing."""
    if jax.process_index() != 0:
        return
    path = workdir / FILE
    try:
        earlier = read_json(path) if path.exists() else []
    except UserError as error:  # no reason to stop a run
        log.warning("%s It is written anew.", error)
        earlier = []
    write_json(path, [*(earlier if isinstance(earlier, list) else []), facts()])


def facts() -> dict[str, Any]:
    """Return versions, machine, devices and command of this process, in JSON's types.

    `commit` is the commit of the checkout that occinv is imported from, with `-dirty` after it if
    files of the checkout have changed; None: an installed package.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "occinv": __version__,
        "commit": commit_of(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "host": socket.gethostname(),
    }


def commit_of(folder: Path) -> str | None:
    """Return the commit of a checkout; None if `folder` is not the root of one."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            [*command, "--dirty"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):  # git is missing, or does not trust the folder
        return None
    return found.stdout.strip()
