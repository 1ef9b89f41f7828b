"""Structure that no lint tool checks: names in configs and `train`, and what `--help` loads."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARY = REPOSITORY / "occinv"
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.py"))


def test_every_folder_of_the_library_is_a_package() -> None:
    """Otherwise a wheel would lack it."""
    folders = {path.parent for path in LIBRARY.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_files_are_short() -> None:
    for path in LIBRARY.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 420, path


def test_functions_are_short() -> None:
    """At most 80 lines; ruff limits their complexity. Parsers list options, so they may be long."""
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name not in ("add_options", "add_parser"):
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


def test_train_names_no_objective() -> None:
    rows = {p.stem for p in (LIBRARY / "objectives").glob("*.py")}
    rows -= {"__init__", "base", "forward", "ema"}
    configs = {p.stem for p in CONFIGS} - {"__init__", "finetune"}
    assert {"mae", "dino"} <= rows
    for path in sorted((LIBRARY / "train").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
        assert not strings & (rows | configs), f"{path} names an objective"


def test_configs_import_only_ml_collections_and_configs() -> None:
    """A config of the library, or one that imports it, may be anywhere."""
    assert {"mae", "rmae", "cmae", "finetune", "supervised"} <= {path.stem for path in CONFIGS}
    for path in CONFIGS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {".".join(str(node.module).split(".")[:2])}
            else:
                continue
            assert modules <= {"ml_collections", "occinv.configs"}, path


def test_help_is_quick() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "occinv", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert shown.returncode == 0, shown.stderr
    assert "train" in shown.stdout
    assert "reproduce" in shown.stdout
    seconds = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert seconds < 1.0, f"occinv --help took {seconds:.2f} s of CPU time"


def test_help_does_not_import_jax() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['occinv', '--help']\n"
        "from occinv.cli import main\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as exit:\n"
        "    code = exit.code\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'orbax', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else code)\n"
    )
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert shown.returncode == 0, shown.stderr
