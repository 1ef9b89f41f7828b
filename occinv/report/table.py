"""The table of a results file: in the terminal, as a matrix for the grid, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from occinv.evaluators import QUOTED_RATIO, quoted_place
from occinv.evaluators.base import Record
from occinv.paths import as_path
from occinv.report.read_run import unique_names
from occinv.report.results import (
    ENCODERS,
    MISSING,
    Column,
    Results,
    Row,
    StageRecord,
    mean_and_std,
    percent,
)

WIDTH = 100
AXES = {"t1": "T1", "t2": "T2", "target": "target", "measure": "M"}
IN_STEPS = "in training steps"


class Number(NamedTuple):
    """The text of one cell: our value, the paper's, and their difference.

    Attributes:
      ours: `85.3`, or `85.3 ± 0.4` (sample standard deviation) over several seeds.
      paper: The paper's number, or `–`.
      difference: Ours minus the paper's, signed; empty if either is missing.
    """

    ours: str
    paper: str
    difference: str


def number(row: Row, column: Column) -> Number:
    """The cell of a row in a column."""
    paper, difference = row.paper.get(column.key), row.paper_difference(column)
    return Number(
        value_text(row, column),
        MISSING if paper is None else f"{paper:.1f}",
        "" if difference is None else signed(difference),
    )


def value_text(row: Row, column: Column) -> str:
    """Our value in the column's unit: `85.3`, or `85.3 ± 0.4` over several seeds."""
    values = row.seed_values(column)
    if not values:
        return MISSING
    mean, std = mean_and_std(values)
    mark = "§" if column.key in row.on_training else ""
    texts = [f"{value:.{column.decimals}f}" for value in (mean, std) if value is not None]
    return " ± ".join(texts) + mark


def cka_text(row: Row, encoder: str) -> str:
    """Last-block CKA at the quoted drop ratio, with three decimals."""
    cka = row.last_block_cka(encoder)
    return MISSING if cka is None else three_decimals(cka.value)


def three_decimals(value: float) -> str:
    """`0.123`, or `−0.123`; never `−0.000`."""
    return f"{value:z.3f}".replace("-", "−")


def signed(value: float) -> str:
    """`+0.4`, `−0.4` or `0.0`."""
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def duration(seconds: float | None) -> str:
    """Seconds as `8.4 s`, `2 min 05 s` or `3 h 07 min`."""
    if seconds is None:
        return MISSING
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_text(trained: Row | StageRecord) -> tuple[str, str]:
    """The training time, and a remark on what it counts, which may be empty."""
    if trained.seconds is None and trained.step_seconds is not None:
        return duration(trained.step_seconds), IN_STEPS
    return duration(trained.seconds), ""


def time_caption(results: Results) -> str:
    """Define the times of the table, in sentences."""
    text = "all trainings of the row."
    if any(time_text(row)[1] for row in results.rows):
        text += (
            f" A time {IN_STEPS} is computed from the logged speed. It leaves out compilation, "
            "evaluation, and steps that a restart repeated."
        )
    return text


def caption(results: Results) -> list[tuple[str, str]]:
    """Define the numbers of the table: terms with their definitions, and sentences.

    Returns:
      Pairs (term, sentence). The term is empty where the sentence stands alone.
    """
    parts = [(column.heading, f"{column.about}.") for column in results.columns if column.about]
    if results.seed_counts == [1]:
        parts.append(("", "One seed."))
    elif results.seed_counts:
        counts = " or ".join(map(str, results.seed_counts))
        parts.append(("", f"Mean ± standard deviation over {counts} seeds."))
    if results.has_paper(*results.columns):
        parts.append(("Δ", "ours − paper."))
    if any(row.on_training for row in results.rows):
        parts.append(("§", "measured on images that the model was trained on."))
    parts += cka_caption(results)
    return parts + [("", note) for note in results.notes]


