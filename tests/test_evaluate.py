"""From workdirs to records: `occinv evaluate` and the function behind it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_models import DECODER, SIZE, make, noise_images, save_run
from PIL import Image

from occinv.cli import main
from occinv.data.identity import Images, identify
from occinv.data.loader import EvalLoader, LoaderSpec
from occinv.data.open_source import open_source
from occinv.evaluate import evaluate
from occinv.evaluators import EVALUATORS
from occinv.evaluators.base import Evaluator, Record, Result, evaluator_class, option
from occinv.evaluators.psnr import reconstruction_psnr
from occinv.parallel import make_mesh
from occinv.schema import UserError
from occinv.train.records import read_records

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

MAE = {"name": "mae", **DECODER}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of random pixels in a part for training and a part for validation."""
    folder = tmp_path_factory.mktemp("data")
    noise_images(folder / "train", seed=0, count=8)
    noise_images(folder / "val", seed=1, count=5)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two pretrained runs and the images of their own."""
    return save_run(tmp_path / "one", MAE), save_run(tmp_path / "two", MAE, steps=(5,))


def validation(batch_size: int) -> Iterator[Any]:
    spec = LoaderSpec(batch_size=batch_size, image_size=SIZE, resize_ratio=1.0)
    return EvalLoader(open_source("digits", train=False), spec).batches()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Evaluator):
    """An evaluator outside the library."""

    factor: float = option(2.0, "Multiply by this.")
    shares: tuple[float, ...] = option((0.25, 0.5), "Some shares.")

    def measure(self, subject: Any, images: Any) -> Result:
        value = self.factor * len(images)
        values = {"product": value, "bad": float("nan")}
        return Result(values, f"{value:g}", {"curve": [1.0, 2.0]}, {"facts": (1, "two")})


OWN = f"{__name__}:Own"


# Records.


def test_a_record_is_written_into_each_workdir(runs: tuple[Path, Path]) -> None:
    found = evaluate("psnr", runs, seed=1)
    for workdir, step, one in zip(runs, (3, 5), found, strict=True):
        path = workdir / "evaluate" / "psnr.json"
        (record,) = read_records(path)
        assert json.loads(path.read_text()) == [
            json.loads(json.dumps(dataclasses.asdict(one.record)))
        ]
        assert record.making == one.record.making
        expected = reconstruction_psnr(*make(MAE, step), validation(128), seed=1, mesh=make_mesh())
        assert record.values["whole"] == pytest.approx(expected.whole, abs=1e-3)
        assert record.values["removed"] == pytest.approx(expected.removed, abs=1e-3)
        assert (record.evaluator, record.objective, record.step) == ("psnr", "mae", step)
        assert record.workdir == str(workdir)
        source = open_source("digits", train=False)
        assert record.images == identify(source, open_source("digits", train=True), is_own=True)
        assert (record.images.split, record.images.count) == ("validation", len(source))
        assert record.protocol == {
            "seed": 1,
            "mask_ratio": 0.75,
            "normalized_target": True,
        }
        assert f"{record.values['whole']:.2f} dB" in one.text
        assert one.pictures is None
        assert [p.name for p in path.parent.iterdir()] == ["psnr.json"]
    assert found[0].record.making == found[1].record.making
    assert found[0].record.values != found[1].record.values


def test_the_same_making_is_replaced_and_others_are_kept(runs: tuple[Path, Path]) -> None:
    workdir = runs[0]
    path = workdir / "evaluate" / "Own.json"
    first = evaluate(OWN, [workdir], factor=3.0)[0].record
    again = evaluate(OWN, [workdir], factor=3.0)[0].record
    assert again.making == first.making
    assert len(read_records(path)) == 1
    changes: list[dict[str, Any]] = [
        {"factor": 4.0},
        {"num_images": 7},
        {"shares": (0.25,)},
        {"source": "photos:16"},
    ]
    for number, change in enumerate(changes, 2):
        evaluate(OWN, [workdir], **{"factor": 3.0, **change})
        assert len(read_records(path)) == number
    save_run(workdir, MAE, steps=(9,))
    evaluate(OWN, [workdir / "checkpoints" / "9"], factor=3.0)  # a later step of the same model
    steps = [record.step for record in read_records(path)]
    assert steps == [3, 3, 3, 3, 9]
    assert len({record.making for record in read_records(path)}) == 5


def test_a_making_is_the_same_after_json(runs: tuple[Path, Path]) -> None:
    record = evaluate(OWN, [runs[0]], shares=(0.1, 1 / 3))[0].record
    (read,) = read_records(runs[0] / "evaluate" / "Own.json")
    assert read.making == record.making
    assert read.protocol == {"factor": 2.0, "shares": [0.1, 1 / 3], "facts": [1, "two"]}
    assert read.values == {"product": 2.0 * record.images.count, "bad": None}
    assert read.details == {"curve": [1.0, 2.0]}
    facts = dataclasses.asdict(read) | {"images": read.images}
    for change in (
        {"evaluator": "other"},
        {"images": Images("digits", read.images.count, "0", "other")},
        {"images": dataclasses.replace(read.images, count=3)},
        {"protocol": {**read.protocol, "facts": [1, "three"]}},
    ):
        assert Record(**{**facts, **change}).making != record.making
    # Other models, other versions, and what they found.
    alike = {"workdir": "x", "objective": "y", "step": 0, "code": "0", "values": {}, "details": {}}
    assert Record(**{**facts, **alike}).making == record.making


@pytest.mark.parametrize(
    "content",
    [
        '{"tokens": "visible", "models": [{"workdir": "runs/mae", "values": [[1.0]]}]}',
        '[{"evaluator": "psnr", "images": 357}]',
        '[{"step": 3}]',
        "5",
        "not JSON",
        b"\xff\xfe",
    ],
)
def test_a_file_of_other_content_is_an_error_before_measuring(
    content: str | bytes,
    runs: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = runs[0] / "evaluate" / "psnr.json"
    path.parent.mkdir()
    before = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(before)
    monkeypatch.setattr(
        "occinv.evaluators.psnr.Psnr.measure", lambda *_: pytest.fail("it was measured")
    )
    assert main(["evaluate", "psnr", "--workdir", str(runs[0])]) == 2
    said = capsys.readouterr().err
    is_json = before[:1] in b"[{5"
    reason = "has no records of this version of occinv (" if is_json else "is not JSON ("
    assert said.startswith(f"occinv: {path} {reason}")
    assert said.endswith("ove it away.\n") and said.count("\n") == 1
    assert path.read_bytes() == before


def test_the_split_is_that_of_the_images(
    noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = save_run(tmp_path / "own", MAE, source=f"folder:{noise}")
    without = save_run(tmp_path / "without", MAE, source=f"folder:{noise / 'train'}")
    for workdir, options, split in (
        (own, [], "validation"),
        (own, ["--source", f"folder:{noise / 'val'}"], "other"),
        (own, ["--source", f"folder:{noise / 'train'}"], "training"),
        (without, [], "training"),
        (without, ["--source", f"folder:{noise}"], "other"),
    ):
        command = ["evaluate", "knn", "--workdir", str(workdir), "--neighbors", "3", *options]
        assert main(command) == 0
        said = capsys.readouterr().out.splitlines()
        record = read_records(workdir / "evaluate" / "knn.json")[-1]
        assert record.images.split == split
        warned = (
            f"{workdir}: measured on folder:{noise / 'train'}, the training images of the run. "
            "Give others with --source, or train with data.eval_source."
        )
        assert said[1:] == ([warned] if split == "training" else []), said


def test_a_run_whose_training_images_are_gone_is_measured_on_others(
    noise: Path, tmp_path: Path
) -> None:
    moved = noise_images(tmp_path / "moved", count=8)
    workdir = save_run(tmp_path / "run", {"name": "classification"}, source=f"folder:{moved}")
    (before,) = evaluate("occlusion", [workdir], ratios=(0.5,), removals=("random",))
    assert before.record.images.split == "training"
    moved.rename(tmp_path / "elsewhere")
    (found,) = evaluate(
        "occlusion",
        [workdir],
        source=f"folder:{tmp_path / 'elsewhere'}",
        ratios=(0.5,),
        removals=("random",),
    )
    assert found.record.images.split == "other"
    assert found.record.values == before.record.values
    with pytest.raises(UserError, match="there is no folder"):
        evaluate("occlusion", [workdir])


def test_out_is_the_file_of_a_single_run(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "psnr.json"
    one, two = map(str, runs)
    assert main(["evaluate", "psnr", "--workdir", one, "--out", str(out)]) == 0
    assert len(read_records(out)) == 1 and not (runs[0] / "evaluate").exists()
    capsys.readouterr()
    assert main(["evaluate", "psnr", "--workdir", one, two, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said == f"occinv: --out {out} with 2 runs, expected one run\n"
    with pytest.raises(UserError, match="with 2 runs, expected one run"):
        evaluate("psnr", runs, out=out)


def test_several_workdirs_of_the_command(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "knn", "--workdir", *map(str, runs)]
    assert main([*command, "--neighbors", "3", "--num-images", "20"]) == 0
    said = capsys.readouterr().out.splitlines()
    for line, workdir in zip(said, runs, strict=True):
        assert line.startswith(f"{workdir}: top-1 ")
        (record,) = read_records(workdir / "evaluate" / "knn.json")
        assert record.images.count == 20


# Images.


def test_some_images_are_spread_over_the_source(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """The first images of a source sorted by class are all of one class."""
    folder = tmp_path / "photographs"
    for name, value in (("dark", 40), ("light", 220)):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (SIZE, SIZE), (value,) * 3).save(folder / name / f"{number}.png")
    out = tmp_path / "grid.json"
    (found,) = evaluate(
        "reconstructions", [runs[0]], num_images=2, source=f"folder:{folder}", out=out
    )
    assert found.pictures == tmp_path / "grid.png" and found.pictures.is_file()
    singles = [np.asarray(Image.open(tmp_path / "grid" / f"{i}_original.png")) for i in (0, 1)]
    assert [single.max() for single in singles] == [40, 220]
    assert singles[0].shape == (128, 128, 3)
    assert found.record.images.name == f"2 of 8 images of folder:{folder}"
    assert found.record.images.split == "other"


def test_pictures_are_written_to_the_workdir(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "reconstructions", "--workdir", str(runs[0]), "--num-images", "2"]
    assert main(command) == 0
    path = runs[0] / "evaluate" / "reconstructions.png"
    assert capsys.readouterr().out.splitlines() == [f"{runs[0]}: 2 images", str(path)]
    assert len(list(path.with_suffix("").glob("*.png"))) == 6
    with Image.open(path) as grid:
        assert grid.width > 3 * 128
    (record,) = read_records(path.with_suffix(".json"))
    assert record.values == {} and record.images.count == 2


# Options.


def test_the_options_are_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    for name in EVALUATORS:
        with pytest.raises(SystemExit):
            main(["evaluate", name, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        cls = evaluator_class(name)
        for field in dataclasses.fields(cls):
            flag = f"--{field.name.replace('_', '-')}"
            if not field.init:
                assert flag not in said
                continue
            assert flag in said, (name, flag)
            default = field.default
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            about = field.metadata["help"].removesuffix(".")
            # A long word may be broken after a comma.
            expected = f"{about}." if default is None else f"{about} (default: {shown})."
            assert expected.replace(" ", "") in said.replace(" ", ""), (name, flag)


def test_options_of_the_command_are_options_of_the_function(runs: tuple[Path, Path]) -> None:
    command = ["evaluate", "invariance", "--workdir", str(runs[0])]
    options = ["--ratios", "0.5", "--untrained", "0", "--batch-size", "16", "--num-images", "16"]
    assert main([*command, *options]) == 0
    (record,) = read_records(runs[0] / "evaluate" / "invariance.json")
    (found,) = evaluate(
        "invariance", [runs[0]], ratios=(0.5,), untrained=0, batch_size=16, num_images=16
    )
    assert found.record.making == record.making and found.record.values == record.values


def test_the_figure_of_mask_tokens_does_not_replace_that_of_drops(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"ratios": (0.5,), "untrained": 0, "batch_size": 16, "num_images": 16}
    (found,) = evaluate("invariance", [runs[0]], out=tmp_path / "cka.json", **options)
    folder = runs[0] / "evaluate"
    folder.mkdir(exist_ok=True)
    for removed, name in (("drop", "invariance"), ("mask_token", "invariance_mask_token")):
        record = dataclasses.replace(
            found.record, protocol={**found.record.protocol, "removed": removed}
        )
        made = found._replace(record=record)
        monkeypatch.setattr("occinv.evaluate.evaluate_run", lambda *_, made=made: made)
        (folder / f"{name}.png").unlink(missing_ok=True)
        before = set(folder.glob("*.png"))
        assert main(["evaluate", "invariance", "--workdir", str(runs[0])]) == 0
        assert set(folder.glob("*.png")) - before == {folder / f"{name}.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["knn", "--neighbors", "0"], "neighbors=0, expected a number >= 1"),
        (["knn", "--neighbors", "many"], "argument --neighbors: invalid int value: 'many'"),
        (["knn", "--temperature", "0"], "temperature=0.0, expected a number > 0"),
        (["knn", "--pooling", "max"], "argument --pooling: invalid choice: 'max'"),
        (["knn", "--num-images", "0"], "num_images=0, expected a number >= 1"),
        (["knn", "--num-images", "100000"], "100000 images requested, expected 1 to"),
        (["knn", "--neigbors", "3"], "unknown argument '--neigbors' (did you mean '--neighbors'"),
        (["knn", "--source", "digts"], "did you mean 'digits'"),
        (["invariance", "--ratios", "0.5,1"], "ratios[1]=1.0, expected a number < 1"),
        (["invariance", "--ratios", "0.5,x"], "invalid list of float value: '0.5,x'"),
        (["invariance", "--floors", "{}"], "unknown argument '--floors'"),
        (["occlusion", "--removals", "blok"], "did you mean 'block'"),
        (["probe", "--classifier", "svm"], "invalid choice: 'svm'"),
        (["cka"], "invalid choice: 'cka'"),
    ],
)
def test_wrong_options_are_errors_of_one_line(
    arguments: list[str],
    message: str,
    runs: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", *arguments, "--workdir", str(runs[0])]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("occinv: ") and shown.err.count("\n") == 1
    assert message in shown.err and not shown.out
    assert not (runs[0] / "evaluate").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("knnn", {}, "unknown evaluator 'knnn' \\(did you mean 'knn'"),
        ("cka", {}, "use module:Class for your own"),
        ("no_such_module:Own", {}, "cannot be imported"),
        (f"{__name__}:MAE", {}, "is not a subclass of Evaluator"),
        ("knn", {"neighbours": 3}, "unknown field 'neighbours' \\(did you mean 'neighbors'"),
        ("knn", {"neighbors": 2.5}, "neighbors=2.5"),
        ("psnr", {"batch_size": 0}, "batch_size=0"),
        ("invariance", {"floors": {}}, "unknown field 'floors'"),
        (OWN, {"factor": "two"}, "factor='two'"),
    ],
)
def test_wrong_arguments_are_errors(
    name: str, options: dict[str, Any], message: str, runs: tuple[Path, Path]
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(name, [runs[0]], **options)


def test_runs_that_cannot_be_measured(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no workdir given"):
        evaluate("psnr", [])
    with pytest.raises(UserError, match="is not the workdir"):
        evaluate("psnr", [tmp_path / "x"])
    labels = save_run(tmp_path / "labels", {"name": "classification"})
    for name in ("psnr", "reconstructions"):
        with pytest.raises(UserError, match="Classification does not reconstruct"):
            evaluate(name, [labels])
    assert not (labels / "evaluate").exists()
