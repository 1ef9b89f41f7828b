"""`occinv report` puts runs and results of any folders into one table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from example_run import example
from example_workdirs import CURVES, invariance, record, run, write

from occinv import schema
from occinv.cli import main
from occinv.data.identity import pack, unpack
from occinv.report.compare import compare, report
from occinv.report.findings import cka_finding, findings
from occinv.report.read_run import read_stage, unique_names
from occinv.report.results import CkaCurves, Column
from occinv.schema import UserError


def test_a_run_is_described_from_its_workdir(mae):
    stage = read_stage(mae, command="occinv train", seconds=3.5)
    assert json.loads(stage.config)["encoder"]["patch_size"] == 8
    assert asdict(replace(stage, config=None)) == {
        "duration": "3 epochs",
        "command": "occinv train",
        "config": None,
        "seconds": 3.5,
        "step_seconds": None,
        "parameters": 1234,
        "loss": [(10, 0.5)],
        "accuracy": [(20, 0.75)],
        "monitors": {},
    }
    (mae / "metrics.jsonl").unlink()
    assert read_stage(mae).parameters is read_stage(mae).command is None
    experiment = schema.resolve({"objective": {"name": "mae"}, "data": {"source": "digits"}})
    planned = read_stage(mae / "gone", experiment)
    assert (planned.duration, planned.loss) == ("100 epochs", [])
    with pytest.raises(UserError, match=r"gone is not the workdir of a run; expected a file"):
        read_stage(mae / "gone")


def test_a_pretraining_is_a_row(mae):
    results = compare([mae])
    row, untrained, blind = results.rows
    assert (row.name, row.status) == ("mae", "done")
    assert [row.t1, row.target, row.measure] == [*("75% removed", "pixels", "pixel L2")]
    assert row.transformation == "patch masking"
    assert row.values == {"retrieval": [0.9], "knn": [0.61], "psnr": [20.5], "psnr_removed": [17.5]}
    assert [column.key for column in results.columns] == ["knn", "psnr", "retrieval"]
    curves = CkaCurves(**CURVES, values=[[1.0, 0.9]], floor=[[1.0, 0.1]])
    assert row.cka["pretrained"] == curves
    assert row.cka["finetuned"] is row.finetune is None
    assert row.pretrain.loss == [(10, 0.5)]
    originals = [Path(triple["original"]) for triple in row.reconstructions]
    assert [path.name for path in originals] == [f"{i}_original.png" for i in range(11)]
    assert all(path.is_absolute() and path.is_file() for path in originals)
    assert results.title == "comparison"
    assert (untrained.name, blind.name) == ("Untrained encoder", "Blind encoder")
    assert untrained.is_floor and untrained.cka["pretrained"].values == [[1.0, 0.1]]
    assert blind.values == {"retrieval": [0.0]}


def test_each_run_has_its_own_curves(mae, tmp_path):
    """The first edition stored all curves in the first of several workdirs."""
    other = run(tmp_path / "other", {"name": "rmae"}, {"loss": 0.4})
    write(other / "evaluate" / "invariance.json", [invariance(0.5)])
    values = [row.cka["pretrained"].values for row in compare([mae, other]).rows[:2]]
    assert values == [[[1.0, 0.9]], [[1.0, 0.5]]]


def test_numbers_made_differently_are_in_different_columns(mae, tmp_path):
    others = {
        "pooling": record("knn", {"top1": 0.5}, protocol={"token": "mean"}),
        "images": record("knn", {"top1": 0.5}, images={"count": 2}),
        "files": record("knn", {"top1": 0.5}, images={"digest": "e"}),
    }
    for name, made in others.items():
        other = run(tmp_path / name, {"name": "rmae"}, None)
        write(other / "evaluate" / "knn.json", [made])
        results = compare([mae, other])
        assert [c.heading for c in results.columns if "NN" in c.heading] == [
            *("k-NN % (1)", "k-NN % (2)")
        ]
        first, second = results.rows[:2]
        assert (first.values["knn"], second.values["knn_2"]) == ([0.61], [0.5])
        assert "knn" not in second.values
    about = {c.key: c.about for c in compare([mae, tmp_path / "pooling"]).columns}
    assert about["knn_2"].endswith("3 images of digits (test), token mean")
    # The name of a folder does not matter if its files are the same.
    same = record("knn", {"top1": 0.5}, images={"name": "moved"})
    write(tmp_path / "pooling" / "evaluate" / "knn.json", [same])
    assert compare([mae, tmp_path / "pooling"]).columns[0].heading == "k-NN %"


def test_cka_measured_differently_is_not_shown_beside_the_others(mae, tmp_path):
    """CKA on 1000 images once stood beside CKA on 256."""
    runs = [mae]
    for name, changes in (("rmae", {}), ("cmae", {"images": {"count": 2}})):
        runs.append(run(tmp_path / name, {"name": name}, None))
        write(runs[-1] / "evaluate" / "invariance.json", [invariance(0.5, **changes)])
    results = compare(runs)
    shown = {row.name: row.cka["pretrained"] for row in results.rows if not row.is_floor}
    assert shown["rmae"] is not None and shown["cmae"] is None
    said = "The CKA of cmae is not shown: 2 images of digits (test)."
    assert said in results.notes
    # A run with both measurements shows the common one.
    both = [invariance(0.7, images={"count": 2}), invariance(0.6)]
    write(runs[-1] / "evaluate" / "invariance.json", both)
    results = compare(runs)
    assert results.rows[2].cka["pretrained"].values == [[1.0, 0.6]]
    assert not [note for note in results.notes if "not shown" in note]


def test_a_linear_probe_and_fine_tuning_are_in_different_columns(tmp_path, supervised):
    probe = run(tmp_path / "probe", {"name": "linear_probe"}, {"top1": 0.5})
    results = compare([supervised, probe])
    assert {"finetune", "linear"} <= {column.key for column in results.columns}
    assert results.rows[0].values["finetune"] == [0.8]
    assert results.rows[1].values["linear"] == [0.5]


def test_fine_tuned_runs_are_compared_by_the_predictions_of_their_occlusion_accuracy(tmp_path):
    workdirs = []
    for name, hits in (("a", [1, 1, 0]), ("b", [0, 1, 1])):
        objective = {"name": "classification", "label_smoothing": 0.1 * len(workdirs)}
        workdirs.append(run(tmp_path / name, objective, {"top1": 2 / 3}, init_from="gone"))
        packed = pack(np.array(hits, bool), np.arange(3), 3)
        details = {"hits": {"random": [packed, "00"]}}
        protocol = {"classifier": "own"}
        made = record("occlusion", {"area_random": 0.5}, protocol=protocol, details=details)
        write(workdirs[-1] / "evaluate" / "occlusion.json", [made])
    results = compare(workdirs)
    assert [unpack(row.hits["finetune"][0]).tolist() for row in results.rows] == [
        *([True, True, False], [False, True, True]),
    ]
    assert any("McNemar" in d for finding in findings(results) for d in finding.details)


def test_numbers_on_training_images_are_marked(mae, capsys):
    made = record("knn", {"top1": 1.0}, images={"split": "training"})
    write(mae / "evaluate" / "knn.json", [made])
    report([mae])
    said = capsys.readouterr().out
    assert "100.0§" in said
    assert "measured on images that the model was trained on" in " ".join(said.split())


def test_seeds_of_one_config_are_one_row(tmp_path):
    workdirs = []
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        start = run(tmp_path / f"mae{seed}", {"name": "mae"}, {"loss": 0.4}, seed=seed)
        fields = {"seed": seed, "init_from": str(start)}
        objective = {"name": "classification"}
        workdirs.append(run(tmp_path / f"ft{seed}", objective, {"top1": accuracy}, **fields))
        write(workdirs[-1] / "evaluate" / "invariance.json", [invariance(accuracy, token="mean")])
    row = compare(workdirs).rows[0]
    assert (row.name, row.values["finetune"]) == ("ft0 and 2 more seeds", [0.5, 0.6, 0.7])
    assert row.cka["finetuned"].values == pytest.approx(np.array([[1.0, 0.6]]))
    assert len(row.cka["finetuned"].by_seed) == 3
    assert row.seeds["finetune"] == row.seeds["finetuned"] == [0, 1, 2]
    # The order of the folders does not matter, and a seed counts once.
    assert compare(workdirs[::-1]).rows[0].values["finetune"] == [0.5, 0.6, 0.7]
    again = run(tmp_path / "again", {"name": "classification"}, {"top1": 0.1}, **fields)
    rows = compare([*workdirs, again]).rows
    assert [r.values["finetune"] for r in rows[:2]] == [[0.5, 0.6, 0.7], [0.1]]
    # Another pretraining is another row, although the fine-tuning is equal.
    start = run(tmp_path / "rmae", {"name": "rmae"}, {"loss": 0.4})
    other = {"init_from": str(start)}
    workdirs.append(run(tmp_path / "other", {"name": "classification"}, {"top1": 0.9}, **other))
    assert [r.name for r in compare(workdirs).rows[:2]] == ["ft0 and 2 more seeds", "other"]
    assert compare(workdirs[:2]).rows[0].name == "ft0 and 1 more seed"


def test_differing_config_fields_are_listed(mae, tmp_path):
    other = run(tmp_path / "long", {"name": "rmae"}, None, train={"duration": {"epochs": 9.0}})
    notes = compare([mae, other]).notes
    assert "Different train.duration.epochs: mae 3.0, long 9.0." in notes
    assert not any("objective" in note for note in notes), "the table has its axes"
    assert (
        notes[-1] == "Not measured by an evaluator: long (training loss 0.5, no validation loss)."
    )


def test_runs_of_one_objective_list_its_fields(mae, tmp_path):
    runs = [
        run(tmp_path / n, {"name": "cmae", "negatives": n}, None) for n in ("position", "image")
    ]
    results = compare(runs)
    assert "Different objective.negatives: position position, image image." in results.notes
    assert [row.measure for row in results.rows[:2]] == [
        *("patch InfoNCE", "patch InfoNCE, negatives of the image")
    ]
    assert not any("objective" in note for note in compare([mae, *runs]).notes)


def test_fine_tuned_runs_list_the_fields_of_their_pretrainings(tmp_path):
    tuned = []
    for name, temperature in (("cool", 0.1), ("warm", 0.3)):
        objective = {"name": "cmae", "temperature": temperature}
        before = run(tmp_path / name / "before", objective, None)
        tuned.append(
            run(tmp_path / name, {"name": "classification"}, {"top1": 0.5}, init_from=str(before))
        )
    notes = compare(tuned).notes
    assert notes == ["Different objective.temperature of the pretraining: cool 0.1, warm 0.3."]


def test_a_fine_tuned_run_has_the_axes_of_its_pretraining(supervised, finetuned):
    results = compare([supervised, finetuned])
    first, second = results.rows[:2]
    assert first.pretrain is None and results.baseline is first
    assert (first.target, first.transformation) == ("label", "–")
    assert first.cka["finetuned"].values == [[1.0, 0.6]]
    assert first.cka["finetuned"].token == "mean"
    assert first.cka["pretrained"] is None
    assert first.finetune.accuracy == [(20, 0.75)]
    assert second.values["finetune"] == [0.9]
    assert (second.target, second.transformation) == ("pixels", "patch masking")
    assert json.loads(second.pretrain.config)["objective"]["name"] == "mae"
    assert second.finetune.config != second.pretrain.config
    assert compare([finetuned, supervised]).baseline is None


def test_the_encoder_of_a_linear_probe_counts_as_pretrained(tmp_path, mae):
    probe = run(tmp_path / "probe", {"name": "linear_probe"}, {"top1": 0.5}, init_from=str(mae))
    write(probe / "evaluate" / "invariance.json", [invariance(0.9)])
    row = compare([probe]).rows[0]
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
    assert row.values == {} and results.columns == []


def test_an_imported_encoder_is_a_row(tmp_path):
    workdir = run(tmp_path / "vit", {"name": "occinv.weights.encoder_only:EncoderOnly"}, None)
    (workdir / "metrics.jsonl").unlink()
    (workdir / "checkpoints" / "0").mkdir(parents=True)
    write(workdir / "evaluate" / "invariance.json", [invariance(0.7)])
    row = compare([workdir]).rows[0]
    assert row.status == "done"
    assert (row.t1, row.measure) == ("unknown", "unknown")
    assert row.pretrain.duration is None and row.pretrain.loss == []
    assert row.cka["pretrained"].values == [[1.0, 0.7]]


def test_a_pretraining_is_compared_with_the_supervised_run(mae, supervised):
    found = cka_finding(compare([supervised, mae]), "pretrained", {})
    assert found is not None and found.verdict == "inconclusive"
    text = "mae: 0.900 (class token), 0.300 above 0.600, 0.800 above the floor of 0.100."
    assert text in found.details


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
        *("Untrained encoder", "Blind encoder"),
    ]
    keys = [row.key for row in found.rows]
    assert len(set(keys)) == len(keys)
    # The run has other data, so no number of it shares a column with a table's.
    assert [column.key for column in found.columns] == [
        *("finetune quick", "psnr quick", "tenth long", "finetune long", "psnr long"),
        *("knn runs", "psnr runs", "retrieval runs"),
    ]
    headings = {column.key: column.heading for column in found.columns}
    assert headings["psnr runs"] == "PSNR dB (runs)"
    (claim,) = found.claims
    assert (claim.row, claim.than) == ("quick/mae", "quick/r-mae†")
    assert {claim.row, claim.than} <= set(keys)
    assert found.settings["num_test"] == 760
    assert not found.same_data and found.baseline is None
    assert any("quick has photos; long has photos; runs has digits" in n for n in found.notes)
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
    assert "k-NN % (runs)" in page and "Visible" in page
    assert report([mae]) == mae / "comparison.html"


def log_speeds(workdir: Path) -> None:
    """Log 40 images/s for steps 1 to 10 and 80 images/s for steps 11 to 25, of 8 images each."""
    lines = [
        {"step": 10, "time": 2.0, "loss": 0.5, "images_per_second": 40.0},
        {"step": 20, "time": 90.0, "eval/top1": 0.75},
        {"step": 25, "time": 91.0, "loss": 0.4, "images_per_second": 80.0},
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_time_in_training_steps_comes_from_the_logged_speed(tmp_path, mae, capsys):
    train = {"duration": {"epochs": 3.0}, "batch_size": 8}
    runs = [
        run(tmp_path / "a", {"name": "mae"}, {"loss": 0.4}, train=train),
        run(tmp_path / "b", {"name": "classification"}, {"top1": 0.5}, train=train),
    ]
    for workdir in runs:
        log_speeds(workdir)
    assert read_stage(runs[0]).step_seconds == pytest.approx(10 * 8 / 40 + 15 * 8 / 80)
    assert read_stage(runs[0], seconds=7.0).step_seconds is None, "the wall time is known"
    page = report([*runs, mae]).read_text()
    assert page.count('<span class="gap">in training steps</span>') == 2
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("|a "))
    assert lines[place].endswith("3.5 s|") and lines[place + 1].endswith("in steps|")
    assert any(line.startswith("|mae") and line.endswith("–|") for line in lines), "not logged"
    assert "A time in training steps is computed" in " ".join(" ".join(lines).split())


def test_a_page_may_be_written_anywhere(reproduced, mae, tmp_path, capsys):
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "new" / "folder" / "page.html"
    assert main(["report", str(mae), str(reproduced), "--out", str(out)]) == 0
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*before, out}
    page = out.read_text()
    assert page.count("data:image/png") == 33 + 3 and "missing:" not in page
    assert f"occinv report {mae} {reproduced} --out {out}" in page
    assert main(["report", str(reproduced), "--out", str(out)]) == 0
    assert "data:image/png" in out.read_text() and "Comparison of runs" not in out.read_text()
    capsys.readouterr()
    for path, said in (
        (tmp_path / "new", "new is a folder. Give a file, such as"),
        (mae / "config.json" / "page.html", "cannot create"),
        (mae / "config.json" / "sub" / "page.html", "cannot create"),
    ):
        assert main(["report", str(mae), "--out", str(path)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert main(["report", str(mae), "--markdown", "--out", str(out)]) == 2


def test_other_folders_are_refused(tmp_path, mae):
    with pytest.raises(UserError, match=r"nope contains neither results\.json nor config\.json"):
        compare([mae, tmp_path / "nope"])
    with pytest.raises(UserError, match="no folder given"):
        compare([])
    write(tmp_path / "hf" / "config.json", {"hidden_size": 3})
    with pytest.raises(UserError, match=r"hf/config\.json is not the config of a run"):
        compare([tmp_path / "hf"])
