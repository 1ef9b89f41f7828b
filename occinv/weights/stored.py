"""An array that is still in its file, and what is said when the file turns out to be damaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NoReturn

import jax.numpy as jnp
import numpy as np

from occinv.schema import UserError


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array of a file; `read` fetches it while the file is open."""

    read: Callable[[], np.ndarray]

    def array(self, name: str) -> np.ndarray:
        """The array, of any dtype. Raises UserError, quoting `name`, where it cannot be read."""
        try:
            value = self.read()
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{type(value).__name__}, expected an array")
        except Exception as error:  # a hostile file can make readers raise anything
            damaged(name, error)
        if value.dtype.kind == "V" and value.dtype.itemsize == 2:
            return value.view(jnp.bfloat16)  # npz has no name for it
        return value


def damaged(what: str, error: Exception) -> NoReturn:
    """Raises the UserError that says so on one line; one that says more goes through."""
    if isinstance(error, UserError):
        raise error
    text = " ".join(str(error).split())[:200] or "no more is known"
    raise UserError(f"{what} is damaged or cut off: {type(error).__name__}: {text}") from error
