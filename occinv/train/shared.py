"""Functions that several runs of one process share: the stages of a table, the settings of a sweep.

Tracing and compiling the programs of a short run can take longer than its steps. JAX does it once
for each function under `jax.jit`, and again for other shapes or other settings of JAX. Runs whose
objective and optimizer are equal get the same functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

KEPT = 8  # results of each decorated function; they hold compiled programs

F = TypeVar("F", bound=Callable[..., Any])

_caches: list[Callable[[], None]] = []


def shared(function: F) -> F:
    """Decorate a function whose result depends on the values of its arguments alone.

    The last results are kept and returned for equal arguments. If an argument cannot be hashed,
    such as an objective with a dict for a field, nothing is kept.
    """
    cached = functools.lru_cache(KEPT)(function)
    _caches.append(cached.cache_clear)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            hash(arguments)
        except TypeError:
            return function(*arguments)
        return cached(*arguments)

    return cast(F, call)


def forget() -> None:
    """Drop every kept result."""
    for clear in _caches:
        clear()
