"""Memory of InfoNCE and its gradient, plain and by blocks, as the compiler says it.

    .venv/bin/python benchmarks/blockwise.py

All tokens of the batch are negatives, 49 of each image with 256 values, on one device. Nothing
runs. docs/performance.md has the same of whole train steps on a TPU slice.
"""

import functools

import jax

from occinv.losses.chunked import chunked_info_nce

TOKENS, VALUES, BLOCK, MIB = 49, 256, 256, 2**20


def memory(batch: int, block: int | None) -> float:
    """MiB of temporaries of the mean loss and its gradient to queries and keys."""
    measure = functools.partial(chunked_info_nce, negatives="batch", temperature=0.2, block=block)
    gradient = jax.jit(jax.grad(lambda q, k: measure(q, k)[0].mean(), argnums=(0, 1)))
    shape = jax.ShapeDtypeStruct((batch, TOKENS, VALUES), "float32")
    return gradient.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes / MIB


def main() -> None:
    """Prints a row for each batch."""
    print(f"{'images':>8} {'plain':>12} {f'by {BLOCK} keys':>12}   MiB of temporaries")
    for batch in (16, 64, 256, 1024):
        print(f"{batch:8} {memory(batch, None):12,.0f} {memory(batch, BLOCK):12,.0f}", flush=True)


if __name__ == "__main__":
    main()