def cka_caption(results: Results) -> list[tuple[str, str]]:
    """Define the CKA of the table, and say which token each row is judged by."""
    ratios, judged = set(), []
    for key, title in ENCODERS.items():
        tokens: dict[str, list[str]] = {}
        for row in results.rows:
            if not row.is_floor and (cka := row.last_block_cka(key)) is not None:
                tokens.setdefault(cka.token, []).append(row.name)
                ratios.add(cka.ratio)
        if len(tokens) == 1:
            judged.append(f"{title}, {next(iter(tokens))} token")
        elif tokens:
            each = (f"{token} token ({', '.join(names)})" for token, names in tokens.items())
            judged.append(f"{title}, {' or '.join(each)}")
    if not judged:
        return []
    share = " or ".join(map(percent, sorted(ratios)))
    text = (
        f"unbiased linear CKA between the last-block features of the full image and of the image "
        f"with {share} of its patches dropped, by the token that the objective trains: "
        f"{'; '.join(judged)}."
    )
    if any(row.is_floor for row in results.rows):
        text += (
            " Its floor is that of encoders that have learned nothing: the highest of the "
            "untrained ones of the same shape, and a blind one, whose patch projection is zero."
        )
    text += (
        " An encoder that was trained with mask tokens has seen no dropped patches: "
        "`occinv evaluate invariance --removed mask_token --workdir RUN` measures it, and its "
        "floor, with mask tokens."
    )
    return [("CKA", text)]


def caption_text(results: Results) -> str:
    """The caption, a line for each term or sentence."""
    return "\n".join(f"{term}: {text}" if term else text for term, text in caption(results))


def caption_list(results: Results) -> str:
    """The caption as a list of GitHub Markdown."""
    return "\n".join(f"- {line}" for line in caption_text(results).splitlines())


def print_table(results: Results, console: Console | None = None) -> None:
    """Print the results as a table of at most 100 columns of text.

    The paper's number and the difference are printed below ours. If the table is too wide, the
    training time is left out, then the axes (T1, T2, target, M) with the fewest different values. A
    terminal gets colors and rules, a file or a pipe gets plain text.
    """
    console = console_of_width(console)
    axes, times = list(AXES), _times(results)
    while True:
        lines = [_headings(results, axes), *(_cells(results, row, axes) for row in results.rows)]
        lines = [line + times[i : i + 1] for i, line in enumerate(lines)]
        available = min(WIDTH, console.width) - len(lines[0]) - 1
        widths = column_widths(lines, 1 + len(axes), available)
        if sum(widths) <= available or not axes:
            break
        if times:
            times = []
        else:
            axes.remove(min(axes, key=lambda axis: len({getattr(r, axis) for r in results.rows})))
    about = caption_text(results)
    if times:
        about += f"\nTime: {time_caption(results)}"
    if left_out := [AXES[axis] for axis in AXES if axis not in axes]:
        about += f"\nColumns left out because the table is too wide: {', '.join(left_out)}."
    table = framed_table(results, about, console)
    for place, (heading, width) in enumerate(zip(lines[0], widths, strict=True)):
        is_text = place <= len(axes)
        table.add_column(
            Text(heading),
            width=width,
            justify="left" if is_text else "right",
            no_wrap=not is_text,
        )
    for row, line in zip(results.rows, lines[1:], strict=True):
        words, numbers = line[: 1 + len(axes)], line[1 + len(axes) :]
        cells = (cell.partition("\n") for cell in numbers)
        texts = [Text.assemble((ours, "bold"), (end + paper, "dim")) for ours, end, paper in cells]
        table.add_row(*map(Text, words), *texts, style="red" if row.status == "failed" else None)
    console.print(table)
    if results.has_paper(*results.columns):
        console.print(Text(f"* paper ({results.paper_setting})", style="dim"))
    print_errors(results, console)


def console_of_width(console: Console | None) -> Console:
    """The console, or a new one for standard output; files are written 100 columns wide."""
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    return console


def framed_table(results: Results, about: str, console: Console) -> Table:
    """A table without columns, with the title of the results and a caption."""
    return Table(
        title=Text(": ".join(filter(None, (results.title, results.subject))), style="bold"),
        box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2,
        caption=Text(about, style="dim"),
        caption_justify="left",
        title_justify="left",
        show_lines=not console.is_terminal,
        padding=0,
    )


def print_errors(results: Results, console: Console) -> None:
    """Print why each failed row failed."""
    for row in results.rows:
        if row.status == "failed":
            console.print(Text(f"{row.name} failed: {row.error or 'no message'}", "red"))


