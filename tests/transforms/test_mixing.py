"""Mixup, CutMix and random erasing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv.rng import image_rngs
from occinv.transforms.mixing import beta, cut_box, erase, mix

MANY, SIDE = 400, 16
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def rngs(step: int = 0) -> jax.Array:
    return image_rngs(jax.random.key(2), jnp.int32(step), MANY)


def images() -> jax.Array:
    """Return images whose pixels are all i in image i, so that a mixture shows its parts."""
    return jnp.broadcast_to(jnp.arange(float(MANY))[:, None, None, None], (MANY, SIDE, SIDE, 3))


def parts(mixed: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the image itself in every pixel [B, H, W], and the returned share [B]."""
    own = np.arange(MANY, dtype=np.float64)
    partner = own[::-1]
    pixels = np.asarray(mixed.pixels, np.float64)
    assert np.allclose(pixels, pixels[..., :1], atol=1e-4)
    of_self = (pixels[..., 0] - partner[:, None, None]) / (own - partner)[:, None, None]
    return of_self, np.asarray(mixed.share, np.float64)


def test_mixup_blends_with_the_reversed_batch_by_its_share() -> None:
    of_self, share = parts(mix(rngs(), images(), 0.8, 0.0))
    np.testing.assert_allclose(
        of_self, np.broadcast_to(share[:, None, None], of_self.shape), atol=1e-3
    )
    # Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 (2 · 0.8 + 1)).
    assert share.mean() == pytest.approx(0.5, abs=0.06)
    assert share.var() == pytest.approx(1 / (4 * 2.6), rel=0.2)


def test_cutmix_pastes_a_box_whose_area_is_the_share_of_the_partner() -> None:
    of_self, share = parts(mix(rngs(), images(), 0.0, 1.0))
    taken = of_self < 0.5
    assert np.all((np.abs(of_self) < 1e-3) | (np.abs(of_self - 1) < 1e-3))
    np.testing.assert_allclose(1 - taken.mean((1, 2)), share, atol=1e-6)
    for box in taken[:50]:
        rows, columns = box.any(1), box.any(0)
        assert np.array_equal(box, np.outer(rows, columns))
        for line in (rows, columns):
            assert np.abs(np.diff(np.flatnonzero(line))).max(initial=1) == 1
    assert 0.4 < share.mean() < 0.75  # boxes that cross the border are clipped
    assert taken.mean(0).std() < 0.1 and taken.mean(0).max() < 0.65


def test_a_box_has_its_full_area_where_it_fits() -> None:
    inside = cut_box(rngs(), jnp.full(MANY, 0.75), (SIDE, SIDE))
    area = np.asarray(inside).mean((1, 2))
    assert area.max() == pytest.approx(0.25) and (area == area.max()).mean() > 0.2


def test_mixup_and_cutmix_are_equally_likely_where_both_are_on() -> None:
    of_self, _ = parts(mix(rngs(), images(), 0.8, 1.0))
    is_cut = np.all((np.abs(of_self) < 1e-3) | (np.abs(of_self - 1) < 1e-3), axis=(1, 2))
    assert is_cut.mean() == pytest.approx(0.5, abs=0.08)


def test_images_are_unchanged_where_both_are_off() -> None:
    mixed = mix(rngs(), images(), 0.0, 0.0)
    np.testing.assert_array_equal(mixed.pixels, images())
    np.testing.assert_array_equal(mixed.share, 1)


def test_each_image_has_its_own_share() -> None:
    shares = np.asarray(beta(rngs(), 0.8))
    assert len(np.unique(shares)) == MANY
    assert not np.isin(np.asarray(beta(rngs(1), 0.8)), shares).any()


def test_erasing_draws_a_box_of_noise_of_the_right_size_and_frequency() -> None:
    plain = jnp.full((MANY, SIDE, SIDE, 3), 5.0)
    erased = np.asarray(erase(rngs(), plain, 0.25))
    boxes = (erased != 5.0).all(-1)
    hit = boxes.any((1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.07)
    area = boxes[hit].mean((1, 2))
    assert area.min() > 0.01 and area.max() < 0.37
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    for box in boxes[hit][:30]:
        assert np.array_equal(box, np.outer(box.any(1), box.any(0)))
    noise = (erased[boxes] - MEAN) / DEVIATION  # normal in normalized pixels
    assert noise.mean() == pytest.approx(0, abs=0.05) and noise.std() == pytest.approx(1, abs=0.05)
    shapes = np.array([(box.any(1).sum(), box.any(0).sum()) for box in boxes[hit]])
    assert (shapes[:, 0] > shapes[:, 1]).mean() == pytest.approx(0.5, abs=0.15)
    np.testing.assert_array_equal(erase(rngs(), plain, 0.0), plain)
