"""iBOT's loss, its gradients, centers and temperatures against the official iBOTLoss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official import agrees, fitting, inputs

from occinv import schema
from occinv.models import vit
from occinv.objectives.base import Context, Setting, make_objective
from occinv.objectives.ibot import Logits
from occinv.transforms.view import View, whole

STUDENT = {"sc": "gsc", "sp": "gsp", "sl": "gsl"}  # outputs, and their gradients


@pytest.fixture(scope="module")
def ibot(reference: Path) -> Any:
    return np.load(reference / "ibot.npz")


@pytest.fixture(scope="module")
def ibot_objective(ibot: Any) -> Any:
    """The objective with the file's sizes and temperatures, of one step an epoch."""
    _, images, side, _ = ibot["m"].shape
    temperatures = ibot["temps"]
    encoder = schema.Encoder(name="micro", patch_size=1, depth=1)
    setting = Setting(
        vit.make_vit(encoder, side), 0, total_steps=1, batch_size=images, num_images=images
    )
    section = {
        "name": "ibot",
        "num_prototypes": ibot["sc"].shape[1],
        "local_crops": len(ibot["sl"]) // images,
        "local_size": 1,
        "first_teacher_temperature": float(temperatures[0]),
        "teacher_temperature": float(temperatures[-1]),
        "warmup": {"epochs": int((temperatures == temperatures[-1]).argmax()) + 1},
    }
    return make_objective(section, setting)


@pytest.fixture(scope="module")
def ibot_outcome(ibot: Any, ibot_objective: Any) -> Any:
    """((loss, terms), gradients of the student's outputs) at the epoch of the file's loss."""
    crops, images, side, _ = ibot["m"].shape
    batch, rng, _ = inputs(images)
    visible = jnp.asarray(~ibot["m"].reshape(crops, images, side**2))
    black = jnp.zeros((images, side, side, 3))
    local = [whole(black[:, :1, :1], 1)] * ibot_objective.local_crops
    views = (*(View(black, seen, 0) for seen in visible), *local)
    # The official arrays have all images of the first crop, then those of the second, and so on.
    teacher = [
        Logits(*pair)
        for pair in zip(*(np.split(ibot[k], crops) for k in ("tc", "tp")), strict=True)
    ]
    state = {"center": ibot["c0"].reshape(-1), "patch_center": ibot["c20"].reshape(-1)}

    def loss(given: Any, epoch: jax.Array) -> Any:
        large = zip(*(jnp.split(given[k], crops) for k in ("sc", "sp")), strict=True)
        student = [Logits(*pair) for pair in large]
        for out in jnp.split(given["sl"], ibot_objective.local_crops):
            student.append(Logits(out, jnp.zeros((images, 0, out.shape[1]))))
        ctx = Context(rng, epoch, batch.label, batch.weight, state, None)
        terms = ibot_objective.loss(None, (student, teacher), views, ctx)
        return terms.loss.mean(), terms

    student = {name: ibot[name] for name in STUDENT}
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return fitting(
        lambda epoch: jax.device_get(gradient(student, epoch)),
        range(len(ibot["temps"])),
        [ibot["cls"], ibot["patch"]],
        parts,
    )


def parts(outcome: Any) -> list[Any]:
    """Return the mean losses of class token and patches."""
    (_, terms), _ = outcome
    return [terms.metrics[name].mean() for name in ("class_loss", "patch_loss")]


def test_both_parts_of_ibots_loss(ibot: Any, ibot_outcome: Any) -> None:
    of_class, of_patches = parts(ibot_outcome)
    (loss, _), _ = ibot_outcome
    agrees("iBOT: loss of the class token", of_class, ibot["cls"], 1e-5)
    agrees("iBOT: loss of the patches", of_patches, ibot["patch"], 1e-5)
    np.testing.assert_allclose(loss, ibot["loss"], rtol=1e-5)


def test_gradients_of_the_students_outputs(ibot: Any, ibot_outcome: Any) -> None:
    _, gradient = ibot_outcome
    expected = {ours: ibot[theirs] for ours, theirs in STUDENT.items()}
    agrees("iBOT: gradients of the student's three outputs", gradient, expected)


def test_ibots_centers(ibot: Any, ibot_outcome: Any) -> None:
    (_, terms), _ = ibot_outcome
    expected = {"center": ibot["c1"].reshape(-1), "patch_center": ibot["c21"].reshape(-1)}
    agrees("iBOT: both centers", terms.state, expected)


def test_ibots_temperatures(ibot: Any, ibot_objective: Any) -> None:
    found = jax.vmap(ibot_objective.temperature)(jnp.arange(len(ibot["temps"])))
    agrees("iBOT: teacher temperature", found, ibot["temps"], 1e-6)
