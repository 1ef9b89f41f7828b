"""Check every field of a config before any data is opened: the objective's, evaluators', f's."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from occinv import schema
from occinv.config import not_a_run, stored_config
from occinv.data.open_source import check_source
from occinv.evaluators.base import Evaluator, make_evaluator
from occinv.models.vit import ViT, vit_of
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.schema import Duration, Experiment, UserError
from occinv.size import size_text

# The settings that two encoders with the same parameters share, and their sections.
SAME = dict.fromkeys(
    (
        *("patch_size", "width", "depth", "heads"),
        *("relative_position", "layer_scale", "gelu", "pixel_range", "class_token", "registers"),
    ),
    "encoder",
) | {"channels": "data"}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When an evaluator runs.

    Attributes:
      every: The interval between two runs of it. None: only at the end, where every evaluator runs.
    """

    every: Duration | None = None


class Planned(NamedTuple):
    """An evaluator of a run: its label, the name of its class, itself, its interval."""

    label: str
    name: str
    evaluator: Evaluator
    every: Duration | None


def check_config(experiment: Experiment) -> Objective:
    """Check the names of sources, `objective` and `evals`, and that `init_from` fits.

    Returns:
      The objective, for two classes and one step.

    Raises:
      UserError: A field is wrong, or the encoder of `init_from` has other settings.
    """
    for name in ("source", "eval_source"):
        if (spec := getattr(experiment.data, name)) is not None:
            check_source(spec, f"data.{name}")
    encoder = vit_of(experiment)
    setting = Setting(encoder, 2, 1, batch_size=experiment.train.batch_size)
    objective = make_objective(experiment.objective, setting)
    read_evals(experiment)
    if experiment.init_from is not None:
        stored = stored_config(experiment.init_from)
        if stored is None:
            raise UserError(f"init_from: {not_a_run(experiment.init_from)}")
        before = vit_of(schema.resolve(stored))
        check_same_encoder(experiment.init_from, before, encoder)
        if experiment.init == "state" and before.grid != encoder.grid:
            raise UserError(
                f"init='state': the run of init_from has images of {size_text(before.grid)} "
                f"patches, expected {size_text(encoder.grid)}; set data.image_size to that of the "
                "run, or init=encoder"
            )
    return objective


def read_evals(experiment: Experiment) -> list[Planned]:
    """Return the evaluators of the section `evals`.

    Raises:
      UserError: An unknown evaluator or option, or a value out of range.
    """
    found, files = [], set()
    for label, section in experiment.evals.items():
        if not re.fullmatch(r"[\w-][\w.:-]{,99}(?<!:)", label):
            raise UserError(
                f"evals: the label {label[:200]!r} names a file, expected 1 to 100 letters, digits,"
                " _ or -, such as knn"
            )
        if (file := label.rpartition(":")[2]) in files:
            raise UserError(f"evals: two labels end in {file!r}, expected different ones")
        files.add(file)
        options, path = dict(section), f"evals.{label}"
        name = str(options.pop("name", label))
        timing = {"every": options.pop("every", None)}
        every = schema.from_mapping(Schedule, timing, path).every
        found.append(Planned(label, name, make_evaluator(name, options, path), every))
    return found


def check_same_encoder(init_from: str, before: ViT, now: ViT) -> None:
    """Raise UserError, with all differences, if the parameters of `before` mean another encoder."""
    found, fields = [], []
    for name, section in SAME.items():
        theirs, ours = getattr(before, name), getattr(now, name)
        # LayerScale may start elsewhere. A shared relative position is copied to each block.
        is_start = name == "layer_scale" and None not in (theirs, ours)
        if theirs != ours and not is_start and (theirs, ours) != ("shared", "block"):
            found.append(f"{name}={theirs} (here {ours})")
            fields.append(f"--config.{section}.{name}={theirs}".replace(" ", ""))
    if found:
        raise UserError(
            f"init_from: the encoder of {init_from} has {', '.join(found)}; leave these fields "
            f"out, or set {' '.join(fields)}"
        )
