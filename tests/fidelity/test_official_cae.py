"""CAE against the official modeling_cae.py: regressor, decoder and the alignment of latents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from official import (
    agrees,
    differentiated,
    fitting,
    group,
    heads_for,
    loss_and_features,
    ours,
)
from official_beit import Weights, arrays_of, beit_objective, with_images, with_key_biases

from occinv.models.position import sincos
from occinv.objectives import forward


@pytest.fixture(scope="module")
def cae(reference: Path) -> Any:
    """The arrays with rows and columns of patches exchanged.

    The official position embedding has rows in the first half of the channels, ours columns. So
    the official model of an image is ours of the image with exchanged rows and columns.
    """
    file = arrays_of(reference, "cae.npz")
    images, channels, size, _ = file["x"].shape
    side = math.isqrt(file["mask"].shape[1])
    grid = file["x"].reshape(images, channels, side, size // side, side, size // side)
    file["x"] = grid.transpose(0, 1, 4, 3, 2, 5).reshape(file["x"].shape)
    order = np.arange(side**2).reshape(side, side).T.ravel()
    for name in ("mask", "ids"):
        file[name] = file[name][:, order]
    rows = np.concatenate([[0], 1 + order])
    for name in file:
        if name.endswith(("posembed", "pos_embed")):
            file[name] = file[name][:, rows]
    return file


def cae_weights(weights: Weights) -> Any:
    """Return official parameters (or gradients) of encoder and regressor as our nested dict."""
    renamed = {
        "regressor.mask_token" if name == "mask_token" else name.removeprefix("encoder."): value
        for name, value in weights.items()
        if not name.startswith("teacher.")
    }
    return ours(with_key_biases(renamed))


def part(file: Any, start: str) -> Weights:
    """Return the weights whose names start with `start`, by the rest of the name."""
    weights = group(file, "W")
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def cae_objective(file: Any, heads: int) -> Any:
    """Return the objective with the file's sizes."""
    tree = cae_weights(group(file, "W"))
    section = {
        "name": "cae",
        "tokenizer": {"name": "kmeans", "num_ids": len(tree["regressor"]["head"]["bias"])},
        "regressor_depth": len(tree["regressor"]["scan"]["norm_q"]["scale"]),
        "decoder_depth": len(tree["regressor"]["decoder"]["scan"]["norm1"]["scale"]),
    }
    encoder = part(file, "encoder.")
    return beit_objective(file, encoder, heads, section)


@pytest.fixture(scope="module")
def cae_outcome(cae: Any) -> Any:
    params = cae_weights(group(cae, "W"))

    def compute(heads: int) -> Any:
        objective = cae_objective(cae, heads)
        objective = with_images(objective, cae["x"], cae["mask"], objective.codebook.num_ids)

        def loss(params: Any) -> Any:
            state = {"tokenizer": cae["ids"]}
            value, (terms, _) = loss_and_features(objective, params, state, len(cae["x"]))
            return value, objective.align_weight * terms.metrics["alignment"].mean()

        return differentiated(loss, params)

    return fitting(compute, heads_for(cae["posembed"].shape[-1]), cae["loss"])


def test_caes_parameters_are_the_official_ones(cae: Any) -> None:
    objective = cae_objective(cae, heads=1)
    params, _ = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    official = cae_weights(group(cae, "W"))
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(np.shape, official)


def test_position_embeddings_of_cae(cae: Any) -> None:
    for name in ("posembed", "W/encoder.pos_embed"):
        count, width = cae[name][0].shape
        expected = sincos(math.isqrt(count), width)
        agrees("CAE: position embedding", expected, cae[name][0], 1e-5)


def test_cae_loss(cae: Any, cae_outcome: Any) -> None:
    (loss, alignment), _ = cae_outcome
    # The official target is a copy of f, which at this step is f itself.
    encoder = part(cae, "encoder.")
    for name, value in part(cae, "teacher.").items():
        np.testing.assert_array_equal(value, encoder[name], err_msg=name)
    agrees("CAE: cross-entropy", loss - alignment, cae["lm"], 1e-5)
    agrees("CAE: alignment", alignment, cae["la"], 1e-5)
    np.testing.assert_allclose(loss, cae["loss"], rtol=1e-5)


def test_every_cae_gradient(cae: Any, cae_outcome: Any) -> None:
    _, gradient = cae_outcome
    # The official keys have no bias; the gradient of ours is 0.
    agrees("CAE: every gradient", gradient, cae_weights(group(cae, "G")))
