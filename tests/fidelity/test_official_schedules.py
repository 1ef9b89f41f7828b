"""Position embeddings, the learning rate and LARS: pos_embed.py, lr_sched.py, lars.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from official import agrees, converted, group

from occinv import schema
from occinv.models.position import interpolate, sincos
from occinv.train.optimizer import learning_rate, make_optimizer


@pytest.fixture(scope="module")
def schedule_and_embedding(reference: Path) -> Any:
    return np.load(reference / "optim_and_embed.npz")


def test_position_embeddings(schedule_and_embedding: Any) -> None:
    names = [n for n in schedule_and_embedding.files if n.startswith("mae_sincos_")]
    assert names
    for name in names:
        width, side = map(int, name.split("_")[-2:])
        expected = schedule_and_embedding[name]
        agrees("Sine-cosine position embedding", sincos(side, width), expected, 1e-5)


def test_interpolated_position_embedding(reference: Path) -> None:
    classifier = np.load(reference / "vit_classifier.npz")
    position = converted(group(classifier, "state")["pos_embed"])
    expected = classifier["pos_embed_interpolated"].reshape(-1, position.shape[1])
    side = round((len(expected) - 1) ** 0.5)
    before = round((len(position) - 1) ** 0.5)
    agrees("Interpolated position embedding", interpolate(position, before, side), expected, 1e-5)


def test_five_steps_of_lars(schedule_and_embedding: Any) -> None:
    file = schedule_and_embedding
    hparams = json.loads(str(file["lars_hparams"]))
    rate = hparams.pop("lr")
    config = schema.Optimizer(name="lars", **hparams)
    # Only matrices get weight decay and the trust ratio; we choose them by the name `kernel`.
    names = {"w": "kernel", "b": "bias", "z": "z/kernel"}
    weights = {mine: jnp.asarray(file[f"lars/{theirs}"][0]) for theirs, mine in names.items()}
    params = unflatten_dict(weights, sep="/")
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        optimizer = make_optimizer(config, lambda step: jnp.float32(rate))
        state = optimizer.init(params)
        for step in range(len(file["lars_grad/w"])):
            gradient = {mine: file[f"lars_grad/{theirs}"][step] for theirs, mine in names.items()}
            updates, state = optimizer.update(unflatten_dict(gradient, sep="/"), state, params)
            params = optax.apply_updates(params, updates)
            found = flatten_dict(params, sep="/")
            for theirs, mine in names.items():
                expected = file[f"lars/{theirs}"][step + 1]
                agrees("LARS, five steps", found[mine], expected, 1e-5)


def test_learning_rate(schedule_and_embedding: Any) -> None:
    # The file's settings: lr 0.5, 5 epochs of warm-up, and 1e-6 at epoch 100.
    config = schema.Optimizer(base_lr=0.5, min_lr=1e-6)
    epochs = schedule_and_embedding["sched_epochs"]
    steps_an_epoch = 10
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        rate = learning_rate(config, 256, 5 * steps_an_epoch, 100 * steps_an_epoch)
        found = jax.vmap(rate)(jnp.asarray(epochs * steps_an_epoch, jnp.float32))
    agrees("Learning-rate schedule", found, schedule_and_embedding["sched_lr"])
