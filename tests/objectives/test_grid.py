"""The free grid: its refusals, a pairwise cover of the rest, and the corners with a name."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_objectives import (
    COUNT,
    IMAGES,
    PATCH,
    SIZE,
    loss_of_views,
    make,
    make_batch,
    rngs_of,
    start,
)

from occinv.models.decoder import Decoder
from occinv.models.heads import MlpHead, PrototypeHead
from occinv.models.vit import ViT
from occinv.objectives import forward, grid
from occinv.objectives.base import Setting, make_objective
from occinv.objectives.grid_axes import (
    OCCLUSIONS,
    Combination,
    Similarity,
    Transformation,
    all_combinations,
    valid_combinations,
)
from occinv.schema import UserError
from occinv.transforms.color import ColorJitter
from occinv.transforms.view import View, unit_range, whole

TINY: dict[str, Any] = {
    "min_rectangle": 2,
    "tokenizer": {"name": "kmeans", "num_ids": 6},
    "head_hidden": 12,
    "head_out": 8,
    "num_prototypes": 10,
    "decoder_width": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
REFUSED = {point for point in all_combinations() if point.refusal}
STEP = jnp.int32(3)


def of(name: str, **fields: Any) -> Any:
    """Build the grid's objective of that name, with a tiny encoder."""
    return make("grid", **{**Combination(*name.split("-"))._asdict(), **TINY, **fields})


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[None]:
    """Compile the large parts once for all combinations; the rest runs operation by operation."""

    def call_of(part: type[nn.Module], static: tuple[int, ...]) -> Callable[..., Any]:
        original = part.__call__

        def apply(module: nn.Module, variables: Any, *args: Any) -> Any:
            return module.apply(variables, *args, method=original)

        compiled = jax.jit(apply, static_argnums=static)

        def call(self: nn.Module, *args: Any) -> Any:
            if self.is_initializing():
                return original(self, *args)
            return compiled(self.clone(parent=None), self.variables, *args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for part, static in (
            (ViT, (0, 4)),
            (Decoder, (0,)),
            (MlpHead, (0,)),
            (PrototypeHead, (0,)),
        ):
            patch.setattr(part, "__call__", call_of(part, static))
        patch.setattr(ColorJitter, "__call__", jax.jit(ColorJitter.__call__, static_argnums=0))
        for name, static in (("random_visible", (1, 2)), ("rectangles_visible", (1, 2, 3))):
            patch.setattr(grid, name, jax.jit(getattr(grid, name), static_argnums=static))
        yield


def batch_for(objective: Any) -> Any:
    """Make a batch with a different image for each crop, so that a view shows its source."""
    batch = make_batch()
    return batch.replace(
        crops=tuple(np.roll(batch.image, 1 + i, 1) for i in range(len(objective.crops)))
    )


def views_of(objective: Any) -> tuple[View, View]:
    batch = batch_for(objective)
    pixels = [unit_range(x) for x in (batch.image, *batch.crops)]
    return objective.views(tuple(pixels) if batch.crops else pixels[0], rngs_of())


def bound(objective: Any) -> tuple[Any, Any]:
    """Return networks and context with the parameters of `start`."""
    params, state = start(objective)
    return forward.bind(objective, params, state, batch_for(objective), rngs_of(), STEP)


def test_counts() -> None:
    valid = valid_combinations()
    assert (len(valid), len(REFUSED)) == (240, 360)
    assert Counter((point.targets, point.similarity) for point in valid) == {
        ("pixels", "pixel_l2"): 9,
        ("ids", "cross_entropy"): 9,
        **{(z2, "decoder_distance"): 15 for z2 in ("encoder", "ema")},
        **{
            (z2, m): 24
            for z2 in ("encoder", "ema")
            for m in ("infonce", "byol", "cross_entropy", "smoothed_l1")
        },
    }
    assert len({point.name for point in valid}) == 240


def pairs_of(point: Combination) -> set[tuple[tuple[str, str], ...]]:
    """Return the pairs of values that a combination has on any two axes."""
    return set(itertools.combinations(point._asdict().items(), 2))


def pairwise_cover(points: tuple[Combination, ...]) -> list[Combination]:
    """Choose combinations greedily until every pair of values that occurs in `points` is chosen."""
    missing = set().union(*map(pairs_of, points))
    cover = []
    while missing:
        best = max(points, key=lambda point: len(pairs_of(point) & missing))
        missing -= pairs_of(best)
        cover.append(best)
    return cover


COVER = pairwise_cover(valid_combinations())


def test_every_pair_of_values_is_covered() -> None:
    covered, valid = (
        set().union(*map(pairs_of, points)) for points in (COVER, valid_combinations())
    )
    assert covered == valid
    assert len(COVER) == len(set(COVER)) < 50
    for axis, values in zip(Combination._fields, zip(*valid_combinations(), strict=True)):  # noqa: B905
        assert {getattr(point, axis) for point in COVER} == set(values)


@pytest.mark.parametrize("name", [point.name for point in COVER])
def test_combinations_train(name: str) -> None:
    """Loss and metrics are finite, and every parameter that must learn has a gradient."""
    objective, point = of(name), Combination(*name.split("-"))
    params, state = start(objective)

    def loss(params: Any) -> Any:
        return forward.mean_loss(objective, params, state, batch_for(objective), rngs_of(), STEP)

    with jax.numpy_dtype_promotion("strict"):
        (value, (after, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
    for leaf in jax.tree.leaves((value, after, metrics, gradient)):
        assert np.isfinite(leaf).all()
    without_gradient = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.any(leaf)
    }
    frozen = {"encoder/position", "decoder/position", *map("/".join, objective.param_groups)}
    decoded = point[:1] if point.similarity == "pixel_l2" else point[:2]
    if not set(decoded) & set(OCCLUSIONS):
        frozen.add("decoder/mask_token")  # no patch is removed, so none is replaced by it
    assert without_gradient <= frozen


def test_exactly_the_refused_combinations_cannot_be_built() -> None:
    for point in all_combinations():
        if point not in REFUSED:
            of(point.name)
            continue
        with pytest.raises(UserError) as error:
            of(point.name)
        assert str(error.value) == point.refusal


def test_every_refusal_is_one_line_whose_advice_leads_to_a_valid_combination() -> None:
    for point in REFUSED:
        message = str(point.refusal)
        assert "\n" not in message and message.count("objective.") == 3, message
        advised: Combination = point
        for _ in range(4):
            if advised.refusal is None:
                break
            for axis, value in re.findall(r"objective\.(\w+)='(\w+)'", advised.refusal)[:2]:
                assert getattr(advised, axis) == value
            axis, value = re.findall(r"use objective\.(\w+)='(\w+)'", advised.refusal)[0]
            advised = advised._replace(**{axis: value})
        assert advised.refusal is None, point


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "masking-masking-pixels-infonce",
            "objective.similarity='infonce' with objective.targets='pixels': it is no measure of "
            "pixels; use objective.similarity='pixel_l2'",
        ),
        ("masking-masking-ids-pixel_l2", "no measure of ids; use objective.similarity='cross_ent"),
        ("masking-masking-ema-pixel_l2", "features; use objective.similarity='decoder_distance'"),
        (
            "crop-masking-pixels-pixel_l2",
            "objective.t1='crop' with objective.targets='pixels': crops share no patch to compare",
        ),
        ("masking-crop-encoder-decoder_distance", "objective.t2='crop' with objective.similarity="),
        ("identity-identity-ema-byol", "the two views are the same, so no invariance is learned"),
        (
            "masking-jitter-ids-cross_entropy",
            "the colors that T2 draws cannot be predicted from T1",
        ),
        ("identity-rectangles-pixels-pixel_l2", "T1 shows the target, so nothing is predicted"),
    ],
)
def test_a_refusal_gives_its_reason(name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        of(name)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.mask_ratio=1\.0, expected a number < 1"):
        of("masking-identity-ema-byol", mask_ratio=1.0)
    with pytest.raises(UserError, match=r"t2_mask_ratio=0\.75, expected less than objective\."):
        of("masking-rectangles-ema-byol", t2_mask_ratio=0.75)
    of("masking-masking-ema-byol", t2_mask_ratio=0.75)  # no view uses it
    with pytest.raises(UserError, match=r"objective\.tokenizer\.name='kmean'"):
        of("rectangles-identity-ids-cross_entropy", tokenizer={"name": "kmean"})
    encoder = ViT(SIZE, PATCH, width=16, depth=1, heads=2)
    setting = Setting(encoder, 3, 9, batch_size=1, num_images=9)
    with pytest.raises(
        UserError, match=r"train\.batch_size=1 .* the negatives are the other images"
    ):
        make_objective({"name": "grid", "similarity": "infonce"}, setting)
    make_objective({"name": "grid", "similarity": "byol"}, setting)


KEPT = {"masking": COUNT // 4, "rectangles": COUNT // 4}


@pytest.mark.parametrize("t2", get_args(Transformation))
@pytest.mark.parametrize("t1", get_args(Transformation))
def test_the_views(t1: str, t2: str) -> None:
    if t1 == t2 == "identity":
        return
    objective = of(f"{t1}-{t2}-ema-byol")
    batch, views = batch_for(objective), views_of(objective)
    kept = [KEPT.get(t1, COUNT), COUNT - KEPT[t1] if t1 == t2 in KEPT else COUNT]
    if t2 in KEPT and t1 != t2:
        kept[1] = COUNT - COUNT // 4  # t2_mask_ratio is 0.25
    crops = list(batch.crops)
    for name, view, count in zip((t1, t2), views, kept, strict=True):
        assert view.kept == count and (view.visible.sum(1) == count).all()
        image = crops.pop(0) if name == "crop" else batch.image
        is_its_own = np.allclose(view.pixels, image / np.float32(255), atol=1e-5)
        assert is_its_own == (name != "jitter")
    first, second = (np.asarray(view.visible) for view in views)
    if t1 == t2 and t1 in KEPT:
        np.testing.assert_array_equal(first, ~second)
    for name, seen in ((t1, first), (t2, second)):
        assert (len(np.unique(seen, axis=0)) > 1) == (name in KEPT)  # each image draws its own
    if t1 == t2 == "jitter":
        assert not np.allclose(views[0].pixels, views[1].pixels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("masking-masking-ema-infonce", lambda first, second: True),
        ("rectangles-identity-encoder-byol", lambda first, second: True),
        ("masking-rectangles-ema-smoothed_l1", lambda first, second: not first and second),
        ("rectangles-masking-encoder-decoder_distance", lambda first, second: not first and second),
        ("masking-identity-ids-cross_entropy", lambda first, second: not first),
        ("jitter-masking-ema-infonce", lambda first, second: second),
        ("jitter-rectangles-pixels-pixel_l2", lambda first, second: second),
    ],
)
def test_which_patches_are_compared(name: str, expected: Any) -> None:
    objective = of(name)
    views = views_of(objective)
    first, second = (np.asarray(view.visible) for view in views)
    truth = [[expected(*pair) for pair in zip(*rows, strict=True)] for rows in zip(first, second)]  # noqa: B905
    np.testing.assert_array_equal(objective.region(*views), truth)
    assert np.any(truth, 1).all()


def test_dropped_patches_do_not_move_the_others() -> None:
    objective = of("jitter-masking-encoder-smoothed_l1")
    views, (net, ctx) = views_of(objective), bound(objective)
    tokens = np.asarray(net.encode(views[1]).tokens)
    z2 = np.asarray(objective.features(net, views, ctx)[1])
    assert tokens.shape[1] == 1 + views[1].kept < 1 + COUNT
    for b in range(IMAGES):
        for place, n in enumerate(np.flatnonzero(views[1].visible[b])):
            token = tokens[b, 1 + place].astype(float)
            standard = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
            np.testing.assert_allclose(z2[b, n], standard, rtol=1e-3, atol=1e-4)


def test_crops_are_compared_by_their_mean_patch_token() -> None:
    objective = of("masking-crop-ema-smoothed_l1")
    params, state = start(objective)
    batch, views, (net, ctx) = batch_for(objective), views_of(objective), bound(objective)
    predictor = {name: np.asarray(x, float) for name, x in params["predictor"].items()}
    loss = loss_of_views(objective, views, params, state, batch).loss
    tokens = np.asarray(net.encode(views[0]).tokens, float)
    theirs = np.asarray(ctx.target.encode(views[1]).tokens, float)
    for b in range(IMAGES):
        truth = theirs[b, 1:].mean(0)
        truth = (truth - truth.mean()) / np.sqrt(truth.var() + 1e-5)
        predicted = tokens[b, 1:].mean(0) @ predictor["kernel"] + predictor["bias"]
        far = np.abs(predicted - truth)
        expected = np.where(far < 2, far**2 / 4, far - 1).mean()
        assert loss[b] == pytest.approx(expected, rel=1e-3)


def differentiated(objective: Any, views: Any, params: Any, state: Any) -> tuple[Any, Any]:
    """Return the loss of each image for given views, and the gradient of their sum."""
    batch = make_batch()

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        loss = loss_of_views(objective, views, params, state, batch).loss
        return loss.sum(), loss

    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return np.asarray(loss), gradient


CMAE = {"symmetric": False, "color": None, "head_hidden": 12, "head_out": 8}
DECODER = {name: TINY[name] for name in TINY if name.startswith("decoder")}
TOKENS = {name: TINY[name] for name in ("tokenizer", "min_rectangle")}
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "masking-masking-pixels-pixel_l2": ("mae", DECODER),
    "masking-masking-encoder-decoder_distance": ("rmae", DECODER),
    "masking-identity-encoder-decoder_distance": ("rmae", {"t2": "identity", **DECODER}),
    "masking-masking-ema-infonce": ("cmae", CMAE),
    "masking-masking-ema-byol": ("cmae", {**CMAE, "similarity": "byol"}),
    "jitter-jitter-ema-infonce": ("cmae", {**CMAE, "mask_ratio": 0.0, "color": {}}),
    "rectangles-identity-ids-cross_entropy": (
        "beit",
        {**TOKENS, "mask_ratio": 0.75, "color": None},
    ),
    "rectangles-identity-ema-smoothed_l1": (
        "data2vec",
        {"min_rectangle": 2, "mask_ratio": 0.75, "average_top_k": 1, "color": None},
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_corners_equal_the_published_objectives(name: str) -> None:
    """Equal parameters, views and PRNG keys give an equal loss and gradient."""
    theirs = make(NAMED[name][0], **NAMED[name][1])
    ours = of(name)
    params, state = start(ours)
    assert jax.tree.map(np.shape, (params, state)) == jax.tree.map(np.shape, start(theirs))
    if "smoothed_l1" in name:  # data2vec's target is the teacher's block before the last norm
        norm = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
        state["target"]["encoder"]["norm"] = norm
    views = views_of(theirs)
    (loss, gradient), (expected, slope) = (
        differentiated(objective, views, params, state) for objective in (ours, theirs)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), gradient, slope
    )
    moved, expected = (
        forward.update_target(objective, params, state, jnp.int32(9))
        for objective in (ours, theirs)
    )
    if NAMED[name][0] != "data2vec":  # its momentum differs
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved, expected)


