"""From workdirs to result files: the functions behind `occinv evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from example_models import DECODER, SIZE, make, save_run
from PIL import Image

from occinv.data.loader import EvalLoader, LoaderSpec
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


def validation(batch_size: int) -> list:
    spec = LoaderSpec(batch_size=batch_size, image_size=SIZE, resize_ratio=1.0)
    return list(EvalLoader(open_source("digits", train=False), spec).batches())


def test_cka_of_several_runs_is_measured_and_written(runs: tuple[Path, Path]) -> None:
    found = evaluate_cka(runs, ratios=(0.75,), seed=3, batch_size=60)
    path = runs[0] / "evaluate" / "cka.json"
    content = json.loads(path.read_text())
    settings = {"tokens": "visible", "removed": "drop", "seed": 3, "batch_size": 60}
    models = json.loads(json.dumps([model.as_json() for model in found]))
    assert content == {**settings, "models": models}
    assert [p.name for p in path.parent.iterdir()] == ["cka.json"]
    assert [m["objective"] for m in models] == ["mae", "classification"]
    model = models[0]
    assert (model["step"], model["workdir"]) == (3, str(runs[0]))
    assert model["images"] == len(open_source("digits", train=False))
    assert model["source"] == open_source("digits", train=False).name
    objective, params = make(MAE, 3)
    mesh = make_mesh()
    # 60 is rounded up to a multiple of the 8 devices.
    curves = cka_curves(
        objective.networks.encoder,
        params["encoder"],
        validation(64),
        (0.75,),
        seed=3,
        mesh=mesh,
    )
    np.testing.assert_allclose(model["values"], curves.values, atol=2e-5)
    np.testing.assert_array_equal(found[0].result.values, model["values"])
    assert (model["ratios"], model["blocks"]) == ([0.75], [1, 2])


def test_psnr_is_measured_and_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = evaluate_psnr(runs[0] / "checkpoints" / "3", seed=1)
    assert json.loads((runs[0] / "evaluate" / "psnr.json").read_text()) == found.as_json()
    expected = reconstruction_psnr(*make(MAE, 3), validation(128), seed=1, mesh=make_mesh())
    assert found.result.whole == pytest.approx(expected.whole, abs=1e-3)
    assert found.result.images == expected.images
    assert (found.step, found.objective, found.result.seed) == (3, "mae", 1)
    evaluate_psnr(runs[0], num_images=10, out=tmp_path / "new" / "psnr.json")
    assert json.loads((tmp_path / "new" / "psnr.json").read_text())["images"] == 10
    with pytest.raises(UserError, match="does not reconstruct"):
        evaluate_psnr(runs[1])


def test_some_images_are_spread_over_the_source(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """The first images of a source sorted by class are all of one class."""
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


def test_reconstructions_are_written_to_the_workdir(runs: tuple[Path, Path]) -> None:
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
        (lambda path: evaluate_cka([path], num_images=0), "0 images requested, expected 1 to"),
        (lambda path: evaluate_psnr(path, source="digts"), "did you mean 'digits'"),
        (lambda path: evaluate_psnr(path, batch_size=0), "batch_size=0"),
        (lambda path: evaluate_reconstruct(path, 10**6), "1000000 images requested"),
        (lambda path: evaluate_reconstruct(path, scale=0), "scale=0"),
    ],
)
def test_impossible_arguments_are_errors(runs: tuple[Path, Path], call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(runs[0])
