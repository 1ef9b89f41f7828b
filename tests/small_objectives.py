"""Small objectives, their batch, parameters and views: the set-up that many tests share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occinv import schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives import forward
from occinv.objectives.base import Context, Objective, Setting, Terms, make_objective
from occinv.rng import image_rngs
from occinv.size import Size, sides
from occinv.transforms.view import View

PATCH, SIDE, IMAGES = 4, 4, 5
SIZE, COUNT = SIDE * PATCH, SIDE * SIDE
KEPT = COUNT // 4  # mask ratio 0.75
DECODER = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
HEADS = {"head_hidden": 12, "head_out": 8}


def make(
    name: str,
    layer_scale: float | None = None,
    depth: int = 1,
    drop_path: float = 0.0,
    size: Size = SIZE,
    num_classes: int = 3,
    patch: Size = PATCH,
    channels: int = 3,
    pixel_range: Any = None,
    **fields: Any,
) -> Any:
    """Build an objective with a tiny encoder, for 100 steps."""
    encoder = schema.Encoder(
        name="micro",
        patch_size=patch,
        width=16,
        depth=depth,
        heads=2,
        drop_path=drop_path,
        layer_scale=layer_scale,
        pixel_range=pixel_range or ("imagenet" if channels == 3 else "half"),
    )
    made = vit.make_vit(encoder, size, channels=channels)
    setting = Setting(made, num_classes, total_steps=100)
    return make_objective({"name": name, **fields}, setting)


def make_batch(objective: Objective | None = None, images: int = IMAGES) -> Batch:
    """Draw images, and the crops of an objective, by a fixed seed."""
    draw = np.random.default_rng(0)
    # Squared, so that patches differ in mean and deviation.
    height, width, channels = (SIZE, SIZE, 3)
    crops = ()
    if objective is not None:
        height, width, channels = objective.setting.encoder.image_shape
        crops = objective.crops
    rows = draw.random((images, height, width, channels)) ** 2
    values = rows * draw.random((images, height, 1, 1)) * 255
    return Batch(
        image=values.astype(np.uint8),
        label=np.zeros(images, np.int32),
        index=np.arange(images, dtype=np.int32),
        weight=np.ones(images, np.float32),
        crops=tuple(
            draw.integers(0, 256, (images, *sides(crop.size), channels), np.uint8) for crop in crops
        ),
    )


def rngs_of(step: int = 3, images: int = IMAGES, seed: int = 7) -> jax.Array:
    """Return the PRNG key of each image at a step."""
    return image_rngs(jax.random.key(seed), jnp.int32(step), images)


def start(objective: Objective) -> tuple[Any, Any]:
    """Draw parameters and state without zeros, ones or copies, which would hide a factor."""
    draw = np.random.default_rng(1)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        noise = 0.2 * draw.standard_normal(leaf.shape).astype(np.float32)
        return noise + np.float32(path[-1].key == "scale")

    shapes = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def loss_of_views(
    objective: Objective,
    views: Sequence[View],
    params: Any,
    state: Any,
    batch: Batch,
    step: int = 3,
) -> Terms:
    """Return the loss of given views, image by image, instead of drawing them."""
    net, ctx = forward.bind(objective, params, state, batch, rngs_of(step), jnp.int32(step))
    views = tuple(views)
    return objective.loss(net, objective.features(net, views, ctx), views, ctx)


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of an objective for the batch, in NumPy.

    Attributes:
      loss: [B].
      metrics: Each [B].
      state: The state after the step.
      visible: The visible patches of each view, bool [B, N].
      given: What the equations take as given.
      image: The batch, uint8 [B, H, W, 3].
      params: The parameters.
      before: The state before the step.
    """

    loss: np.ndarray
    metrics: dict[str, np.ndarray]
    state: Any
    visible: list[np.ndarray]
    given: Any
    image: np.ndarray
    params: Any
    before: Any


def run(
    objective: Objective,
    given: Callable[[Any, tuple[View, ...], Context], Any],
    step: int = 3,
) -> Found:
    """Compute the loss of the batch, and `given(net, views, ctx)` of the same views."""
    params, before = start(objective)
    batch, at = make_batch(objective), jnp.int32(step)

    def everything(params: Any, state: Any, batch: Batch) -> Any:
        rng = rngs_of(step)
        state = forward.update_target(objective, params, state, at)
        views, z = forward.represent(objective, params, state, batch, rng, at)
        terms = forward.compare(objective, params, state, views, z, batch, rng, at)
        net, ctx = forward.bind(objective, params, state, batch, rng, at)
        return terms, [view.visible for view in views], given(net, views, ctx)

    terms, visible, known = jax.device_get(jax.jit(everything)(params, before, batch))
    return Found(
        loss=terms.loss,
        metrics=terms.metrics,
        state=terms.state,
        visible=visible,
        given=known,
        image=batch.image,
        params=params,
        before=before,
    )
