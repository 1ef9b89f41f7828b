"""From the arguments of the command line to a plain config."""

import sys
from pathlib import Path

import pytest

from occinv.config import load_config, parse
from occinv.schema import UserError

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
    with pytest.raises(UserError, match=r"'mea\.py' is not a file \(did you mean '.*mae\.py'\?\)"):
        load_config("mea.py")


def test_a_config_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match=r"notes\.txt' is not a Python file"):
        load_config(str(tmp_path / "notes.txt"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty\.py' has no function get_config"):
        load_config(str(tmp_path / "empty.py"))


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
