"""From the arguments of the command line to a plain config."""

import json
import sys
from pathlib import Path

import pytest

from occinv.config import Loaded, complete, list_configs, load, load_config, parse
from occinv.schema import UserError, resolve

CONFIG = """
VARIANTS = ("large", "small")
def get_config(variant="large"):
    return {"seed": 0, "train": {"variant": variant, "duration": {"steps": 8}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file of one's own."""
    path = tmp_path / "own.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a config makes importable stays so in a run, but not from test to test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_variant_is_handed_on(config: Path) -> None:
    assert load_config(str(config))["train"]["variant"] == "large"
    assert load_config(f"{config}:small")["train"]["variant"] == "small"


def test_overrides_reach_every_level_in_order(config: Path) -> None:
    given = [
        "--config.seed=1",
        "--config.train.duration.steps=9",
        "--config.train.duration.steps=3",
    ]
    assert load_config(str(config), given) == {
        "seed": 1,
        "train": {"variant": "large", "duration": {"steps": 3}},
    }


@pytest.mark.parametrize(
    ("fields", "duration"),
    [
        (["train.duration.epochs=3"], {"epochs": 3}),
        (["train.duration.examples=9", "train.duration.share=0.5"], {"share": 0.5}),
        (["train.duration.epochs=3", "train.duration.steps=4"], {"steps": 4}),
        (["train.duration={'epochs': 2}"], {"epochs": 2}),
        (["train.duration.steps=None"], {"steps": None}),
        (["train.duration.epochs=None"], {"steps": 8, "epochs": None}),
    ],
)
def test_the_last_unit_of_a_duration_wins(
    config: Path, fields: list[str], duration: dict[str, float]
) -> None:
    found = load_config(str(config), [f"--config.{field}" for field in fields])
    assert found["train"] == {"variant": "large", "duration": duration}


def test_a_unit_is_an_ordinary_field_elsewhere(config: Path) -> None:
    given = ["--config.objective.depth=1", "--config.objective.steps=2"]
    assert load_config(str(config), given)["objective"] == {"depth": 1, "steps": 2}


@pytest.mark.parametrize(
    ("rest", "variant", "fields"),
    [
        (":small,seed=1", "small", {"seed": 1}),
        (":seed=1", "large", {"seed": 1}),
        (":small,data.crop_scale=(0.2,1.0),seed=2", "small", {"crop_scale": (0.2, 1.0), "seed": 2}),
        (":data.classes=cat,dog,seed=2", "large", {"classes": "cat,dog", "seed": 2}),
    ],
)
def test_fields_may_follow_the_variant(
    config: Path, rest: str, variant: str, fields: dict[str, object]
) -> None:
    found = load_config(f"{config}{rest}")
    assert found["train"]["variant"] == variant
    assert {"seed": found["seed"], **found.get("data", {})} == fields


def test_arguments_win_over_fields_of_the_spec(config: Path) -> None:
    assert load_config(f"{config}:small,seed=1", ["--config.seed=2"])["seed"] == 2


def test_a_name_is_a_packaged_config_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mae.py").write_text("def get_config():\n    return {'seed': 7}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("mae:smoke")["objective"]["name"] == "mae"
    assert load_config("mae.py") == {"seed": 7}
    assert {"mae", "finetune"} <= set(list_configs())
    assert not {"scales", "pretraining", "__init__"} & set(list_configs())


def test_a_config_may_change_a_packaged_one_and_import_its_neighbor(tmp_path: Path) -> None:
    (tmp_path / "ratio.py").write_text("RATIO = 0.6\n")
    (tmp_path / "own.py").write_text(
        "from occinv.configs import mae\n"
        "from ratio import RATIO\n"
        "VARIANTS = mae.VARIANTS\n"
        "def get_config(variant='imagenet'):\n"
        "    config = mae.get_config(variant)\n"
        "    config.objective.mask_ratio = RATIO\n"
        "    return config\n"
    )
    changed = load_config(f"{tmp_path}/own.py:smoke")
    assert changed["objective"].pop("mask_ratio") == 0.6
    packaged = load_config("mae:smoke")
    assert packaged["objective"].pop("mask_ratio") == 0.75
    assert changed == packaged


def test_the_home_folder_may_be_a_tilde(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(config.parent))
    assert load_config("~/own.py")["seed"] == 0


