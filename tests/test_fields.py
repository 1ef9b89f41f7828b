"""`occinv config` and `occinv config --fields`."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Lt

from occinv import schema
from occinv.cli import main
from occinv.commands.config import find_fields
from occinv.config import load_config
from occinv.evaluators import EVALUATORS
from occinv.evaluators.base import Evaluator
from occinv.fields import Field, fields_of, meanings
from occinv.models.tokenizers import TOKENIZERS
from occinv.objectives import OBJECTIVES
from occinv.objectives.base import Objective, objective_of
from occinv.schema import Count, Duration, find_class
from occinv.sections import type_text


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section.

    Attributes:
      size: The size
        of it.
    """

    size: Count = 2


@dataclasses.dataclass(frozen=True)
class Outer:
    """A section of a section. Attributes are below.

    Attributes:
      setting: The program sets it.
      first: A section.
      second: Another section.
      wait: The time: how long.

    More text: of another kind.
    """

    setting: int
    first: Inner = Inner(3)
    second: Inner | None = None
    wait: Duration = Duration(epochs=1)
    silent: bool = False


def test_fields_are_those_of_the_dataclass_and_its_sections() -> None:
    assert list(fields_of(Outer, "outer", skip=("setting",))) == [
        Field("outer.first", "section", "the fields below", "A section."),
        Field("outer.first.size", "int >= 1", "3", "The size of it."),
        Field("outer.second", "section or None", "None", "Another section."),
        Field("outer.second.size", "int >= 1", "2", "The size of it."),
        Field("outer.wait", "duration", "1 epochs", "The time: how long."),
        Field("outer.silent", "bool", "False", ""),
    ]
    assert next(fields_of(Outer)).default == "required"


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Annotated[float, Ge(0), Lt(1)], "float >= 0 and < 1"),
        (Literal["a", "b"] | None, "a or b or None"),
        (tuple[Count, float], "(int >= 1, float)"),
        (tuple[float, ...], "(float, ...)"),
        (dict[str, int], "section"),
    ],
)
def test_types_in_words(hint: object, text: str) -> None:
    assert type_text(hint) == text


def test_a_subclass_has_the_meanings_of_its_base() -> None:
    @dataclasses.dataclass(frozen=True)
    class Below(Inner):
        """Another.

        Attributes:
          more: More.
        """

        more: int = 1

    assert meanings(Below) == {"size": "The size of it.", "more": "More."}


@pytest.mark.parametrize("name", ["", *{**OBJECTIVES, **EVALUATORS, **TOKENIZERS}])
def test_every_field_has_a_meaning_of_its_own(name: str) -> None:
    fields = list(find_fields(name))
    assert fields
    of_sections = [(field.path.rpartition(".")[0], field.meaning) for field in fields]
    assert [each for each in of_sections if of_sections.count(each) > 1] == []
    for field in fields:
        assert field.meaning.endswith((".", ")")) and len(field.meaning) > 8, field


def test_a_name_may_be_an_objective_and_a_tokenizer() -> None:
    paths = {field.path for field in find_fields("vq")}
    assert {"objective.commitment", "objective.tokenizer.start"} <= paths


def test_the_printed_config_is_the_resolved_one(capsys: pytest.CaptureFixture[str]) -> None:
    evals = "--config.evals.knn={'every': {'epochs': 2}, 'neighbors': 3}"
    assert main(["config", "dino:smoke,seed=4", evals]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    found, origins = {}, {}
    for line in lines:
        assignment, _, comment = line.partition("  # ") if "  # " in line else line.partition(" # ")
        path, _, value = assignment.partition(" = ")
        found[path] = ast.literal_eval(value.strip())
        origins[path] = comment[:13].strip()
    experiment = schema.resolve(load_config("dino:smoke,seed=4", [evals]))
    objective = objective_of(experiment)
    assert found["seed"] == 4 and origins["seed"] == "command line"
    assert found["train.batch_size"] == 16 and origins["train.batch_size"] == "config file"
    assert found["train.keep"] == 3 and origins["train.keep"] == "default"
    assert found["train.duration"] == {"steps": 8}
    assert found["encoder.train_position"] is True
    assert found["objective.name"] == "dino"
    assert found["objective.local_scale"] == (0.2, 0.5)
    assert found["objective.freeze_last_layer"] == {"steps": 2}
    assert found["objective.second.solarize"] == objective.second.solarize  # type: ignore[attr-defined]
    assert (found["evals.knn.name"], found["evals.knn.every"]) == ("knn", {"epochs": 2.0})
    assert (found["evals.knn.neighbors"], found["evals.knn.temperature"]) == (3, 0.07)
    for name in ("data", "encoder", "optimizer", "train"):
        for field in dataclasses.fields(getattr(experiment, name)):
            assert f"{name}.{field.name}" in found
    assert "objective.setting" not in found


def test_fields_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--fields"]) == 0
    shown = capsys.readouterr().out
    assert "train.batch_size: int >= 1 (default: 1024)\n    The images of a step" in shown
    assert main(["config", "--fields", "mae"]) == 0
    expected = "objective.mask_ratio: float >= 0 and < 1 (default: 0.75)\n    The share of"
    assert expected in capsys.readouterr().out


def test_the_fields_of_a_section() -> None:
    found = [field.path for field in find_fields("optimizer")]
    assert found == [field.path for field in find_fields("") if "optimizer." in field.path]
    assert "optimizer.base_lr" in found


def test_a_config_is_checked_without_its_data(tmp_path: Path) -> None:
    assert main(["config", "mae", f"--config.data.source=folder:{tmp_path / 'nowhere'}"]) == 0


def test_every_number_of_a_config_has_a_range() -> None:
    classes = [schema.Data, schema.Encoder, schema.Optimizer, schema.Train]
    classes += [find_class(OBJECTIVES, name, Objective, "") for name in OBJECTIVES]
    classes += [find_class(EVALUATORS, name, Evaluator, "") for name in EVALUATORS]
    found = [field for cls in classes for field in fields_of(cls, cls.__name__, skip=("setting",))]
    words = {field.path: re.split(r"[(),]| or ", field.type) for field in found}
    assert [path for path, w in words.items() if {"int", "float"} & {x.strip() for x in w}] == []
