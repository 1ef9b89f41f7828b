"""The chips that can be planned for, and their slices."""

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
    """Peak values of one chip, which no program reaches, and the shape of its slices."""

    memory: int  # bytes of HBM
    flops: float  # bfloat16 FLOP/s
    memory_bandwidth: float  # bytes/s of HBM
    link_bandwidth: float  # bytes/s that leave the chip over all its links to other chips
    dimensions: int  # of the torus
    largest: int  # chips in a slice


# Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs/…).
# They give the links' bandwidth in both directions together: half of it leaves. That of v4, of
# which its page is silent, is 6 links of 50 GB/s (Jouppi et al. 2023, Table 4).
CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1200e9, 300e9, 3, 4096),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 2, 256),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 3, 6144),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, 2, 256),
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:16x16"


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """`v5e:16x16` as chip and shape. Raises UserError for a name that is none, or has no slice."""
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology {topology!r}: no chip {name!r}{nearest(name, CHIPS)}")
    chip = CHIPS[name]
    sizes = (
        tuple(map(int, shape.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", shape) else ()
    )
    if len(sizes) != chip.dimensions:
        raise UserError(
            f"--topology {topology!r}: expected {chip.dimensions} sizes of a slice, as in "
            + EXAMPLES
        )
    if prod(sizes) > chip.largest:
        raise UserError(
            f"--topology {topology!r}: {prod(sizes)} chips, expected at most {chip.largest}"
        )
    return chip, sizes


def slice_devices(topology: str) -> list[jax.Device]:
    """The devices of a slice such as `v5e:16x16`, which only compile.

    Raises UserError for a slice that does not exist, and where the TPU's compiler is not installed.
    """
    _, sizes = parse(topology)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            "the TPU's compiler (libtpu) is not installed, which needs no TPU: "
            "pip install 'occinv[tpu]'"
        )
    # What it asks of a TPU's machine and would warn of here; it may be loaded twice, for no chip
    # is taken.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    options: dict[str, Any] = {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # a chip's two cores are one device
    if set(sizes) == {1}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology {topology!r}: {reason}; as in {EXAMPLES}") from error
