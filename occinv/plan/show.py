"""A plan in the terminal, in 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from occinv.plan.chips import Chip
from occinv.plan.plan import ASSUMED, Plan

WIDTH = 100


def quantity(number: float, unit: str) -> str:
    """`12.3 GFLOP`: three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.4g} P{unit}"


def size(count: float) -> str:
    """`1.5 GiB`: bytes with a binary prefix."""
    for prefix in ("B", "KiB", "MiB"):
        if abs(count) < 1000:
            return f"{count:.3g} {prefix}"
        count /= 1024
    return f"{count:.4g} GiB"


def seconds(number: float) -> str:
    """`12.3 ms`: from microseconds to hours."""
    for unit, length in (("h", 3600), ("s", 1), ("ms", 1e-3)):
        if number >= length:
            return f"{number / length:.3g} {unit}"
    return f"{number / 1e-6:.3g} µs"


def print_plan(plan: Plan, topology: str, chip: Chip, console: Console | None = None) -> None:
    """Prints a plan, or by how much it does not fit and what to change."""
    console = console or Console()
    if not console.is_terminal or console.width > WIDTH:
        console.width = WIDTH
    parts = f" in {plan.accumulate} parts" if plan.accumulate > 1 else ""
    parts += ", remat" if plan.remat else ""
    parts += f", fsdp={plan.fsdp}" if plan.fsdp > 1 else ""
    console.print(
        f"[bold]{plan.objective} on {topology}[/]: {plan.chips} chips, {plan.batch_size} images a "
        f"step{parts} ({plan.batch_size / plan.chips / plan.accumulate:g} a chip at once), "
        f"{plan.parameters / 1e6:.4g} M parameters, {plan.dtype}",
        highlight=False,
    )
    if not plan.fits:
        console.print(
            f"[bold red]does not fit[/]: needs at least {size(plan.needed)} of "
            f"{size(plan.available)}",
            highlight=False,
        )
        for line in plan.advice:
            console.print(f"  · {line}", highlight=False, markup=False)
        return
    memory, roofline = plan.memory, plan.roofline
    if memory and roofline:
        table = _table(console, "memory of a chip", ("", "bytes", "share"))
        for name in ("arguments", "temporaries", "outputs", "total", "program"):
            count = getattr(memory, name)
            table.add_row(name, size(count), f"{count / chip.memory:.1%}")
        table.add_row("the chip has", size(chip.memory), "")
        console.print(table)
        table = _table(console, "a step", ("", "a chip", "peak", "least time"))
        flops = roofline.compute * chip.flops
        sent = sum(one.sent for one in plan.collectives)
        for name, amount, peak, time in (
            ("compute", quantity(flops, "FLOP"), quantity(chip.flops, "FLOP/s"), roofline.compute),
            ("memory", size(plan.traffic), quantity(chip.memory_bandwidth, "B/s"), roofline.memory),
            ("links", size(sent), quantity(chip.link_bandwidth, "B/s"), roofline.links),
        ):
            mark = " (the bound)" if name == roofline.bound else ""
            table.add_row(name + mark, amount, peak, seconds(time))
        console.print(table)
        table = _table(
            console, "collectives of a step", ("", "count", "operands", "sent by a chip")
        )
        for one in plan.collectives:
            table.add_row(one.operation, str(one.count), size(one.bytes), size(one.sent))
        if plan.collectives:
            console.print(table)
    title = f"the run: {plan.steps} steps, {quantity(plan.flops_per_image, 'FLOP')} an image"
    heads = ("", "of peak", "a step", "images/s", "the run", "chip-hours")
    table = _table(console, title, heads)
    words = {"roofline": "at the roofline", "assumed": f"assuming {ASSUMED:.0%} of peak at most"}
    for name, run in plan.durations(chip).items():
        table.add_row(
            words[name],
            f"{run['utilization']:.1%}",
            seconds(run["step_seconds"]),
            f"{run['images_per_second']:.4g}",
            seconds(3600 * run["hours"]),
            f"{run['chip_hours']:.3g}",
        )
    console.print(table)
    console.print("Steps alone: no compiling, evaluating, saving or waiting for data.", style="dim")


def _table(console: Console, title: str, headings: Sequence[str]) -> Table:
    style = box.SIMPLE_HEAD if console.is_terminal else box.ASCII2
    table = Table(title=title, title_justify="left", box=style)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table
