"""Load a config from a Python file, and apply the overrides of the command line."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from occinv.config_error import config_error
from occinv.schema import UserError, nearest, plain

CONFIGS = Path(__file__).parent.parent / "configs"


def load_config(spec: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the config of a file as plain dicts, with overrides applied in their order.

    Args:
      spec: `FILE` or `FILE:VARIANT`. The file's function `get_config(variant)` is called. Its
        `VARIANTS`, if it has any, are the valid variants.
      overrides: Arguments of the form `--config.section.field=value`.

    Raises:
      UserError: The file, the variant or an override is not valid.
    """
    config = plain(_get_config(spec))
    for override in overrides:
        _apply(config, override)
    return config


def parse(text: str) -> Any:
    """Return the value of a Python literal (3e-4, None, True, (0.2, 1.0)), else the string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def _get_config(spec: str) -> Any:
    name, _, variant = spec.partition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        files = [str(p) for p in path.parent.glob("*.py")]
        files = files or [f"configs/{p.name}" for p in CONFIGS.glob("*.py")]
        raise UserError(f"--config {name!r} is not a file{nearest(name, files)}")
    if path.suffix != ".py":
        raise UserError(f"--config {name!r} is not a Python file")
    # A config may import `configs.other` from its own checkout, and modules of the working
    # directory. The working directory stays importable: an objective may be named `module:Class`.
    before, here = list(sys.path), str(Path.cwd())
    sys.path[:0] = [str(path.resolve().parent.parent), here]
    try:
        module = runpy.run_path(str(path), run_name=f"occinv_config_{path.stem}")
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise config_error(path, error) from error
    finally:
        sys.path[:] = before if here in before else [here, *before]
    if "get_config" not in module:
        raise UserError(f"--config {name!r} has no function get_config")
    variants = module.get("VARIANTS", ())
    if variant and variants and variant not in variants:
        raise UserError(f"--config {name!r} has no variant {variant!r}{nearest(variant, variants)}")
    try:
        return module["get_config"](variant) if variant else module["get_config"]()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise config_error(path, error) from error


def _apply(config: dict[str, Any], override: str) -> None:
    path, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals or not path:
        raise UserError(f"unknown argument {override!r}, expected --config.section.field=value")
    *sections, field = path.split(".")
    for section in sections:
        config = config.setdefault(section, {})
        if not isinstance(config, dict):
            raise UserError(f"{override!r}: {section} is not a section but a field")
    config[field] = parse(text)
