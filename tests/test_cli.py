"""Tests of the command line: errors are one line and write nothing.

The tests run on the eight devices of conftest.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import CONFIGS, overrides, tiny

from occinv import schema
from occinv.cli import main, make_parser
from occinv.config import load_config
from occinv.objectives import forward
from occinv.objectives.base import objective_of
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def cmae_run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """The workdir of a C-MAE run. All its parameters are zeros."""
    workdir = tmp_path_factory.mktemp("runs") / "cmae"
    experiment = schema.resolve(load_config(*_spec(tiny("cmae", images))))
    objective = objective_of(experiment)
    params, _ = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    identity = files.claim(workdir, experiment, ("dark", "light"))
    with Checkpoints(workdir / files.CHECKPOINTS, run=identity) as checkpoints:
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
        checkpoints.save(8, {"params": zeros})
    return workdir


def _spec(arguments: list[str]) -> tuple[str, list[str]]:
    return arguments[1], arguments[2:]


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Returns the error for wrong arguments: one line, with exit status 2 and no output."""
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
    ("mae", ["train.batch_sise=8"], "'train.batch_sise' (did you mean 'train.batch_size'?)"),
    ("mae", ["mask_ratio=0.5"], "'mask_ratio' (did you mean 'objective.mask_ratio'?)"),
    ("mae", ["train.mask_ration=0.5"], "(did you mean 'objective.mask_ratio'?)"),
    ("mae", ["optimizer.nam=lamb"], "'optimizer.nam' (did you mean 'optimizer.name'?)"),
    ("mae", ["optimizer.lr=1"], "(did you mean 'optimizer.base_lr' or 'optimizer.min_lr'?)"),
    ("mae", ["objective.batch_size=8"], "(did you mean 'train.batch_size'?)"),
    ("dino", ["mask_ratio=0.5"], "unknown field 'mask_ratio' (expected one of: data, encoder"),
    ("mae", ["objective.mask_ration=0.5"], "'objective.mask_ration' (did you mean 'mask_ratio'?)"),
    ("cmae", ["objective.color.huw=0.5"], "'objective.color.huw' (did you mean 'hue'?)"),
    ("mae", ["seed.x=1"], "'--config.seed.x=1': seed is not a section"),
    # Types.
    (
        "mae",
        ["train.batch_size=eight"],
        "train.batch_size='eight', expected int >= 1, such as 1024",
    ),
    ("mae", ["train.batch_size=8.0"], "train.batch_size=8.0, expected int >= 1"),
    ("mae", ["objective.mask_ratio=75%"], "='75%', expected float >= 0 and < 1, such as 0.75"),
    (
        "mae",
        ["objective.decoder_width=True"],
        "objective.decoder_width=True, expected int",
    ),
    ("mae", ["data.crop_scale=0.2"], "data.crop_scale=0.2, expected (float"),
    # Choices.
    ("mae", ["encoder.name=bas"], "'large' or 'huge' (did you mean 'base'?)"),
    ("mae", ["objective.name=mea"], "unknown objective.name='mea' (did you mean 'mae'?)"),
    ("mae", ["objective.name=nowhere:X"], "objective.name='nowhere:X' cannot be imported"),
    ("mae", ["objective.name=..:x"], "objective.name='..:x' cannot be imported: TypeError"),
    ("mae", ["objective={}"], "objective.name is missing"),
    ("mae", ["objective.color={1:2}"], "unknown field 'objective.color.1'"),
    ("mae", ["evals={'../../x':{}}"], "evals: the label '../../x' names a file, expected"),
    ("mae", ["evals={'knn':{},'a:knn':{}}"], "evals: two labels end in 'knn'"),
    ("mae", ["init_from=~nobody-here/x"], "'~nobody-here/x': Could not determine home directory"),
    ("mae", [f"init_from={'a' * 300}"], "File name too long. Use another path"),
    ("mae", ["objective.name=json:dumps"], "objective.name='json:dumps' is not a subclass"),
    ("rmae", ["objective.t2=complemnt"], "objective.t2='complemnt', expected 'complement', 'indep"),
    (
        "cmae",
        ["objective.tokens=patches"],
        "objective.tokens='patches', expected 'patch', 'class'",
    ),
    ("mae", ["train.precision=float16"], "train.precision='float16', expected 'auto', 'float32'"),
    ("mae", ["data.source=photo"], "'photo', expected photos, photos:TILE, digits"),
    ("mae", ["data.source=photo"], "(did you mean 'photos'?)"),
    ("mae", ["data.eval_source=/"], "data.eval_source='/' is a folder. Write data.eval_source=f"),
    # Objective and evaluators are checked before the data is opened.
    (
        "mae",
        ["objective.mask_ration=0.5", "data.source=folder:nowhere"],
        "'objective.mask_ration' (did you mean 'mask_ratio'?)",
    ),
    (
        "mae",
        ["evals.knn.neighbours=3", "data.source=folder:nowhere"],
        "'evals.knn.neighbours' (did you mean 'neighbors'?)",
    ),
    # Values.
    *(
        (
            "mae",
            [f"objective.mask_ratio={ratio}"],
            f"objective.mask_ratio={ratio}, expected a number",
        )
        for ratio in ("-1", "1", "1.5", "-0.75")
    ),
    ("mae", ["train.duration.epochs=1e30"], "steps, expected fewer than 2147483648"),
    ("mae", ["optimizer.clip_norm=1e-300"], "=1e-300, expected a number > 0, at least 1e-37"),
    ("mae", ["objective.mask_ratio=0.9"], "mask ratio 0.9 leaves none of 4 patches visible"),
    ("mae", ["data.image_size=30"], "data.image_size=30 is not divisible by encoder.patch_size=8"),
    ("mae", ["train.batch_size=12"], "=12 is not divisible by the 8 devices; use 8 or 16"),
    ("mae", ["train.batch_size=4"], "=4 is not divisible by the 8 devices; use 8"),
    (
        "mae",
        ["encoder.heads=3"],
        "encoder.width=16, expected a multiple of 4 and of encoder.heads=3",
    ),
    ("mae", ["train.keep=0"], "train.keep=0, expected a number >= 1"),
    ("mae", ["train.profile=(1,0)"], "train.profile[1]=0, expected a number >= 1"),
    ("mae", ["train.profile=(0,5)"], "train.profile[0]=0, expected a number >= 1"),
    ("mae", ["train.profile=10"], "train.profile=10, expected (int >= 1, int >= 1) or None"),
    (
        "mae",
        ["train.profile=(9,5)"],
        "step 9 is after the end of the run; use a first step of 1 to",
    ),
    ("mae", ["seed=-1"], "seed=-1, expected a number >= 0"),
    # Combinations.
    (
        "mae",
        ["train.duration={'steps': 8, 'epochs': 3}"],
        "train.duration.steps=8 and train.duration.epochs=3.0 are both given in one place; give",
    ),
    (
        "mae",
        ["train.duration.share=0.5"],
        "only optimizer.warmup and optimizer.cooldown can be a share",
    ),
    ("mae", ["train.duration.steps=None"], "train.duration has no length"),
    ("mae", ["train.duration.steps=0"], "train.duration=0 steps is less than one step"),
    (
        "mae",
        ["optimizer.warmup.steps=9"],
        "optimizer.warmup=9 steps is longer than train.duration=8 steps (9 and 8 steps); shorten "
        "it, such as by --config.optimizer.warmup.share=0.1",
    ),
    ("mae", ["data.per_class=3", "data.fraction=0.5"], "data.per_class=3 and data.fraction=0.5"),
    ("mae", ["data.list=x", "data.fraction=0.5"], "data.list=x and data.fraction=0.5 are both"),
    ("mae", ["data.classes=drak"], "has no class 'drak' (did you mean 'dark'?)"),
    ("mae", ["data.per_class=13"], "data.per_class=13: class 'dark' of"),
    ("mae", ["train.accumulate=3"], "train.accumulate=3, expected a divisor of"),
    ("mae", ["train.accumulate=2"], "train.batch_size / train.accumulate=4 is not divisible by"),
    (
        "cmae",
        ["train.batch_size=16", "train.accumulate=2", "objective.head_norm=batchnorm"],
        "train.accumulate=2: cmae mixes the images of a batch",
    ),
    ("cmae", ["objective.mask_token=False"], "objective.tokens='patch' with objective.mask_token"),
    # Missing data and missing runs.
    ("mae", ["data.source=folder:nowhere/images"], "there is no folder nowhere/images"),
    ("mae", ["data.eval_source=digits"], "has other classes (10) than"),
    ("finetune", ["init_from=nowhere"], "nowhere is not the workdir of a run"),
]


