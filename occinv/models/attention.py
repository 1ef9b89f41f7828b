"""Multi-head attention: of tokens to themselves, and of queries to other tokens.

`attend` is self-attention by one of three backends:

xla     jax.nn.dot_product_attention, on every platform.
pallas  One kernel on a TPU (models/pallas_attention.py). On CPU it is interpreted, for tests.
cudnn   Flash attention of cuDNN on a GPU, in bfloat16.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from occinv import parallel, schema

if TYPE_CHECKING:  # importing Pallas takes a while, and most platforms do without
    from occinv.models.pallas_attention import Tiling

XAVIER = nn.initializers.xavier_uniform()  # the official MAE initializes every layer with it
FUSED = {"tpu": "pallas", "gpu": "cudnn"}  # by platform
REMOVED = -1e5  # added to a logit, it makes the weight 0 in float32
SAVED = "fused_attention"  # the name of the output, for rematerialization: `Layout.stack`


def attend(
    products: jax.Array,
    offset: jax.Array,
    heads: int,
    bias: jax.Array | None = None,
    backend: schema.Attention = "xla",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Return softmax(q kᵀ / √size + bias) v of each head, [B, n, D], in the dtype of `products`.

    The softmax is computed in float32.

    Args:
      products: [B, n, 3·D]. `products + offset` are queries, keys and values, each with its heads
        in order.
      offset: float32 [3·D].
      heads: The number of heads.
      bias: float32 [B or 1, heads, n, n] (queries, keys), added to the logits.
      backend: See above; `auto` is the fused one of the platform where it supports the arguments,
        else `xla`.
      mesh: The devices, over which images are sharded; None: one device of JAX's default platform.

    Raises:
      UserError: The backend does not support the arguments.
    """
    chosen = choose_backend(backend, products, heads, bias, mesh)
    if chosen == "pallas":
        interpret = _device(mesh).platform != "tpu"
        plan = _tiling(products, heads, bias, mesh)
        assert plan is not None  # or it would not have been chosen
        call = functools.partial(_pallas, heads=heads, plan=plan, interpret=interpret)
        if mesh is not None and mesh.size > 1:  # the compiler cannot partition a kernel
            images = PartitionSpec(parallel.IMAGES)
            is_shared = bias is None or bias.shape[0] != products.shape[0]
            specs = images, PartitionSpec(), PartitionSpec() if is_shared else images
            call = jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=images, check_vma=False)
        return checkpoint_name(call(products, offset, bias), SAVED)
    qkv = products + offset.astype(products.dtype)
    if chosen == "cudnn":
        return checkpoint_name(_cudnn(qkv, heads, bias), SAVED)
    q, k, v = _by_head(qkv, heads)
    return jax.nn.dot_product_attention(q, k, v, bias).reshape(*qkv.shape[:2], -1)


def choose_backend(
    wanted: schema.Attention,
    products: jax.Array,
    heads: int,
    bias: jax.Array | None,
    mesh: Mesh | None,
) -> str:
    """Return the backend of `attend` for these arguments.

    Raises:
      UserError: The backend `wanted` does not support them.
    """
    if wanted == "xla":
        return wanted
    platform = _device(mesh).platform
    chosen = FUSED.get(platform, "xla") if wanted == "auto" else wanted
    batch, count, channels = products.shape
    size = channels // 3 // heads
    devices = mesh.size if mesh is not None else 1
    reason = None
    if batch % devices:
        reason = f"{batch} images cannot be divided among {devices} devices"
    elif chosen == "pallas":
        if platform not in ("tpu", "cpu"):
            reason = f"it runs on TPUs, and these devices are {platform}"
        elif _tiling(products, heads, bias, mesh) is None:
            reason = f"{count} tokens in {heads} heads of {size} do not fit into a TPU's VMEM"
            reason += "" if bias is None else " with a relative position"
    elif chosen == "cudnn":
        if platform != "gpu":
            reason = f"it runs on GPUs, and these devices are {platform}"
        elif not re.match(r"([89]|\d\d)\.", capability := _capability(mesh)):
            reason = f"it needs compute capability 8.0, and this GPU has {capability!r}"
        elif products.dtype.itemsize != 2:
            reason = f"it computes in bfloat16, and this run in {products.dtype} (train.precision)"
        elif size % 8 or size > 128:
            reason = f"a head has {size} channels, expected a multiple of 8, at most 128"
    if reason is None:
        return chosen
    if wanted == "auto":
        return "xla"
    raise schema.UserError(f"train.attention={wanted!r}: {reason}; use auto or xla")


