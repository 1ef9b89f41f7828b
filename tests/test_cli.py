"""The command line: what it refuses, in one line and with nothing written, and what it lists.

The tests run on the eight devices of conftest.py.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import CONFIGS, make_images, overrides, tiny

from occinv import schema
from occinv.cli import main
from occinv.config import load_config
from occinv.models import vit
from occinv.objectives import OBJECTIVES
from occinv.objectives.base import Setting, make_objective
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of labeled images."""
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def cmae_run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The workdir of a C-MAE run as it lies on disk; all parameters are zeros."""
    workdir = tmp_path_factory.mktemp("runs") / "cmae"
    experiment = schema.resolve(load_config(*_spec(tiny("cmae", images))))
    encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
    objective = make_objective(experiment.objective, Setting(encoder, 2, 8))
    params, _ = jax.eval_shape(objective.init, jax.random.key(0))
    files.claim(workdir, experiment, ("dark", "light"))
    with Checkpoints(workdir / files.CHECKPOINTS) as checkpoints:
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
        checkpoints.save(8, {"params": zeros}, {})
    return workdir


def _spec(arguments: list[str]) -> tuple[str, list[str]]:
    return arguments[1], arguments[2:]


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What `occinv` says to arguments that are a mistake: one line, status 2, nothing else."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("occinv: ")
    assert shown.err.count("\n") == 1
    assert shown.err.endswith("\n")
    return shown.err


MISTAKES = [
    # Fields.
    ("mae", ["sede=1"], "unknown field 'sede' (did you mean 'seed'?)"),
    ("mae", ["trian.batch_size=8"], "unknown field 'trian' (did you mean 'train'?)"),
    ("mae", ["train.batch_sise=8"], "'train.batch_sise' (did you mean 'batch_size'?)"),
    ("mae", ["objective.mask_ration=0.5"], "'objective.mask_ration' (did you mean 'mask_ratio'?)"),
    ("cmae", ["objective.color.huw=0.5"], "'objective.color.huw' (did you mean 'hue'?)"),
    ("mae", ["seed.x=1"], "'--config.seed.x=1': seed is not a section"),
    # Types.
    ("mae", ["train.batch_size=eight"], "train.batch_size='eight' is str, expected int"),
    ("mae", ["train.batch_size=8.0"], "train.batch_size=8.0 is float, expected int"),
    ("mae", ["objective.mask_ratio=most"], "objective.mask_ratio='most' is str, expected float"),
    ("mae", ["objective.decoder_width=True"], "objective.decoder_width=True is bool"),
    ("mae", ["data.crop_scale=0.2"], "data.crop_scale=0.2 is float, expected tuple[float, float]"),
    # Choices.
    ("mae", ["encoder.name=bas"], "encoder.name='bas' is not a choice (did you mean 'base'?)"),
    ("mae", ["objective.name=mea"], "unknown objective.name='mea' (did you mean 'mae'?)"),
    ("mae", ["objective.name=nowhere:X"], "objective.name='nowhere:X' cannot be imported"),
    ("mae", ["objective.name=json:dumps"], "objective.name='json:dumps' is not a subclass"),
    ("rmae", ["objective.t2=complemnt"], "objective.t2='complemnt' is not a choice (did you mean"),
    ("cmae", ["objective.tokens=patches"], "objective.tokens='patches' is not a choice"),
    ("mae", ["train.precision=float16"], "train.precision='float16' is not a choice"),
    ("mae", ["data.source=photo"], "'photo': expected photos, photos:TILE, digits"),
    ("mae", ["data.source=photo"], "(did you mean 'photos'?)"),
    # Values.
    *(
        ("mae", [f"objective.mask_ratio={ratio}"], f"mask ratio {float(ratio)}, expected a number")
        for ratio in ("-1", "1", "1.5", "-0.75")
    ),
    ("mae", ["objective.mask_ratio=0.9"], "mask ratio 0.9 leaves none of the 4 patches visible"),
    ("mae", ["data.image_size=30"], "data.image_size=30 is not divisible by encoder.patch_size=8"),
    ("mae", ["train.batch_size=12"], "=12 is not divisible by the 8 devices (nearest: 8 or 16)"),
    ("mae", ["train.batch_size=4"], "=4 is not divisible by the 8 devices (nearest: 8)"),
    (
        "mae",
        ["encoder.heads=3"],
        "encoder.width=16, expected a multiple of 4 and of encoder.heads=3",
    ),
    ("mae", ["train.keep=0"], "train.keep=0, expected 1 or more"),
    ("mae", ["seed=-1"], "seed=-1, expected 0 or more"),
    # Combinations.
    ("mae", ["train.duration.epochs=3"], "train.duration.steps=8 and train.duration.epochs=3.0"),
    ("mae", ["train.duration.steps=None"], "train.duration has no length"),
    ("mae", ["train.duration.steps=0"], "train.duration=0 steps is less than one step"),
    ("mae", ["train.duration.steps=1"], "optimizer.warmup=2 steps is longer than train.duration=1"),
    ("mae", ["data.per_class=3", "data.fraction=0.5"], "data.per_class=3 and data.fraction=0.5"),
    ("mae", ["data.list=x", "data.fraction=0.5"], "data.list=x and data.fraction=0.5 are both"),
    ("mae", ["data.classes=drak"], "has no class 'drak' (did you mean 'dark'?)"),
    ("mae", ["data.per_class=13"], "per_class is 13, expected 1 to 12: class 'dark'"),
    ("mae", ["train.accumulate=3"], "train.accumulate=3, expected a divisor of"),
    ("mae", ["train.accumulate=2"], "train.batch_size / train.accumulate=4 is not divisible by"),
    (
        "cmae",
        ["train.batch_size=16", "train.accumulate=2", "objective.head_norm=batchnorm"],
        "train.accumulate=2: cmae mixes the images of a batch",
    ),
    ("cmae", ["objective.mask_token=False"], "objective.tokens='patch' with objective.mask_token"),
    # Data and starting points that are not there.
    ("mae", ["data.source=folder:nowhere/images"], "there is no folder nowhere/images"),
    ("mae", ["data.eval_source=digits"], "has other classes (10) than"),
    ("finetune", ["init_from=nowhere"], "nowhere is not the workdir of a run"),
]


@pytest.mark.parametrize(
    ("config", "fields", "said"), MISTAKES, ids=lambda x: "-".join(x) if isinstance(x, list) else ""
)
def test_a_mistake_is_one_line_and_writes_nothing(
    config: str,
    fields: list[str],
    said: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "runs" / "run"
    arguments = ["train", *tiny(config, images), "--workdir", str(workdir), *overrides(*fields)]
    assert said in refusal(capsys, arguments)
    assert not list(tmp_path.iterdir())


def test_the_accepted_config_is_the_one_that_the_mistakes_spoil(images: Path) -> None:
    """Else each refusal above might be of something else."""
    from occinv.train.loop import prepare

    for config in ("mae", "rmae", "cmae", "finetune", "supervised"):
        prepare(schema.resolve(load_config(*_spec(tiny(config, images)))))


def test_a_data_set_that_is_not_prepared_says_how(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, empty = tmp_path / "run", tmp_path / "empty"
    fields = overrides("data.source=tfds:mnist", f"data.data_dir={empty}")
    said = refusal(capsys, ["train", *tiny("mae", images), "--workdir", str(workdir), *fields])
    assert "'mnist' is not prepared" in said
    assert f"occinv data prepare mnist --data-dir {empty}" in said
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_names_its_nearest_neighbor(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = overrides(f"data.source=folder:{images.parent / 'imagse'}")
    workdir = ["--workdir", str(tmp_path / "run")]
    said = refusal(capsys, ["train", *tiny("mae", images), *workdir, *source])
    assert f"there is no folder {images.parent / 'imagse'} (did you mean 'images'?)" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["encoder.width=32"], "init_from: "),
        (["encoder.depth=2"], "init_from: blocks of that encoder is"),
        (
            ["encoder.heads=4"],
            "init_from: that encoder has heads=2, here it is 4; give",
        ),
        (["encoder.gelu=tanh"], "init_from: that encoder has gelu=erf, here it is tanh"),
        (["encoder.layer_scale=0.1"], "that encoder has layer_scale=None, here it is 0.1; give"),
        (["encoder.relative_position=block"], "that encoder has relative_position=None, here it"),
        (["encoder.patch_size=4"], "give encoder.* the values of that run"),
    ],
)
def test_an_encoder_of_another_shape(
    fields: list[str],
    said: str,
    cmae_run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train", *tiny("finetune", images), "--workdir", str(tmp_path / "run")]
    start = overrides(f"init_from={cmae_run}", *fields)
    assert said in refusal(capsys, [*arguments, *start])
    assert not list(tmp_path.iterdir())


CONFIG = ["--config", str(CONFIGS / "mae.py:smoke")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", *CONFIG], "required: --workdir (see occinv train --help)"),
        (["train", "--workdir", "W"], "required: --config"),
        (["train", *CONFIG, "--workdir"], "--workdir: expected one argument"),
        (["train", *CONFIG, "--workdir", "W", "--workdri=V"], "'--workdri=V' (did you mean '--wo"),
        (["train", *CONFIG, "--workdir", "W", "--sed", "1"], "'--sed' (did you mean '--seed'?)"),
        (["train", *CONFIG, "--workdir", "W", "extra"], "unknown argument 'extra'"),
        (["train", *CONFIG, "--workdir", "W", "--config.seed"], "unknown argument '--config.seed'"),
        (["train", *CONFIG, "--workdir", "W", "--config.seed", "1"], "unknown argument '1'"),
        (
            ["train", "--config", "configs/mea.py", "--workdir", "W"],
            "(did you mean 'configs/mae.py",
        ),
        (["train", "--config", f"{CONFIGS}/mae.py:smok", "--workdir", "W"], "mean 'smoke'?)"),
        (["evaluate", "kca", "--workdir", "W"], "invalid choice: 'kca'"),
        (["evaluate", "cka", "--workdir", "W"], "W is not the workdir of a run"),
        (["evaluate", "psnr", "--workdir", "W"], "W is not the workdir of a run"),
        (["evaluate", "reconstruct", "--workdir", "W"], "W is not the workdir of a run"),
        (["evaluate", "cka", "--workdir", "W", "--seed", "x"], "invalid int value: 'x'"),
        (
            ["evaluate", "cka", "--workdir", "W", "--config.seed=1"],
            "unknown argument '--config.seed",
        ),
        (["reproduce", "quickstrat", "--workdir", "W"], "no table 'quickstrat' (did you mean 'qu"),
        (["reproduce", "table3", "--workdir", "W"], "--scale is missing: give one of smoke, qui"),
        (
            ["reproduce", "table3", "--workdir", "W", "--scale", "samll"],
            "--scale 'samll' (did you mean 'small'?)",
        ),
        (
            ["reproduce", "table3", "--workdir", "W", "--scale", "smoke", "--sed", "1"],
            "unknown argument '--sed'",
        ),
        (
            ["reproduce", "table3", "--workdir", "W", "--scale", "smoke", "--config.dat.x=1"],
            "unknown field 'dat' (did you mean 'data'?)",
        ),
        (
            ["reproduce", "table3", "--workdir", "W", "--scale", "small"],
            "there is no folder tiny_imagenet_20",
        ),
        (
            ["reproduce", "table3", "--workdir", "W", "--scale", "smoke", "--jobs", "3", "of", "2"],
            "--jobs 3 of 2, expected 1 to 2",
        ),
        (["reproduce", "quickstart", "--workdir", "W", "--rows", "mea"], "(did you mean 'mae'?)"),
        (["reproduce", "quickstart", "--workdir", "W", "--seeds", "0"], "--seeds 0, expected 1 or"),
        (["report", "W"], "W"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_arguments_that_are_a_mistake(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, arguments)
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_a_file(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    said = refusal(capsys, ["train", *tiny("mae", images), "--workdir", str(path)])
    assert f"{path} is a file" in said
    assert path.read_text() == "notes"


@pytest.mark.parametrize("measure", ["psnr", "reconstruct"])
def test_an_objective_without_pixels_has_no_reconstruction(
    measure: str, cmae_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, ["evaluate", measure, "--workdir", str(cmae_run)])
    assert "CMAE does not reconstruct pixels" in said
    assert not (cmae_run / "evaluate").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["seed=1"], "seed=0 (now 1)"),
        (["train.batch_size=16"], "train.batch_size=8 (now 16)"),
        (["encoder.depth=2"], "encoder.depth=1 (now 2)"),
        (["objective.temperature=0.1"], "objective.temperature=0.2 (now 0.1)"),
        (["train.duration.steps=9"], "train.duration.steps=8 (now 9)"),
        (["optimizer.base_lr=1e-3", "seed=2"], "use another --workdir"),
    ],
)
def test_a_workdir_belongs_to_its_config(
    fields: list[str],
    said: str,
    cmae_run: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in sorted(cmae_run.rglob("*")) if p.is_file()}

    before = content()
    again = ["train", *tiny("cmae", images), "--workdir", str(cmae_run), *overrides(*fields)]
    assert said in refusal(capsys, again)
    assert content() == before


def test_a_workdir_takes_changes_that_cannot_matter(cmae_run: Path, images: Path) -> None:
    free = [
        "train.log_every.steps=3",
        "train.evaluate_every.steps=2",
        "train.checkpoint_every.epochs=2",
        "train.keep=9",
        "data.num_threads=2",
        "data.max_corrupt=1",
    ]
    experiment = schema.resolve(load_config(*_spec([*tiny("cmae", images), *overrides(*free)])))
    files.claim(cmae_run, experiment, ("dark", "light"))
    stored = json.loads((cmae_run / files.CONFIG).read_text())["experiment"]
    assert stored["train"]["keep"] == 9


def test_help_lists_the_choices_within_a_second_and_without_jax() -> None:
    code = (
        "import sys\n"
        "from occinv.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    loaded = {'jax', 'numpy', 'flax', 'rich', 'grain'} & set(sys.modules)\n"
        "    assert not loaded, loaded\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1  # seconds of this process, however busy the others
    for choice in (*OBJECTIVES, "mae.py", "rmae.py", "cmae.py", "finetune.py", "supervised.py"):
        assert choice in shown
    for choice in ("micro", "base", "huge", "photos", "digits", "folder:PATH", "tfds:NAME", "143"):
        assert choice in shown
