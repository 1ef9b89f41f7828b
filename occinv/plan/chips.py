"""TPU chips and slices for which a run can be planned."""

from __future__ import annotations

import importlib.util
import os
import re
from math import prod
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from occinv.schema import UserError, nearest

GIB = 2**30


class Chip(NamedTuple):
    """The peak values of a chip, which no program reaches, and the sizes of its slices.

    Attributes:
      memory: The bytes of HBM.
      flops: bfloat16 FLOP/s.
      memory_bandwidth: The bytes/s between HBM and the chip.
      link_bandwidth: The bytes/s that the chip sends to other chips over all its links.
      dimensions: The number of axes of a slice, which is a torus.
      largest: The number of chips in the largest slice.
    """

    memory: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    dimensions: int
    largest: int


class Slice(NamedTuple):
    """A TPU slice. Programs can be compiled for its devices, but not run."""

    topology: str
    chip: Chip
    devices: list[jax.Device]


# Source: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of cloud.google.com/tpu/docs. They
# give the bandwidth of the links as the sum of both directions; a chip sends half of it. The page
# of v4 does not give it: v4 has 6 links of 50 GB/s (Jouppi et al. 2023, Table 4).
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1200e9, 300e9, 3, 4096),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 2, 256),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 3, 6144),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, 2, 256),
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16"


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip and the shape of a slice such as `v5e:16x16`.

    Raises:
      UserError: There is no such chip, or it has no slice of this shape.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology {topology!r}: no chip {name!r}{nearest(name, CHIPS)}")
    chip = CHIPS[name]
    is_shape = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape)
    sizes = tuple(map(int, shape.split("x"))) if is_shape else ()
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
    """Return a slice such as `v5e:16x16`, with the devices that the TPU's compiler knows.

    Raises:
      UserError: The slice does not exist, or the compiler is not installed.
    """
    chip, sizes = parse(topology)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "The TPU's compiler (libtpu) is not installed. It needs no TPU: "
            "pip install -e '.[tpu]' in the checkout of occinv"
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
    return Slice(topology, chip, list(devices))
