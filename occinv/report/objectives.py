"""`occinv list`: every objective as a row of Eq. (1), its paper, and the configs that train it."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.models import vit
from occinv.objectives import OBJECTIVES
from occinv.objectives.base import Objective, Setting, make_objective


def of_configs() -> dict[str, tuple[str, Objective]]:
    """For each file in configs/ that trains something: the name of its objective, and that."""
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        if "def get_config" in path.read_text():
            experiment = schema.resolve(load_config(str(path)))
            encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
            objective = make_objective(experiment.objective, Setting(encoder, 2, total_steps=1))
            found[f"{CONFIGS.name}/{path.name}"] = (experiment.objective["name"], objective)
    return found


def print_objectives(console: Console | None = None) -> None:
    """Prints two lines for each config, in the order of `OBJECTIVES`."""
    console = console or Console()
    order = list(OBJECTIVES)
    for config, (name, objective) in sorted(
        of_configs().items(), key=lambda item: order.index(item[1][0])
    ):
        row = zip(("T1", "T2", "target", "M"), objective.axes, strict=True)
        said = " · ".join(f"[dim]{axis}[/] {words}" for axis, words in row)
        console.print(f"[bold]{name:15}[/] {config:23} {objective.paper}", highlight=False)
        console.print(Padding(said, (0, 0, 0, 4)), highlight=False)
