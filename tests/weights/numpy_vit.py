"""Two ViTs in NumPy that read arrays under PyTorch's names, or under big_vision's.

They follow models_mae.py and vits.py, and models/vit.py of big_vision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Weights = Mapping[str, np.ndarray]


def norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def official(w: Weights, images: np.ndarray, heads: int) -> np.ndarray:
    """Returns tokens [B, 1 + N, D] of images in [0, 1], after the last norm if the ViT has one."""
    kernel = w["patch_embed.proj.weight"]
    p, x = kernel.shape[-1], (images - MEAN) / STD
    b, side = len(x), x.shape[1] // p
    patches = x.reshape(b, side, p, side, p, 3)
    x = np.einsum("byixjc,dcij->byxd", patches, kernel).reshape(b, side**2, -1)
    x = x + w["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(w["cls_token"], (b, 1, x.shape[-1])), x], 1)
    x = x + w["pos_embed"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    index = 0
    while f"blocks.{index}.norm1.weight" in w:
        stem = f"blocks.{index}"
        y = norm(x, w[f"{stem}.norm1.weight"], w[f"{stem}.norm1.bias"])
        qkv = linear(y, f"{stem}.attn.qkv").reshape(b, x.shape[1], 3, heads, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        y = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v
        x = x + linear(y.swapaxes(1, 2).reshape(x.shape), f"{stem}.attn.proj")
        y = norm(x, w[f"{stem}.norm2.weight"], w[f"{stem}.norm2.bias"])
        x = x + linear(erf_gelu(linear(y, f"{stem}.mlp.fc1")), f"{stem}.mlp.fc2")
        index += 1
    return norm(x, w["norm.weight"], w["norm.bias"]) if "norm.weight" in w else x


def random_vit(
    draw: np.random.Generator, width: int, side: int = 2, p: int = 2
) -> dict[str, np.ndarray]:
    """Returns an encoder of one block by timm's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side**2, width),
    }
    shapes |= {"patch_embed.proj.weight": (width, 3, p, p), "patch_embed.proj.bias": (width,)}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, inputs, outputs in (
        ("attn.qkv", 1, 3), ("attn.proj", 1, 1), ("mlp.fc1", 1, 4), ("mlp.fc2", 4, 1)
    ):  # fmt: skip
        shapes[f"blocks.0.{name}.weight"] = (outputs * width, inputs * width)
        shapes[f"blocks.0.{name}.bias"] = (outputs * width,)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def random_big_vision(
    draw: np.random.Generator, width: int, heads: int, depth: int, p: int, side: int
) -> dict[str, np.ndarray]:
    """Returns random arrays by big_vision's names; the class token has no position."""
    inner = (heads, width // heads)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (p, p, 3, width),
        "embedding/bias": (width,),
        "cls": (1, 1, width),
        "pos_embedding": (1, side**2, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
    }
    for index in range(depth):
        stem = f"Transformer/encoderblock_{index}/"
        attention, mlp = stem + "MultiHeadDotProductAttention_0/", stem + "MlpBlock_0/"
        for layer in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{stem}{layer}/scale": (width,), f"{stem}{layer}/bias": (width,)}
        for part in ("query", "key", "value"):
            shapes[f"{attention}{part}/kernel"] = (width, *inner)
            shapes[f"{attention}{part}/bias"] = inner
        shapes |= {f"{attention}out/kernel": (*inner, width), f"{attention}out/bias": (width,)}
        shapes |= {f"{mlp}Dense_0/kernel": (width, 4 * width), f"{mlp}Dense_0/bias": (4 * width,)}
        shapes |= {f"{mlp}Dense_1/kernel": (4 * width, width), f"{mlp}Dense_1/bias": (width,)}
    return {k: draw.normal(0, 0.3, shape).astype(np.float32) for k, shape in shapes.items()}


def big_vision(w: Weights, images: np.ndarray) -> np.ndarray:
    """Returns tokens [B, 1 + N, D] of images in [0, 1]; the class token gets no position."""
    kernel = w["embedding/kernel"]
    p, x = len(kernel), 2 * images - 1
    b, side = len(x), x.shape[1] // p
    patches = x.reshape(b, side, p, side, p, 3)
    x = np.einsum("byixjc,ijcd->byxd", patches, kernel).reshape(b, side**2, -1)
    x = x + w["embedding/bias"] + w["pos_embedding"]
    x = np.concatenate([np.broadcast_to(w["cls"], (b, 1, x.shape[-1])), x], 1)
    index = 0
    while f"Transformer/encoderblock_{index}/LayerNorm_0/scale" in w:
        stem = f"Transformer/encoderblock_{index}/"
        attention, mlp = stem + "MultiHeadDotProductAttention_0/", stem + "MlpBlock_0/"
        y = norm(x, w[stem + "LayerNorm_0/scale"], w[stem + "LayerNorm_0/bias"])
        q, k, v = (
            np.einsum("bnd,dhk->bhnk", y, w[f"{attention}{part}/kernel"])
            + w[f"{attention}{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        y = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v
        x = x + np.einsum("bhnk,hkd->bnd", y, w[attention + "out/kernel"])
        x = x + w[attention + "out/bias"]
        y = norm(x, w[stem + "LayerNorm_1/scale"], w[stem + "LayerNorm_1/bias"])
        y = tanh_gelu(y @ w[mlp + "Dense_0/kernel"] + w[mlp + "Dense_0/bias"])
        x = x + y @ w[mlp + "Dense_1/kernel"] + w[mlp + "Dense_1/bias"]
        index += 1
    return norm(x, w["Transformer/encoder_norm/scale"], w["Transformer/encoder_norm/bias"])
