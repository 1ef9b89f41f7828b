"""The option --fidelity-table: the tests write the table of docs/fidelity.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from official import ERRORS, PIECES


@pytest.fixture(scope="session", autouse=True)
def table(request: pytest.FixtureRequest, repository: Path) -> Iterator[None]:
    """With --fidelity-table, write the errors that the tests of this folder found."""
    yield
    if not request.config.getoption("--fidelity-table"):
        return
    missing = [piece for piece in PIECES if piece not in ERRORS]
    assert not missing, f"not compared in this run: {missing}"
    lines = [
        "| quantity | official function | largest error | tolerance |",
        "| --- | --- | ---: | ---: |",
    ]
    for piece, official in PIECES.items():
        error, tolerance = ERRORS[piece]
        lines.append(f"| {piece} | {official} | {error:.0e} | {tolerance:.0e} |")
    page = repository / "docs" / "fidelity.md"
    before, _, rest = page.read_text().partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    middle = "\n".join(["<!-- table -->", *lines, "<!-- end of table -->"])
    page.write_text(before + middle + after)
