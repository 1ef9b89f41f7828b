"""Results as a matrix of the axes: a line for T1, T2 and target, a column for each M."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from occinv.report.results import Results, Row, column_of
from occinv.report.table import MISSING, WIDTH, caption, cka_text, print_table, value_text


def print_results(results: Results, console: Console | None = None) -> None:
    """Print results as a matrix where they are `by_axes`, and else as a table."""
    (print_matrix if results.get("by_axes") else print_table)(results, console)


def print_matrix(results: Results, console: Console | None = None) -> None:
    """Print fine-tuned accuracy and the CKA of the pretrained encoder, in 100 columns at most.

    Rows without axes, such as a random start, stand below.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    lines: dict[str, dict[str, str]] = {}
    beside = []
    for row in results["rows"]:
        if row["measure"] == MISSING:
            beside.append(f"{row['name']}: {cell(results, row)}.")
            continue
        axes = f"{row['t1']} → {row['t2']}, {row['target']}"
        # Cross-entropy is centered or not by its target, which has a line of its own.
        measure = row["measure"].removeprefix("centered ")
        lines.setdefault(axes, {})[measure] = cell(results, row)
    measures = list(dict.fromkeys(measure for line in lines.values() for measure in line))
    table = Table(
        "T1 → T2, target",
        title=Text(f"{results['title']}: {results['subject']}", style="bold"),
        box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2,
        caption=Text(
            " ".join([*beside, "FT % · CKA of the pre-trained encoder.", caption(results)]),
            style="dim",
        ),
        caption_justify="left",
        title_justify="left",
        show_lines=not console.is_terminal,
        padding=0,
    )
    for measure in measures:
        table.add_column(Text(measure), justify="right")
    for axes, line in lines.items():
        table.add_row(*map(Text, (axes, *(line.get(measure, "") for measure in measures))))
    console.print(table)
    for row in results["rows"]:
        if row["status"] == "failed":
            console.print(Text(f"{row['name']} failed: {row.get('error') or 'no message'}", "red"))


def cell(results: Results, row: Row) -> str:
    """`85.3 · 0.912`; what has not been measured is a dash."""
    column = column_of(results, "finetune")
    if row["status"] == "failed" or column is None:
        return row["status"]
    return f"{value_text(row, column)} · {cka_text(row, 'pretrained')}"