def _tiling(
    products: jax.Array, heads: int, bias: jax.Array | None, mesh: Mesh | None
) -> Tiling | None:
    """Return the work of the kernel on each device."""
    from occinv.models.pallas_attention import tiling

    batch, count, channels = products.shape
    batch //= mesh.size if mesh is not None else 1
    leading = None if bias is None else min(bias.shape[0], batch)
    size = channels // 3 // heads
    kind = _device(mesh).device_kind
    return tiling(batch, count, heads, size, products.dtype.itemsize, leading, kind)


def _pallas(
    products: jax.Array,
    offset: jax.Array,
    bias: jax.Array | None,
    *,
    heads: int,
    plan: Tiling,
    interpret: bool,
) -> jax.Array:
    from occinv.models.pallas_attention import fused_attention

    bias = None if bias is None else bias.swapaxes(2, 3)
    return fused_attention(products, offset, bias, heads, plan, interpret)


def _device(mesh: Mesh | None) -> Any:
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def _capability(mesh: Mesh | None) -> str:
    """Return the compute capability of an NVIDIA GPU, such as `9.0`. AMD's look like `gfx90a`."""
    return str(getattr(_device(mesh), "compute_capability", ""))


def _by_head(qkv: jax.Array, heads: int) -> tuple[jax.Array, ...]:
    """Split [B, n, 3·D] into q, k and v, each [B, n, heads, channels of a head]."""
    return tuple(jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 2, 0))


def _cudnn(qkv: jax.Array, heads: int, bias: jax.Array | None) -> jax.Array:
    """Attend with cuDNN, which needs an even number of tokens, and a bias in the dtype of qkv."""
    batch, count, _ = qkv.shape
    lengths = None
    if odd := count % 2:
        qkv = jnp.pad(qkv, ((0, 0), (0, odd), (0, 0)))
    if bias is not None:
        # With a bias, cuDNN has no gradient for given lengths: the bias removes the last key.
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, odd), (0, 0)))
        bias = jnp.pad(bias, ((0, 0),) * 3 + ((0, odd),), constant_values=REMOVED).astype(qkv.dtype)
    elif odd:
        lengths = jnp.full(batch, count, jnp.int32)
    q, k, v = _by_head(qkv, heads)
    mixed = jax.nn.dot_product_attention(
        *(q, k, v, bias),
        implementation="cudnn",
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
    )
    return mixed[:, :count].reshape(batch, count, -1)


class Products(nn.Module):
    """A dense layer whose bias is not added yet: x @ kernel [..., features], and bias."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map [..., D] to ([..., features], float32 [features])."""
        kernel = self.param("kernel", XAVIER, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        return jax.lax.dot_general(
            x, kernel.astype(self.dtype), (((x.ndim - 1,), (0,)), ((), ()))
        ), bias


class Attention(nn.Module):
    """Multi-head self-attention over [B, n, D].

    If the collection `intermediates` is mutable, the attention of the class token (the first of the
    n) is stored there as `of_class`, float32 [B, heads, n]. Otherwise it is not computed.

    Attributes:
      heads: The number of heads.
      dtype: The dtype of the computation.
      backend, mesh: See `attend`.
    """

    heads: int
    dtype: Any
    backend: schema.Attention = "xla"
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Map [B, n, D] to [B, n, D].

        Args:
          x: Tokens.
          bias: float32 [B or 1, heads, n, n], added to the logits of the softmax.
        """
        width = x.shape[-1]
        products, offset = Products(3 * width, self.dtype, name="qkv")(x)
        mixed = attend(products, offset, self.heads, bias, self.backend, self.mesh)
        if self.is_mutable_collection("intermediates"):
            qkv = products + offset.astype(self.dtype)
            q, k, _ = _by_head(qkv, self.heads)
            logits = jnp.einsum("bhd,bnhd->bhn", *(x.astype(jnp.float32) for x in (q[:, 0], k)))
            logits *= q.shape[-1] ** -0.5
            logits = logits if bias is None else logits + bias[:, :, 0]
            self.sow("intermediates", "of_class", jax.nn.softmax(logits))
        out = nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name="out")
        return out(mixed)


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, m, D] to keys and values [B, n, D].

    Attributes:
      heads: The number of heads.
      dtype: The dtype of the computation.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """Map queries [B, m, D] to [B, m, D]."""
        width = queries.shape[-1]

        def project(name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name=name)(x)

        q, k, v = (
            project(name, x).reshape(*x.shape[:2], self.heads, -1)
            for name, x in (("q", queries), ("k", keys), ("v", values))
        )
        mixed = jax.nn.dot_product_attention(q, k, v)
        return project("out", mixed.reshape(queries.shape))
