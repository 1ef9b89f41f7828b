"""Write docs/results.md's figures of the study (docs/study.md), and print its tables.

    python benchmarks/_study_results.py runs/study/study docs
    python benchmarks/_study_results.py runs/tiny/study docs tiny [OTHER ...]

The first command writes study-1.png and so on, one for each conclusion, and study-cka.png. The
second writes tiny-1.png and so on. The last lines compare each row of a page OTHER with the same
row and with MAE, without a correction for the number of comparisons.
"""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np

from occinv.report import figures
from occinv.report.claims import claims
from occinv.report.differences import difference, sentence
from occinv.report.findings import adjusted_p_values, claim_finding, findings
from occinv.report.results import ENCODERS, Results, load_results
from occinv.report.table import cka_text, value_text

DPI = 110
QUICKSTART = ("random", "mae", "rmae", "cmae")
GROUPS = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 0, 3), (1, 4, 7))


def print_conclusion(results: Results, conclusion: str) -> None:
    """Print the rows of a conclusion, and its claims with their verdicts."""
    stated = [claim for claim in results.claims if claim.conclusion == conclusion]
    keys = {key for claim in stated for key in (claim.row, claim.than)}
    column = results.column("finetune")
    assert column is not None
    print(f"\n## {conclusion}\n\n| row | {column.heading} | seeds |\n| --- | ---: | ---: |")
    for row in results.rows:
        if row.key in keys:
            count = len(row.seed_values(column))
            print(f"| {row.name} | {value_text(row, column)} | {count} |")
    print()
    adjusted = adjusted_p_values(results)
    for claim in stated:
        found = claim_finding(results, claim, adjusted)
        print(f"- {found.claim}: **{found.verdict}**. {found.details[0].partition(': ')[2]}")


def print_groups(results: Results) -> None:
    """Print what the quickstart would find with each of five groups of three seeds."""
    print("\n## Three seeds\n")
    column = results.column("finetune")
    assert column is not None
    count = min(len(row.seed_values(column)) for row in results.rows if row.key in QUICKSTART)
    for seeds in (group for group in GROUPS if max(group) < count):
        few = copy.deepcopy(results)
        few.claims, few.rows = [], [r for r in few.rows if r.key in QUICKSTART or r.is_floor]
        for row in few.rows:
            row.hits = {}
            values = {key: v for key, v in row.values.items() if not row.is_floor}
            row.values |= {key: [v[seed] for seed in seeds] for key, v in values.items() if v}
            for encoder, curves in row.cka.items():
                if curves is not None and not row.is_floor:
                    chosen = [curves.by_seed[seed] for seed in seeds]
                    mean = np.mean(chosen, 0).tolist()
                    row.cka[encoder] = dataclasses.replace(curves, by_seed=chosen, values=mean)
        print(f"- {seeds}:")
        for (key, than, column, _), p_value in adjusted_p_values(few).items():
            print(f"  - {key} and {than}, {column}: p = {p_value:.3f}")


def print_other(results: Results, source: str) -> None:
    """Print the rows of another page, compared with the same row and with MAE."""
    print(f"\n## {source}\n")
    column, rows = results.column("finetune"), {row.key: row for row in results.rows}
    assert column is not None
    for row in load_results(source).rows:
        if row.is_floor or not row.seed_values(column):
            continue
        print(f"- {row.name}: {value_text(row, column)}, CKA {cka_text(row, 'pretrained')}")
        for than in (rows[key] for key in dict.fromkeys((row.key, "mae")) if key in rows):
            found = difference(dataclasses.replace(results, rows=[row, than]), row, than, column)
            assert found is not None
            print(f"  - {sentence(row, than, column, found, None)}")


def main(source: str, target: str, name: str = "study", *others: str) -> None:
    """Write the figures and print the tables."""
    results = load_results(source)
    drawn = {}
    for number, conclusion in enumerate(dict.fromkeys(c.conclusion for c in results.claims), 1):
        print_conclusion(results, conclusion)
        drawn[f"{name}-{number}"] = claims(results, conclusion)
    stated = {claim.row for claim in results.claims if claim.than == "random"} | {"random"}
    rows = [row for row in results.rows if row.key in stated or row.is_floor]
    drawn[f"{name}-cka"] = figures.cka_by_ratio(dataclasses.replace(results, rows=rows))
    print("\n## Invariance\n\n| row | pretrained | fine-tuned |\n| --- | ---: | ---: |")
    for row in rows:
        print(f"| {row.name} |", *(f"{cka_text(row, encoder)} |" for encoder in ENCODERS))
    for finding in findings(results):
        if "CKA" in finding.claim or "tested" in finding.claim:
            print(f"\n{finding.claim}: **{finding.verdict}**.\n")
            print(*(f"- {detail}" for detail in finding.details), sep="\n")
    if name == "study":
        print_groups(results)
    for other in others:
        print_other(results, other)
    for file, figure in drawn.items():
        if figure is not None:
            figure.savefig(Path(target) / f"{file}.png", dpi=DPI)


if __name__ == "__main__":
    main(*sys.argv[1:])
