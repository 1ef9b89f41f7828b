"""Every command of README and docs is one that occinv, make and pip accept.

A dry run: arguments are parsed, configs are resolved, rows and tables are looked up. Training and
data have their own tests.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from occinv import schema
from occinv.cli import make_parser
from occinv.config import load_config, load_sweep
from occinv.objectives.base import objective_of
from occinv.reproduce.options import parse_overrides
from occinv.reproduce.run import TableRun
from occinv.reproduce.sweep import Sweep, read_settings
from occinv.reproduce.tables import choose, make_table

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))
SETUP = (REPOSITORY / "setup.py").read_text()


# Inline code is a command only if a word follows the program: `occinv/train/` is a path.
COMMAND = re.compile(
    r"(?:^ {4}|`)((?:[A-Z]+=\S+ )*(?:occinv |make |launch/\w+\.|\.venv/bin/|pip install )[^`\n]*)",
    flags=re.MULTILINE,
)


def commands() -> list[tuple[str, str]]:
    """Return (page, command) of every indented or inline command, continued lines joined."""
    found = []
    for page in [*PAGES, *CONFIGS]:
        text = re.sub(r"\\\\?\n\s*", " ", page.read_text())
        text = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
        found += [(page.name, c.split("  #")[0].strip()) for c in COMMAND.findall(text)]
    return sorted(set(found))


COMMANDS = commands()


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 60
    assert {page for page, _ in COMMANDS} >= {"README.md", "data.md", "reproduce.md", "mae.py"}


@pytest.fixture
def in_a_folder_with_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    pages = "".join(page.read_text() for page in PAGES)
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", pages, flags=re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder_with_configs")
def test_occinv_accepts_every_command() -> None:
    for page, command in COMMANDS:
        words = shlex.split(command)  # a subcommand alone is a name in a sentence
        if Path(words[0]).name == "occinv" and len(words) > 3:
            check(page, command, words[1:])


def check(page: str, command: str, words: list[str]) -> None:
    """Parse a command as `occinv.cli.main` does, and resolve its config or table."""
    options, rest = make_parser(words[:1]).parse_known_args(words)
    prefix = options.overrides
    unknown = [word for word in rest if prefix is None or not word.startswith(prefix)]
    assert not unknown, f"{page}: {command}: unknown {unknown}"
    if options.command == "train" and options.config is None:
        assert options.extend, f"{page}: {command}: only --extend has the config of the run"
    elif options.command in ("train", "plan") or getattr(options, "fields", 0) is None:
        objective_of(schema.resolve(load_config(options.config, rest)), num_classes=10)
    elif options.command == "sweep":
        sweep = Sweep(
            options.config,
            read_settings(load_sweep(options.config), options.set),
            options.workdir,
            options.seeds,
            tuple(rest),
        )
        for each in sweep.runs:
            objective_of(each.stage.experiment, num_classes=10)
    elif options.command == "reproduce" and options.published is not None:
        assert parse_overrides(rest).keys() == {"config"}, f"{page}: {command}"
    elif options.command == "reproduce":
        table = make_table(options.table, options.scale or "quickstart", options.images)
        rows = choose(table, options.rows)
        scale = options.scale or "quickstart"
        run = TableRun(table, rows, Path("w"), scale, overrides=parse_overrides(rest))
        stages = {s.command: s for trial in run.trials for s in trial.stages.values()}
        for stage in stages.values():
            objective_of(stage.experiment, num_classes=10)


def test_other_commands_name_what_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, flags=re.MULTILINE))
    for page, command in COMMANDS:
        words = [word for word in shlex.split(command) if not re.match(r"[A-Z]+=", word)]
        if words[0] == "make" and command.startswith("make "):
            assert words[1] in targets, f"{page}: {command}"
        elif words[0].startswith("launch/"):
            assert (REPOSITORY / words[0]).is_file(), f"{page}: {command}"
        elif words[0].startswith(".venv/bin/python"):
            script = next(word for word in words[1:] if word.endswith(".py"))
            assert (REPOSITORY / script).is_file(), f"{page}: {command}"
        elif extra := re.search(r"(?:occinv|'\.)\[(\w+)\]", command):
            assert f'"{extra[1]}": [' in SETUP, f"{page}: {command}"
