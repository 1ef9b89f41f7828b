"""The figure of the paper's claims: the difference that decides each, with its interval."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.figure import Figure

from occinv.report.differences import by_seed, difference, unit_text
from occinv.report.figures import style_axes
from occinv.report.findings import adjusted_p_values, claim_finding
from occinv.report.results import Claim, Results
from occinv.report.svg import BLACK, COLORS, FAINT, GRID

STYLE: dict[str, dict[str, Any]] = {
    "supported": {"color": COLORS[0], "fmt": "o"},
    "not supported": {"color": COLORS[1], "fmt": "s"},
    "inconclusive": {"color": BLACK, "fmt": "o", "fillstyle": "none"},
}


def claims(results: Results, only: str | None = None) -> Figure | None:
    """The difference of each claim that has one, in a panel for each conclusion and column.

    A band is the margin of a claim that two rows are equal. The interval of such a claim is that
    of its test, of 90 %; the others have 95 %. Small dots are the differences of the seeds.

    Args:
      results: The rows and their claims.
      only: Draw this conclusion alone.

    Returns:
      The figure; None if no claim has an interval.
    """
    rows = {row.key: row for row in results.rows}
    adjusted = adjusted_p_values(results)
    panels: dict[tuple[str, str], list[Claim]] = {}
    for claim in results.claims:
        column = results.column(claim.column)
        if column is None or not {claim.row, claim.than} <= set(rows):
            continue
        if only not in (None, claim.conclusion):
            continue
        found = difference(results, rows[claim.row], rows[claim.than], column)
        if found is not None and found.comparison is not None:
            panels.setdefault((claim.conclusion, claim.column), []).append(claim)
    if not panels:
        return None
    counts = [len(group) for group in panels.values()]
    height = 0.5 * len(panels) + 0.36 * sum(counts) + 0.4
    figure = Figure(figsize=(9.0, height), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[n + 0.6 for n in counts])
    for axes, ((conclusion, key), group) in zip(grid[:, 0], panels.items(), strict=True):
        column = results.column(key)
        assert column is not None
        style_axes(axes, conclusion, f"difference of {column.heading} ({unit_text(column)})")
        axes.axvline(0, color=FAINT, linewidth=1, zorder=1)
        for place, claim in enumerate(group):
            ours, theirs = rows[claim.row], rows[claim.than]
            found = difference(results, ours, theirs, column, claim.relation, claim.within)
            assert found is not None and found.comparison is not None
            test = found.comparison
            if claim.relation == "equal":
                span = (place - 0.4, place + 0.4), -claim.within, claim.within
                axes.fill_betweenx(*span, color=GRID, linewidth=0)
            errors = [[test.difference - test.low], [test.high - test.difference]]
            style = STYLE[claim_finding(results, claim, adjusted).verdict]
            axes.errorbar(test.difference, place, xerr=errors, capsize=3, zorder=3, **style)
            values = by_seed(ours, column), by_seed(theirs, column)
            gaps = [values[0][seed] - values[1][seed] for seed in values[0] if seed in values[1]]
            if len(gaps) > 1:
                axes.plot(gaps, [place + 0.22] * len(gaps), ".", color=style["color"], markersize=3)
        names = [textwrap.fill(claim.text, 52) for claim in group]
        axes.set_yticks(range(len(group)), names)
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
    return figure
