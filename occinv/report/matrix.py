"""Results in their layout: a table, or a matrix of axes or of batch sizes."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from occinv.report.batch_size import BATCH_LINES, batch_cells
from occinv.report.results import MISSING, Results, Row
from occinv.report.table import (
    caption_list,
    caption_text,
    cka_text,
    console_of_width,
    framed_table,
    markdown_table,
    print_errors,
    print_table,
    value_text,
)


def print_results(results: Results, console: Console | None = None) -> None:
    """Print the results in their layout."""
    layouts = {"table": print_table, "axes": print_axes, "batch": print_batch_sizes}
    layouts[results.layout](results, console)


def print_axes(results: Results, console: Console | None = None) -> None:
    """Print fine-tuned accuracy and the CKA of the pretrained encoder, in 100 columns at most.

    Rows without axes, such as random initialization, are printed in the caption.
    """
    console = console_of_width(console)
    lines: dict[str, dict[str, str]] = {}
    without_axes = []
    for row in results.rows:
        if row.measure == MISSING:
            without_axes.append(f"{row.name}: {_axes_cell(results, row)}.")
            continue
        # The target decides whether cross-entropy is centered, and each target has its own line.
        measure = row.measure.removeprefix("centered ")
        line = lines.setdefault(f"{row.t1} → {row.t2}, {row.target}", {})
        line[measure] = _axes_cell(results, row)
    about = [*without_axes, "Cells: FT % · CKA of the pretrained encoder.", caption_text(results)]
    table = framed_table(results, "\n".join(about), console)
    table.add_column("T1 → T2, target")
    measures = list(dict.fromkeys(measure for line in lines.values() for measure in line))
    for measure in measures:
        table.add_column(Text(measure), justify="right")
    for axes, line in lines.items():
        table.add_row(*map(Text, (axes, *(line.get(measure, "") for measure in measures))))
    console.print(table)
    print_errors(results, console)


def _axes_cell(results: Results, row: Row) -> str:
    """`85.3 · 0.912`, with a dash for a missing value."""
    column = results.column("finetune")
    if row.status == "failed" or column is None:
        return row.status
    return f"{value_text(row, column)} · {cka_text(row, 'pretrained')}"


def print_batch_sizes(results: Results, console: Console | None = None) -> None:
    """Print a line for each objective and budget, and a column for each batch size."""
    console = console_of_width(console)
    headings, *lines = batch_cells(results)
    about = f"Cells: {', '.join(BATCH_LINES)}.\n{caption_text(results)}"
    table = framed_table(results, about, console)
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if place < 2 else "right")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
    print_errors(results, console)


def markdown(results: Results) -> str:
    """The results as GitHub Markdown with their caption; ends with a newline."""
    if results.layout != "batch":
        return markdown_table(results)
    headings, *lines = batch_cells(results)
    rules = ["---" if place < 2 else "---:" for place in range(len(headings))]
    cells = [[cell.replace("\n", "<br>") for cell in line] for line in (headings, rules, *lines)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f"{table}\n\n{caption_list(results)}\n"
