"""Print the compiler's memory of InfoNCE and its gradient, with and without key chunks.

    .venv/bin/python benchmarks/key_chunks.py

All tokens of the batch are negatives: 49 per image, with 256 values, on one device. Nothing is
executed. docs/performance.md has the memory of whole train steps on a TPU slice.
"""

import functools

import jax

from occinv.losses.chunked import chunked_info_nce

TOKENS, VALUES, KEY_CHUNK, MIB = 49, 256, 256, 2**20


def memory(batch: int, key_chunk: int | None) -> float:
    """Return the MiB of temporaries of the mean loss and its gradient by queries and keys."""
    loss = functools.partial(
        chunked_info_nce, negatives="batch", temperature=0.2, key_chunk=key_chunk
    )
    gradient = jax.jit(jax.grad(lambda q, k: loss(q, k)[0].mean(), argnums=(0, 1)))
    shape = jax.ShapeDtypeStruct((batch, TOKENS, VALUES), "float32")
    return gradient.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes / MIB


def main() -> None:
    """Print a row for each batch size."""
    print(f"{'images':>8} {'plain':>12} {f'{KEY_CHUNK} keys':>12}   MiB of temporaries")
    for batch in (16, 64, 256, 1024):
        sizes = [memory(batch, key_chunk) for key_chunk in (None, KEY_CHUNK)]
        print(f"{batch:8} {sizes[0]:12,.0f} {sizes[1]:12,.0f}", flush=True)


if __name__ == "__main__":
    main()
