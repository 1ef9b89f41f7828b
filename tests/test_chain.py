"""The whole way: pretrain, fine-tune, measure, report; by hand and as `reproduce` does it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import DECODER, overrides, tiny

from occinv.cli import main
from occinv.reproduce import run as reproduce_run
from occinv.train import workdir as files

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

# 16 patches: a quarter of them is enough to reconstruct from.
STEPS = ("train.duration.steps=4", "optimizer.warmup.steps=1", "encoder.patch_size=4")


@pytest.fixture(autouse=True)
def two_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ratio is another program to compile."""
    few = {"invariance": {"ratios": (0.25, 0.75)}, "occlusion": {"ratios": (0.75,)}}
    for name, fields in few.items():
        evaluator = dataclasses.replace(reproduce_run.EVALUATORS[name], **fields)
        monkeypatch.setitem(reproduce_run.EVALUATORS, name, evaluator)


def written(folder: Path) -> dict[str, int]:
    """When every file below `folder` was last written."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def test_by_hand(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "mae", tmp_path / "finetuned"
    command = ["train", *tiny("mae", images), *overrides(*STEPS, "train.monitors=['rank']")]
    assert main([*command, "--workdir", str(before)]) == 0
    assert f"{before}: 4 steps done; validation loss " in capsys.readouterr().out

    lines = map(json.loads, (before / files.METRICS).read_text().splitlines())
    last = [line for line in lines if "loss" in line][-1]
    assert 1 <= last["feature_rank"] <= 8 and last["feature_variance"] > 0

    start = overrides(*STEPS, f"init_from={before}")
    command = ["train", *tiny("finetune", images), *start]
    assert main([*command, "--workdir", str(after)]) == 0
    result = json.loads((after / files.RESULT).read_text())
    assert 0 <= result["metrics"]["top1"] <= 1
    assert f"top1 {result['metrics']['top1']:.4g}" in capsys.readouterr().out
    assert files.load_run(after).classes == ("dark", "light")

    command = ["evaluate", "invariance", "--ratios", "0.25,0.75", "--workdir"]
    assert main([*command, str(before), str(after)]) == 0
    for workdir, objective, token in ((before, "mae", "class"), (after, "classification", "mean")):
        (record,) = json.loads((workdir / "evaluate" / "invariance.json").read_text())
        assert (record["objective"], record["details"]["token"]) == (objective, token)
        details = record["details"]
        for feature in ("class", "mean", "tokens"):
            values = np.array(details["cka"][feature])
            assert values.shape == (len(details["ratios"]), len(details["blocks"])) == (2, 1)
            assert (np.abs(values) <= 1 + 1e-6).all()
        assert set(details["floor"]) == {"untrained 0", "untrained 1", "blind"}
        assert details["floor"]["blind"]["cka"]["class"] == [[0.0], [0.0]]
        assert record["images"]["count"] == details["images"] == 12
        assert record["images"]["split"] == "validation"
    assert (before / "evaluate" / "invariance.png").is_file()

    assert main(["evaluate", "psnr", "--workdir", str(before)]) == 0
    (psnr,) = json.loads((before / "evaluate" / "psnr.json").read_text())
    assert psnr["objective"] == "mae"
    # dB; visible patches are pasted into the whole
    assert psnr["values"]["whole"] > psnr["values"]["removed"] > 0

    command = ["evaluate", "reconstructions", "--workdir", str(before), "--num-images", "2"]
    assert main(command) == 0
    with Image.open(before / "evaluate" / "reconstructions.png") as grid:
        assert grid.width > 3 * 16


def test_reproduced(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    workdir = Path("runs")
    fields = tiny("finetune", images, *STEPS)[2:]
    command = [
        *("reproduce", "quickstart", "--scale", "smoke", "--rows", "random,mae"),
        *("--workdir", str(workdir), *fields),
        *(f"--pretrain.{field}" for field in DECODER),
    ]

    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Random init" in shown
    assert "MAE" in shown
    results = json.loads((workdir / "results.json").read_text())
    floor = ["untrained_class", "blind_class", "untrained_mean", "blind_mean"]
    assert [row["key"] for row in results["rows"]] == ["random", "mae", *floor]
    for row in results["rows"][:2]:
        assert row["status"] == "done"
        assert len(row["values"]["finetune"]) == 1
        assert 0 <= row["values"]["finetune"][0] <= 1
        assert row["cka"]["finetuned"] is not None
        assert row["finetune"]["loss"][-1][0] == 4
        assert len(row["values"]["occlusion"]) == len(row["hits"]["finetune"]) == 1
    random, mae = results["rows"][:2]
    assert mae["cka"]["pretrained"]["floor"]
    assert random["pretrain"] is random["cka"]["pretrained"] is None
    assert random["values"]["psnr"] == []
    assert mae["values"]["psnr"][0] > mae["values"]["psnr_removed"][0] > 0
    assert mae["cka"]["pretrained"]["blocks"] == mae["cka"]["finetuned"]["blocks"]
    assert mae["paper"] == {}  # a few steps compare with nothing
    assert mae["reconstructions"]
    for triple in mae["reconstructions"]:
        for path in triple.values():
            assert (workdir / path).is_file()
    for stage in (random["finetune"], mae["pretrain"], mae["finetune"]):
        assert stage["seconds"] > 0
        assert stage["parameters"] > 0
        assert stage["command"].startswith("occinv train --config ")
    assert "--config.init_from=runs/runs/mae/seed0/pretrain" in mae["finetune"]["command"]
    page = (workdir / "report.html").read_text()
    assert "data:image/" in page
    assert not re.search(r"(?:src|href)=\"https?://", page)  # self-contained

    def trained() -> dict[str, int]:
        kept = (
            files.METRICS,
            files.RESULT,
            "ned.json",
            "psnr.json",
            "seconds.json",
            "ions.png",
            "ion.json",
        )
        return {name: at for name, at in written(workdir).items() if name.endswith(kept)}

    before = trained()
    assert before
    assert main(command) == 0
    assert trained() == before
    again = json.loads((workdir / "results.json").read_text())
    assert again["rows"] == results["rows"]

    (workdir / "report.html").unlink()
    assert main(["report", str(workdir)]) == 0
    assert (workdir / "report.html").is_file()
    assert "Random init" in capsys.readouterr().out
