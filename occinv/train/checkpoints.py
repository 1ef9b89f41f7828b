"""Checkpoints: written in the background, checked by content, exact, restored on any device count.

Orbax makes a step appear all at once (a kill leaves only a temporary folder) and lays arrays out
for the devices at hand. It does not notice a flipped bit, so every step carries a manifest of
checksums of ours, and a step that does not match it is reported and passed over.

    <folder>/300/params/...        one Orbax item for each top-level key of the state
    <folder>/300/about/metadata    JSON: the caller's metadata, and the layout of every item
    <folder>/300/manifest.json     size and sha256 of every other file of the step
    <folder>/400.damaged/          a step that did not match its manifest, kept for inspection
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils

from occinv.parallel import from_first_process
from occinv.schema import UserError

PyTree = Any
Names = tuple[str, ...]

MANIFEST = "manifest.json"
PARTIAL = MANIFEST + ".tmp"
ABOUT = "about"
# Orbax writes these as it commits, after the manifest; they are added to it later. They hold the
# time of the commit, and nothing of what is restored.
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")

log = logging.getLogger("occinv.train")


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


# Orbax narrates and prints tracebacks through absl's logger, which others use too: only its own
# records are dropped. Nothing is lost, every failure also reaches the caller as an exception.
logging.getLogger("absl").addFilter(_is_not_from_orbax)


class _Damaged(Exception):
    """A step on disk is not what was written. The text names the file and what is wrong."""


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Every process of a run makes one and calls the same methods in the same order; files that
    exist once per step are written by process 0.

    Args:
      folder: where the steps lie; made unless `read_only`.
      keep: how many of the newest steps stay on disk, at least 1.
      read_only: never write, move or delete anything (a reader beside a running training).

    Raises:
      UserError: `keep` is below 1.
    """

    def __init__(self, folder: Path, *, keep: int = 3, read_only: bool = False) -> None:
        if keep < 1:
            raise UserError(f"keep = {keep}: expected 1 or more checkpoints to stay on disk")
        self.folder = Path(folder).absolute()
        self.read_only = read_only
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                # The caller decides when to save, so every call of `save` saves.
                save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            handler_registry=_handlers(),
        )

    def save(self, step: int, state: Mapping[str, PyTree], metadata: Mapping[str, Any]) -> bool:
        """Starts writing `state` as the checkpoint of `step`; returns once the arrays are copied.

        Waits for the save before this one, so its failure is raised here at the latest.

        Args:
          step: the number of finished steps, >= 0.
          state: item name -> pytree of arrays or scalars, of any containers. Each item can be read
            alone. Donating or overwriting the arrays after the call is safe.
          metadata: JSON-serializable.

        Returns:
          True, or False if this step is on disk already (it is left as it is).

        Raises:
          ValueError: this object is read-only, an item is called 'about', or a leaf is empty.
          TypeError: a leaf is not numeric, or `metadata` is not JSON.
        """
        if self.read_only:
            raise ValueError(f"save of step {step} into {self.folder}, which is open read-only")
        if ABOUT in state:
            raise ValueError(f"{ABOUT!r} is the name of the metadata and cannot name an item")
        self.wait()
        if step in self.steps():
            return False
        leaves = {item: _leaves(tree) for item, tree in state.items()}
        layout = {
            item: [[names, list(leaf.shape), str(leaf.dtype)] for names, leaf in named.items()]
            for item, named in leaves.items()
        }
        about = {"metadata": dict(metadata), "layout": layout}
        json.dumps(about)  # a TypeError belongs to the caller, not to a thread in the background
        # Orbax cannot store an item without leaves; the layout says that it was there.
        items = {
            k: ocp.args.PyTreeSave(unflatten_dict(named)) for k, named in leaves.items() if named
        }
        items[ABOUT] = ocp.args.JsonSave(about)
        self._saving = step
        return self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def steps(self) -> list[int]:
        """The steps that are completely on disk, ascending; damaged ones not yet noticed too."""
        return sorted(self._manager.all_steps(read=True))

    def latest(self) -> int | None:
        """The newest of `steps()`, or None; the same on every process."""
        return from_first_process(lambda: max(self.steps(), default=None))

    def restore(
        self, template: Mapping[str, PyTree], step: int | None = None
    ) -> tuple[int, dict[str, PyTree]]:
        """Reads the newest good checkpoint back, bit for bit, onto the devices of the template.

        A damaged step is logged as a warning and the one before it is read; unless read-only, it
        is renamed to `<step>.damaged`, so that the run can save that step again.

        Args:
          template: item name -> pytree whose leaves have shape and dtype: arrays or
            jax.ShapeDtypeStruct. A sharding on a leaf is where the array is put, however it was
            laid out when saved; without one, on this process's first device. A numpy leaf comes
            back as numpy. May name fewer items than were saved.
          step: this step exactly (for readers), with nothing to fall back to.

        Returns:
          (step, state), the state with exactly the containers of `template`.

        Raises:
          UserError: no checkpoint, none undamaged, or one of other shapes, types or names than the
            template: a run never starts anew silently.
        """

        def read(at: int) -> dict[str, PyTree]:
            layout = self._about(at)["layout"]
            self._check_layout(at, layout, template)
            wanted = {item: _leaves(tree) for item, tree in template.items()}
            arrays = self._read(at, wanted)
            return {
                item: jax.tree.unflatten(
                    jax.tree.structure(tree), [arrays[item][names] for names in wanted[item]]
                )
                for item, tree in template.items()
            }

        return self._newest_good(read, step)

    def restore_params(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Reads the item `params` alone, as nested dicts of numpy arrays, without a template.

        Falls back as `restore` does. Containers other than dicts come back as dicts of their
        indices or field names.

        Raises:
          UserError: no checkpoint, none undamaged, or no item `params` in it.
        """

        def read(at: int) -> dict[str, Any]:
            layout = self._about(at)["layout"]
            if "params" not in layout:
                raise UserError(
                    f"checkpoint {at} in {self.folder} has no params, only {', '.join(layout)}"
                )
            wanted = {
                tuple(names): np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)
                for names, shape, dtype in layout["params"]
            }
            return unflatten_dict(self._read(at, {"params": wanted})["params"])

        return self._newest_good(read, step)

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """The `metadata` given to `save`, of `step` or of the newest good checkpoint.

        Raises:
          UserError: as `restore_params`.
        """
        return self._newest_good(lambda at: self._about(at)["metadata"], step)[1]

    def wait(self) -> None:
        """Returns when the save under way is complete and checksummed; raises if it failed."""
        try:
            self._manager.wait_until_finished()
        finally:
            step, self._saving = self._saving, None
        if step is not None and jax.process_index() == 0:
            self._seal_late(step)

    def close(self) -> None:
        """Waits, then ends the threads. The object cannot be used any more."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _seal(self) -> None:
        # Orbax calls this on process 0 with all content written and the step still under its
        # temporary name: the manifest appears together with the step, or not at all.
        unfinished = sorted(self.folder.glob(f"{self._saving}.*tmp*"))
        folder = unfinished[0] if unfinished else self.folder / str(self._saving)
        _write_manifest(folder, {n: e for n, e in _files(folder).items() if n not in LATE})

    def _seal_late(self, step: int) -> None:
        folder = self.folder / str(step)
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        late = {name: _entry(folder / name) for name in LATE if (folder / name).exists()}
        _write_manifest(folder, files | late)

    def _newest_good(self, read: Callable[[int], Any], step: int | None) -> tuple[int, Any]:
        """(step, read(step)) of the newest step, or of the one asked for, that is undamaged."""
        self.wait()
        found = self.steps()
        if not found:
            raise UserError(f"no checkpoint in {self.folder}")
        if step is not None and step not in found:
            raise UserError(f"no checkpoint of step {step} in {self.folder}: found {found}")
        candidates = [step] if step is not None else found[::-1]
        problems: dict[int, str] = {}
        while True:
            # Process 0 looks and all follow, so that they cannot take different steps.
            chosen = from_first_process(lambda: self._first_intact(candidates, problems))
            if chosen is None:
                # Only process 0 knows why.
                why = "".join(f"; {at}: {problem}" for at, problem in problems.items())
                raise UserError(f"no undamaged checkpoint in {self.folder} of {candidates}{why}")
            is_checked = (self.folder / str(chosen) / MANIFEST).exists()
            try:
                result = read(chosen)
                break
            except UserError:
                raise
            except Exception as error:
                # Files that match their manifest are what was saved: older ones would fail alike.
                # On several processes the others may have succeeded and cannot be called back.
                if is_checked or jax.process_count() > 1:
                    raise
                first_line = str(error).strip().split("\n")[0][:200]
                problems[chosen] = f"does not load: {type(error).__name__}: {first_line}"
        for at, why in problems.items():
            log.warning("checkpoint %d is damaged (%s); using %d", at, why, chosen)
        if not is_checked:
            log.warning("checkpoint %d has no %s: used unchecked", chosen, MANIFEST)
        if not self.read_only:
            self._put_aside([at for at in candidates if at > chosen])
        return chosen, result

    def _first_intact(self, candidates: list[int], problems: dict[int, str]) -> int | None:
        for at in candidates:
            if at in problems:
                continue
            try:
                _verify(self.folder / str(at))
                return at
            except (_Damaged, OSError) as error:
                problems[at] = str(error)
        return None

    def _put_aside(self, damaged: list[int]) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for at in damaged:
                aside = self.folder / f"{at}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(at)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("occinv checkpoints: damaged steps put aside")
        self._manager.reload()

    def _about(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(**{ABOUT: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[ABOUT]

    def _read(self, step: int, wanted: Mapping[str, dict[Names, Any]]) -> dict[str, dict]:
        args = {}
        for item, named in wanted.items():
            how = unflatten_dict({names: _restore_args(leaf) for names, leaf in named.items()})
            if how:
                args[item] = ocp.args.PyTreeRestore(item=unflatten_dict(named), restore_args=how)
        read = self._manager.restore(step, args=ocp.args.Composite(**args)) if args else {}
        return {item: {n: _at(read[item], n) for n in named} for item, named in wanted.items()}

    def _check_layout(
        self, step: int, layout: Mapping[str, Any], template: Mapping[str, PyTree]
    ) -> None:
        where = f"checkpoint {step} in {self.folder}"
        for item, tree in template.items():
            if item not in layout:
                raise UserError(f"{where} has no item {item!r}, only {', '.join(layout)}")
            saved = {tuple(n): (tuple(shape), dtype) for n, shape, dtype in layout[item]}
            wanted = {n: (tuple(x.shape), str(x.dtype)) for n, x in _leaves(tree).items()}
            for names in [*wanted, *saved]:
                if saved.get(names) == wanted.get(names):
                    continue
                name = "/".join((item, *names))
                others = ["/".join((item, *other)) for other in saved.keys() - wanted.keys()]
                near = difflib.get_close_matches(name, others, 1) if names not in saved else []
                raise UserError(
                    f"{where} is of another model or config: it has "
                    f"{_described(name, saved.get(names))}, this run expects "
                    f"{_described(name, wanted.get(names))}"
                    + "".join(f"; nearest saved name: {other}" for other in near)
                )


def _described(name: str, leaf: tuple[tuple[int, ...], str] | None) -> str:
    return f"no {name}" if leaf is None else f"{name} of {leaf[1]}{list(leaf[0])}"


def _leaves(tree: PyTree) -> dict[Names, Any]:
    """Leaves by the names on their path, in flattening order; the leaf of a bare leaf is 'value'.

    Going through names lets containers (optax's named tuples, dataclasses) come from the
    template, so that a checkpoint does not depend on the Python classes that wrote it.
    """
    named = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or ("value",)
        if not hasattr(leaf, "dtype"):
            leaf = np.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) or leaf.dtype.kind in "OSU":
            raise TypeError(f"{'/'.join(names)} is {leaf.dtype}: a checkpoint holds numbers only")
        if 0 in leaf.shape:
            raise ValueError(f"{'/'.join(names)} is empty, shape {leaf.shape}: not storable")
        named[names] = leaf
    return named


def _at(tree: Mapping[str, Any], names: Names) -> Any:
    for name in names:
        tree = tree[name]
    return tree


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Orbax's own, but that only large arrays are shared out among the devices that have them.

    It slices every other one, too, and compiles each slice: a hundred programs for a small model.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
    scalars = ((kind, ocp.type_handlers.ScalarHandler()) for kind in (int, float, np.number))
    types = ocp.type_handlers.create_type_handler_registry(
        *scalars, (np.ndarray, ocp.type_handlers.NumpyHandler()), (jax.Array, arrays)
    )
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    trees = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
    for arguments in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        handlers.add(None, arguments, trees)
    for arguments in (ocp.args.JsonSave, ocp.args.JsonRestore):
        handlers.add(None, arguments, ocp.JsonCheckpointHandler())
    return handlers


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, np.ndarray | np.generic):
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": path.stat().st_size}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    own = (MANIFEST, PARTIAL)
    return {n: _entry(path) for n, path in paths.items() if path.is_file() and n not in own}


def _manifest(files: Mapping[str, Any]) -> bytes:
    # One spelling only, so that a byte changed in the manifest itself shows.
    return json.dumps({"files": files}, sort_keys=True, separators=(",", ":")).encode()


def _write_manifest(folder: Path, files: Mapping[str, Any]) -> None:
    partial = folder / PARTIAL
    with partial.open("wb") as file:
        file.write(_manifest(files))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)


def _verify(folder: Path) -> None:
    """Raises _Damaged unless the step has no manifest or is exactly what its manifest says."""
    if not (folder / MANIFEST).exists():
        return
    written = (folder / MANIFEST).read_bytes()
    try:
        expected = json.loads(written)["files"]
        is_as_written = _manifest(expected) == written
    except (ValueError, KeyError, TypeError):
        is_as_written = False
    if not is_as_written:
        raise _Damaged(f"{MANIFEST}: not as it was written")
    actual = _files(folder)
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            raise _Damaged(f"{name}: missing")
        if name not in expected:
            if name not in LATE:
                raise _Damaged(f"{name}: not in {MANIFEST}")
        elif expected[name] != actual[name]:
            raise _Damaged(f"{name}: checksum or size ({actual[name]['size']} bytes) differs")
