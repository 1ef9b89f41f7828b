"""`occinv list`: every objective with its T1, T2, target and M, its paper, and its configs."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.objectives import OBJECTIVES
from occinv.objectives.base import Objective, objective_of
from occinv.report.table import AXES


def objectives_by_config() -> dict[str, tuple[str, Objective]]:
    """The objective of each config file, with its name, in the order of `OBJECTIVES`."""
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        if "def get_config" in path.read_text():
            experiment = schema.resolve(load_config(str(path)))
            name = str(experiment.objective["name"])
            found[f"{CONFIGS.name}/{path.name}"] = name, objective_of(experiment)
    order = list(OBJECTIVES)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1][0])))


def print_objectives(console: Console | None = None) -> None:
    """Print two lines for each config: objective, file and paper; T1, T2, target and M."""
    console = console or Console()
    for config, (name, objective) in objectives_by_config().items():
        axes = objective.axes
        words = " · ".join(f"[dim]{title}[/] {getattr(axes, key)}" for key, title in AXES.items())
        console.print(f"[bold]{name:15}[/] {config:23} {axes.paper}", highlight=False)
        console.print(Padding(words, (0, 0, 0, 4)), highlight=False)
