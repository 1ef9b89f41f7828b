"""The mesh of all accelerators, and where arrays are placed on it.

Programs are written for the global batch and compiled with `jax.jit`; the compiler partitions the
work over the mesh. A loss that couples the batch therefore sees the whole batch on any number of
devices. The mesh has two axes, `data` × `fsdp`: images are sharded over both. The train state is
sharded over `fsdp` and replicated over `data` (Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054).
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from occinv.schema import UserError

Tree = TypeVar("Tree")

IMAGES = ("data", "fsdp")  # the mesh axes that the images of a batch are sharded over
STACK = "scan"  # the name of the stacked parameters of transformer blocks

# Smaller arrays (mostly biases) are not worth the communication: every device holds them whole.
SHARDED_FROM = 2**15  # numbers

# A process that has died, or does not start, is noticed after this many seconds; then all stop.
PEER_TIMEOUT = 45
# A cluster manager may start its processes minutes apart.
CLUSTER_TIMEOUT = 300


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Make this process one of several. Call it before anything else uses JAX.

    Without arguments the cluster is detected: SLURM, Cloud TPU, Kubernetes, Open MPI.

    Args:
      coordinator: HOST:PORT where process 0 listens.
      num_processes, process_id: The number of processes, and the number of this one from 0.

    Raises:
      UserError: No cluster is found and no arguments were given, or only some of them, or process
        0 cannot listen at the address.
    """
    check_processes(coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=PEER_TIMEOUT,
            initialization_timeout=CLUSTER_TIMEOUT if coordinator is None else PEER_TIMEOUT,
        )
    except ValueError as error:
        raise UserError(
            "--distributed found no cluster (SLURM, Cloud TPU, Kubernetes, Open MPI); give "
            f"--coordinator HOST:PORT, --num-processes and --process-id ({error})"
        ) from error


def check_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Raise UserError unless all arguments of `join` are given or none, and process 0 can listen.

    JAX crashes where its port is in use.
    """
    given = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(f"{' and '.join(missing)} missing; give all of {', '.join(given)}")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num-processes {num_processes}, expected 1 or more")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(f"--process-id {process_id}, expected 0 to {num_processes - 1}")
    if coordinator is None:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator {coordinator!r}, expected HOST:PORT")
    if process_id == 0:
        has_ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
        address = ("", int(port))
        try:
            socket.create_server(address, family=family, dualstack_ipv6=has_ipv6).close()
        except OSError as error:
            raise UserError(
                f"--coordinator {coordinator}: process 0 cannot listen there "
                f"({os.strerror(error.errno or 0)}). Use another port."
            ) from error


def make_mesh(devices: list[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """Make the mesh `data` × `fsdp` over every device of every process (or over `devices`).

    Raises:
      UserError: `fsdp`, the number of devices that share one train state, does not divide them.
    """
    # Each process gets consecutive rows, so that image i of the global batch, and its draws, do
    # not depend on the number of processes.
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    if len(devices) % fsdp:
        possible = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        near = min(possible, key=lambda n: abs(n - fsdp))
        raise UserError(f"train.fsdp={fsdp} does not divide the {len(devices)} devices; use {near}")
    return Mesh(np.reshape(devices, (-1, fsdp)), IMAGES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Place the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_image(mesh: Mesh) -> NamedSharding:
    """Shard the leading axis, the images of the global batch, over all devices."""
    return NamedSharding(mesh, PartitionSpec(IMAGES))


def of_state(mesh: Mesh, state: Any) -> Any:
    """Return the sharding of each array of a train state (arrays, or their shapes).

    In arrays of at least SHARDED_FROM numbers, the longest axis that the `fsdp` devices divide is
    sharded; on ties the last one, never the axis of blocks. Over `data` arrays are replicated.
    """
    count = mesh.shape["fsdp"]

    def sharding(x: Any) -> NamedSharding:
        axes = [axis for axis in range(x.ndim) if x.shape[axis] % count == 0]
        if count == 1 or x.size < SHARDED_FROM or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: (x.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def is_sharded(mesh: Mesh | None) -> bool:
    """Whether no device holds all parameters."""
    return mesh is not None and mesh.shape["fsdp"] > 1


def gather(mesh: Mesh | None, tree: Tree) -> Tree:
    """Gather sharded parameters for a forward pass, all but the stacks of blocks.

    Each block gathers its own parameters (`gather_block`) when it is computed.
    """
    if mesh is None or not is_sharded(mesh):
        return tree

    def one(path: Any, x: jax.Array) -> jax.Array:
        in_stack = any(getattr(key, "key", None) == STACK for key in path)
        return x if in_stack else jax.lax.with_sharding_constraint(x, replicated(mesh))

    return jax.tree.map_with_path(one, tree)


def scatter(mesh: Mesh | None, gradient: Tree) -> Tree:
    """Shard a gradient as the parameters are sharded."""
    if mesh is None or not is_sharded(mesh):
        return gradient
    return jax.lax.with_sharding_constraint(gradient, of_state(mesh, gradient))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gather_block(mesh: Mesh, params: Tree) -> Tree:
    """Gather the sharded parameters of one block; their gradient is scattered again.

    Otherwise XLA would shard matmuls by weights and communicate activations.
    """
    return jax.lax.with_sharding_constraint(params, replicated(mesh))


gather_block.defvjp(
    lambda mesh, params: (gather_block(mesh, params), None),
    lambda mesh, _, gradient: (scatter(mesh, gradient),),
)


def check_batch(mesh: Mesh, batch_size: int, path: str = "train.batch_size") -> None:
    """Raise UserError unless the devices can share `batch_size` images equally."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        choices = f"{below} or {below + mesh.size}" if below else str(mesh.size)
        raise UserError(
            f"{path}={batch_size} is not divisible by the {mesh.size} devices; use {choices}"
        )


def put_batch(mesh: Mesh, batch: Tree) -> Tree:
    """Put this process's rows of a batch on its devices, as arrays of the global batch."""
    sharding = by_image(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def fetch(tree: Any) -> Any:
    """Return replicated arrays as NumPy arrays, on every process."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)


def from_first_process(find: Callable[[], int | None]) -> int | None:
    """Call `find` on process 0 only and return its result on every process."""
    if jax.process_count() == 1:
        return find()
    found = find() if jax.process_index() == 0 else None
    agreed = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if found is None else found)))
    return None if agreed < 0 else agreed


def compute_dtype(precision: str, mesh: Mesh | None = None) -> Any:
    """Return the dtype of the computation; `auto` is float32 on CPU and bfloat16 elsewhere."""
    if precision == "auto":
        platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
        precision = "float32" if platform == "cpu" else "bfloat16"
    return jax.numpy.dtype(precision)
