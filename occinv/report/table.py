"""A table of the paper with our numbers beside the paper's, in the terminal and in Markdown."""

from __future__ import annotations

from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from occinv.report.results import (
    ENCODERS,
    PAPER_SETTING,
    QUOTED_DROP_RATIO,
    Column,
    Results,
    Row,
    cka_encoders,
    has_paper,
    last_block_cka,
    mean_and_std,
    paper_difference,
    paper_value,
    percent,
    seed_counts,
    seed_values,
)

MISSING = "–"
WIDTH = 100
WORDS = {"t1": "T1", "t2": "T2", "target": "target", "measure": "M"}


def paper_heading(results: Results) -> str:
    """What the paper's numbers are of; `paper_setting` of the results says otherwise."""
    return f"paper ({results.get('paper_setting', PAPER_SETTING)})"


def name_text(row: Row) -> str:
    """The row's name, and its status unless it is done."""
    return row["name"] if row["status"] == "done" else f"{row['name']} ({row['status']})"


def value_text(row: Row, column: Column) -> str:
    """Ours in the column's unit: `85.3`, or `85.3 ± 0.4` (sample deviation) over several seeds."""
    values = seed_values(row, column)
    if not values:
        return MISSING
    mean, std = mean_and_std(values)
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def paper_text(row: Row, column: Column) -> str:
    """The paper's number."""
    value = paper_value(row, column)
    return MISSING if value is None else f"{value:.1f}"


def difference_text(row: Row, column: Column) -> str:
    """Ours minus the paper's, signed; empty if either is missing."""
    difference = paper_difference(row, column)
    return "" if difference is None else signed(difference)


def signed(number: float) -> str:
    """`+0.4`, `−0.4` or `0.0`."""
    text = f"{number:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def cka_text(row: Row, encoder: str) -> str:
    """Last-block CKA at the quoted drop ratio with three decimals: it saturates close to 1."""
    cka = last_block_cka(row, encoder)
    return MISSING if cka is None else f"{cka.value:.3f}"


def cka_origin(results: Results) -> str:
    """How the CKA columns were read off the measured drop ratios, for a caption."""
    found = [last_block_cka(row, encoder) for row in results["rows"] for encoder in ENCODERS]
    return "; ".join(sorted({cka.origin for cka in found if cka is not None}))


def caption(results: Results) -> str:
    """One paragraph that says what the numbers of the table are."""
    sentences = [
        f"{column['heading']}: {column['about']}."
        for column in results["columns"]
        if column.get("about")
    ]
    counts = seed_counts(results)
    if counts == [1]:
        sentences.append("One seed.")
    elif counts:
        sentences.append(f"Mean ± standard deviation over {' or '.join(map(str, counts))} seeds.")
    if any(has_paper(results, column) for column in results["columns"]):
        sentences.append("Δ: ours − paper.")
    if cka_encoders(results):
        sentences.append(
            f"CKA: last block, full image against {percent(QUOTED_DROP_RATIO)} of the patches "
            f"dropped ({cka_origin(results)}), pre-trained encoder / after fine-tuning."
        )
    return " ".join([*sentences, *results.get("notes", ())])


