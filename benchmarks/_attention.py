"""Compile the attention of each backend for real chips, on a machine without any.

    pip install -e '.[tpu]'                    # or '.[gpu]', each in a separate environment
    python benchmarks/_attention.py            # the chips whose compiler is installed
    python benchmarks/_attention.py v5e 1025   # cases whose name has all these words

For each case it prints the HBM traffic of attention, forward and backward, for 128 images, and the
temporary memory, beside those of `train.attention=xla`. `make bench` does not run this file.
"""

import sys
from collections.abc import Iterator

import jax
from jax.sharding import NamedSharding, PartitionSpec

from occinv import parallel
from occinv.models.attention import attend, choose_backend
from occinv.plan.chips import describe_slice
from occinv.plan.gpus import options
from occinv.plan.hlo import Program
from occinv.plan.plan import exhausted
from occinv.schema import UserError

TOPOLOGIES = {
    "v4": "v4:1x1x1",
    "v5e": "v5e:1x1",
    "v5p": "v5p:1x1x1",
    "v6e": "v6e:1x1",
    "a100": "a100:1",
    "h100": "h100:1",
    "b200": "b200:1",
}
IMAGES = 128
SHAPES = {  # tokens, heads, channels of a head, whether there is a relative position
    "MAE's encoder": (50, 12, 64, False),
    "MAE's decoder": (197, 16, 32, False),
    "ViT-B": (197, 12, 64, False),
    "ViT-H/14": (257, 16, 80, False),
    "BEiT": (197, 12, 64, True),
    "384²": (577, 12, 64, False),
    "512²": (1025, 16, 64, False),
}


def cases() -> Iterator[tuple[str, str]]:
    """Yield pairs of a chip and the name of a shape."""
    for chip in TOPOLOGIES:
        for name in SHAPES:
            yield chip, name


def measure(chip: str, name: str, wanted: str) -> tuple[str, float, float]:
    """Compile attention and its gradient. Return the backend, GB of traffic and MiB of memory."""
    count, heads, size, is_relative = SHAPES[name]
    slice_ = describe_slice(TOPOLOGIES[chip])
    mesh = parallel.make_mesh(slice_.devices[:1])
    placed = NamedSharding(mesh, PartitionSpec())

    def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=placed)

    products = shape(IMAGES, count, 3 * heads * size, dtype="bfloat16")
    gradient = shape(IMAGES, count, heads * size, dtype="bfloat16")
    bias = shape(1, heads, count, count) if is_relative else None
    offset = shape(3 * heads * size)

    def both(products: jax.Array, offset: jax.Array, bias: jax.Array, g: jax.Array) -> object:
        out, back = jax.vjp(
            lambda *x: attend(*x[:2], heads, x[2], wanted, mesh), products, offset, bias
        )
        return out, back(g)

    lowered = jax.jit(both).lower(products, offset, bias, gradient)
    compiled = lowered.compile(compiler_options=options() if slice_.chip.is_gpu else None)
    traffic = Program(compiled.as_text()).traffic()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return choose_backend(wanted, products, heads, bias, mesh), traffic / 1e9, memory / 2**20


def main(*only: str) -> None:
    """Print a table of the cases whose name has all words in `only`."""
    print(f"{'':28} {'backend':8} {'GB':>7} {'MiB':>7}   {'GB of xla':>9} {'MiB':>7}")
    for chip, name in cases():
        if not all(word in f"{chip} {name} {SHAPES[name][0]}" for word in only):
            continue
        try:
            backend, traffic, memory = measure(chip, name, "auto")
        except UserError as error:  # its compiler is not installed
            print(f"{chip:6} {error}")
            continue
        try:
            _, *plain = measure(chip, name, "xla")
            beside = f"{plain[0]:9.2f} {plain[1]:7.0f}"
        except jax.errors.JaxRuntimeError as error:
            needed, available = exhausted(str(error))
            beside = f"does not fit: {needed / 2**30:.1f} of {available / 2**30:.1f} GiB"
        print(f"{chip:6} {name:21} {backend:8} {traffic:7.2f} {memory:7.0f}   {beside}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
