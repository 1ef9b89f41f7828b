"""`occinv report` puts runs and results of any folders into one table."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from example_run import example
from PIL import Image

from occinv import schema
from occinv.evaluators.reconstructions import Triple
from occinv.report.compare import compare, read_stage, report, unique_names
from occinv.report.findings import cka_finding
from occinv.report.results import CkaCurves, Claim, Column
from occinv.schema import UserError

CURVES = {"ratios": [0.75], "blocks": [1, 2]}
LINES = (
    {"step": 0, "time": 1.0, "parameters": 1234},
    {"step": 10, "time": 2.0, "loss": 0.5, "learning_rate": 0.1},
    {"step": 20, "time": 3.0, "eval/loss": 0.4, "eval/top1": 0.75},
)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(content) if is_dataclass(content) else content))


def run(
    workdir: Path, objective: dict[str, Any], metrics: dict[str, float] | None, **fields: Any
) -> Path:
    """Write the files of a run that reports read. Without `metrics` it is not finished."""
    experiment = {
        "objective": objective,
        "data": {"source": "digits", "image_size": 16},
        "encoder": {"name": "micro", "patch_size": 8},
        "train": {"duration": {"epochs": 3.0}},
        **fields,
    }
    write(workdir / "config.json", {"experiment": experiment, "classes": ["a", "b"]})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    if metrics is not None:
        write(workdir / "result.json", {"step": 20, "metrics": metrics})
    return workdir


def curves(last: float, *workdirs: Path) -> dict[str, Any]:
    """evaluate/cka.json of runs: CKA at the last block `last`, and 0.01 more from run to run."""
    models = [
        {"workdir": str(w), "images": 3, **CURVES, "values": [[1.0, last + 0.01 * i]]}
        for i, w in enumerate(workdirs)
    ]
    return {"tokens": "visible", "models": models}


@pytest.fixture
def mae(tmp_path) -> Path:
    workdir = run(tmp_path / "mae", {"name": "mae"}, {"loss": 0.4})
    evaluated = workdir / "evaluate"
    write(evaluated / "psnr.json", {"whole": 20.5, "removed": 17.5, "images": 3})
    write(evaluated / "knn.json", {"top1": 0.61, "top5": 0.9})
    write(evaluated / "cka.json", curves(0.9, workdir, tmp_path / "other"))
    (evaluated / "reconstructions").mkdir()
    for number in range(11):
        for kind in Triple._fields:
            Image.new("RGB", (2, 2)).save(evaluated / "reconstructions" / f"{number}_{kind}.png")
    return workdir


@pytest.fixture
def supervised(tmp_path) -> Path:
    workdir = run(tmp_path / "supervised", {"name": "classification"}, {"loss": 1, "top1": 0.8})
    write(workdir / "evaluate" / "cka.json", curves(0.6, workdir))
    return workdir


@pytest.fixture
def finetuned(tmp_path, mae) -> Path:
    start = str(mae / "checkpoints" / "20")
    objective = {"name": "classification"}
    return run(tmp_path / "finetuned", objective, {"loss": 1, "top1": 0.9}, init_from=start)


@pytest.fixture
def reproduced(tmp_path, results) -> Path:
    """A folder with results.json, whose second row has pictures."""
    folder = tmp_path / "quick"
    kinds = dict.fromkeys(Triple._fields, "p/0.png")
    results.rows[1].reconstructions = [kinds]
    results.claims = [Claim("t", "mae", "r-mae†")]
    (folder / "p").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(folder / "p" / "0.png")
    write(folder / "results.json", results)
    return folder


def test_a_run_is_described_from_its_workdir(mae):
    stage = read_stage(mae, command="occinv train", seconds=3.5)
    assert json.loads(stage.config)["encoder"]["patch_size"] == 8
    assert asdict(replace(stage, config=None)) == {
        "duration": "3 epochs",
        "command": "occinv train",
        "config": None,
        "seconds": 3.5,
        "parameters": 1234,
        "loss": [(10, 0.5)],
        "accuracy": [(20, 0.75)],
    }
    (mae / "metrics.jsonl").unlink()
    assert read_stage(mae).parameters is read_stage(mae).command is None
    experiment = schema.resolve({"objective": {"name": "mae"}, "data": {"source": "digits"}})
    planned = read_stage(mae / "gone", experiment)
    assert (planned.duration, planned.loss) == ("100 epochs", [])
    with pytest.raises(UserError, match=r"gone/config\.json is not the config of a run"):
        read_stage(mae / "gone")


def test_a_pretraining_is_a_row(mae):
    results = compare([mae])
    (row,) = results.rows
    assert (row.name, row.status) == ("mae", "done")
    assert [row.t1, row.target, row.measure] == [*("75% removed", "pixels", "pixel L2")]
    assert row.transformation == "patch masking"
    assert row.values == {"top1": [], "knn": [0.61], "psnr": [20.5], "psnr_removed": [17.5]}
    assert [column.key for column in results.columns] == ["knn", "psnr"]
    assert row.cka["pretrained"] == CkaCurves(**CURVES, values=[[1.0, 0.9]])
    assert row.cka["finetuned"] is row.finetune is None
    assert row.pretrain.loss == [(10, 0.5)]
    originals = [Path(triple["original"]) for triple in row.reconstructions]
    assert [path.name for path in originals] == [f"{i}_original.png" for i in range(11)]
    assert all(path.is_absolute() and path.is_file() for path in originals)
    assert results.title == "comparison"


def test_curves_are_those_of_the_workdir_in_a_file_of_several(mae, tmp_path):
    write(mae / "evaluate" / "cka.json", curves(0.5, tmp_path / "other", mae / "checkpoints" / "9"))
    (row,) = compare([mae]).rows
    assert row.cka["pretrained"].values == [[1.0, 0.51]]
    write(mae / "evaluate" / "cka.json", curves(0.5, Path("moved/away"), tmp_path / "other"))
    (row,) = compare([mae]).rows
    assert row.cka["pretrained"].values == [[1.0, 0.5]], "the first: it has the file"


def test_a_fine_tuned_run_has_the_axes_of_its_pretraining(supervised, finetuned):
    results = compare([supervised, finetuned])
    first, second = results.rows
    assert first.pretrain is None and results.baseline is first
    assert (first.target, first.transformation) == ("label", "–")
    assert first.cka["finetuned"].values == [[1.0, 0.6]]
    assert first.cka["pretrained"] is None
    assert first.finetune.accuracy == [(20, 0.75)]
    assert second.values["top1"] == [0.9]
    assert (second.target, second.transformation) == ("pixels", "patch masking")
    assert json.loads(second.pretrain.config)["objective"]["name"] == "mae"
    assert second.finetune.config != second.pretrain.config
    assert compare([finetuned, supervised]).baseline is None


def test_the_encoder_of_a_linear_probe_counts_as_pretrained(tmp_path, mae):
    probe = run(tmp_path / "probe", {"name": "linear_probe"}, {"top1": 0.5}, init_from=str(mae))
    write(probe / "evaluate" / "cka.json", curves(0.9, probe))
    (row,) = compare([probe]).rows
    assert row.linear.accuracy == [(20, 0.75)] and row.finetune is None
    assert row.cka["pretrained"].values == [[1.0, 0.9]] and row.cka["finetuned"] is None
    assert row.target == "pixels"


def test_a_run_with_a_missing_pretraining_is_not_a_baseline(tmp_path):
    objective = {"name": "classification"}
    workdir = run(tmp_path / "a", objective, None, init_from=str(tmp_path / "gone"))
    results = compare([workdir])
    (row,) = results.rows
    assert results.baseline is None
    assert row.status == "running"
    assert row.values["top1"] == [] and results.columns == []


def test_an_imported_encoder_is_a_row(tmp_path):
    workdir = run(tmp_path / "vit", {"name": "occinv.weights.encoder_only:EncoderOnly"}, None)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "checkpoints" / "0").mkdir(parents=True)
    write(workdir / "evaluate" / "cka.json", curves(0.7, workdir))
    (row,) = compare([workdir]).rows
    assert row.status == "done"
    assert (row.t1, row.measure) == ("unknown", "unknown")
    assert row.pretrain.duration is None and row.pretrain.loss == []
    assert row.cka["pretrained"].values == [[1.0, 0.7]]


def test_a_pretraining_is_compared_with_the_supervised_run(mae, supervised):
    found = cka_finding(compare([supervised, mae]), "pretrained")
    assert found is not None and found.verdict == "supported"
    assert "mae: 0.900, 0.300 above 0.600." in found.details


def test_equal_names_get_their_parent_folders(tmp_path):
    a, b, c = tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"
    assert list(unique_names([a, b, c, a]).values()) == ["a/run", "b/run", "c"]


def test_a_single_folder_with_results_is_unchanged(reproduced, results):
    found = compare([reproduced])
    (triple,) = found.rows[1].reconstructions
    assert Path(triple["masked"]) == reproduced / "p" / "0.png"
    found.rows[1].reconstructions = results.rows[1].reconstructions
    assert found == results


def test_several_folders_are_merged(reproduced, results, mae, tmp_path):
    other = example()
    other.rows = [replace(other.rows[1], values={"finetune": [0.5]})]
    other.columns = [Column("tenth", "10 %", "%"), *other.columns]
    write(tmp_path / "long" / "results.json", other)
    found = compare([reproduced, tmp_path / "long", mae])
    names = [row.name for row in found.rows]
    assert names == [
        *("Random init", "quick: MAE", "R-MAE†", "R-MAE‡", "C-MAE", "long: MAE", "mae"),
    ]
    keys = [row.key for row in found.rows]
    assert len(set(keys)) == len(keys)
    assert [column.key for column in found.columns] == ["finetune", "psnr", "tenth", "knn"]
    (claim,) = found.claims
    assert (claim.row, claim.than) == ("quick/mae", "quick/r-mae†")
    assert {claim.row, claim.than} <= set(keys)
    assert found.settings["num_test"] == 760
    assert not found.same_data and found.baseline is None
    assert any("quick has photos; long has photos; mae has digits" in n for n in found.notes)
    found = compare([reproduced, tmp_path / "long"])
    assert found.same_data and found.baseline is found.rows[0]


def test_data_sets_are_equal_if_all_known_settings_agree(reproduced, results, mae):
    results.settings.update(data="digits", images="10 training and 5 test images")
    write(reproduced / "results.json", results)
    found = compare([reproduced, mae])
    assert found.same_data
    assert found.settings["data"] == "digits"
    assert found.settings["images"] == results.settings["images"]
    results.settings["images"] = "5 training and 5 test images"
    write(reproduced.parent / "half" / "results.json", results)
    assert not compare([mae, reproduced, reproduced.parent / "half"]).same_data
    results.settings.update(data="digits2", num_test=3)
    write(reproduced.parent / "b" / "results.json", results)
    found = compare([reproduced, reproduced.parent / "b"])
    assert "num_test" not in found.settings, "its noise is then unknown, not wrong"
    assert not found.same_data


def test_the_page_goes_into_the_first_folder(reproduced, mae, finetuned, capsys):
    assert report([reproduced]) == reproduced / "report.html"
    path = report([mae, reproduced, finetuned])
    assert path == mae / "comparison.html"
    assert "comparison" in capsys.readouterr().out
    page = path.read_text()
    assert page.count("data:image/png") == 33 + 3
    assert "missing:" not in page
    assert "Top-1 %" in page and "Visible" in page
    assert report([mae]) == mae / "comparison.html"


def test_other_folders_are_refused(tmp_path, mae):
    with pytest.raises(UserError, match=r"nope contains neither results\.json nor config\.json"):
        compare([mae, tmp_path / "nope"])
    with pytest.raises(UserError, match="no folder given"):
        compare([])
    write(tmp_path / "hf" / "config.json", {"hidden_size": 3})
    with pytest.raises(UserError, match=r"hf/config\.json is not the config of a run"):
        compare([tmp_path / "hf"])