def column_widths(lines: list[list[str]], num_texts: int, available: int) -> list[int]:
    """Characters for each column of `lines` so that all fit into `available`.

    The first `num_texts` columns may wrap: they get at least their longest word, and what is left
    goes, one by one, to the one that wraps most. Numbers get what they need. Where even that does
    not fit the sum is larger than `available`.
    """
    columns = list(zip(*lines, strict=True))
    longest = [max(len(part) for text in column for part in text.split("\n")) for column in columns]
    words = [max(len(word) for text in column for word in text.split()) for column in columns]
    widths = words[:num_texts] + longest[num_texts:]
    for _ in range(available - sum(widths)):
        tightest = max(range(num_texts), key=lambda place: longest[place] / widths[place])
        widths[tightest] += longest[tightest] > widths[tightest]
    return widths


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the results like a table of the paper, in 100 columns at most.

    Under each number of ours stand the paper's and the difference. Of T1, T2, target and M those
    that say least are left out where all do not fit. On a terminal with color and lines; into a
    file or pipe as plain text.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    fields = list(WORDS)
    while True:
        lines = [_headings(results, fields), *(_cells(results, r, fields) for r in results["rows"])]
        available = min(WIDTH, console.width) - len(lines[0]) - 1
        widths = column_widths(lines, 1 + len(fields), available)
        if sum(widths) <= available or not fields:
            break
        fields.remove(min(fields, key=lambda f: len({row.get(f) for row in results["rows"]})))
    left_out = [WORDS[field] for field in WORDS if field not in fields]
    about = caption(results)
    if left_out:
        about += f" Left out for want of room: {', '.join(left_out)}."
    title = ": ".join(filter(None, (results["title"], results.get("subject"))))
    table = Table(
        title=Text(title, style="bold"),
        box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2,
        caption=Text(about, style="dim"),
        caption_justify="left",
        title_justify="left",
        show_lines=not console.is_terminal,
        padding=0,
    )
    for place, (heading, width) in enumerate(zip(lines[0], widths, strict=True)):
        is_text = place <= len(fields)
        justify: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(Text(heading), width=width, justify=justify, no_wrap=not is_text)
    for row, line in zip(results["rows"], lines[1:], strict=True):
        color = "red" if row["status"] == "failed" else None
        texts, numbers = line[: 1 + len(fields)], line[1 + len(fields) :]
        table.add_row(*map(Text, texts), *map(_two_lines, numbers), style=color)
    console.print(table)
    if any(has_paper(results, column) for column in results["columns"]):
        console.print(Text(f"* {paper_heading(results)}", style="dim"))
    for row in results["rows"]:
        if row["status"] == "failed":
            console.print(Text(f"{row['name']} failed: {row.get('error') or 'no message'}", "red"))


def _headings(results: Results, fields: list[str]) -> list[str]:
    columns = results["columns"]
    numbers = [c["heading"] + "\npaper* Δ" * has_paper(results, c) for c in columns]
    cka = [f"CKA\n{'pre' if key == 'pretrained' else 'FT'}" for key in cka_encoders(results)]
    return ["Method", *(WORDS[field] for field in fields), *numbers, *cka]


def _cells(results: Results, row: Row, fields: list[str]) -> list[str]:
    numbers = []
    for column in results["columns"]:
        paper = f"{paper_text(row, column)} {difference_text(row, column) or MISSING}"
        has_any = paper_value(row, column) is not None
        numbers.append(value_text(row, column) + f"\n{paper}" * has_any)
    cka = [cka_text(row, encoder) for encoder in cka_encoders(results)]
    return [name_text(row), *(row.get(field) or MISSING for field in fields), *numbers, *cka]


def _two_lines(cell: str) -> Text:
    """Ours, and dimmed below it the paper's."""
    ours, *paper = cell.split("\n")
    return Text(ours, "bold").append("".join(f"\n{line}" for line in paper), "not bold dim")


def markdown_table(results: Results) -> str:
    """The same table as GitHub Markdown, followed by its caption; ends with a newline.

    Each measured column has, where the paper has it too, a second one: its number (the difference).
    """
    headings = ["Method", *WORDS.values()]
    for column in results["columns"]:
        headings.append(column["heading"])
        if has_paper(results, column):
            headings.append(f"{paper_heading(results)}: {column['heading']} (Δ)")
    headings += [f"CKA {ENCODERS[key]}" for key in cka_encoders(results)]
    lines = [headings, ["---"] * 5 + ["---:"] * (len(headings) - 5)]
    for row in results["rows"]:
        line = [name_text(row), *(row.get(field) or MISSING for field in WORDS)]
        for column in results["columns"]:
            line.append(value_text(row, column))
            if has_paper(results, column):
                difference = difference_text(row, column)
                line.append(paper_text(row, column) + f" ({difference})" * bool(difference))
        line += [cka_text(row, encoder) for encoder in cka_encoders(results)]
        lines.append([cell.replace("|", "\\|").replace("\n", " ") for cell in line])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption(results)}\n"


def print_cka(models: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print what `occinv evaluate cka` has measured: for each model, drop ratios by blocks."""
    console = console or Console()
    for model in models:
        about = f"{model['workdir']}, step {model['step']}, {model['images']} images"
        table = Table("dropped", title=about, box=box.SIMPLE if console.is_terminal else box.ASCII2)
        for block in model["blocks"]:
            table.add_column(f"block {block}", justify="right")
        for ratio, values in zip(model["ratios"], model["values"], strict=True):
            shown = ["–" if value is None else f"{value:.3f}" for value in values]
            table.add_row(percent(ratio), *shown)
        console.print(table)
