"""`occinv config`: print a config with the origin of every value, or the fields of configs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from occinv import schema
from occinv.commands.options import add_overrides
from occinv.config import load
from occinv.fields import Field, fields_of, meanings, section_of
from occinv.schema import Duration, Experiment, UserError, nearest, plain
from occinv.sections import UnknownField

if TYPE_CHECKING:
    from occinv.train.check import Planned

NAME = "The objective: a name that `occinv list` prints, or module:Class."
EVALUATOR = "The evaluator: a name that `occinv evaluate --help` prints, or module:Class."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `occinv config`."""
    # fmt: off
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG[:VARIANT][,FIELD=VALUE...]",
        help="Print this config of occinv or file, completed and checked.")
    add("--fields", nargs="?", const="", metavar="NAME",
        help="Print every field of a config, or those of a section such as optimizer, or of an "
        "objective, evaluator or tokenizer.")
    # fmt: on
    add_overrides(parser)


def run(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run `occinv config` and return the exit status."""
    if (options.config is None) == (options.fields is None):
        raise UserError("expected a config, such as `occinv config mae:smoke`, or --fields")
    if options.fields is not None:
        for field in find_fields(options.fields):
            print(f"{field.path}: {field.type} (default: {field.default})\n    {field.meaning}")
        return 0
    loaded = load(options.config, overrides)
    experiment = schema.resolve(loaded.config)
    section = ""
    for path, value, meaning in resolved(experiment):
        if path.partition(".")[0] != section:
            section = path.partition(".")[0]
            print()
        if path == "optimizer.base_lr":
            peak = experiment.optimizer.peak(experiment.train.batch_size)
            meaning += f" In this run: {peak:.3g}."
        print(f"{path} = {value!r}".ljust(43), f"# {loaded.origin(path):13} {meaning}")
    return 0


def find_fields(name: str) -> Iterator[Field]:
    """Yield the fields of a config, or of the section, objective, evaluator or tokenizer `name`."""
    every = list(fields_of(Experiment))
    section = [field for field in every if field.path.startswith(f"{name}.")]
    if not name or section:
        yield from section or every
        return
    from occinv.evaluators import EVALUATORS
    from occinv.models.tokenizers import TOKENIZERS
    from occinv.objectives import OBJECTIVES

    registries = {
        "objective": OBJECTIVES,
        f"evals.{name}": EVALUATORS,
        "objective.tokenizer": TOKENIZERS,
    }
    paths = [path for path, registry in registries.items() if name in registry]
    if not paths and ":" not in name:
        sections = {field.path.partition(".")[0] for field in every if "." in field.path}
        known = sections | {*OBJECTIVES, *EVALUATORS, *TOKENIZERS}
        raise UserError(f"--fields {name!r} is not known{nearest(name, known)}")
    for path in paths or ["objective"]:
        cls: type = schema.find_class(registries[path], name, object, "--fields ")
        if not dataclasses.is_dataclass(cls):
            raise UserError(f"--fields {name!r} is not a dataclass, expected an objective")
        yield from fields_of(cls, path, skip=("setting", "image_size", "patch_size", "channels"))


def explain(error: UnknownField) -> str:
    """Return the error of an unknown field, with the path of the nearest field of any section.

    A field of exactly this name comes first, then those of the same section that have it as a word,
    such as `base_lr` for `lr`, then a similar one. The fields of the objective belong to the
    sections if the whole config is known. Else no similar one is suggested.
    """
    name = error.path.rpartition(".")[2]
    every = _paths(error.config)
    paths = {path.rpartition(".")[2]: path for path in reversed(every)}
    cutoff = 0.8 if error.config else 1.0
    section = error.path.rpartition(".")[0]
    own = {path.rpartition(".")[2]: path for path in every if path.rpartition(".")[0] == section}
    if name not in paths and (longer := [own[key] for key in own if name in key.split("_")]):
        return f"unknown field {error.path!r} (did you mean {' or '.join(map(repr, longer))}?)"
    for fields, least in ((paths, 1.0), (own, cutoff), (paths, cutoff)):
        if near := difflib.get_close_matches(name, fields, n=1, cutoff=least):
            return f"unknown field {error.path!r} (did you mean {fields[near[0]]!r}?)"
    return str(error)


def _paths(config: Mapping[str, Any]) -> list[str]:
    """Return the path of every field, those of the objective of `config` included."""
    fields = list(fields_of(Experiment))
    with contextlib.suppress(UserError, KeyError, TypeError):
        fields += find_fields(config["objective"]["name"])
    return [field.path for field in fields]


def resolved(experiment: Experiment) -> Iterator[tuple[str, Any, str]]:
    """Yield path, value and meaning of every field, those of objective and evaluators included.

    Raises:
      UserError: A field of `objective` or `evals` is wrong, or `init_from` does not fit.
    """
    from occinv.train.check import check_config, read_evals

    objective = check_config(experiment)
    for path, value, meaning in leaves(experiment):
        if path == "objective":
            yield "objective.name", experiment.objective["name"], NAME
            yield from leaves(objective, path, skip=("setting",))
        elif path == "evals":
            for planned in read_evals(experiment):
                yield from _evaluator(planned)
        else:
            yield path, value, meaning


def _evaluator(planned: Planned) -> Iterator[tuple[str, Any, str]]:
    path = f"evals.{planned.label}"
    yield f"{path}.name", planned.name, EVALUATOR
    yield f"{path}.every", units(planned.every), "The interval. None: only at the end."
    yield from leaves(planned.evaluator, path)


def leaves(
    section: Any, path: str = "", skip: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any, str]]:
    """Yield path, value and meaning of every field of a dataclass, sections opened."""
    texts = meanings(type(section))
    for field in dataclasses.fields(section):
        if not field.init or field.name in skip:
            continue
        value, place = getattr(section, field.name), f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(value) and section_of(type(value)):
            yield from leaves(value, place)
        else:
            yield place, units(value), texts.get(field.name, "")


def units(value: Any) -> Any:
    """Return a value as a config file writes it, such as {'epochs': 100}."""
    if isinstance(value, Duration):
        return {unit: n for unit, n in dataclasses.asdict(value).items() if n is not None}
    return plain(value)
