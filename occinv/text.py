"""Names of files and classes, and messages, as text that fits on one line."""

from __future__ import annotations

import unicodedata

LONGEST = 2000  # characters of a message that are printed


def printable(name: str) -> str:
    r"""Escape a name: newlines, tabs, control codes, bytes that are not UTF-8, and backslashes.

    Different names stay different: a newline becomes `\n`, and a backslash `\\`.
    """
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name
    )


def is_utf8(name: str) -> bool:
    """Return whether a name can be written as UTF-8. Python decodes other bytes to surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def is_safe(name: str) -> bool:
    """Return whether a name has no control code, line break or byte that is not UTF-8."""
    return name.isprintable() or not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name
    )


def one_line(text: str) -> str:
    """Return a message with a space in place of each line break and other control code."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def message(text: str) -> str:
    """Return a message on one line, without the middle of a very long one.

    The start quotes the value, and the end says what to do.
    """
    line = one_line(text)
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST - 600]} […] {line[-600:]}"
