"""From `--config configs/mae.py:smoke --config.seed=1` to a plain config."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from occinv.schema import UserError, nearest, plain

CONFIGS = Path(__file__).parent.parent / "configs"


def load_config(spec: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The config that `spec` names, with overrides applied, as plain dicts.

    Args:
      spec: `PATH` or `PATH:VARIANT`; the file's `get_config(variant)` is called. If the file names
        its `VARIANTS`, another one is an error.
      overrides: arguments `--config.section.field=value`.

    Raises UserError for a file, variant or override that cannot be used.
    """
    config = plain(_get_config(spec))
    for override in overrides:
        _apply(config, override)
    return config


def _get_config(spec: str) -> Any:
    name, _, variant = spec.partition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob("*.py")) or sorted(
            f"configs/{p.name}" for p in CONFIGS.glob("*.py")
        )
        raise UserError(f"--config {name!r} is not a file{nearest(name, known)}")
    module_spec = importlib.util.spec_from_file_location(f"occinv_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config {name!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    # Configs import each other as `configs.other`; one's own modules are found where one stands.
    before, here = list(sys.path), str(Path.cwd())
    sys.path[:0] = [str(path.resolve().parent.parent), here]
    try:
        module_spec.loader.exec_module(module)
    finally:
        # What stands here stays importable: an objective may be named `module:Class`.
        sys.path[:] = before if here in before else [here, *before]
    if not hasattr(module, "get_config"):
        raise UserError(f"--config {name!r} has no function get_config")
    variants = getattr(module, "VARIANTS", ())
    if variant and variants and variant not in variants:
        raise UserError(f"--config {name!r} has no variant {variant!r}{nearest(variant, variants)}")
    return module.get_config(variant) if variant else module.get_config()


def _apply(config: dict[str, Any], override: str) -> None:
    path, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals or not path:
        raise UserError(f"unknown argument {override!r}, expected --config.section.field=value")
    *sections, field = path.split(".")
    for section in sections:
        config = config.setdefault(section, {})
        if config is None or not isinstance(config, dict):
            raise UserError(f"{override!r}: {section} is not a section but a field")
    config[field] = parse(text)


def parse(text: str) -> Any:
    """A value as Python writes it (3e-4, None, True, (0.2, 1.0)); anything else is a string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)