@pytest.mark.parametrize(
    ("config", "fields", "said"), MISTAKES, ids=lambda x: "-".join(x) if isinstance(x, list) else ""
)
def test_a_wrong_field_gives_one_line_and_writes_nothing(
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


def test_the_configs_without_the_wrong_fields_are_accepted(images: Path) -> None:
    """Otherwise another error could hide behind each error above."""
    from occinv.train.prepare import prepare

    for config in ("mae", "rmae", "cmae", "finetune", "supervised"):
        prepare(schema.resolve(load_config(*_spec(tiny(config, images)))))


def test_the_error_for_an_unprepared_data_set_gives_the_command(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, empty = tmp_path / "run", tmp_path / "empty"
    fields = overrides("data.source=tfds:mnist", f"data.data_dir={empty}")
    said = refusal(capsys, ["train", *tiny("mae", images), "--workdir", str(workdir), *fields])
    assert "'mnist' is not prepared" in said
    assert f"occinv data prepare mnist --data-dir {empty}" in said
    assert not list(tmp_path.iterdir())


def test_the_error_for_a_missing_folder_gives_the_nearest_name(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = overrides(f"data.source=folder:{images.parent / 'imagse'}")
    workdir = ["--workdir", str(tmp_path / "run")]
    said = refusal(capsys, ["train", *tiny("mae", images), *workdir, *source])
    assert f"there is no folder {images.parent / 'imagse'} (did you mean 'images'?)" in said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["encoder.width=32"], "has width=16 (here 32); leave these fields out, or set"),
        (["encoder.depth=2"], "has depth=1 (here 2); leave"),
        (
            ["encoder.heads=4", "encoder.gelu=tanh", "encoder.patch_size=4"],
            "patch_size=8 (here 4), heads=2 (here 4), gelu=erf (here tanh); leave these fields "
            "out, or set --config.encoder.patch_size=8 --config.encoder.heads=2 "
            "--config.encoder.gelu=erf",
        ),
        (["encoder.layer_scale=0.1"], "has layer_scale=None (here 0.1); leave"),
        (["encoder.relative_position=block"], "has relative_position=None (here block); leave"),
        (["encoder.pixel_range=half"], "has pixel_range=imagenet (here half); leave"),
    ],
)
def test_init_from_refuses_an_encoder_of_another_shape(
    fields: list[str],
    said: str,
    cmae_run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train", *tiny("finetune", images), "--workdir", str(tmp_path / "run")]
    # Data that cannot be opened: the encoder is checked before.
    start = overrides(f"init_from={cmae_run}", "data.source=folder:nowhere", *fields)
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
        (
            ["evaluate", "invariance", "--workdir", "W", "--sed", "1"],
            "'--sed' (did you mean '--seed'?)",
        ),
        (
            ["train", *CONFIG, "--workdir", "W", "--seed=1"],
            "set a field of the config with --config.",
        ),
        (["weights", "import", "--from", "mae", "f", "--to", "W", "--hads=2"], "mean '--heads'?)"),
        (["list", "--config.seed=1"], "unknown argument '--config.seed=1'"),
        (["train", *CONFIG, "--workdir", "W", "extra"], "unknown argument 'extra'"),
        (["train", *CONFIG, "--workdir", "W", "--config.seed"], "unknown argument '--config.seed'"),
        (["train", *CONFIG, "--workdir", "W", "--config.seed", "1"], "unknown argument '1'"),
        (
            ["train", "--config", "configs/mea.py", "--workdir", "W"],
            "'configs/mea.py' is not a file (did you mean 'mae'?)",
        ),
        (
            ["train", "--config", "configs/mae.py", "--workdir", "W"],
            "'configs/mae.py' is not a file in this folder; --config mae is the packaged config",
        ),
        (["train", "--config", "mea", "--workdir", "W"], "not a config of occinv (did you mean 'm"),
        (["train", *CONFIG, "--workdir", ""], "--workdir: the path is empty, expected a file or"),
        (["train", *CONFIG, "--workdir", "~no-such-user/x"], "'~no-such-user/x': Could not det"),
        (["train", "--extend", "--workdir", "W"], "--extend: W holds no run. Start one with --con"),
        (["config"], "expected a config, such as `occinv config mae:smoke`, or --fields"),
        (["config", "mae", "--fields"], "expected a config, such as"),
        (["config", "--fields", "mea"], "--fields 'mea' is not known (did you mean 'mae'?)"),
        (["config", "mae", "--config.evals.knn.neighbours=3"], "(did you mean 'neighbors'?)"),
        (["config", "mae", "--config.data.source=imagenet"], "data.source='imagenet', expected ph"),
        (["config", "mae", "--config.data.eval_source=foldr:x"], "(did you mean 'folder'?)"),
        (["config", "mae", "--config.evals.knnn={}"], "evaluator 'knnn' (did you mean 'knn'?)"),
        (["config", "finetune", "--config.init_from=nowhere"], "nowhere is not the workdir of"),
        (["train", "--config", f"{CONFIGS}/mae.py:smok", "--workdir", "W"], "mean 'smoke'?)"),
        (["evaluate", "invarianse", "--workdir", "W"], "invalid choice: 'invarianse'"),
        (["evaluate", "invariance", "--workdir", "W"], "W is not the workdir of a run"),
        (["evaluate", "psnr", "--workdir", "W"], "W is not the workdir of a run"),
        (["evaluate", "reconstructions", "--workdir", "W"], "W is not the workdir of a run"),
        (
            ["evaluate", "invariance", "--workdir", "W", "--seed", "x"],
            "argument --seed: invalid int value: 'x'",
        ),
        (
            ["evaluate", "invariance", "--workdir", "W", "--config.seed=1"],
            "unknown argument '--config.seed",
        ),
        (["reproduce", "quickstrat", "--workdir", "W"], "no table 'quickstrat' (did you mean 'qu"),
        (["reproduce", "table3", "--workdir", "W"], "--scale is missing. Give one of smoke, qui"),
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
        (["report", "\x1b[31m"], r"'\x1b[31m' has a control code, a line break or a byte that"),
        (["report", "W\udce9"], r"'W\udce9' has a control code, a line break or a byte that"),
        (
            ["report", "W", "--prefix\x1b[31m" + "x" * 9999],
            "unknown argument '--prefix\\x1b[31mxxx",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_arguments_give_one_line_and_write_nothing(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["train", "--config", "mae", "--workdir=~/run"], "workdir"),
        (["evaluate", "knn", "--workdir", "~/run"], "workdir"),
        (["report", "~/run"], "folders"),
        (["reproduce", "table1", "--workdir", "~/run"], "workdir"),
        (["weights", "import", "--from", "mae", "f", "--to", "~/run"], "to"),
        (["plan", "--config", "mae", "--topology", "v5e:4x4", "--out", "~/run"], "out"),
    ],
)
def test_the_home_folder_may_be_a_tilde(
    words: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = getattr(make_parser(words[:1]).parse_args(words), name)
    assert Path("/home/me/run") in (found if isinstance(found, list) else [found])


def test_a_file_is_not_a_workdir(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    said = refusal(capsys, ["train", *tiny("mae", images), "--workdir", str(path)])
    assert f"{path} is a file" in said
    assert path.read_text() == "notes"


@pytest.mark.parametrize("evaluator", ["psnr", "reconstructions"])
def test_an_objective_without_a_decoder_has_no_reconstruction(
    evaluator: str, cmae_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, ["evaluate", evaluator, "--workdir", str(cmae_run)])
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
def test_a_workdir_keeps_its_config(
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


def test_a_workdir_accepts_fields_that_do_not_change_the_result(
    cmae_run: Path, images: Path
) -> None:
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
