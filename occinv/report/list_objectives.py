"""`occinv list`: every objective with its T1, T2, target and M, its paper, and its configs."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding

from occinv import schema
from occinv.config import list_configs, load_config
from occinv.objectives import OBJECTIVES
from occinv.objectives.base import Objective, objective_of
from occinv.report.table import AXES


def objectives_by_config() -> dict[str, tuple[str, Objective]]:
    """The objective of each config, with its name, in the order of `OBJECTIVES`."""
    found = {}
    for config in list_configs():
        experiment = schema.resolve(load_config(config))
        found[config] = str(experiment.objective["name"]), objective_of(experiment)
    order = list(OBJECTIVES)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1][0])))


def print_objectives(console: Console | None = None) -> None:
    """Print two lines for each config: objective, config and paper; T1, T2, target and M."""
    console = console or Console()
    console.print(f"[dim]{'Objective':15} {'Config':15} Paper[/]", highlight=False)
    for config, (name, objective) in objectives_by_config().items():
        axes = objective.axes
        words = " · ".join(f"[dim]{title}[/] {getattr(axes, key)}" for key, title in AXES.items())
        console.print(f"[bold]{name:15}[/] {config:15} {axes.paper}", highlight=False)
        console.print(Padding(words, (0, 0, 0, 4)), highlight=False)
