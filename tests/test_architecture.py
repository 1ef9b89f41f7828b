"""The shape of the house: who imports whom, what files are called, and what `--help` costs."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARY = REPOSITORY / "occinv"

# Lowest first. A part imports itself and the parts before it, and nothing else of occinv.
LAYERS = (
    "schema",
    "configuration",
    "parallel",
    "data",
    "transform",
    "encoder",
    "measure",
    "tokenizer",
    "objective",
    "train",
    "plan",
    "weights",
    "evaluate",
    "report",
    "progress",
    "reproduce",
    "arguments",
    "cli",
    "__main__",  # python -m occinv
    "__init__",  # occinv itself: load_encoder
)
RANK = {part: rank for rank, part in enumerate(LAYERS)}

MODULES = sorted(LIBRARY.rglob("*.py"))
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.py"))
FOLDERS = ("occinv", "configs", "benchmarks", "tests", "launch", "docs")
FILES = sorted(p for f in FOLDERS for p in (REPOSITORY / f).rglob("*.py"))


def identity(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def dotted(path: Path) -> str:
    """`occinv.train.loop` for occinv/train/loop.py; packages end in `.__init__`."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Every module or name that `module` imports, dotted and absolute, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, node.module] if node.module else package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name: str) -> str:
    """`train` for occinv.train.loop; `__init__` for occinv itself and for names it defines."""
    rest = name.split(".")[1:]
    return rest[0] if rest and rest[0] in RANK else "__init__"


def wrong_imports(module: str, tree: ast.AST) -> list[str]:
    """The imports by which `module` reaches above its own layer."""
    own = part(module)
    return [
        name
        for name in imports(module, tree)
        if name.split(".")[0] == "occinv" and RANK[part(name)] > RANK[own]
    ]


@pytest.mark.parametrize("path", MODULES, ids=identity)
def test_a_module_imports_only_from_the_layers_below_its_own(path: Path) -> None:
    top = path.relative_to(LIBRARY).with_suffix("").parts[0]
    assert top in RANK, f"{identity(path)} has no layer: give {top!r} one in LAYERS"
    assert not wrong_imports(dotted(path), ast.parse(path.read_text()))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("occinv.train.loop", "from occinv.evaluators import cka"),
        ("occinv.train.loop", "def f():\n    import occinv.cli"),
        ("occinv.transforms.view", "from ..encoder import vit"),
        ("occinv.train.loop", "from .. import cli"),
        ("occinv.models.__init__", "from occinv import load_encoder"),
        ("occinv.data.photos", "import occinv"),
    ],
)
def test_an_import_against_the_direction_is_seen(module: str, source: str) -> None:
    assert wrong_imports(module, ast.parse(source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("occinv.train.loop", "from occinv import objective\nfrom . import state"),
        ("occinv.train.__init__", "from .loop import train\nimport jax"),
        ("occinv.schema", "import dataclasses"),
    ],
)
def test_an_import_in_the_direction_is_let_be(module: str, source: str) -> None:
    assert not wrong_imports(module, ast.parse(source))


def test_every_folder_of_the_library_is_a_package() -> None:
    """Else an installed occinv would lack it."""
    folders = {path.parent for path in MODULES}
    assert not [identity(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_train_names_no_objective() -> None:
    """One step serves every objective: `train` sees the registry and the interface, no row."""
    rows = {p.stem for p in (LIBRARY / "objective").glob("*.py")} - {"__init__", "base"}
    configs = {p.stem for p in CONFIGS} - {"__init__", "finetune"}
    assert rows, "no objective found"
    for path in sorted((LIBRARY / "train").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for name in imports(dotted(path), tree):
            if name.startswith("occinv.objectives."):
                assert name.split(".")[2] not in rows, f"{identity(path)} imports {name}"
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        assert not strings & (rows | configs), f"{identity(path)} names an objective"


@pytest.mark.parametrize("path", CONFIGS, ids=identity)
def test_a_config_imports_only_ml_collections_and_configs(path: Path) -> None:
    allowed = {"ml_collections", "configs", "__future__"} | {p.stem for p in CONFIGS}
    roots = {name.split(".")[0] for name in imports(dotted(path), ast.parse(path.read_text()))}
    assert roots <= allowed


def test_there_are_configs() -> None:
    names = {"mae", "rmae", "cmae", "finetune", "supervised"}
    assert names <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_a_file_is_one_thing_of_a_readable_length(path: Path) -> None:
    grab_bag = re.compile(r"(^|_)(utils?|common|misc|helpers?)(_|$)")
    for name in path.relative_to(REPOSITORY).with_suffix("").parts:
        assert not grab_bag.search(name), f"{identity(path)}: name it after what it holds"
    assert len(path.read_text().splitlines()) <= 450, f"{identity(path)} is long: part it"


def undocumented(tree: ast.Module) -> list[str]:
    """The public functions and classes of a module that have no docstring."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name
        for node in tree.body
        if isinstance(node, definitions)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


@pytest.mark.parametrize("path", MODULES, ids=identity)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{identity(path)} does not say what it is"
    assert not undocumented(tree)


def test_a_missing_docstring_is_seen() -> None:
    source = 'def f():\n    return 1\n\nclass C:\n    """Is."""\n\ndef _g():\n    return 2\n'
    assert undocumented(ast.parse(source)) == ["f"]


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
