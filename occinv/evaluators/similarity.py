"""Similarity of two features of the same images: HSIC for CKA, cosines, retrieval."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from occinv.losses.contrastive import unit

MIN_BATCH = 4  # HSIC₁ divides by n - 3
CONSTANT = 1e-5  # features that vary less than this, relative to their norm, are constant


def is_constant(centered: jax.Array, x: jax.Array) -> jax.Array:
    """Return whether features [depth, ...] minus their mean are rounding errors: [depth, 1, …]."""
    axes = tuple(range(1, x.ndim))
    varying = jnp.square(centered).sum(axes, keepdims=True)
    return varying <= CONSTANT**2 * jnp.square(x).sum(axes, keepdims=True)


def gram(x: jax.Array, real: jax.Array) -> jax.Array:
    """Return X Xᵀ of features [depth, B, F] minus their mean: [depth, B, B], 0 for padding.

    HSIC₁ does not depend on the mean. Without it, float32 has more digits for the variation. `real`
    is float32 [B], 1 for an image and 0 for padding. Features that do not vary give 0.
    """
    mean = (x * real[:, None]).sum(1, keepdims=True) / real.sum()
    centered = (x - mean) * real[:, None]
    centered = jnp.where(is_constant(centered, x * real[:, None]), 0.0, centered)
    return jnp.einsum("dif,djf->dij", centered, centered, precision=jax.lax.Precision.HIGHEST)


def u_centered(grams: jax.Array, real: jax.Array) -> jax.Array:
    """U-center Gram matrices [..., B, B]: rows sum to 0, and entries of the diagonal are 0.

    HSIC₁ of two such matrices is one sum of products (Székely and Rizzo 2014), which is accurate in
    float32. The three terms of Song et al. nearly cancel.
    """
    count = real.sum()
    pairs = real[:, None] * real[None, :] * (1 - jnp.eye(len(real)))
    grams = grams * pairs
    rows = grams.sum(-1)
    total = rows.sum(-1)[..., None, None] / jnp.maximum((count - 1) * (count - 2), 1)
    by_row = (rows[..., :, None] + rows[..., None, :]) / jnp.maximum(count - 2, 1)
    return (grams - by_row + total) * pairs


def u_centered_tokens(x: jax.Array, visible: jax.Array, real: jax.Array) -> jax.Array:
    """U-center the Gram matrix of each position, and sum them over the positions: [depth, B, B].

    The matrix of a position has the images that show it. Positions that fewer than 4 images show do
    not count. To subtract the mean token instead would not do: that of few images depends on each
    of them, so that unrelated tokens would be alike where the same patches are visible.

    Args:
      x: float32 [depth, B, N, D].
      visible: bool [B, N].
      real: float32 [B], 1 for an image and 0 for padding.
    """
    counted = visible * real[:, None]
    number = counted.sum(0)
    counted = counted * (number >= MIN_BATCH)
    shown = counted[None, :, :, None]
    mean = (x * shown).sum(1, keepdims=True) / jnp.maximum(number, 1)[:, None]
    centered = (x - mean) * shown
    centered = jnp.where(is_constant(centered, x * shown), 0.0, centered)
    # The tokens of a position now sum to 0, so a row of its matrix, without the diagonal, has the
    # sum -|x|².
    rows = jnp.square(centered).sum(-1) / jnp.maximum(number - 2, 1)
    totals = rows.sum(1) / jnp.maximum(number - 1, 1)
    flat = centered.reshape(*x.shape[:2], -1)
    precision = jax.lax.Precision.HIGHEST
    grams = jnp.einsum("dif,djf->dij", flat, flat, precision=precision)
    by_row = jnp.einsum("dip,jp->dij", rows, counted, precision=precision)
    total = jnp.einsum("dp,ip,jp->dij", totals, counted, counted, precision=precision)
    return (grams + by_row + by_row.swapaxes(-1, -2) - total) * (1 - jnp.eye(len(real)))


def hsic(
    first: jax.Array, second: jax.Array, real: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return HSIC₁ of (first, second), (first, first), (second, second): [...] each.

    `first` and `second` are U-centered Gram matrices [..., B, B], `real` [B] is as in `gram`.
    """
    count = real.sum()
    scale = jnp.maximum(count * (count - 3), 1)
    pairs = ((first, second), (first, first), (second, second))
    between, of_first, of_second = ((x * y).sum((-2, -1)) / scale for x, y in pairs)
    return between, of_first, of_second


