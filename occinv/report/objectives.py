"""`occinv list`: every objective as a row of Eq. (1), its paper, and the configs that train it."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from occinv import schema
from occinv.configuration import CONFIGS, load
from occinv.encoder import vit
from occinv.objective import OBJECTIVES
from occinv.objective.base import Objective, Setting, build


def of_configs() -> dict[str, tuple[str, Objective]]:
    """For each file in configs/ that trains something: the name of its objective, and that."""
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        if "def get_config" in path.read_text():
            experiment = schema.resolve(load(str(path)))
            encoder = vit.build(experiment.encoder, experiment.data.image_size)
            objective = build(experiment.objective, Setting(encoder, 2, total_steps=1))
            found[f"{CONFIGS.name}/{path.name}"] = (experiment.objective["name"], objective)
    return found


def print_objectives(console: Console | None = None) -> None:
    """Prints a line for each config, in the order of `OBJECTIVES`."""
    console = console or Console()
    table = Table(box=box.SIMPLE if console.is_terminal else box.ASCII2)
    for heading in ("objective", "T1", "T2", "target", "M", "paper", "config"):
        table.add_column(heading, no_wrap=heading in ("objective", "config"))
    order = list(OBJECTIVES)
    for config, (name, objective) in sorted(
        of_configs().items(), key=lambda item: order.index(item[1][0])
    ):
        table.add_row(name, *objective.axes, objective.paper, config)
    console.print(table)
