"""Results that several runs of one process share: the stages of a table, the settings of a sweep.

Tracing and compiling the programs of a short run take longer than its steps. Runs whose objective,
optimizer and shapes are equal have the same programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

KEPT = 8  # results of each function; a compiled program may be large

F = TypeVar("F", bound=Callable[..., Any])

_caches: list[Callable[[], None]] = []


def shared(function: F) -> F:
    """Decorate a function whose result depends on the values of its arguments alone.

    The last results are kept and returned for equal arguments. If an argument cannot be hashed, as
    an objective with a dict for a field, nothing is kept.
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
