"""Arrays of BEiT, and of CAE and data2vec, whose official code has BEiT's blocks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
from official import layer_of, ours, pixels_of, with_views

from occinv import schema
from occinv.models import vit
from occinv.objectives.base import Setting, make_objective
from occinv.objectives.cae import CAE
from occinv.transforms.view import View, whole

Weights = dict[str, np.ndarray]


def arrays_of(reference: Path, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file. The images that trim.py left out are those of beit.npz."""
    with np.load(reference / name) as file, np.load(reference / "beit.npz") as beit:
        shared = {key: beit[key] for key in ("x", "mask", "ids") if key not in file}
        return shared | {key: file[key] for key in file}


def with_key_biases(weights: Weights) -> Weights:
    """Return the same attention in our layers. Official keys have no bias: ours is 0."""
    complete = {}
    for name, value in weights.items():
        stem = name.removesuffix("q_bias")
        if stem != name:
            biases = value, np.zeros_like(value), weights[stem + "v_bias"]
            if stem.endswith("cross_attn."):
                complete |= {f"{stem}{x}.bias": b for x, b in zip("qkv", biases, strict=True)}
            else:
                complete[stem + "qkv.bias"] = np.concatenate(biases)
        elif not name.endswith("v_bias"):
            complete[name] = value
    return complete


def beit_weights(weights: Weights, head: str) -> Any:
    """Return official parameters (or gradients) of a BEiT, whose last layer is our `head`."""
    renamed = {f"encoder.{k}" if k == "mask_token" else k: v for k, v in weights.items()}
    table = renamed.pop("rel_pos_bias.relative_position_bias_table")
    tree = ours(with_key_biases(renamed))
    tree["encoder"]["relative_position"] = table[None]
    tree[head] = tree.pop("head")
    return tree


def beit_objective(file: Any, weights: Weights, heads: int, section: dict[str, Any]) -> Any:
    """Return an objective with the sizes of an encoder's official weights."""
    patches = weights["patch_embed.proj.weight"]
    has_table = any("relative_position" in name for name in weights)
    encoder = schema.Encoder(
        name="micro",
        patch_size=patches.shape[-1],
        width=patches.shape[0],
        depth=1 + max(layer_of(name) or 0 for name in weights),
        heads=heads,
        layer_scale=0.1,
        relative_position="shared" if has_table else None,
    )
    made = vit.make_vit(encoder, file["x"].shape[-1])
    return make_objective(section, Setting(made, num_classes=0, total_steps=1))


def with_images(objective: Any, x: np.ndarray, mask: np.ndarray, num_ids: int = 0) -> Any:
    """Return an objective of official images [B, 3, H, W] and masks [B, N], True = removed.

    Its second view is the whole image, or in CAE the removed patches. Its tokenizer returns its
    parameters: the ids are given.
    """
    pixels, count = pixels_of(x.transpose(0, 2, 3, 1)), mask.shape[1]
    (removed,) = set(mask.sum(1).tolist())  # the same number in each image
    first, rest = View(pixels, jnp.asarray(~mask), count - removed), whole(pixels, count)
    if isinstance(objective, CAE):
        rest = View(pixels, jnp.asarray(mask), removed)
    if not num_ids:
        return with_views(objective, first, rest)
    given = SimpleNamespace(num_ids=num_ids, ids=lambda params, pixels: params)
    return with_views(objective, first, rest, codebook=given)
