"""How the files of a source have changed."""

from __future__ import annotations

from collections.abc import Iterable


def differences(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """Say how the files of a source have changed.

    Args:
      before: Lines of `Source.files`.
      now: Lines of `Source.files`, later.

    Returns:
      Texts such as `2 files added (cat/1.png, ...)`; empty if all files are equal.
    """
    old, new = set(before), set(now)
    lost, found = _by_name(old - new), _by_name(new - old)
    moved, resized = [], []
    for name in sorted(lost.keys() & found.keys()):
        (size, label), (new_size, new_label) = lost.pop(name), found.pop(name)
        if size != new_size:
            resized.append(name)
        if label != new_label:
            moved.append(f"{name} from {label} to {new_label}")
    # A file that left one folder and is in the folder of another class, by its name and size.
    places = {(name.rpartition("/")[2], size): name for name, (size, _) in lost.items()}
    for name, (size, label) in sorted(found.items()):
        origin = places.pop((name.rpartition("/")[2], size), None)
        if origin is not None and lost[origin][1] != label:
            del lost[origin], found[name]
            moved.append(f"{origin} to {name}")
    kinds = {
        "added": sorted(found),
        "removed": sorted(lost),
        "of another size": resized,
        "of another class": moved,
    }
    return [_text(kind, names) for kind, names in kinds.items() if names]


def _by_name(lines: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return the bytes and the class of each file."""
    cells = ((*line.split("\t"), "", "") for line in lines)
    return {name: (size, label) for name, size, label, *_ in cells}


def _text(kind: str, names: list[str]) -> str:
    more = ", ..." if len(names) > 1 else ""
    return f"{len(names)} file{'s' if len(names) > 1 else ''} {kind} ({names[0]}{more})"