def cosine_matrix(occluded: jax.Array, full: jax.Array, visible: jax.Array | None) -> jax.Array:
    """Return the cosine of every occluded image with every full image: float32 [depth, B, B].

    Args:
      occluded: [depth, B, F].
      full: [depth, B, F]; with `visible`, all patch tokens [depth, B, N, D].
      visible: bool [B, N]: compare the patches that are visible in the occluded image. None: F.
    """
    precision = jax.lax.Precision.HIGHEST
    if visible is None:
        return jnp.einsum("dif,djf->dij", unit(occluded), unit(full), precision=precision)
    squares = jnp.square(full).sum(-1)
    norms = jnp.sqrt(
        jnp.einsum("in,djn->dij", visible.astype(full.dtype), squares, precision=precision)
    )
    flat = full.reshape(*full.shape[:2], -1)
    products = jnp.einsum("dif,djf->dij", unit(occluded), flat, precision=precision)
    return products / jnp.maximum(norms, 1e-12)


def retrieved(cosines: jax.Array, real: jax.Array) -> jax.Array:
    """Return the share of rows whose own column has the highest cosine: [depth].

    A tie is a miss, and so is NaN.
    """
    own = jnp.diagonal(cosines, axis1=-2, axis2=-1)[..., None]
    others = (1 - jnp.eye(len(real))) * real
    beaten = (~(cosines < own) * others).sum(-1)
    return ((beaten == 0) * real).sum(-1) / real.sum()


def relative_cosine(cosines: jax.Array, real: jax.Array) -> jax.Array:
    """Return (same - other) / (1 - other) of the mean cosines: [depth]. 0 if features are constant.

    It is 1 for equal features, and 0 if an image is no more like itself than like the others.
    """
    count = real.sum()
    pairs = real[:, None] * real[None, :]
    same = (cosines * jnp.eye(len(real)) * pairs).sum((-2, -1)) / count
    other = (cosines * pairs).sum((-2, -1)) / count - same
    other = other / jnp.maximum(count - 1, 1)
    is_varied = other < 1 - CONSTANT
    return jnp.where(is_varied, (same - other) / jnp.where(is_varied, 1 - other, 1.0), 0.0)


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased linear CKA of two features of the same images.

    CKA = HSIC₁(K, L) / sqrt(HSIC₁(K, K) · HSIC₁(L, L)) with K = X Xᵀ, L = Y Yᵀ and the unbiased
    estimator HSIC₁ (Song et al. 2012, Eq. 5; Nguyen et al. 2021). It is 1 for features that are
    equal up to a rotation and a scale. For unrelated features it is about 0 and may be negative.

    Args:
      first: [B, F], one feature of each image, such as `features[:, 0]`, the class token. B is 4
        or more. Memory grows with B².
      second: [B, G], features of the same images in the same order.

    Returns:
      The CKA; 0 if the features do not vary.

    Raises:
      ValueError: A shape is wrong, or a value is not finite.

    Example:
      >>> import numpy as np, occinv
      >>> x = np.random.default_rng(0).normal(size=(50, 3))
      >>> round(occinv.cka(x, 2 * x[:, ::-1]), 3)
      1.0
    """
    arrays = [np.asarray(x, np.float32) for x in (first, second)]
    shapes = [list(x.shape) for x in arrays]
    if any(x.ndim != 2 for x in arrays):
        raise ValueError(
            f"features of shapes {shapes[0]} and {shapes[1]}, expected [B, F] and [B, G]; choose "
            "one feature of each image, such as features[:, 0]"
        )
    counts = [len(x) for x in arrays]
    if counts[0] != counts[1]:
        raise ValueError(
            f"features of {counts[0]} and {counts[1]} images, expected features of the same images"
        )
    if len(arrays[0]) < MIN_BATCH:
        raise ValueError(f"features of {len(arrays[0])} images, expected {MIN_BATCH} or more")
    if not all(np.isfinite(x).all() for x in arrays):
        raise ValueError("features with values that are not finite, expected finite numbers")
    real = jnp.ones(len(arrays[0]))
    own, other = (u_centered(gram(jnp.asarray(x)[None], real), real)[0] for x in arrays)
    between, of_first, of_second = (float(value) for value in hsic(own, other, real))
    scale = (of_first * of_second) ** 0.5
    return between / scale if scale else 0.0
