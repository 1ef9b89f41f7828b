"""From workdirs to files: what the `evaluate` commands call."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from example_models import DECODER, SIZE, make, save_run
from PIL import Image

from occinv.data.loader import EvalLoader
from occinv.data.open_source import open_source
from occinv.evaluators.cka import cka_curves
from occinv.evaluators.psnr import reconstruction_psnr
from occinv.evaluators.run import evaluate_cka, evaluate_psnr, evaluate_reconstruct
from occinv.parallel import make_mesh
from occinv.schema import UserError

MAE = {"name": "mae", **DECODER}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pretrained and a supervised run."""
    root = tmp_path_factory.mktemp("runs")
    return save_run(root / "mae", MAE), save_run(root / "labels", {"name": "classification"})


def held_out(batch_size: int) -> list:
    source = open_source("digits", train=False)
    loader = EvalLoader(source, batch_size=batch_size, image_size=SIZE, resize_ratio=1.0)
    return list(loader.batches())


def test_cka_of_several_runs_is_measured_and_written(runs: tuple[Path, Path]) -> None:
    found = evaluate_cka(runs, ratios=(0.75,), seed=3, batch_size=60)
    path = runs[0] / "evaluate" / "cka.json"
    assert json.loads(path.read_text()) == found
    assert [p.name for p in path.parent.iterdir()] == ["cka.json"]
    assert found["tokens"] == "visible"
    assert [m["objective"] for m in found["models"]] == ["mae", "classification"]
    model = found["models"][0]
    assert (model["step"], model["workdir"]) == (3, str(runs[0]))
    assert model["images"] == len(open_source("digits", train=False))
    assert model["source"] == open_source("digits", train=False).name
    objective, params = make(MAE, 3)
    mesh = make_mesh()
    # 60 is rounded up to a multiple of the 8 devices.
    curves = cka_curves(
        objective.encoder, params["encoder"], held_out(64), (0.75,), seed=3, mesh=mesh
    )
    np.testing.assert_allclose(model["values"], curves.values, atol=2e-5)
    assert (model["ratios"], model["blocks"]) == ([0.75], [1, 2])


def test_psnr_is_measured_and_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = evaluate_psnr(runs[0] / "checkpoints" / "3", seed=1)
    assert json.loads((runs[0] / "evaluate" / "psnr.json").read_text()) == found
    expected = reconstruction_psnr(*make(MAE, 3), held_out(128), seed=1, mesh=make_mesh())
    assert found["whole"] == pytest.approx(expected.whole, abs=1e-3)
    assert found["images"] == expected.images
    evaluate_psnr(runs[0], num_images=10, out=tmp_path / "new" / "psnr.json")
    assert json.loads((tmp_path / "new" / "psnr.json").read_text())["images"] == 10
    with pytest.raises(UserError, match="does not reconstruct"):
        evaluate_psnr(runs[1])


def test_some_images_are_spread_over_the_source(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a source sorted by class, the first ones alone would be of one class."""
    folder = tmp_path / "photographs"
    for name, value in (("dark", 40), ("light", 220)):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (SIZE, SIZE), (value,) * 3).save(folder / name / f"{number}.png")
    grid = evaluate_reconstruct(
        runs[0], 2, source=f"folder:{folder}", scale=1, out=tmp_path / "grid.png"
    )
    assert grid == tmp_path / "grid.png"
    assert grid.is_file()
    singles = [np.asarray(Image.open(tmp_path / "grid" / f"{i}_original.png")) for i in (0, 1)]
    assert [single.max() for single in singles] == [40, 220]
    assert singles[0].shape == (SIZE, SIZE, 3)


def test_reconstructions_have_a_place_in_the_workdir(runs: tuple[Path, Path]) -> None:
    path = evaluate_reconstruct(runs[0], 2)
    assert path == runs[0] / "evaluate" / "reconstructions.png"
    assert len(list(path.with_suffix("").glob("*.png"))) == 6
    with Image.open(path) as grid:
        assert grid.width > 3 * 128


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: evaluate_cka([]), "no workdir"),
        (lambda path: evaluate_cka([path / "x"]), "is not the workdir"),
        (lambda path: evaluate_cka([path], num_images=0), "0 images asked for, expected 1 to"),
        (lambda path: evaluate_psnr(path, source="digts"), "did you mean 'digits'"),
        (lambda path: evaluate_psnr(path, batch_size=0), "batch_size=0"),
        (lambda path: evaluate_reconstruct(path, 10**6), "1000000 images asked for"),
        (lambda path: evaluate_reconstruct(path, scale=0), "scale=0"),
    ],
)
def test_what_cannot_be_is_an_error(runs: tuple[Path, Path], call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(runs[0])
