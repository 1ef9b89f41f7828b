"""docs/fidelity.md has a row for every comparison."""

from __future__ import annotations

from pathlib import Path

from official import PIECES


def test_the_page_has_every_piece(repository: Path) -> None:
    page = (repository / "docs" / "fidelity.md").read_text()
    assert [piece for piece in PIECES if f"| {piece} |" not in page] == []
