"""Messages are one line without control codes, whatever they quote."""

from __future__ import annotations

import pytest

from occinv.commands.processes import fail
from occinv.text import LONGEST, is_safe


def test_a_failure_is_one_line_without_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(2, "folder\x1b[31m\nname\u2028 is missing") == 2
    assert capsys.readouterr().err == "occinv: folder [31m name  is missing\n"


def test_a_long_failure_keeps_its_start_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    fail(2, f"the start {'x' * 10_000} the end")
    shown = capsys.readouterr().err
    assert len(shown) < LONGEST + 20
    assert shown.startswith("occinv: the start")
    assert shown.endswith(" the end\n")


def test_names_in_any_script_are_safe() -> None:
    assert all(map(is_safe, ("runs/mae", "Läufe/мае", "実験", "a b")))
    assert not any(map(is_safe, ("a\x1b[31m", "a\nb", "a\x00", "a\u2029", "a\udce9")))
