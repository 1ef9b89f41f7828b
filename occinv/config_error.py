"""The error of a config file in one line."""

from __future__ import annotations

import traceback
from pathlib import Path

from occinv.schema import UserError


def config_error(path: Path, error: BaseException) -> UserError:
    """Return a UserError with the line of `path` at which `error` was raised."""
    name = Path(path).resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == name:
        line, reason = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [each.lineno for each in frames if Path(each.filename).resolve() == name]
        line, reason = lines[-1] if lines else None, f"{type(error).__name__}: {error}"
    where = f"{path}, line {line}" if line is not None else str(path)
    return UserError(f"{where}: {' '.join(reason.split())[:300]}. Correct the config file.")
