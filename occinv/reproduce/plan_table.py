"""Plan the pretraining of a table's rows on TPUs or GPUs, instead of running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from occinv.plan.chips import Slice
from occinv.plan.plan import ASSUMED, Plan, search
from occinv.plan.show import WIDTH, seconds, size
from occinv.reproduce.run import TableRun
from occinv.schema import Experiment, UserError
from occinv.train.disk import write_json

IMAGENET = 1000, 1281167  # classes and training images

Planner = Callable[[Experiment, Slice, int, int], Iterator[Plan]]


def plan_table(
    run: TableRun, slice_: Slice, console: Console | None = None, planner: Planner = search
) -> int:
    """Print the memory and the hours of every pretraining, and write plan.json.

    Each plan is the last of `occinv plan --search`: with as little recomputation, sharding and
    accumulation as fits.

    Args:
      run: The table run, at scale `paper`: a plan counts the images of ImageNet.
      slice_: The TPU slice or the GPUs.
      console: Where the table is printed; None is standard output.
      planner: Yields the plans of a run, the one that fits last.

    Returns:
      0; 1 if a row does not fit.

    Raises:
      UserError: Another scale, or a row is not valid on this slice.
    """
    if run.scale != "paper":
        raise UserError(f"--plan with --scale {run.scale!r}, expected --scale paper")
    console = console or Console(width=WIDTH)
    title = f"{run.table.key} on {slice_.topology}: pretraining"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    table.caption = (
        "The time of all steps of the run, without compiling and evaluating: at the roofline, "
        f"which no run can beat, and assuming at most {ASSUMED:.0%} of the peak FLOP/s. Of peak: "
        "the share of the peak FLOP/s at the roofline."
    )
    for heading in ("Row", "steps", "changes", "memory", "of peak", "roofline", "assumed"):
        table.add_column(heading, justify="left" if heading in ("Row", "changes") else "right")
    plans = {}
    for row in run.rows:
        trial = next((t for t in run.trials if t.method == row.method), None)
        if trial is None or "pretrain" not in trial.stages:
            continue
        experiment = trial.stages["pretrain"].experiment
        train = dataclasses.replace(experiment.train, accumulate=1, remat=None)
        experiment = dataclasses.replace(experiment, train=train, evals={})
        *_, plan = planner(experiment, slice_, *IMAGENET)
        plans[row.key] = plan.as_json()
        write_json(run.folder / "plan.json", plans)
        console.print(f"{row.name}: {'fits' if plan.fits else 'does not fit'}", style="dim")
        table.add_row(row.name, *cells(plan))
    console.print(table)
    return 0 if all(plan["fits"] for plan in plans.values()) else 1


def cells(plan: Plan) -> list[str]:
    """The cells of a plan: steps, changes, memory, utilization and hours."""
    changes = ["remat"] if plan.remat else []
    changes += [f"{n} {getattr(plan, n)}" for n in ("fsdp", "accumulate") if getattr(plan, n) > 1]
    found = [str(plan.steps), ", ".join(changes), size(plan.needed)]
    if not plan.fits:
        return [*found, "does not fit", "", ""]
    roofline, assumed = plan.paces["roofline"], plan.paces["assumed"]
    hours = [seconds(3600 * pace.hours) for pace in (roofline, assumed)]
    return [*found, f"{roofline.utilization:.0%}", *hours]
