"""Write docs/results.md's figure of the table of batch sizes, and print its tables.

    python benchmarks/_batch_results.py runs/batch/batch docs [OTHER ...]

It writes batch.png. The tables have the rows at equal epochs, then those at equal steps. The last
lines compare C-MAE by its negatives with MAE and with each other, at the smallest batch size. Then
each row of a table OTHER is compared with the same row of the first, by the noise of these two.
"""

import sys
from dataclasses import replace
from pathlib import Path

from occinv.report import batch_size
from occinv.report.differences import difference, sentence
from occinv.report.findings import adjusted_p_values, batch_findings
from occinv.report.results import load_results

DPI = 110
SHOWN = ("FT %", "k-NN %", "CKA (floor)", "Loss", "Non-finite, spikes, dips")


def main(source: str, target: str, *others: str) -> None:
    """Write the figure and print the tables."""
    results = load_results(source)
    column = results.column("finetune")
    assert column is not None
    curves = batch_size.curves(results)
    sizes = batch_size.batch_sizes(curves)
    rows = {(r.curve, r.batch_size, budget): r for r in results.rows for budget in r.budgets}
    budgets = list(dict.fromkeys(budget for _, _, budget in rows))
    columns = {(sizes[0], budgets[0]): str(sizes[0])}  # the smallest is in each budget
    columns |= {(size, b): f"{size}, {b}" for b in budgets for size in sizes[1:]}
    for name in SHOWN:
        place = list(batch_size.BATCH_LINES).index(name)
        print(f"\n| {name} |", *(f"{heading} |" for heading in columns.values()))
        print("| --- |", *("---: |" for _ in columns))
        for objective in dict.fromkeys(curve.objective for curve in curves):
            found = (rows.get((objective, *column)) for column in columns)
            cells = (batch_size.cell(results, row)[place] if row else "" for row in found)
            print(f"| {objective} |", *(f"{cell} |" for cell in cells))
        for row in batch_size.references(results):
            if row.seed_values(column) and batch_size.BATCH_LINES[name] == column.key:
                cells = [batch_size.cell(results, row)[place], *[""] * (len(columns) - 1)]
                print(f"| {row.name} (not pretrained) |", *(f"{cell} |" for cell in cells))
    for finding in batch_findings(results, adjusted_p_values(results)):
        print(f"\n{finding.claim}.\n")
        print(*(f"- {detail}" for detail in finding.details), sep="\n")
    by_key = {row.key: row for row in results.rows}
    pairs = [(name, "mae") for name in ("cmae", "cmae_image", "cmae_batch")]
    for name, other in (*pairs, ("cmae_image", "cmae"), ("cmae_batch", "cmae")):
        row, than = (by_key.get(f"{key}_batch{sizes[0]}") for key in (name, other))
        if row is None or than is None:
            continue
        found = difference(results, row, than, column)
        assert found is not None
        print(f"\n- {sentence(row, than, column, found, None)}")
    for other in others:
        print(f"\n{other}\n")
        for row in load_results(other).rows:
            if (than := by_key.get(row.key)) and row.seed_values(column):
                found = difference(replace(results, rows=[row, than]), row, than, column)
                assert found is not None
                print(f"- {sentence(row, than, column, found, None)}")
    figure = batch_size.by_batch_size(results)
    if figure is not None:
        figure.savefig(Path(target) / "batch.png", dpi=DPI)


if __name__ == "__main__":
    main(*sys.argv[1:])