def column_widths(lines: list[list[str]], num_texts: int, available: int) -> list[int]:
    """Choose the widths of the table's columns, in characters.

    Args:
      lines: The cells of the heading and of every row.
      num_texts: The first so many columns may wrap, but not inside a word. The others may not.
      available: The sum of all widths. The result exceeds it if the words do not fit.
    """
    columns = list(zip(*lines, strict=True))
    longest = [max(len(part) for text in column for part in text.split("\n")) for column in columns]
    words = [max(len(word) for text in column for word in text.split()) for column in columns]
    widths = words[:num_texts] + longest[num_texts:]
    for _ in range(available - sum(widths)):
        tightest = max(range(num_texts), key=lambda place: longest[place] / widths[place])
        widths[tightest] += longest[tightest] > widths[tightest]
    return widths


def _name(row: Row) -> str:
    return row.name if row.status == "done" else f"{row.name} ({row.status})"


def _headings(results: Results, axes: list[str]) -> list[str]:
    numbers = [c.heading + "\npaper* Δ" * results.has_paper(c) for c in results.columns]
    cka = [f"CKA\n{'pre' if key == 'pretrained' else 'FT'}" for key in results.cka_encoders]
    return ["Method", *(AXES[axis] for axis in axes), *numbers, *cka]


def _cells(results: Results, row: Row, axes: list[str]) -> list[str]:
    cells = [(number(row, column), column.key in row.paper) for column in results.columns]
    numbers = [n.ours + f"\n{n.paper} {n.difference or MISSING}" * paper for n, paper in cells]
    cka = [cka_text(row, encoder) for encoder in results.cka_encoders]
    return [_name(row), *(getattr(row, axis) for axis in axes), *numbers, *cka]


def _times(results: Results) -> list[str]:
    """The column of the training times with its heading; empty if no time is known."""
    cells = [time_text(row) for row in results.rows]
    if all(time == MISSING for time, _ in cells):
        return []
    return [
        "Time",
        *(f"{time}\n{remark.replace('training ', '')}".strip() for time, remark in cells),
    ]


def markdown_table(results: Results) -> str:
    """The table as GitHub Markdown with its caption; ends with a newline.

    A column with numbers of the paper is followed by a column `paper (Δ)`.
    """
    lines = [["Method", *AXES.values()], ["---"] * 5]
    lines += [[_name(row), *(getattr(row, axis) for axis in AXES)] for row in results.rows]
    for column in results.columns:
        cells = [number(row, column) for row in results.rows]
        _append(lines, column.heading, [cell.ours for cell in cells])
        if results.has_paper(column):
            texts = [n.paper + f" ({n.difference})" * bool(n.difference) for n in cells]
            _append(lines, f"paper ({results.paper_setting}): {column.heading} (Δ)", texts)
    for key, title in ENCODERS.items():
        if key in results.cka_encoders:
            _append(lines, f"CKA {title}", [cka_text(row, key) for row in results.rows])
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    return f"{table}\n\n{caption_list(results)}\n"


def _append(lines: list[list[str]], heading: str, cells: list[str]) -> None:
    """Append a column of numbers."""
    for line, cell in zip(lines, [heading, "---:", *cells], strict=True):
        line.append(cell)


def print_invariance(records: Sequence[Record], console: Console | None = None) -> None:
    """Print records of the evaluator invariance: every measure of every token, with its floor."""
    console = console or Console()
    title = f"last block, {percent(QUOTED_RATIO)} of the patches removed"
    table = Table(title=title, box=box.SIMPLE if console.is_terminal else box.ASCII2)
    for heading in ("run", "token", "CKA", "floor", "retrieval", "floor", "cosine", "floor"):
        table.add_column(heading, justify="left" if heading in ("run", "token") else "right")
    names = unique_names([as_path(record.workdir) for record in records])
    for record in records:
        details, run = record.details, names[as_path(record.workdir).resolve()]
        place = quoted_place(details["ratios"])
        for token in details["cka"]:
            is_trained = token == details["token"]
            cells = []
            for measure in ("cka", "retrieval", "cosine"):
                known = [
                    curves[measure][token][place][-1]
                    for curves in (details, *details["floor"].values())
                    if token in curves[measure]
                ]
                floor = three_decimals(max(known[1:])) if known[1:] else MISSING
                cells += [three_decimals(known[0]), floor] if known else [MISSING, MISSING]
            name = token.replace("_", " ") + (" (trained)" if is_trained else "")
            table.add_row(Text(run), Text(name), *cells)
            run = ""
    console.print(table)
