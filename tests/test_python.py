"""`import occinv`: the example of every public function runs, and the functions of tables."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_models import DECODER, save_run
from ml_collections import ConfigDict

import occinv
import occinv.evaluate  # imported modules must not hide functions
import occinv.train.loop
from occinv.config import make_config
from occinv.data.identity import Images
from occinv.encoder import LoadedEncoder, load_encoder
from occinv.evaluate import evaluate_one
from occinv.evaluators.base import Record, Result
from occinv.evaluators.similarity import cka
from occinv.report.rows import compare
from occinv.schema import UserError
from occinv.train import train
from occinv.train.records import record_file, write_record

METHODS = [getattr(LoadedEncoder, n) for n in ("preprocess", "features", "intermediate")]
EXAMPLES = [
    *(load_encoder, LoadedEncoder, *METHODS, LoadedEncoder.attention),
    *(evaluate_one, cka, compare),
]


def run_example(documented: Any) -> None:
    """Run the doctest of a function or a class in this folder."""
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, globs={})
    assert example.examples
    lines: list[str] = []
    assert not doctest.DocTestRunner().run(example, out=lines.append).failed, "".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory with the run that the example of `occinv.train` trains."""
    path = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path)
        run_example(train)
        yield path


@pytest.mark.parametrize("documented", EXAMPLES, ids=lambda f: f.__qualname__)
def test_the_example_runs(documented: Any, folder: Path) -> None:
    run_example(documented)


def test_every_public_function_has_an_example() -> None:
    named = {"train": train, "evaluate": evaluate_one, "cka": cka, "compare": compare}
    named["load_encoder"] = load_encoder
    assert {"__version__", *named} == set(occinv.__all__)
    for name, function in named.items():
        found = getattr(occinv, name)
        assert found is function or type(found).__call__ is function
        assert inspect.signature(found) == inspect.signature(function)
        assert function in (train, *EXAMPLES)
    methods = {m for n, m in vars(LoadedEncoder).items() if not n.startswith("_")}
    assert methods <= set(EXAMPLES)


# Configs.


def test_a_config_is_a_name_a_file_or_fields(tmp_path: Path) -> None:
    by_name = make_config("mae:smoke", {"train.duration.steps": 3, "data.flip": False})
    file = tmp_path / "my.py"
    file.write_text("from occinv.configs import mae\n\nget_config = mae.get_config\n")
    from_file = make_config(Path(f"{file}:smoke"), {"train.duration.steps": 3, "data.flip": False})
    given = ConfigDict(make_config("mae:smoke", {}))
    fields = make_config(given, {"train.duration.steps": 3, "data.flip": False})
    assert by_name == from_file == fields
    assert by_name["train"]["duration"] == {"steps": 3}
    assert by_name["data"]["flip"] is False
    assert given.train.duration.steps == 8  # a config that is given does not change


@pytest.mark.parametrize("value", [None, 0.5, (0.25, 1.0), "None", "a,b", {"epochs": 2}])
def test_overrides_keep_their_values(value: Any) -> None:
    assert make_config({"data": {}}, {"data.field": value})["data"]["field"] == value


def test_a_path_is_the_value_of_a_field(tmp_path: Path) -> None:
    assert make_config({}, {"data.data_dir": tmp_path})["data"]["data_dir"] == str(tmp_path)


def test_a_wrong_override_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mask_ration"):
        occinv.train("mae:smoke", tmp_path / "run", overrides={"objective.mask_ration": 0.5})
    assert not (tmp_path / "run").exists()


# Tables.


def record(run: Path, top1: float, neighbors: int, digest: str = "0") -> None:
    """Write a record of k-NN into a run."""
    images = Images("digits", 10, digest, "validation")
    protocol, values = {"neighbors": neighbors}, {"top1": top1}
    made = Record("knn", str(run), "mae", 3, images, protocol, "0", values, {})
    write_record(record_file(run, "knn"), made, Result(values, ""))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    found = [
        save_run(tmp_path / f"ratio{ratio}", {"name": "mae", "mask_ratio": ratio, **DECODER})
        for ratio in (0.5, 0.75)
    ]
    return [*found, save_run(tmp_path / "cmae", {"name": "cmae", "head_hidden": 8, "head_out": 8})]


def test_rows_have_equal_keys_and_what_differs(runs: list[Path]) -> None:
    record(runs[0], 0.5, neighbors=5)
    record(runs[1], 0.75, neighbors=5)
    rows = occinv.compare([*runs, runs[0]])
    assert [row["run"] for row in rows] == ["ratio0.5", "ratio0.75", "cmae"]
    assert [row["objective.mask_ratio"] for row in rows] == [0.5, 0.75, None]
    assert [row["knn/top1"] for row in rows] == [0.5, 0.75, None]
    assert [row["target"] for row in rows] == ["pixels", "pixels", "EMA encoder"]
    assert len({tuple(row) for row in rows}) == 1
    assert not any(key.startswith(("data.", "encoder.", "train.")) for key in rows[0])
    assert rows[0]["workdir"] == str(runs[0])


def test_numbers_that_were_made_in_another_way_have_another_key(runs: list[Path]) -> None:
    record(runs[0], 0.5, neighbors=5)
    record(runs[1], 0.6, neighbors=5)
    record(runs[1], 0.7, neighbors=20)
    record(runs[2], 0.8, neighbors=5, digest="1")
    rows = compare(runs)
    assert [row["knn/top1"] for row in rows] == [0.5, 0.6, None]
    others = [{key: row[key] for key in row if key.startswith("knn/top1 (")} for row in rows]
    assert sorted(value for row in others for value in row.values() if value) == [0.7, 0.8]


@pytest.mark.parametrize("given", [[], "runs/mae"])
def test_runs_are_a_list(given: Any) -> None:
    with pytest.raises(UserError, match="expected a list of one or more workdirs"):
        compare(given)
