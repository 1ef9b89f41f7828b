"""Names of files and classes, and messages, as text that fits on one line."""

from __future__ import annotations


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


def one_line(text: str) -> str:
    """Return a message with a space in place of each line break and other control code."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
