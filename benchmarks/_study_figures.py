"""Draw the figures of docs/results.md from the results of the study (docs/study.md).

    python benchmarks/_study_figures.py runs/study/study docs

It writes study-1.png and so on, one for each conclusion, and study-cka.png.
"""

import dataclasses
import sys
from pathlib import Path

from occinv.report import figures
from occinv.report.claims import claims
from occinv.report.results import load_results

INVARIANT = ("random", "mae", "rmae", "cmae", "mae_100_random")


def main(source: str, target: str) -> None:
    """Write the figures."""
    results = load_results(source)
    conclusions = dict.fromkeys(claim.conclusion for claim in results.claims)
    drawn = {f"study-{i}": claims(results, each) for i, each in enumerate(conclusions, 1)}
    rows = [row for row in results.rows if row.key in INVARIANT or row.is_floor]
    drawn["study-cka"] = figures.cka_by_ratio(dataclasses.replace(results, rows=rows))
    for name, figure in drawn.items():
        if figure is not None:
            figure.savefig(Path(target) / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
