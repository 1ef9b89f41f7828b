"""Attention by each backend that can run here, against loops in float64 and against one another."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv import parallel, schema
from occinv.models.attention import Attention, attend, choose_backend
from occinv.models.pallas_attention import tiling

# images, tokens, heads, channels of a head, leading axis of the bias
CASES = {
    "the encoder of MAE, four images a step": (4, 50, 2, 64, None),
    "heads of 32, four in a register": (2, 20, 4, 32, None),
    "heads that lie across registers": (1, 17, 8, 80, None),
    "channels that are padded": (2, 18, 3, 64, None),
    "narrow heads": (2, 17, 4, 16, None),
    "one bias for all images": (3, 17, 2, 64, 1),
    "a bias for each image": (3, 19, 4, 32, 3),
    "groups of heads, and a rest of queries": (1, 257, 4, 64, None),
    "the same with a bias": (2, 257, 2, 64, 1),
    "several chunks of queries": (1, 515, 1, 128, None),
}


def draw(case: str) -> tuple[Any, ...]:
    """Products, offset, bias and the gradient of the result, in float64."""
    images, count, heads, size, leading = CASES[case]
    rng = np.random.default_rng(0)
    products = rng.normal(size=(images, count, 3 * heads * size))
    bias = None if leading is None else 2 * rng.normal(size=(leading, heads, count, count))
    gradient = rng.normal(size=(images, count, heads * size))
    return products, rng.normal(size=3 * heads * size), bias, gradient


def expected(
    products: np.ndarray, offset: np.ndarray, bias: np.ndarray | None, g: np.ndarray, heads: int
) -> tuple[np.ndarray, ...]:
    """The result, and the gradients of the first three arguments: a loop over images and heads."""
    out, of_products = np.zeros(g.shape), np.zeros(products.shape)
    of_bias = None if bias is None else np.zeros(bias.shape)
    width = g.shape[2]
    size = width // heads
    for image in range(len(products)):
        for head in range(heads):
            q, k, v = (part * width + head * size + np.arange(size) for part in range(3))
            own = slice(head * size, (head + 1) * size)
            qkv = products[image] + offset
            logits = qkv[:, q] @ qkv[:, k].T / np.sqrt(size)
            row = 0 if bias is None or len(bias) == 1 else image
            if bias is not None:
                logits += bias[row, head]
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            out[image, :, own] = p @ qkv[:, v]
            dp = g[image, :, own] @ qkv[:, v].T
            ds = p * (dp - (p * dp).sum(1, keepdims=True))
            of_products[image][:, q] = ds @ qkv[:, k] / np.sqrt(size)
            of_products[image][:, k] = ds.T @ qkv[:, q] / np.sqrt(size)
            of_products[image][:, v] = p.T @ g[image, :, own]
            if of_bias is not None:
                of_bias[row, head] += ds
    return out, of_products, of_products.sum((0, 1)), of_bias


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


def found(arguments: tuple[Any, ...], heads: int, dtype: Any, **how: Any) -> tuple[Any, ...]:
    """The same by `attend`."""
    products, offset, bias, g = (
        None if x is None else jnp.asarray(x, "float32") for x in arguments
    )

    @jax.jit
    def both(*given: Any) -> Any:
        out, back = jax.vjp(lambda *x: attend(*x[:2], heads, x[2], **how), *given)
        return out, *back(g.astype(out.dtype))

    return both(products.astype(dtype), offset, bias)


@pytest.mark.parametrize("backend", ["pallas", "xla"])
@pytest.mark.parametrize("case", CASES)
def test_attention_is_a_loop_over_images_and_heads(case: str, backend: Any) -> None:
    heads, arguments = CASES[case][2], draw(case)
    for mine, his in zip(
        found(arguments, heads, jnp.float32, backend=backend),
        expected(*arguments, heads),
        strict=True,
    ):
        if his is not None:
            np.testing.assert_allclose(mine, his, rtol=1e-4, atol=3e-5 * np.abs(his).max())


@pytest.mark.parametrize("case", list(CASES)[:6])
def test_in_bfloat16_the_kernel_is_as_exact_as_xla(case: str) -> None:
    heads, arguments = CASES[case][2], draw(case)
    right = expected(*arguments, heads)
    errors = {}
    for backend in ("pallas", "xla"):
        mine = found(arguments, heads, jnp.bfloat16, backend=backend)
        assert mine[0].dtype == mine[1].dtype == jnp.bfloat16
        assert mine[2].dtype == jnp.float32
        errors[backend] = [
            rms(np.asarray(x, np.float64) - y) / rms(y)
            for x, y in zip(mine, right, strict=True)
            if y is not None
        ]
    assert max(errors["pallas"]) < 2e-2
    np.testing.assert_array_less(errors["pallas"], 1.2 * np.array(errors["xla"]))


@pytest.mark.parametrize("case", ["channels that are padded", "one bias for all images"])
@pytest.mark.parametrize(("devices", "fsdp"), [(3, 1), (6, 2)])
def test_images_are_shared_among_devices(case: str, devices: int, fsdp: int) -> None:
    products, offset, bias, gradient = draw(case)
    products, gradient = (np.concatenate([x] * 3)[:6] for x in (products, gradient))
    arguments, heads = (products, offset, bias, gradient), CASES[case][2]
    mesh = parallel.make_mesh(jax.devices()[:devices], fsdp)
    alone = found(arguments, heads, jnp.float32, backend="pallas")
    placed = [jax.device_put(x, parallel.by_image(mesh)) for x in (products, gradient)]
    shared = (placed[0], offset, bias, placed[1])
    for mine, his in zip(
        found(shared, heads, jnp.float32, backend="pallas", mesh=mesh), alone, strict=True
    ):
        if his is not None:
            np.testing.assert_allclose(mine, his, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", ["one bias for all images", "a bias for each image", "narrow heads"]
)
def test_the_tokens_that_cudnn_is_padded_with_have_no_weight(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By XLA in the place of cuDNN, which needs a GPU."""
    plain = jax.nn.dot_product_attention
    counts = []

    def instead(q: Any, *rest: Any, implementation: str, **lengths: Any) -> Any:
        assert implementation == "cudnn"
        counts.append(q.shape[1])
        return plain(q, *rest, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    heads, arguments = CASES[case][2], draw(case)
    mine = found(arguments, heads, jnp.bfloat16, backend="cudnn", mesh=on("gpu"))
    assert counts == [arguments[0].shape[1] + 1]
    monkeypatch.undo()
    for x, y in zip(mine, expected(*arguments, heads), strict=True):
        if y is not None:
            assert rms(np.asarray(x, np.float64) - y) < 2e-2 * rms(y)


def on(platform: str, devices: int = 1, kind: str = "TPU v4", capability: str = "9.0") -> Any:
    """A mesh of devices that are not here."""
    device = types.SimpleNamespace(
        platform=platform, device_kind=kind, compute_capability=capability
    )
    return types.SimpleNamespace(devices=np.array([device] * devices), size=devices)


def qkv(images: int = 8, count: int = 197, size: int = 64, dtype: Any = jnp.bfloat16) -> Any:
    return jax.ShapeDtypeStruct((images, count, 3 * 12 * size), dtype)


BIAS = jax.ShapeDtypeStruct((1, 12, 197, 197), jnp.float32)
WIDE = jax.ShapeDtypeStruct((1, 12, 577, 577), jnp.float32)
CHOICES = {  # platform, products, bias: what auto takes
    "tpu": (on("tpu"), qkv(), None, "pallas"),
    "tpu, 1025 tokens": (on("tpu"), qkv(count=1025), None, "pallas"),
    "tpu, BEiT": (on("tpu"), qkv(), BIAS, "pallas"),
    "tpu v4, BEiT at 384²": (on("tpu"), qkv(count=577), WIDE, "xla"),
    "tpu v5e, BEiT at 384²": (on("tpu", kind="TPU v5 lite"), qkv(count=577), WIDE, "pallas"),
    "tpu, a batch that 16 devices cannot divide": (on("tpu", 16), qkv(), None, "xla"),
    "gpu": (on("gpu"), qkv(), None, "cudnn"),
    "gpu, float32": (on("gpu"), qkv(dtype=jnp.float32), None, "xla"),
    "gpu, BEiT": (on("gpu"), qkv(), BIAS, "cudnn"),
    "gpu, A100": (on("gpu", capability="8.0"), qkv(), None, "cudnn"),
    "gpu, B200": (on("gpu", capability="10.0"), qkv(), None, "cudnn"),
    "gpu, T4": (on("gpu", capability="7.5"), qkv(), None, "xla"),
    "gpu, AMD": (on("gpu", capability="gfx90a"), qkv(), None, "xla"),
    "gpu, heads of 20": (on("gpu"), qkv(size=20), None, "xla"),
    "cpu": (on("cpu"), qkv(), None, "xla"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_auto_takes_the_fused_backend_of_the_platform(case: str) -> None:
    mesh, products, bias, chosen = CHOICES[case]
    assert choose_backend("auto", products, 12, bias, mesh) == chosen
    assert choose_backend("xla", products, 12, bias, mesh) == "xla"


@pytest.mark.parametrize(
    ("wanted", "case", "reason"),
    [
        ("pallas", "gpu", "runs on TPUs, and these devices are gpu"),
        ("pallas", "tpu v4, BEiT at 384²", "577 tokens in 12 heads of 64 do not fit"),
        ("pallas", "tpu, a batch that 16 devices cannot divide", "8 images cannot be divided"),
        ("cudnn", "tpu", "runs on GPUs, and these devices are tpu"),
        ("cudnn", "gpu, T4", "needs compute capability 8.0, and this GPU has '7.5'"),
        ("cudnn", "gpu, AMD", "this GPU has 'gfx90a'"),
        ("cudnn", "gpu, float32", "computes in bfloat16, and this run in float32"),
        ("cudnn", "gpu, heads of 20", "20 channels, expected a multiple of 8, at most 128"),
    ],
)
def test_a_refusal_names_its_reason(wanted: Any, case: str, reason: str) -> None:
    mesh, products, bias, _ = CHOICES[case]
    with pytest.raises(schema.UserError, match=f"train.attention={wanted!r}: .*{reason}"):
        choose_backend(wanted, products, 12, bias, mesh)


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite"])
@pytest.mark.parametrize("size", [32, 40, 64, 80])
def test_every_size_of_a_vit_fits(size: int, kind: str) -> None:
    for count in (17, 50, 197, 257, 577, 1025):
        plan = tiling(128, count, 16, size, 2, None, kind)
        if kind == "TPU v4" and count > 512 and size in (40, 80):
            assert plan is None  # eight heads of 80 or 16 of 40 are the fewest whole registers
            continue
        assert plan is not None
        assert 16 % plan.heads == 128 % plan.images == 0
        assert plan.heads == 16 or plan.heads * size % 128 == 0
        assert 7 * count * plan.heads * size * 2 * plan.images < plan.vmem
        assert plan.vmem <= (16 if kind == "TPU v4" else 48) * 2**20


@pytest.mark.parametrize(
    ("kind", "heads", "size", "plain", "with_bias"),
    [
        ("TPU v4", 12, 64, 1025, 432),
        ("TPU v4", 16, 80, 320, 160),
        ("TPU v5 lite", 16, 64, 1025, 896),
        ("TPU v6 lite", 16, 80, 1025, 384),
    ],
)
def test_the_largest_numbers_of_tokens(
    kind: str, heads: int, size: int, plain: int, with_bias: int
) -> None:
    """Those of docs/performance.md."""
    for bias, largest in ((None, plain), (1, with_bias)):
        counts = range(17, 1026)
        fits = [n for n in counts if tiling(8, n, heads, size, 2, bias, kind) is not None]
        assert fits == list(range(17, largest + 1))


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_lowered_for_tpus(case: str) -> None:
    """As far as goes without the TPU's compiler: benchmarks/attention.py goes on from here."""
    images, count, heads, size, leading = CASES[case]
    mesh = on("tpu")
    bias = None if leading is None else jnp.zeros((leading, heads, count, count))

    def loss(products: jax.Array, offset: jax.Array, bias: Any) -> jax.Array:
        return attend(products, offset, heads, bias, "pallas", mesh).astype("float32").sum()

    arguments = (
        jnp.zeros((images, count, 3 * heads * size), "bfloat16"),
        jnp.zeros(3 * heads * size),
    )
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2) if leading else (0, 1))).trace(
        *arguments, bias
    )
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("backend", ["pallas", "xla"])
def test_the_attention_of_the_class_token_is_available(backend: Any) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 32)), jnp.float32)
    module = Attention(4, jnp.float32, backend)
    params = module.init(jax.random.key(0), x)["params"]
    params["qkv"]["bias"] = jnp.arange(96.0) / 96
    _, kept = module.apply({"params": params}, x, mutable=["intermediates"])
    q, k, _ = np.split(x @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=-1)
    for head in range(4):
        own = slice(8 * head, 8 * head + 8)
        logits = np.einsum("bd,bnd->bn", q[:, 0, own], k[:, :, own]) / np.sqrt(8)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        (mine,) = kept["intermediates"]["of_class"]
        np.testing.assert_allclose(mine[:, head], weights, rtol=1e-4)