def test_the_centered_cross_entropy_is_dinos() -> None:
    ours = of("crop-crop-ema-cross_entropy")
    heads = {"num_prototypes": 10, "head_hidden": 12, "bottleneck": 8}
    theirs = make("dino", local_crops=0, local_size=8, **heads)
    params, state = start(ours)
    their_params, their_state = start(theirs)
    for one, other in ((params, their_params), (state["target"], their_state["target"])):
        assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, other)
    weight = np.arange(IMAGES, dtype=np.float32)  # the first image is padding
    batch = batch_for(ours).replace(weight=weight)
    (net, ctx), (their_net, _) = (
        forward.bind(objective, params, state, batch, rngs_of(), STEP)
        for objective in (ours, theirs)
    )
    tokens = np.random.default_rng(2).standard_normal((2, IMAGES, 16)).astype(np.float32)
    z1, z2 = (net.head(x) for x in tokens)
    np.testing.assert_allclose(z1, their_net.head(tokens[0]), rtol=1e-6)
    views = (whole(jnp.zeros((IMAGES, SIZE, SIZE, 3)), COUNT),) * 2
    found = ours.loss(net, (z1[:, None], z2[:, None]), views, ctx)
    expected = theirs.loss(their_net, ((z1, z1), (z2, z2)), views, ctx)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found[:2], expected[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), found.state, expected.state)


@pytest.mark.parametrize("similarity", get_args(Similarity)[1:])
@pytest.mark.parametrize("targets", ["encoder", "ema"])
def test_which_targets_have_a_gradient(targets: str, similarity: str) -> None:
    objective = of(f"masking-identity-{targets}-{similarity}")
    params, state = start(objective)
    batch, views = batch_for(objective), views_of(objective)

    def total(params: Any, state: Any) -> jax.Array:
        net, ctx = forward.bind(objective, params, state, batch, rngs_of(), STEP)
        z2 = objective.features(net, views, ctx)[1]
        return ((z2.compared if isinstance(z2, grid.Decoded) else z2) ** 3).sum()

    slopes = jax.grad(total, argnums=(0, 1))(params, state)
    of_params, of_state = (any(np.any(leaf) for leaf in jax.tree.leaves(x)) for x in slopes)
    trains_target = targets == "encoder" and similarity in ("decoder_distance", "infonce")
    assert of_params == trains_target
    assert not of_state  # neither the EMA target nor the center
