"""What the processes of one run must have in common, checked before the first step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from occinv.data.source import Source
from occinv.schema import UserError

T = TypeVar("T")


def on_first_process(act: Callable[[], T]) -> T:
    """Call `act` on process 0 only. Every process gets its result, or raises its UserError.

    With several processes the result is in JSON's types, so a tuple becomes a list.
    """
    if jax.process_count() == 1:
        return act()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer["result"] = act()
        except UserError as error:
            answer["mistake"] = str(error)
    answer = json.loads(gather_texts(json.dumps(answer))[0])
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    return answer["result"]


def agree(facts: Mapping[str, Any]) -> None:
    """Compare `facts`, in JSON's types, between all processes.

    Raises:
      UserError: A process has another value, on every process.
    """
    if jax.process_count() > 1:
        check_equal([json.loads(text) for text in gather_texts(json.dumps(facts))])


def check_equal(facts: list[Mapping[str, Any]]) -> None:
    """Raise UserError, with the first differing fields, unless all processes have equal facts."""
    for process, theirs in enumerate(facts):
        found = [
            f"{name}={new!r} (process 0 has {old!r})"
            for name, old, new in differences(facts[0], theirs)
        ]
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise UserError(
                f"process {process} differs from process 0: {', '.join(found[:3])}{more}. Start "
                "every process with the same command, code and data."
            )


def software() -> dict[str, str]:
    """Return the versions that the numbers of a run depend on."""
    return {"occinv": metadata.version("occinv"), "jax": jax.__version__}


def data_facts(source: Source | None) -> dict[str, Any] | None:
    """Return what identifies the images of a source: their names, number and classes."""
    if source is None:
        return None
    return {
        "images": len(source),
        "files": source.fingerprint(),
        "classes": digest("\n".join(source.classes)),
    }


def digest(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def gather_texts(text: str) -> list[str]:
    """Return the text of every process, in order, on every process."""
    content = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode(errors="surrogateescape")
        for row, size in zip(rows, sizes, strict=True)
    ]


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, old value, new value) for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            below = f"{path}.{name}" if path else name
            yield from differences(old.get(name), new.get(name), below)
    elif old != new:
        yield path, old, new
