"""Arithmetic counted in programs whose count can be done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from occinv.models.attention import attend
from occinv.models.vit import ViT
from occinv.parallel import make_mesh
from occinv.train.flops import kernel_flops, traced_flops


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    """A float32 array that is never made."""
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """The count for a function of arrays or shapes."""
    return traced_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_product_is_two_operations_a_term() -> None:
    assert matmul_flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    assert matmul_flops(jnp.matmul, jnp.ones((3, 5)), jnp.ones((5, 7))) == 2 * 3 * 5 * 7


def test_a_batch_of_products() -> None:
    product = jax.vmap(jnp.matmul)
    assert matmul_flops(product, shape(4, 3, 5), shape(4, 5, 7)) == 4 * 2 * 3 * 5 * 7


def test_several_contracted_axes() -> None:
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum("abc,bcd->ad", a, b)

    assert matmul_flops(product, shape(2, 3, 5), shape(3, 5, 7)) == 2 * 2 * 7 * (3 * 5)


def test_what_is_no_product_counts_nothing() -> None:
    assert matmul_flops(lambda x: jnp.tanh(x * x).sum(), shape(100, 100)) == 0


def test_a_scanned_product_counts_in_every_turn() -> None:
    def power(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ x, None), x, length=6)[0]

    assert matmul_flops(power, shape(4, 4)) == 6 * 2 * 4**3
    assert matmul_flops(jax.jit(power), shape(4, 4)) == 6 * 2 * 4**3


def test_a_scan_within_a_scan() -> None:
    def power(x: jax.Array) -> jax.Array:
        def inner(y: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.scan(lambda z, _: (z @ x, None), y, length=5)[0], None

        return jax.lax.scan(inner, x, length=3)[0]

    assert matmul_flops(power, shape(4, 4)) == 15 * 2 * 4**3


def test_a_product_of_each_device_counts_on_all() -> None:
    parts = PartitionSpec("data")
    mapped = jax.shard_map(
        lambda x, y: x @ y,
        mesh=make_mesh(),
        in_specs=(parts, PartitionSpec()),
        out_specs=parts,
    )
    assert matmul_flops(mapped, shape(16, 5), shape(5, 7)) == 2 * 16 * 5 * 7


def test_a_pallas_kernel_counts_in_every_cell_of_its_grid() -> None:
    def kernel(x: Any, y: Any, out: Any) -> None:
        out[...] = x[...] @ y[...]

    @jax.custom_vjp
    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        call = pl.pallas_call(
            kernel,
            grid=(4, 2),
            in_specs=[
                pl.BlockSpec((16, 32), lambda i, j: (i, 0)),
                pl.BlockSpec((32, 8), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((16, 8), lambda i, j: (i, j)),
            out_shape=shape(64, 16),
        )
        return call(x, y)

    product.defvjp(lambda x, y: (product(x, y), (x, y)), lambda saved, g: (g @ saved[1].T, None))
    forward = 2 * 64 * 32 * 16
    arguments = shape(64, 32), shape(32, 16)
    assert matmul_flops(product, *arguments) == forward
    gradient = jax.make_jaxpr(jax.grad(lambda x, y: product(x, y).sum()))(*arguments).jaxpr
    assert traced_flops(gradient) == 2 * forward
    assert kernel_flops(gradient) == forward


def test_a_kernel_counts_what_it_declares() -> None:
    """Attention declares no work for the zeros of other heads: 2 products forward, 5 backward."""
    images, count, heads, size = 2, 17, 4, 32

    def attention(products: jax.Array) -> jax.Array:
        offset = jnp.zeros(3 * heads * size)
        return attend(products, offset, heads, backend="pallas").sum()

    product = 2 * images * heads * count**2 * size
    products = shape(images, count, 3 * heads * size)
    assert matmul_flops(attention, products) == 2 * product
    assert matmul_flops(jax.grad(attention), products) == 7 * product


@pytest.mark.parametrize("queries", [128, 64])
def test_attention_in_cudnn_is_two_products_and_five_backward(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{library}.check_cudnn_version", lambda: 91000)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        return out.astype(jnp.float32).sum()

    q, k = (jax.ShapeDtypeStruct((2, n, 4, 64), jnp.bfloat16) for n in (queries, 128))
    product = 2 * (2 * 4) * queries * 128 * 64
    assert matmul_flops(attend, q, k, k) == 2 * product
    assert matmul_flops(jax.grad(attend, argnums=(0, 1, 2)), q, k, k) == (2 + 5) * product


def test_the_gradient_of_a_layer_is_two_more_products() -> None:
    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return (x @ w).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    assert matmul_flops(gradient, shape(3, 5), shape(5, 7)) in (2 * 210, 3 * 210)


@pytest.mark.parametrize("depth", [1, 3, 6])  # 6 is a real loop, 1 and 3 are unrolled
def test_a_vit_against_its_formula(depth: int) -> None:
    """Per image: embedding, and per block qkv, scores, mixing, output and the MLP of 4 widths."""
    images, size, patch, width = 2, 32, 8, 24
    model = ViT(size, patch, width, depth, heads=2)
    pixels = shape(images, size, size, 3)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)
    patches = (size // patch) ** 2
    tokens = 1 + patches
    embedding = 2 * patches * (3 * patch**2) * width
    block = 2 * tokens * width**2 * (3 + 1 + 8) + 2 * 2 * tokens**2 * width
    assert matmul_flops(model.apply, params, pixels) == images * (embedding + depth * block)


def test_removed_patches_save_their_share() -> None:
    images, size, patch, width, kept = 2, 32, 8, 24, 4
    model = ViT(size, patch, width, 2, heads=2)
    pixels = shape(images, size, size, 3)
    visible = jax.ShapeDtypeStruct((images, 16), jnp.bool_)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)
    tokens = 1 + kept
    block = 2 * tokens * width**2 * 12 + 2 * 2 * tokens**2 * width
    embedding = 2 * 16 * (3 * patch**2) * width

    def encode(params: object, pixels: jax.Array, visible: jax.Array) -> object:
        return model.apply(params, pixels, visible, kept)

    counted = matmul_flops(encode, params, pixels, visible)
    assert counted == images * (embedding + 2 * block)
