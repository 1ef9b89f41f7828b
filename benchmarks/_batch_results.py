"""Write docs/results.md's figure of the table of batch sizes, and print its tables.

    python benchmarks/_batch_results.py runs/batch/batch docs

It writes batch.png. Each table has the rows at equal epochs or those at equal steps. If the table has
C-MAE by its negatives, the last lines compare it with MAE and with each other, at the smallest batch
size.
"""

import itertools
import sys
from pathlib import Path

from occinv.report import batch_size
from occinv.report.differences import difference, sentence
from occinv.report.findings import adjusted_p_values, batch_findings
from occinv.report.results import load_results

DPI = 110
SHOWN = ("FT %", "k-NN %", "CKA (floor)", "Loss", "Non-finite, spikes, dips")


def main(source: str, target: str) -> None:
    """Write the figure and print the tables."""
    results = load_results(source)
    curves = batch_size.curves(results)
    sizes = sorted({row.batch_size for curve in curves for row in curve.rows})
    for name, budget in itertools.product(SHOWN, dict.fromkeys(curve.budget for curve in curves)):
        place = list(batch_size.BATCH_LINES).index(name)
        print(f"\n| {name}, {budget} |", *(f"{size} |" for size in sizes))
        print("| --- |", *("---: |" for _ in sizes))
        for curve in curves:
            if curve.budget == budget:
                found = {row.batch_size: batch_size.cell(results, row)[place] for row in curve.rows}
                print(f"| {curve.objective} |", *(f"{found.get(size, '')} |" for size in sizes))
    for finding in batch_findings(results, adjusted_p_values(results)):
        print(f"\n{finding.claim}.\n")
        print(*(f"- {detail}" for detail in finding.details), sep="\n")
    column = results.column("finetune")
    assert column is not None
    rows = {row.key: row for row in results.rows}
    pairs = [(name, "mae") for name in ("cmae", "cmae_image", "cmae_batch")]
    for name, other in (*pairs, ("cmae_image", "cmae"), ("cmae_batch", "cmae")):
        row, than = (rows.get(f"{key}_batch{sizes[0]}") for key in (name, other))
        if row is None or than is None:
            continue
        found = difference(results, row, than, column)
        assert found is not None
        print(f"\n- {sentence(row, than, column, found, None)}")
    figure = batch_size.by_batch_size(results)
    if figure is not None:
        figure.savefig(Path(target) / "batch.png", dpi=DPI)


if __name__ == "__main__":
    main(*sys.argv[1:])