def test_the_origin_of_a_value() -> None:
    config = {
        "seed": 1,
        "encoder": {"width": 16},
        "train": {"duration": {"steps": 1}, "keep": 2},
        "evals": {"knn": {"neighbors": 3}},
    }
    loaded = Loaded(config, ("train.duration.steps", "evals.knn"), ("encoder.width",))
    origins = {
        "seed": "config file",
        "encoder.width": "init_from",
        "encoder.widt": "default",
        "train.duration": "command line",
        "train.keep": "config file",
        "train.batch_size": "default",
        "evals.knn.neighbors": "command line",
        "evals.knn.temperature": "default",
    }
    assert {path: loaded.origin(path) for path in origins} == origins


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """The workdir of a run with an encoder that no config has."""
    workdir = tmp_path / "pretrained"
    experiment = {
        "objective": {"name": "mae"},
        "data": {"source": "digits", "image_size": (24, 36), "channels": 1, "flip": False},
        "encoder": {"name": "tiny", "patch_size": 6, "depth": 3, "drop_path": 0.5, "gelu": "tanh"},
    }
    (workdir / "checkpoints" / "12").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps({"experiment": experiment, "classes": []}))
    return workdir


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/12"])
def test_init_from_hands_down_the_encoder_and_the_image_size(pretrained: Path, below: str) -> None:
    start = f"--config.init_from={pretrained / below}"
    loaded = load("finetune:smoke", [start, "--config.encoder.heads=6"])
    experiment = resolve(loaded.config)
    assert (experiment.data.image_size, experiment.data.channels) == ((24, 36), 1)
    encoder = experiment.encoder
    assert (encoder.name, encoder.patch_size, encoder.width, encoder.depth) == ("tiny", 6, None, 3)
    assert (encoder.gelu, encoder.drop_path, encoder.heads) == ("tanh", 0.1, 6)
    assert experiment.data.source == "digits"
    assert loaded.origin("encoder.depth") == loaded.origin("data.image_size") == "init_from"
    assert loaded.origin("encoder.heads") == "command line"


def test_what_a_config_or_an_override_sets_is_not_handed_down(pretrained: Path) -> None:
    start = f"--config.init_from={pretrained}"
    experiment = resolve(load_config("mae:smoke", [start, "--config.encoder.depth=2"]))
    assert (experiment.data.image_size, experiment.encoder.patch_size) == (16, 4)
    assert (experiment.encoder.depth, experiment.encoder.gelu) == (2, "tanh")


def test_without_init_from_the_fields_are_those_of_from_scratch() -> None:
    config = {
        "a": 1,
        "encoder": {"width": 3},
        "from_scratch": {"encoder": {"width": 1, "depth": 2}},
    }
    assert complete(config) == ({"a": 1, "encoder": {"width": 3, "depth": 2}}, ())
    assert "from_scratch" in config
    missing = complete({**config, "init_from": "nowhere"})[0]
    assert missing["encoder"] == {"width": 3, "depth": 2}


def test_a_damaged_config_of_init_from_is_named(pretrained: Path) -> None:
    (pretrained / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"pretrained/config\.json is not the config of a run: "):
        complete({"init_from": str(pretrained)})


def test_an_override_may_open_a_section(config: Path) -> None:
    assert load_config(str(config), ["--config.data.source=digits"])["data"] == {"source": "digits"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3e-4", 3e-4),
        ("-0.5", -0.5),
        ("True", True),
        ("true", True),
        ("false", False),
        ("None", None),
        ("(0.2, 1.0)", (0.2, 1.0)),
        ("[1, 2]", [1, 2]),
        ("photos", "photos"),
        ("folder:/a b/c", "folder:/a b/c"),
        ("tfds:mnist:train[:10%]", "tfds:mnist:train[:10%]"),
        ("'3'", "3"),
        ("", ""),
        ("a=b", "a=b"),
        ("{[]:1}", "{[]:1}"),
        ("-" * 5000, "-" * 5000),
    ],
)
def test_values_are_read_as_python_writes_them(text: str, value: object) -> None:
    read = parse(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.seed", "unknown argument '--config.seed', expected --config.section.field="),
        ("--config.=1", "unknown argument '--config.=1'"),
        ("--confg.seed=1", "unknown argument '--confg.seed=1'"),
        ("--config.seed.x=1", "'--config.seed.x=1': seed is not a section but a field"),
    ],
)
def test_an_override_that_cannot_be_applied(config: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(str(config), [override])
    assert said in str(raised.value)


def test_a_config_that_is_not_there(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"owm\.py' is not a file \(did you mean '.*own\.py'\?\)"):
        load_config(str(config.with_name("owm.py")))
    with pytest.raises(UserError, match=r"has no variant 'smal' \(did you mean 'small'\?\)"):
        load_config(f"{config}:smal")
    (config.parent / "empty").mkdir()
    monkeypatch.chdir(config.parent / "empty")
    with pytest.raises(UserError, match=r"'mea\.py' is not a file \(did you mean 'mae'\?\)"):
        load_config("mea.py")
    with pytest.raises(
        UserError, match=r"'configs/mae\.py' is not a file in this folder; --config mae"
    ):
        load_config("configs/mae.py")


def test_a_config_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match=r"notes\.txt' is not a Python file"):
        load_config(str(tmp_path / "notes.txt"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty\.py' has no function get_config"):
        load_config(str(tmp_path / "empty.py"))
    (tmp_path / "none.py").write_text("def get_config():\n    pass\n")
    with pytest.raises(UserError, match="get_config returned None, expected a ConfigDict"):
        load_config(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config():\n    return {}['missing']\n", "line 2: KeyError: 'missing'"),
        ("x = 1\n\nraise ValueError('one\\ntwo')\n", "line 3: ValueError: one two"),
        ("def get_config(:\n", "line 1: invalid syntax"),
        ("import json\njson.loads('')\n", "line 2: JSONDecodeError"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("x = '\0'\n", "null bytes"),
    ],
)
def test_a_mistake_inside_a_config_is_named_with_its_line(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_stands_where_one_stands_stays_importable(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An objective of one's own is found as module:Class, after the config has been read."""
    monkeypatch.chdir(config.parent)
    before = list(sys.path)
    load_config(str(config))
    load_config(str(config))
    assert sys.path == [str(config.parent), *before]
