"""Occlusion accuracy: how far a classifier's accuracy falls as patches are removed.

The removals follow Naseer et al. (2021, "Intriguing properties of vision transformers"): patches at
random, the salient or the other ones first, one block, and patches that change places.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from occinv.data.batch import Batch
from occinv.data.identity import digest, pack, rows_in
from occinv.data.source import Source
from occinv.evaluators.base import (
    Evaluator,
    Result,
    Subject,
    check_labels,
    option,
    token_of,
)
from occinv.evaluators.features import Labeled, extract, own_rows
from occinv.evaluators.knn import Knn, check_neighbors, knn
from occinv.evaluators.occlusion import check_occlusion, put_rng
from occinv.losses.classification import hits
from occinv.losses.contrastive import unit
from occinv.models.class_attention import class_attention
from occinv.models.heads import pool
from occinv.models.patches import patchify, unpatchify
from occinv.objectives.base import Objective
from occinv.objectives.classification import Classification
from occinv.parallel import fetch, put_batch, replicated
from occinv.schema import Count, Rate, Seed, UserError
from occinv.size import Grid, Size, grid_of
from occinv.transforms.masking import kept_patches, lowest, paint
from occinv.transforms.view import View, unit_range

RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)
REMOVALS = ("random", "block", "salient", "other", "shuffle")
GRAY = 0.5

Removal = Literal["random", "block", "salient", "other", "shuffle"]
Removed = Literal["drop", "mask_token", "gray"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OcclusionAccuracy(Evaluator):
    """Top-1 accuracy by the share of removed patches, and the area under that curve.

    The classifier is the run's own, if it was trained on labels; otherwise it is the vote of the
    nearest whole training images, as in the evaluator knn.

    Removals: patches at `random`, in one `block`, the `salient` first (which have most of the class
    token's attention in the last block) or the `other` first. `shuffle` removes none: the given
    share of the patches change places among themselves.
    """

    ratios: tuple[Rate, ...] = option(RATIOS, "Remove these shares of the patches, besides 0.")
    removals: tuple[Removal, ...] = option(REMOVALS, "Choose the removed patches in these ways.")
    removed: Removed = option(
        "drop", "Drop removed patches, paint them gray, or put the mask token in their place."
    )
    neighbors: Count = option(20, "Number of neighbors, if they classify.")
    seed: Seed = option(0, "Draw random patches from this seed.")
    batch_size: Count = option(128, "Images in a batch.", is_protocol=False)

    def check(self, subject: Subject) -> None:
        check_labels(subject, self.source)
        check_occlusion(subject.encoder, self.ratios, self.removed)
        if not self.removals:
            raise UserError(f"removals is empty, expected one or more of {', '.join(REMOVALS)}")
        if not isinstance(subject.objective, Classification):
            check_neighbors(self.neighbors, len(subject.training_images(self.source)))

    def measure(self, subject: Subject, images: Source) -> Result:
        token = token_of(subject.objective)
        classifies = isinstance(subject.objective, Classification)
        ratios = (0.0, *self.ratios)
        labels, rows, outputs = self._outputs(subject, images)
        curves: dict[str, list[float]] = {}
        packed: dict[str, list[str]] = {}
        made: dict[str, Any] = {"token": token, "classifier": "own"}
        if classifies:
            allowed, label_of = class_map(subject.classes, images.classes)
        else:
            known = subject.training_images(self.source)
            bank = extract(subject, subject.batches(known, self.batch_size), token)
            made["classifier"] = f"{self.neighbors} nearest neighbors"
            made |= {"training_images": len(bank.labels), "training_digest": digest(known)}
            own = own_rows(bank, Labeled(bank.features, labels, rows), rows_in(images, known))
        for name in self.removals:
            curves[name], packed[name] = [], []
            for found in outputs[name]:
                if classifies:
                    masked = np.where(allowed, found, -np.inf)
                    right = np.asarray(hits(jnp.asarray(masked), label_of[labels])["top1"]) > 0
                else:
                    queries = Labeled(found, labels, rows)
                    right = knn(bank, queries, self.neighbors, Knn.temperature, own)[:, 0]
                curves[name].append(float(right.mean()))
                packed[name].append(pack(right, rows, len(images)))
        order = np.argsort(ratios)
        area = {
            name: float(np.trapezoid(np.array(curve)[order], np.array(ratios)[order]) / max(ratios))
            for name, curve in curves.items()
        }
        text = f"top-1 {next(iter(curves.values()))[0]:.1%} on whole images; area under the curve "
        text += ", ".join(f"{name} {value:.1%}" for name, value in area.items())
        text += f"; chance {1 / len(images.classes):.1%}; {len(labels)} images"
        return Result(
            {"top1": next(iter(curves.values()))[0]} | {f"area_{n}": v for n, v in area.items()},
            text,
            details={"shares": list(ratios), "top1": curves, "hits": packed},
            made=made,
        )

    def _outputs(
        self, subject: Subject, images: Source
    ) -> tuple[np.ndarray, np.ndarray, dict[str, list[np.ndarray]]]:
        """Return labels, rows, and for each removal the logits or features at each ratio."""
        params = jax.device_put(subject.params, replicated(subject.mesh))
        rng = put_rng(subject.mesh, self.seed)
        labels, rows, found, start = [], [], [], 0
        for batch in subject.batches(images, self.batch_size):
            placed = put_batch(subject.mesh, batch)
            output = _outputs(
                params, placed, rng, subject.objective, tuple(self.ratios), tuple(self.removals),
                self.removed, subject.mesh,
            )  # fmt: skip
            output, label, weight = fetch(output)
            keep = np.flatnonzero(weight > 0)
            found.append(jax.tree.map(lambda x: x[keep], output))  # noqa: B023
            labels.append(label[keep])
            rows.append(start + keep)
            start += len(weight)
        joined = jax.tree.map(lambda *each: np.concatenate(each), *found)
        if (label := np.concatenate(labels)).min() < 0:
            raise UserError(f"{images.name} has no labels, but accuracy needs classes")
        return label, np.concatenate(rows), joined


def class_map(trained: tuple[str, ...], classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Map the classes of other images to those of the model by their names.

    Returns:
      bool [C], the model's classes that these images can have (ImageNet-A has 200 of 1000), and
      int [len(classes)], the model's label of each class.

    Raises:
      UserError: A class is not one of the model's.
    """
    place = {name: number for number, name in enumerate(trained)}
    if unknown := [name for name in classes if name not in place]:
        raise UserError(
            f"the images have {len(unknown)} classes that the model does not know, such as "
            f"{unknown[0]!r}"
        )
    label_of = np.array([place[name] for name in classes])
    allowed = np.zeros(len(trained), bool)
    allowed[label_of] = True
    return allowed, label_of


@functools.partial(jax.jit, static_argnames=("objective", "ratios", "removals", "removed", "mesh"))
def _outputs(
    params: Any,
    batch: Batch,
    rng: jax.Array,
    objective: Objective,
    ratios: tuple[float, ...],
    removals: tuple[Removal, ...],
    removed: Removed,
    mesh: jax.sharding.Mesh,
) -> Any:
    """Return the outputs by removal, a list over the ratios and 0, with label and weight."""
    networks, token = objective.networks, token_of(objective)
    # An encoder that was trained with a mask token can also drop patches.
    encoder = networks.encoder.clone(mask_token=removed == "mask_token")
    net = networks.clone(encoder=encoder).bind({"params": params})
    pixels = unit_range(batch.image)
    count = encoder.num_patches
    everything = jnp.ones((len(pixels), count), bool)

    def output(pixels: jax.Array, visible: jax.Array, kept: int) -> jax.Array:
        if removed == "gray" and kept < count:
            pixels = paint(pixels, visible, encoder.patch_size, GRAY)
            visible, kept = everything, count
        tokens = net.encode(View(pixels, visible, kept)).tokens
        if isinstance(objective, Classification):
            return net.head(tokens)
        return unit(pool(tokens, token).astype(jnp.float32))

    whole = output(pixels, everything, count)
    keys = jax.vmap(lambda image: jax.random.fold_in(rng, image))(batch.index)
    attention = None
    if {"salient", "other"} & set(removals):
        attention = class_attention(encoder, params["encoder"], pixels)[-1].mean(1)
    found: dict[str, list[jax.Array]] = {}
    for removal in removals:
        found[removal] = [whole]
        for ratio in ratios:
            kept = kept_patches(count, ratio)
            if removal == "shuffle":
                moved = shuffled(keys, pixels, encoder.patch_size, count - kept)
                found[removal].append(output(moved, everything, count))
                continue
            visible = lowest(removal_order(keys, removal, encoder.grid, attention), kept)
            found[removal].append(output(pixels, visible, kept))
    return jax.lax.with_sharding_constraint((found, batch.label, batch.weight), replicated(mesh))


def removal_order(
    keys: jax.Array, removal: Removal, grid: Grid, attention: jax.Array | None
) -> jax.Array:
    """Return float32 [B, N], higher for patches that are removed earlier.

    Args:
      keys: key array [B].
      removal: Any way but `shuffle`.
      grid: Rows and columns of the N patches.
      attention: float32 [B, N], of the class token to the patches; only for `salient` and `other`.
    """
    if attention is not None and removal in ("salient", "other"):
        return attention if removal == "salient" else -attention
    count = math.prod(grid)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
    if removal == "random":
        return draws
    # A block grows around a random patch: rings of squares, each in random order.
    row, column = jnp.divmod(jnp.arange(count), grid[1])
    center = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, count))(
        keys
    )
    distance = jnp.maximum(
        jnp.abs(row - row[center][:, None]), jnp.abs(column - column[center][:, None])
    )
    return draws - distance


def shuffled(keys: jax.Array, pixels: jax.Array, patch_size: Size, moving: int) -> jax.Array:
    """Exchange the places of `moving` random patches among themselves, in a random cycle."""
    grid = grid_of((pixels.shape[1], pixels.shape[2]), patch_size)
    patches = patchify(pixels, patch_size)

    def one(key: jax.Array, patches: jax.Array) -> jax.Array:
        places = jax.random.permutation(key, len(patches))[:moving]
        return patches.at[places].set(patches[jnp.roll(places, 1)])

    return unpatchify(jax.vmap(one)(keys, patches), patch_size, grid)
