"""The paper's Table 1 with our numbers beside the paper's, in the terminal and in Markdown."""

from __future__ import annotations

from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from occinv.report.results import (
    QUOTED_DROP_RATIO,
    Results,
    Row,
    last_block_cka,
    mean_and_std,
    percent,
    seed_accuracies,
)

PAPER_HEADING = "paper (ViT-B, ImageNet)"
MISSING = "–"
WIDTH = 100
TERMINAL_HEADINGS = (
    *("Method", "T1", "T2", "target", "M"),
    *("FT %", "PSNR", "CKA\npre", "CKA\nFT", "paper*\nFT", "paper*\nPSNR"),
)
STYLES = (*[""] * 5, "bold", *[""] * 3, "dim", "dim")
TEXT_COLUMNS = 5  # the first ones may wrap, the numbers after them may not


def accuracy_text(row: Row) -> str:
    """Fine-tuned top-1 in percent, `85.3` or over several seeds `85.3 ± 0.4`; else the status."""
    values = seed_accuracies(row)
    if not values:
        return MISSING if row["status"] == "done" else row["status"]
    mean, std = mean_and_std([100 * value for value in values])
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def psnr_text(value: float | None) -> str:
    """PSNR in dB with one decimal."""
    return MISSING if value is None else f"{value:.1f}"


def cka_text(row: Row, stage: str) -> str:
    """Last-block CKA at the quoted drop ratio with three decimals: it saturates close to 1."""
    cka = last_block_cka(row, stage)
    return MISSING if cka is None else f"{cka.value:.3f}"


def paper_text(row: Row, field: str) -> str:
    """The paper's number for `accuracy` (percent) or `psnr` (dB)."""
    value = (row.get("paper") or {}).get(field)
    return MISSING if value is None else f"{value:.1f}"


def cells(row: Row) -> list[str]:
    """The texts of one row, in the order of `headings`."""
    return [
        row["name"],
        *(row.get(field) or MISSING for field in ("t1", "t2", "target", "measure")),
        accuracy_text(row),
        psnr_text(row.get("psnr")),
        cka_text(row, "pretrained"),
        cka_text(row, "finetuned"),
        paper_text(row, "accuracy"),
        paper_text(row, "psnr"),
    ]


def cka_origin(results: Results) -> str:
    """How the CKA columns were read off the measured drop ratios, for a caption."""
    found = [
        last_block_cka(row, stage)
        for row in results["rows"]
        for stage in ("pretrained", "finetuned")
    ]
    origins = sorted({cka.origin for cka in found if cka is not None})
    return "; ".join(origins) if origins else "not measured yet"


def caption(results: Results) -> str:
    """One paragraph that says what the numbers of the table are."""
    counts = sorted({len(seed_accuracies(row)) for row in results["rows"]} - {0})
    if not counts:
        seeds = ""
    elif counts == [1]:
        seeds = ", one seed"
    else:
        seeds = f", mean ± standard deviation over {' or '.join(map(str, counts))} seeds"
    return (
        f"FT: top-1 % after fine-tuning{seeds}. PSNR: dB. CKA: last block, full image against "
        f"{percent(QUOTED_DROP_RATIO)} of the patches dropped ({cka_origin(results)}), pre-trained "
        "encoder / after fine-tuning. " + " ".join(results.get("notes", ()))
    ).strip()


def column_widths(lines: list[list[str]], available: int) -> list[int]:
    """Characters for each column of `lines` so that all fit into `available`.

    Numbers get what they need, texts at least their longest word; what is left goes, one by one,
    to the text column that wraps most. In a terminal too narrow even for that the sum is larger
    than `available` and rich breaks words.
    """
    columns = list(zip(*lines, strict=True))
    longest = [max(len(part) for text in column for part in text.split("\n")) for column in columns]
    words = [max(len(word) for text in column for word in text.split()) for column in columns]
    widths = words[:TEXT_COLUMNS] + longest[TEXT_COLUMNS:]
    for _ in range(available - sum(widths)):
        tightest = max(range(TEXT_COLUMNS), key=lambda place: longest[place] / widths[place])
        widths[tightest] += longest[tightest] > widths[tightest]
    return widths


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the results like the paper's Table 1, in 100 columns at most.

    On a terminal with colour and lines; into a file or pipe as plain text.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    table_width = min(WIDTH, console.width)
    table = Table(
        title=Text(results["title"], style="bold"),
        box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2,
        caption=Text(caption(results), style="dim"),
        caption_justify="left",
        title_justify="left",
        show_lines=not console.is_terminal,
        padding=0,
    )
    lines = [cells(row) for row in results["rows"]]
    widths = column_widths([[*TERMINAL_HEADINGS], *lines], table_width - len(TERMINAL_HEADINGS) - 1)
    for heading, width, style in zip(TERMINAL_HEADINGS, widths, STYLES, strict=True):
        is_text = heading in TERMINAL_HEADINGS[:TEXT_COLUMNS]
        justify: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(heading, width=width, style=style, justify=justify, no_wrap=not is_text)
    for row, line in zip(results["rows"], lines, strict=True):
        colour = "red" if row["status"] == "failed" else None
        table.add_row(*(Text(cell) for cell in line), style=colour)
    console.print(table)
    console.print(Text(f"* {PAPER_HEADING}", style="dim"))
    for row in results["rows"]:
        if row["status"] == "failed":
            console.print(Text(f"{row['name']} failed: {row.get('error') or 'no message'}", "red"))


def markdown_table(results: Results) -> str:
    """The same table as GitHub Markdown, followed by its caption; ends with a newline."""
    headings = [
        "Method",
        "T1",
        "T2",
        "target",
        "M",
        "FT acc %",
        "PSNR dB",
        "CKA pre-trained",
        "CKA fine-tuned",
        f"{PAPER_HEADING}: FT acc %",
        f"{PAPER_HEADING}: PSNR dB",
    ]
    lines = ["| " + " | ".join(headings) + " |"]
    lines.append("|" + " --- |" * 5 + " ---: |" * 6)
    for row in results["rows"]:
        escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells(row))
        lines.append("| " + " | ".join(escaped) + " |")
    return "\n".join(lines) + f"\n\n{caption(results)}\n"


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
