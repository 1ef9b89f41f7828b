"""The mesh of all accelerators, and how arrays lie on it.

Programs are written for the global batch and compiled with `jax.jit`; the compiler parts the work
along the mesh. A loss that couples the batch therefore sees all of it, however many devices there
are. The mesh has two axes, `data` × `fsdp`: the images lie over both, and the train state, which
each place along `data` holds once, over `fsdp` (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from occinv.schema import UserError

Tree = TypeVar("Tree")


IMAGES = ("data", "fsdp")  # the axes of the mesh along which the images of a batch are parted

# Smaller arrays, biases for the most part, are not worth sending for: every device has them whole.
SHARDED_FROM = 2**15  # numbers

# A process that has died is noticed after so many seconds, and then all others end.
PEER_TIMEOUT = 60


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of several, before anything else is done with JAX.

    Without arguments the cluster is asked who is there: SLURM, Cloud TPU, Kubernetes, Open MPI.

    Args:
      coordinator: HOST:PORT of process 0, at which it listens.
      num_processes, process_id: how many there are, and which this is, from 0.

    Raises UserError where no cluster is found and nothing was given, or only a part of it.
    """
    given = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} missing, expected all of {', '.join(given)}")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(f"--process-id {process_id}, expected 0 to {num_processes - 1}")
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=PEER_TIMEOUT
        )
    except ValueError as error:
        raise UserError(
            "--distributed found no cluster (SLURM, Cloud TPU, Kubernetes, Open MPI): give "
            f"--coordinator HOST:PORT, --num-processes and --process-id ({error})"
        ) from error


def make_mesh(devices: list[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """The mesh `data` × `fsdp` over every device of every process (or over `devices`).

    `fsdp` devices share one copy of the train state. Raises UserError if it is no divisor of them.
    """
    # A process's devices are neighbors, so that it has consecutive images of the global batch:
    # the i-th is the same image with the same draws on any number of processes.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) % fsdp:
        possible = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        near = min(possible, key=lambda n: abs(n - fsdp))
        raise UserError(
            f"train.fsdp={fsdp}, expected a divisor of the {len(devices)} devices (nearest: {near})"
        )
    return Mesh(np.reshape(devices, (-1, fsdp)), IMAGES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_image(mesh: Mesh) -> NamedSharding:
    """The leading axis, the images of the global batch, is parted over the devices."""
    return NamedSharding(mesh, PartitionSpec(IMAGES))


def of_state(mesh: Mesh, state: Any) -> Any:
    """Where each array of a train state (arrays, or their shapes) lies: a tree of shardings.

    The longest axis that the `fsdp` devices can share equally is parted among them (of equally long
    ones the last, so that a stack of blocks is not parted by blocks), in arrays of SHARDED_FROM
    numbers or more. Along `data` every device has the same.
    """
    count = mesh.shape["fsdp"]

    def sharding(x: Any) -> NamedSharding:
        axes = [axis for axis in range(x.ndim) if x.shape[axis] % count == 0]
        if count == 1 or x.size < SHARDED_FROM or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: (x.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered(mesh: Mesh, params: Tree) -> Tree:
    """Sharded `params` whole on every device; the gradient goes back the way that they lie.

    What the compiler would choose otherwise is to part the arithmetic as the parameters are
    parted, and to send activations about.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


def _scattered(mesh: Mesh, _: None, gradient: Tree) -> tuple[Tree]:
    return (jax.lax.with_sharding_constraint(gradient, of_state(mesh, gradient)),)


gathered.defvjp(lambda mesh, params: (gathered(mesh, params), None), _scattered)


def check_batch(mesh: Mesh, batch_size: int, path: str = "train.batch_size") -> None:
    """Raises UserError unless the devices can share `batch_size` images equally."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        choices = f"{below} or {below + mesh.size}" if below else str(mesh.size)
        raise UserError(
            f"{path}={batch_size} is not divisible by the {mesh.size} devices (nearest: {choices})"
        )


def put_batch(mesh: Mesh, batch: Tree) -> Tree:
    """This process's rows of a batch, as arrays of the global batch on the devices."""
    sharding = by_image(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def fetch(tree: Any) -> Any:
    """Replicated arrays as NumPy arrays, on every process."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)


def from_first_process(find: Callable[[], int | None]) -> int | None:
    """`find()` as process 0 sees it, on every process; the others do not call it."""
    if jax.process_count() == 1:
        return find()
    found = find() if jax.process_index() == 0 else None
    agreed = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found)))
    return None if agreed < 0 else agreed


def compute_dtype(precision: str, mesh: Mesh | None = None) -> Any:
    """The dtype of the computation: bfloat16 on accelerators unless told, float32 on CPU."""
    if precision == "auto":
        platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
        precision = "float32" if platform == "cpu" else "bfloat16"
    return jax.numpy.dtype(precision)
