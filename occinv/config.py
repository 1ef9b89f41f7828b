"""Load a config from a Python file, apply overrides, and complete it from `init_from`."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import runpy
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from occinv.config_error import config_error
from occinv.paths import as_path
from occinv.schema import Duration, UserError, nearest, plain, resolve

CONFIG, CHECKPOINTS = "config.json", "checkpoints"  # of a workdir
CONFIGS = Path(__file__).parent / "configs"
WEIGHTS = (".bin", ".npz", ".pkl", ".pt", ".pth", ".safetensors", ".tar")  # of other libraries
UNITS = {field.name for field in dataclasses.fields(Duration)}
# Fields that a run takes from the run of `init_from`: its encoder has the same.
SHAPE = (
    *("encoder.name", "encoder.patch_size", "encoder.width", "encoder.depth", "encoder.heads"),
    *("encoder.relative_position", "encoder.layer_scale", "encoder.gelu", "encoder.pixel_range"),
    *("encoder.class_token", "encoder.registers"),
    *("data.image_size", "data.channels"),
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A config, and where its values come from.

    Attributes:
      config: The config as plain dicts.
      overridden: The paths of the fields that an override sets.
      inherited: The paths of the fields that the run of `init_from` sets.
    """

    config: dict[str, Any]
    overridden: tuple[str, ...] = ()
    inherited: tuple[str, ...] = ()

    def origin(self, path: str) -> str:
        """Return where the field at `path` comes from, or for a section, any field in it."""
        section: Any = self.config
        for name in path.split("."):
            if not isinstance(section, Mapping) or name not in section:
                return "default"
            section = section[name]
        for paths, origin in ((self.overridden, "command line"), (self.inherited, "init_from")):
            if any(f"{p}.".startswith(f"{path}.") or path.startswith(f"{p}.") for p in paths):
                return origin
        return "config file"


