"""TPU slices and nodes of GPUs for which a run can be planned."""

from __future__ import annotations

import importlib.util
import os
import re
from math import prod
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from occinv.plan import gpus
from occinv.schema import UserError, nearest

GIB = 2**30


class Chip(NamedTuple):
    """The peak values of a device, which no program reaches, and the sizes of its slices.

    Attributes:
      memory: The bytes of HBM.
      flops: bfloat16 FLOP/s, dense.
      memory_bandwidth: The bytes/s between HBM and the device.
      link_bandwidth: The bytes/s that the device sends to others over all its links: ICI of a TPU,
        NVLink of a GPU.
      dimensions: The number of axes of a slice of TPUs, which is a torus.
      largest: The number of chips in the largest slice, or of GPUs in a node.
      clock: Hz of a TPU.
      devices: The number of devices of a chip.
      network_bandwidth: The bytes/s that a GPU sends to other nodes.
    """

    memory: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    dimensions: int
    largest: int
    clock: float = 0.0
    devices: int = 1
    network_bandwidth: float = 0.0

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.dimensions == 0

    @property
    def unit(self) -> str:
        """The word for a device."""
        return "GPU" if self.is_gpu else "device" if self.devices > 1 else "chip"

    @property
    def available(self) -> int:
        """The bytes of memory for a step: all of a TPU's, the part of a GPU's that JAX allocates.

        A TPU's compiler may need a little of it for itself.
        """
        return round(self.memory * gpus.usable()) if self.is_gpu else self.memory


class Slice(NamedTuple):
    """A TPU slice, or nodes of GPUs. Programs can be compiled for its devices, but not run."""

    topology: str
    chip: Chip
    devices: list[jax.Device]


# TPUs. Source: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of
# cloud.google.com/tpu/docs. They give the bandwidth of the links as the sum of both directions; a
# chip sends half of it. The page of v4 does not give it: v4 has 6 links of 50 GB/s (Jouppi et al.
# 2023, Table 4). A chip of TPU7x is two devices with half of its values each; between the two there
# is a faster link, which we do not count. A clock is the peak FLOP/s divided by those of a cycle: 4
# units (MXUs) of 128 × 128 multiply-adds in each TensorCore, 256 × 256 in v6e and TPU7x. We assume
# 4 units for TPU7x, whose page does not give their number.
#
# GPUs, all SXM. Memory and its bandwidth are those of XLA's target configs (see gpus.py), which
# agree with the data sheets of NVIDIA within 5 %. FLOP/s without sparsity and NVLink: the data
# sheets of A100, H100 and H200, and of HGX B200. NVLink is given as the sum of both directions.
# Network: DGX A100 has a port of 200 Gb/s for each GPU, DGX H100, H200 and B200 one of 400 Gb/s.
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1200e9, 300e9, 3, 4096, 1.05e9),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 2, 256, 1.5e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 3, 6144, 1.75e9),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, 2, 256, 1.75e9),
    "tpu7x": Chip(96 * GIB, 1153.5e12, 3690e9, 300e9, 3, 9216, 2.2e9, devices=2),
    "a100": Chip(85100068864, 312e12, 2039e9, 300e9, 0, 8, network_bandwidth=25e9),
    "h100": Chip(84942979072, 989e12, 3352e9, 450e9, 0, 8, network_bandwidth=50e9),
    "h200": Chip(151397597184, 989e12, 4800e9, 450e9, 0, 8, network_bandwidth=50e9),
    "b200": Chip(191514411008, 2250e12, 7672e9, 900e9, 0, 8, network_bandwidth=50e9),
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1"
GPU_EXAMPLES = "h100:8 or, for 4 nodes of 8, h100:4x8"


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip and the shape of a slice such as `v5e:16x16`.

    The shape of GPUs is (nodes, GPUs of a node).

    Raises:
      UserError: There is no such chip, or it has no slice of this shape.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology {topology!r}: no chip {name!r}{nearest(name, CHIPS)}")
    chip = CHIPS[name]
    is_shape = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape)
    sizes = tuple(map(int, shape.split("x"))) if is_shape else ()
    if chip.is_gpu:
        if len(sizes) not in (1, 2):
            raise UserError(
                f"--topology {topology!r}, expected a number of GPUs, as in {GPU_EXAMPLES}"
            )
        if sizes[-1] > chip.largest:
            raise UserError(
                f"--topology {topology!r} has {sizes[-1]} GPUs in a node, expected at most "
                f"{chip.largest}, as in {GPU_EXAMPLES}"
            )
        return chip, (1, *sizes)[-2:]
    if len(sizes) != chip.dimensions:
        raise UserError(
            f"--topology {topology!r}, expected {chip.dimensions} sizes of a slice, as in "
            + EXAMPLES
        )
    if prod(sizes) > chip.largest:
        raise UserError(
            f"--topology {topology!r} has {prod(sizes)} chips, expected at most {chip.largest}"
        )
    return chip, sizes


def describe_slice(topology: str) -> Slice:
    """Return a slice such as `v5e:16x16`, with the devices that the compiler knows.

    Raises:
      UserError: The slice does not exist, or the compiler is not installed.
    """
    chip, sizes = parse(topology)
    if chip.is_gpu:
        name = topology.partition(":")[0]
        found = gpus.describe_gpus(name, chip.memory, chip.memory_bandwidth, *sizes)
        return Slice(topology, chip, found)
    return Slice(topology, chip, _describe_tpus(topology, sizes))


def _describe_tpus(topology: str, sizes: tuple[int, ...]) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "The TPU's compiler (libtpu) is not installed. It needs no TPU: pip install 'jax[tpu]'"
        )
    # libtpu asks for these facts about a TPU machine, and warns without them. Several processes may
    # load it, because none of them uses a chip.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    options: dict[str, Any] = {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # the two cores of a chip are one device
    if set(sizes) == {1}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {topology!r}: {reason}; as in {EXAMPLES}") from error
    return list(devices)
