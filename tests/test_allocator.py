"""The process keeps the memory that a program's temporaries had."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import importlib.util, resource, sys
from importlib import metadata
from occinv.commands import allocator
metadata.entry_points = lambda **_: ()  # also where JAX has a plugin for an accelerator
importlib.util.find_spec = lambda _: None
if sys.argv[1] == "keep":
    allocator.keep_freed_memory()
import jax, jax.numpy as jnp
program = jax.jit(lambda x: jnp.fft.fft(x).real.sum())
x = jnp.ones(2**21)
faults = []
for run in range(32):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# The heap grows in the first ten runs or so, and threads of JAX may start at any time.
print(min(faults))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_temporaries_cause_no_page_faults() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", SCRIPT, how]))
        for how in ("keep", "default")
    }
    assert faults["keep"] < 100, faults
    assert faults["default"] > 1000, faults
