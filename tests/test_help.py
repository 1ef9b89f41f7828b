"""`--help` has a sentence for each option, lists the choices, and is quick."""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
from collections.abc import Iterator

from occinv.cli import make_parser
from occinv.objectives import OBJECTIVES


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and the parsers of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from parsers_of(subparser)


def test_every_option_and_subcommand_has_a_sentence_as_help() -> None:
    for parser in parsers_of(make_parser()):
        for action in parser._actions:
            texts = [action.help]
            if isinstance(action, argparse._SubParsersAction):
                texts = [choice.help for choice in action._choices_actions]
            elif isinstance(action, argparse._HelpAction):
                continue
            for text in texts:
                assert re.fullmatch(r"[A-Z].*\.", text or ""), (parser.prog, action.dest, text)


def test_train_imports_no_other_subcommand() -> None:
    code = (
        "import sys\n"
        "from occinv.cli import make_parser\n"
        "make_parser(['train']).parse_args(['train', '--config', 'C', '--workdir', 'W'])\n"
        "others = {'jax', 'reproduce', 'report', 'weights', 'evaluators', 'plan'}\n"
        "loaded = others & {word for name in sys.modules for word in name.split('.')[:2]}\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
    for choice in (*OBJECTIVES, "finetune, grid", "supervised", "mae:smoke"):
        assert choice in shown
    for choice in ("micro", "base", "huge", "photos", "digits", "folder:PATH", "tfds:NAME", "143"):
        assert choice in shown
