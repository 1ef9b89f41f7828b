"""The GPUs that XLA's compiler can compile for without a GPU."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from occinv.schema import UserError

# A compiler without a GPU cannot time kernels. Without timing it fails on some matrix products in
# Triton, so that all matrix products are calls of cuBLAS.
OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


class Gpu(NamedTuple):
    """The facts about a GPU that the compiler reads, besides its memory.

    Attributes:
      name: The name that the driver gives.
      capability: The major compute capability.
      cores: The number of streaming multiprocessors (SM).
      lanes: The float32 units of an SM.
      clock: GHz.
      cache: The bytes of the L2 cache.
      shared: The bytes of shared memory of an SM.
    """

    name: str
    capability: int
    cores: int
    lanes: int
    clock: float
    cache: int
    shared: int


# Source: the files of openxla/xla in xla/backends/gpu/target_config/specs, which XLA reads from a
# GPU with the CUDA driver.
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 41943040, 167936),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 52428800, 233472),
    "h200": Gpu("NVIDIA H200 141GB HBM3e", 9, 132, 128, 1.98, 52428800, 233472),
    "b200": Gpu("NVIDIA B200", 10, 148, 128, 1.965, 132644864, 233472),
}


def target_config(gpu: Gpu, memory: int, bandwidth: float) -> str:
    """Return the description of a GPU as text of XLA's `GpuTargetConfigProto`."""
    feature = "ACCELERATED_FEATURES" if gpu.capability >= 9 else "NONE"
    return f"""
gpu_device_info {{
  name: "{gpu.name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {feature} }}
  core_count: {gpu.cores} fpus_per_core: {gpu.lanes} clock_rate_ghz: {gpu.clock}
  device_memory_size: {memory} memory_bandwidth: {bandwidth:.0f} l2_cache_size: {gpu.cache}
  shared_memory_per_core: {gpu.shared} shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared - 1024}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def describe_gpus(
    name: str, memory: int, bandwidth: float, nodes: int, per_node: int
) -> list[jax.Device]:
    """Return the GPUs of several nodes. Programs can be compiled for them, but not run.

    Raises:
      UserError: The compiler is not installed.
    """
    plugins = "jax_cuda12_plugin", "jax_cuda13_plugin"
    if all(importlib.util.find_spec(plugin) is None for plugin in plugins):
        raise UserError(
            "The GPU's compiler (JAX's CUDA plugin) is not installed. It needs no GPU: "
            "pip install 'jax[cuda13]'"
        )
    config = target_config(GPUS[name], memory, bandwidth)
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology=f"1x{nodes}x{per_node}", target_config=config
        )
    except jax.errors.JaxRuntimeError as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(f"The GPU's compiler does not know {name}: {reason}") from error
    return list(found.devices)


def options() -> dict[str, Any]:
    """Return the options of the compiler, without those that XLA_FLAGS sets."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in OPTIONS.items() if f"--{name}" not in flags}


def usable() -> float:
    """Return the fraction of a GPU's memory that JAX allocates when it starts.

    It is 75 %, or what the variable of the environment says that JAX reads.
    """
    names = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    said = next((os.environ[name] for name in names if os.environ.get(name)), "0.75")
    try:
        return float(said)
    except ValueError:
        raise UserError(f"{names[0]}={said!r}, expected a fraction such as 0.9") from None
