"""Print a plan to the terminal, in 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from occinv.plan.chips import Chip
from occinv.plan.estimate import Estimate
from occinv.plan.plan import ASSUMED, Memory, Plan, Roofline

WIDTH = 100


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print what a run needs or, if it does not fit, what is missing and what to change."""
    console = console or Console()
    if not console.is_terminal or console.width > WIDTH:
        console.width = WIDTH
    options = f" in {plan.accumulate} parts" if plan.accumulate > 1 else ""
    options += ", remat" if plan.remat else ""
    options += f", fsdp={plan.fsdp}" if plan.fsdp > 1 else ""
    at_once = plan.batch_size / plan.devices / plan.accumulate
    unit = plan.chip.unit
    console.print(
        f"[bold]{plan.objective} on {plan.topology}[/]: {_count(plan)}, "
        f"{plan.batch_size} images per step{options} ({at_once:g} per {unit} at a time), "
        f"{plan.parameters / 1e6:.4g} M parameters, {plan.dtype}",
        highlight=False,
    )
    if not plan.memory or not plan.roofline:
        console.print(
            f"[bold red]does not fit[/]: needs at least {size(plan.needed)} of "
            f"{size(plan.available)}",
            highlight=False,
        )
        for line in plan.advice:
            console.print(f"  · {line}", highlight=False, markup=False)
        return
    _print_memory(console, plan, plan.memory)
    _print_step(console, plan, plan.roofline, plan.chip)
    title = f"run: {plan.steps} steps, {quantity(plan.flops_per_image, 'FLOP')} per image"
    headings = ("", "of peak", "step", "images/s", "run", f"{_whole(plan)}-hours")
    table = _table(console, title, headings)
    words = {
        "roofline": "at the roofline",
        "estimated": "as the compiler estimates",
        "assumed": f"assuming at most {ASSUMED:.0%} of peak",
    }
    for name, pace in plan.paces.items():
        table.add_row(
            words[name],
            f"{pace.utilization:.1%}",
            seconds(pace.step_seconds),
            f"{pace.images_per_second:.4g}",
            seconds(3600 * pace.hours),
            f"{pace.chip_hours:.3g}",
        )
    console.print(table)
    if plan.estimate:
        console.print(_explain(plan.estimate), style="dim", highlight=False)
    console.print("Steps only: no compiling, evaluating, saving or waiting for data.", style="dim")


def _explain(estimate: Estimate) -> str:
    parts = f"{seconds(estimate.instructions)} of instructions by the cycles that it expects"
    if estimate.kernels:
        parts += f", {seconds(estimate.kernels)} of Pallas kernels at their roofline"
    if estimate.collectives:
        parts += f", {seconds(estimate.collectives)} of synchronous collectives at the peak"
    return f"The compiler's estimate, not a measurement: {parts}."


def _whole(plan: Plan) -> str:
    """Return the word for what is rented: a GPU or a chip."""
    return "GPU" if plan.chip.is_gpu else "chip"


def _count(plan: Plan) -> str:
    """Format the number of chips, and that of their devices if it is another."""
    words = f"{plan.chips} {_whole(plan)}{'s' if plan.chips > 1 else ''}"
    return words if plan.devices == plan.chips else f"{words} ({plan.devices} devices)"


def _print_memory(console: Console, plan: Plan, memory: Memory) -> None:
    table = _table(console, f"memory of a {plan.chip.unit}", ("", "bytes", "share"))
    for name in ("arguments", "temporaries", "outputs", "total", "program"):
        count = getattr(memory, name)
        table.add_row(name, size(count), f"{count / plan.available:.1%}")
    table.add_row("available", size(plan.available), "")
    console.print(table)


def _print_step(console: Console, plan: Plan, roofline: Roofline, chip: Chip) -> None:
    table = _table(console, "step", ("", f"per {chip.unit}", "peak", "minimum time"))
    flops = roofline.compute * chip.flops
    sent = sum(one.sent for one in plan.collectives)
    rows = [
        ("compute", quantity(flops, "FLOP"), quantity(chip.flops, "FLOP/s"), roofline.compute),
        ("memory", size(plan.traffic), quantity(chip.memory_bandwidth, "B/s"), roofline.memory),
        ("links", size(sent), quantity(chip.link_bandwidth, "B/s"), roofline.links),
    ]
    if roofline.network:
        sent = sum(one.network for one in plan.collectives)
        peak = quantity(chip.network_bandwidth, "B/s")
        rows.append(("network", size(sent), peak, roofline.network))
    for name, amount, peak, time in rows:
        mark = " (the bound)" if name == roofline.bound else ""
        table.add_row(name + mark, amount, peak, seconds(time))
    console.print(table)
    if plan.collectives:
        headings = "", "count", "operands", f"sent per {chip.unit}", "to other nodes"
        columns = 5 if roofline.network else 4
        table = _table(console, "collectives of a step", headings[:columns])
        for one in plan.collectives:
            cells = str(one.count), size(one.bytes), size(one.sent), size(one.network)
            table.add_row(one.operation, *cells[: columns - 1])
        console.print(table)


def _table(console: Console, title: str, headings: Sequence[str]) -> Table:
    style = box.SIMPLE_HEAD if console.is_terminal else box.ASCII2
    table = Table(title=title, title_justify="left", box=style)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def quantity(number: float, unit: str) -> str:
    """Format a number with three digits and a decimal prefix: `12.3 GFLOP`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.4g} P{unit}"


def size(count: float) -> str:
    """Format bytes with a binary prefix: `1.5 GiB`."""
    for prefix in ("B", "KiB", "MiB"):
        if abs(count) < 1000:
            return f"{count:.3g} {prefix}"
        count /= 1024
    return f"{count:.4g} GiB"


def seconds(number: float) -> str:
    """Format a duration, from microseconds to hours: `12.3 ms`."""
    for unit, length in (("h", 3600), ("s", 1), ("ms", 1e-3)):
        if number >= length:
            return f"{number / length:.3g} {unit}"
    return f"{number / 1e-6:.3g} µs"
