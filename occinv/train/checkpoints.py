"""Checkpoints: saved in the background, verified by checksum, restored on any number of devices.

Orbax writes the arrays. It makes each step visible by one rename, so a killed process leaves only
a temporary folder behind. A bucket has no renames. There, a step without the object
`commit_success.txt` is not complete. Orbax does not detect flipped bits. Each step therefore has a
manifest (manifest.py). A step that differs from its manifest is reported and skipped.

    <folder>/300/params/...         one Orbax item for each top-level key of the state
    <folder>/300/layout/metadata    JSON: path, shape and dtype of every leaf of every item
    <folder>/300/notes/metadata     JSON: what the run wants to know at its restart
    <folder>/300/manifest.json      step, run, and size and SHA-256 of every other file of the step
    <folder>/400.damaged/           a step that differs from its manifest, kept for inspection
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from occinv.parallel import from_first_process
from occinv.paths import as_path
from occinv.schema import UserError
from occinv.train.manifest import (
    LATE,
    MANIFEST,
    Damaged,
    RunIdentity,
    add_late_files,
    delete_step,
    flush,
    list_files,
    put_aside,
    verify,
    write_manifest,
)
from occinv.train.quiet_orbax import quiet_orbax

__all__ = ["MANIFEST", "Checkpoints"]

PyTree = Any
Leaves = dict[tuple[str, ...], Any]  # path in the pytree -> leaf
Template = Callable[[Mapping[str, Leaves]], Mapping[str, PyTree]]  # layout -> template of `restore`

LAYOUT, NOTES = "layout", "notes"

log = logging.getLogger("occinv.train")

quiet_orbax()


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Every process of a run constructs this object and calls the same methods in the same order.
    Process 0 writes the files that exist once per step.

    Args:
      folder: The parent folder of the steps. It is created unless `read_only`.
      keep: How many of the newest steps stay on disk, at least 1.
      read_only: Never write, move or delete anything, as a reader beside a running training must.
      run: The run that the checkpoints must belong to; None: any. Only process 0 needs it.

    Raises:
      UserError: `keep` is less than 1.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 3,
        read_only: bool = False,
        run: RunIdentity | None = None,
    ) -> None:
        if keep < 1:
            raise UserError(f"keep = {keep} is less than 1. Keep at least one checkpoint.")
        self.folder = as_path(folder).absolute()
        self.keep, self.read_only, self.run = keep, read_only, run
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

    def save(
        self, step: int, state: Mapping[str, PyTree], notes: Mapping[str, Any] | None = None
    ) -> bool:
        """Start to save `state` as the checkpoint of `step`; return once the arrays are copied.

        The call first waits for the previous save and raises its error if that save failed. The
        caller may donate or overwrite the arrays after the call.

        Args:
          step: The number of finished steps, at least 0.
          state: Item name -> pytree of arrays or scalars in any containers. Each item can be
            restored alone.
          notes: Content in JSON's types, which `notes` returns, the same on every process.

        Returns:
          True, or False if this step is already on disk. An existing step is not changed.

        Raises:
          ValueError: This object is read-only, an item is called 'layout' or 'notes', or a leaf is
            empty.
          TypeError: A leaf is not numeric.
        """
        if self.read_only:
            raise ValueError(f"Cannot save step {step}: {self.folder} was opened read-only.")
        if taken := {LAYOUT, NOTES} & state.keys():
            raise ValueError(f"An item cannot be called {min(taken)!r}. Rename it.")
        self.wait()
        if step in self.steps():
            return False
        leaves = {item: _leaves(tree) for item, tree in state.items()}
        layout = {
            item: [[path, list(leaf.shape), str(leaf.dtype)] for path, leaf in part.items()]
            for item, part in leaves.items()
        }
        # Orbax cannot store an item without leaves. The layout records that it existed.
        items = {
            item: ocp.args.PyTreeSave(unflatten_dict(part)) for item, part in leaves.items() if part
        }
        items[LAYOUT] = ocp.args.JsonSave(layout)
        if notes:
            items[NOTES] = ocp.args.JsonSave(dict(notes))
        self._saving = step
        return self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def steps(self) -> list[int]:
        """Return the steps that are completely on disk, ascending, including damaged ones."""
        return sorted(self._manager.all_steps(read=True))

    def latest(self) -> int | None:
        """Return the newest of `steps()` or None. The result is the same on every process."""
        return from_first_process(lambda: max(self.steps(), default=None))

    def restore(
        self, template: Mapping[str, PyTree], step: int | None = None
    ) -> tuple[int, dict[str, PyTree]]:
        """Restore the newest undamaged checkpoint, bit for bit, onto the devices of the template.

        A damaged step is logged as a warning, and the step before it is read. Unless read-only,
        the damaged step is renamed to `<step>.damaged`, so that the run can save it again.

        Args:
          template: Item name -> pytree of arrays or jax.ShapeDtypeStruct. The sharding of a leaf
            decides where its array is placed, whatever the sharding was when it was saved. An
            array without one is placed on the first device of this process. A NumPy leaf is
            restored as NumPy. The template may contain fewer items than were saved.
          step: Read exactly this step, without a fallback. None reads the newest.

        Returns:
          The step and the state, in the containers of `template`.

        Raises:
          UserError: There is no checkpoint, all are damaged, or the checkpoint has other names,
            shapes or dtypes than the template. A run never starts anew silently.
        """
        return self._newest_good(lambda layout: template, step)

    def restore_params(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Restore the item `params` alone, as nested dicts of NumPy arrays, without a template.

        It falls back as `restore` does. Containers other than dicts are restored as dicts by index
        or field name.

        Raises:
          UserError: There is no checkpoint, all are damaged, or it has no item `params`.
        """

        def template(layout: Mapping[str, Leaves]) -> dict[str, PyTree]:
            leaves = layout.get("params", {}).items()
            return {"params": unflatten_dict({p: np.empty(x.shape, x.dtype) for p, x in leaves})}

        chosen, state = self._newest_good(template, step)
        return chosen, state["params"]

    def notes(self, step: int) -> dict[str, Any]:
        """Return the notes that were saved with a step, empty if there were none."""
        if not (self.folder / str(step) / NOTES).exists():
            return {}
        args = ocp.args.Composite(**{NOTES: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[NOTES]

    def prune(self) -> None:
        """Delete all but the newest `keep` steps, which a killed process may have left."""
        self.wait()
        old = self.steps()[: -self.keep]

        def delete() -> None:
            for step in old:
                delete_step(self.folder / str(step))

        if from_first_process(lambda: len(old)):
            self._change(delete)

    def wait(self) -> None:
        """Wait until the current save is complete and checksummed; raise its error if it failed."""
        try:
            self._manager.wait_until_finished()
        finally:
            step, self._saving = self._saving, None
        if step is not None and jax.process_index() == 0:
            add_late_files(self.folder / str(step))

    def close(self) -> None:
        """Wait for the current save and end the threads. Do not use the object afterwards."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _seal(self) -> None:
        # Orbax calls this on process 0 after it has written the content and before it renames the
        # temporary folder, or in a bucket, before it writes the file that makes a step complete.
        # The manifest therefore appears together with the step, or not at all.
        (folder,) = (
            as_path(temporary.get())
            for temporary in ocp.path.step.all_temporary_paths(self.folder)
            if temporary.get_final().name == str(self._saving)
        )
        files = {name: each for name, each in list_files(folder).items() if name not in LATE}
        write_manifest(folder, int(self._saving or 0), self.run, files)
        flush(folder)

    def _newest_good(self, make_template: Template, step: int | None) -> tuple[int, dict[str, Any]]:
        """Restore the newest undamaged step, or the requested step."""
        self.wait()
        found = self.steps()
        if not found:
            raise UserError(f"There is no checkpoint in {self.folder}. Train first.")
        if step is not None and step not in found:
            raise UserError(f"There is no checkpoint {step} in {self.folder}. Choose from {found}.")
        candidates = found[::-1] if step is None else [step]
        problems: dict[int, str] = {}
        # Process 0 decides for all, so that the processes cannot take different steps.
        chosen = from_first_process(lambda: self._first_intact(candidates, problems))
        if chosen is None:
            # Only process 0 knows the problems.
            why = "".join(f" Step {at}: {problem}." for at, problem in problems.items())
            raise UserError(
                f"There is no undamaged checkpoint in {self.folder}. Found {candidates}.{why}"
            )
        # The files match their manifest, so they are what was saved. An older step would fail in
        # the same way as this one.
        state = self._read(chosen, make_template)
        for at, problem in problems.items():
            log.warning("checkpoint %d is damaged (%s); using %d", at, problem, chosen)
        newer = [at for at in candidates if at > chosen]
        if newer and not self.read_only:
            self._change(lambda: put_aside(self.folder, newer))
        return chosen, state

    def _first_intact(self, candidates: list[int], problems: dict[int, str]) -> int | None:
        for at in candidates:
            try:
                verify(self.folder / str(at), at, self.run)
                return at
            except (Damaged, OSError) as error:
                problems[at] = str(error)
        return None

    def _change(self, change: Callable[[], None]) -> None:
        """Let process 0 rename or delete steps, and every process list the folder again."""
        if jax.process_index() == 0:
            change()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("occinv checkpoints: steps renamed or deleted")
        self._manager.reload()

    def _layout(self, step: int) -> dict[str, Leaves]:
        """Return every item of a step, its leaves as jax.ShapeDtypeStruct."""
        args = ocp.args.Composite(**{LAYOUT: ocp.args.JsonRestore()})
        return {
            item: {
                tuple(path): jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
                for path, shape, dtype in part
            }
            for item, part in self._manager.restore(step, args=args)[LAYOUT].items()
        }

    def _read(self, step: int, make_template: Template) -> dict[str, PyTree]:
        layout = self._layout(step)
        template = make_template(layout)
        leaves = {item: _leaves(tree) for item, tree in template.items()}
        _check_layout(f"Checkpoint {step} in {self.folder}", layout, leaves)
        trees = {item: unflatten_dict(part) for item, part in leaves.items() if part}
        args = {
            item: ocp.args.PyTreeRestore(item=tree, restore_args=jax.tree.map(_restore_args, tree))
            for item, tree in trees.items()
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**args)) if args else {}
        flat = {item: flatten_dict(found[item]) for item in args}
        return {
            item: jax.tree.unflatten(
                jax.tree.structure(tree), [flat[item][path] for path in leaves[item]]
            )
            for item, tree in template.items()
        }


def _check_layout(
    checkpoint: str, layout: Mapping[str, Leaves], leaves: Mapping[str, Leaves]
) -> None:
    for item, wanted in leaves.items():
        if item not in layout:
            raise UserError(f"{checkpoint} has no item {item!r}, only {', '.join(layout)}.")
        saved = layout[item]
        for path in [*wanted, *saved]:
            has, expected = _described(saved.get(path)), _described(wanted.get(path))
            if has == expected:
                continue
            name = "/".join((item, *path))
            others = ["/".join((item, *other)) for other in saved.keys() - wanted.keys()]
            near = difflib.get_close_matches(name, others, 1) if path not in saved else []
            raise UserError(
                f"{checkpoint} is of another model or config: {name} is {has} there and {expected} "
                "in this run. Use the config of the checkpoint or another workdir."
                + "".join(f" The nearest saved name is {other}." for other in near)
            )


def _described(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _leaves(tree: PyTree) -> Leaves:
    """Return the leaves by path, in flattening order. The path of a bare leaf is ('value',).

    Paths of plain strings make a checkpoint independent of the Python classes that wrote it. The
    containers, such as Optax's named tuples, come from the template.
    """
    leaves: Leaves = {}
    for keys, leaf in jax.tree.leaves_with_path(tree):
        path = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys) or ("value",)
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            leaf = np.asarray(leaf)
        name = "/".join(path)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) or leaf.dtype.kind in "OSU":
            raise TypeError(f"{name} has dtype {leaf.dtype}. A checkpoint can hold only numbers.")
        if 0 in leaf.shape:
            raise ValueError(f"{name} is empty, with shape {leaf.shape}. Remove it from the state.")
        leaves[path] = leaf
    return leaves


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Return Orbax's handlers, with a limit on slicing replicated arrays.

    By default Orbax divides every replicated array among its devices for writing, and compiles a
    program for each slice, a hundred for a small model. Here only arrays from 1 MiB are divided.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
    types = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler()), (jax.Array, arrays)
    )
    trees = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for arguments in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        handlers.add(None, arguments, trees)
    return handlers


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if isinstance(leaf, np.ndarray):
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