def load_config(spec: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the config of a file as plain dicts, as `load` does, without origins."""
    return load(spec, overrides).config


def load(spec: str, overrides: Iterable[str] = ()) -> Loaded:
    """Load a config, apply overrides in their order, and complete it.

    Args:
      spec: `NAME`, a config of `occinv.configs`, or `FILE`, a path that ends in .py. Then perhaps
        `:VARIANT`, `:FIELD=VALUE,...` or `:VARIANT,FIELD=VALUE,...`. The file's function
        `get_config(variant)` is called. Its `VARIANTS`, if it has any, are the valid variants.
      overrides: Arguments of the form `--config.section.field=value`, applied after those of
        `spec`. A duration in another unit replaces the earlier one.

    Raises:
      UserError: The file, the variant or an override is not valid.
    """
    name, variant, fields = _split(spec)
    config = _get_config(name, variant)
    if not isinstance(config, dict):
        raise UserError(f"--config {name!r}: get_config returned {config!r}, expected a ConfigDict")
    given = [*(f"--config.{field}" for field in fields), *overrides]
    overridden = tuple(_apply(config, override) for override in given)
    config, inherited = complete(config)
    return Loaded(config, overridden, inherited)


def make_config(
    config: str | Path | Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a config as `load_config` does, with fields set to values of Python.

    Args:
      config: A `spec` of `load`, or the fields as a dict or ConfigDict.
      overrides: Values by path, such as `{"data.flip": False}`, applied in their order.

    Raises:
      UserError: The file, the variant or a path is not valid.
    """
    given = [
        f"--config.{path}={str(value) if isinstance(value, Path) else value!r}"
        for path, value in overrides.items()
    ]
    if isinstance(config, (str, Path)):
        return load_config(str(config), given)
    fields: dict[str, Any] = plain(config)
    for override in given:
        _apply(fields, override)
    return complete(fields)[0]


def extended_config(workdir: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the config of the run in `workdir`, with overrides as in `load`.

    Raises:
      UserError: There is no run, its config is damaged, or an override is not valid.
    """
    config = stored_config(str(workdir))
    if config is None:
        raise UserError(f"--extend: {workdir} holds no run. Start one with --config CONFIG")
    if (here := str(Path.cwd())) not in sys.path:  # as for the modules of a config file
        sys.path.insert(0, here)
    for override in overrides:
        _apply(config, override)
    return config


def load_sweep(spec: str) -> Any:
    """Return what the function `sweep` of a config file returns; None if it has no such function.

    Raises:
      UserError: The file is not valid.
    """
    name = _split(spec)[0]
    sweep = _run_file(name).get("sweep")
    try:
        return None if sweep is None else plain(sweep())
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise config_error(_find(name), error) from error


def complete(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Set the fields of `SHAPE` that are not set, from the run of `init_from`.

    Without that run, the section `from_scratch`, if any, has the fields that are not set.

    Returns:
      The config without `from_scratch`, and the paths of the fields that the run sets.
    """
    done: dict[str, Any] = plain(config)
    from_scratch, run = done.pop("from_scratch", {}), done.get("init_from")
    stored = None if run is None else stored_config(str(run))
    if stored is None:
        return _below(done, from_scratch), ()
    before, inherited = resolve(stored), []
    for path in SHAPE:
        section, _, field = path.partition(".")
        fields = done.setdefault(section, {})
        if isinstance(fields, dict) and field not in fields:
            fields[field] = getattr(getattr(before, section), field)
            inherited.append(path)
    return done, tuple(inherited)


def parse(text: str) -> Any:
    """Return the value of a Python literal (3e-4, None, True, (0.2, 1.0)), else the string."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text, text)


def list_configs() -> list[str]:
    """Return the names of the configs in `occinv.configs`."""
    return [p.stem for p in sorted(CONFIGS.glob("*.py")) if "\ndef get_config" in p.read_text()]


def _split(spec: str) -> tuple[str, str, list[str]]:
    """Split `FILE:VARIANT,FIELD=VALUE,...`. A value may contain a comma."""
    name, _, rest = spec.partition(":")
    variant, *fields = re.split(r",(?=[\w.]+=)", rest)
    return (name, "", [variant, *fields]) if "=" in variant else (name, variant, fields)


def _find(name: str) -> Path:
    """Return the file of a config by its name or path."""
    path, packaged = Path(name).expanduser(), list_configs()
    if re.fullmatch(r"[\w-]*", name):
        if name in packaged:
            return CONFIGS / f"{name}.py"
        hint = nearest(name, packaged)
        raise UserError(f"--config {name!r} is not a config of occinv{hint}; a file ends in .py")
    if not path.is_file():
        if path.stem in packaged:
            raise UserError(
                f"--config {name!r} is not a file in this folder; --config {path.stem} is the "
                "packaged config"
            )
        files = [str(p) for p in path.parent.glob("*.py")]
        hint = nearest(name, files) if files else nearest(path.stem, packaged)
        raise UserError(f"--config {name!r} is not a file{hint}")
    if path.suffix != ".py":
        raise UserError(f"--config {name!r} is not a Python file")
    return path


def _run_file(name: str) -> dict[str, Any]:
    """Run a config file, and return its names."""
    path = _find(name)
    # A config may import modules beside it, as a script may, and of the working directory. The
    # working directory stays importable: an objective may be named `module:Class`.
    before, here = list(sys.path), str(Path.cwd())
    sys.path[:0] = [here, str(path.resolve().parent)]
    try:
        return runpy.run_path(str(path), run_name=f"occinv_config_{path.stem}")
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise config_error(path, error) from error
    finally:
        sys.path[:] = before if here in before else [here, *before]


def _get_config(name: str, variant: str) -> Any:
    """Return what `get_config` of a config file returns, as plain dicts and tuples."""
    module = _run_file(name)
    if "get_config" not in module:
        raise UserError(f"--config {name!r} has no function get_config")
    try:
        variants = tuple(module.get("VARIANTS", ()))
        if variant and variants and variant not in variants:
            hint = nearest(variant, variants)
            raise UserError(f"--config {name!r} has no variant {variant!r}{hint}")
        return plain(module["get_config"](variant) if variant else module["get_config"]())
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise config_error(_find(name), error) from error


def _apply(config: dict[str, Any], override: str) -> str:
    """Set the field of an override, and return its path."""
    path, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals or not path:
        raise UserError(f"unknown argument {override!r}, expected --config.section.field=value")
    *sections, field = path.split(".")
    for section in sections:
        config = config.setdefault(section, {})
        if not isinstance(config, dict):
            raise UserError(f"{override!r}: {section} is not a section but a field")
    value = parse(text)
    if field in UNITS and config.keys() <= UNITS and value is not None:
        config.clear()  # a duration: the last unit wins
    config[field] = value
    return path


def _below(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with the fields of `defaults` that it does not set."""
    merged = {**defaults, **config}
    for name in defaults.keys() & config.keys():
        if isinstance(defaults[name], Mapping) and isinstance(config[name], Mapping):
            merged[name] = _below(config[name], defaults[name])
    return merged


def find_workdir(path: str | Path) -> Path | None:
    """Return the workdir of a path that is one, its `checkpoints` folder, or a step in it.

    None: the path does not belong to a run.
    """
    path = as_path(path)
    checkpoints = path.parent if path.name.isdecimal() else path
    workdir = checkpoints.parent if checkpoints.name == CHECKPOINTS else path
    return workdir if (workdir / CONFIG).is_file() else None


def not_a_run(path: str | Path, reason: object = "") -> UserError:
    """Return the error of a path that holds no run. It names what else it holds.

    That is a checkpoint to import, or the runs of a table.

    Args:
      path: The path.
      reason: What is wrong with its config.json; empty if it has none.
    """
    path = as_path(path)
    text = f"{path} is not the workdir of a run; expected a file {path / CONFIG}"
    if reason:
        text = f"{path / CONFIG} is not the config of a run: {reason}"
    if any(file.suffix in WEIGHTS for file in (path, *path.glob("*"))):
        text += f". To import a checkpoint: occinv weights import {path} --to DIR"
    if runs := sorted(file.parent for file in (path / "runs").glob(f"**/{CONFIG}")):
        text += f". The workdirs of runs in it: {len(runs)}, such as {runs[0]}"
    return UserError(text)


def stored_config(run: str) -> dict[str, Any] | None:
    """Return the config that a workdir or a checkpoint in it holds; None: it is not a run."""
    workdir = find_workdir(run)
    if workdir is None:
        return None
    try:
        return json.loads((workdir / CONFIG).read_text())["experiment"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise not_a_run(workdir, repr(error)) from error
