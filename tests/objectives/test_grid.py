"""The free grid: what is refused and why, every combination that is not, and those with a name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_equations import COUNT, IMAGES, PATCH, SIDE, make, make_batch, recording, start

from occinv.models.decoder import Decoder
from occinv.models.heads import MlpHead, PrototypeHead
from occinv.models.vit import ViT
from occinv.objectives import grid
from occinv.objectives.base import Setting, make_objective
from occinv.objectives.grid_axes import (
    Combination,
    Similarity,
    all_combinations,
    valid_combinations,
)
from occinv.rng import image_rngs
from occinv.schema import UserError
from occinv.transforms.color import ColorJitter
from occinv.transforms.view import View, normalize, whole

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


def of(name: str, **fields: Any) -> Any:
    """The grid's objective of that name, with a tiny encoder."""
    return make("grid", **{**Combination(*name.split("-"))._asdict(), **TINY, **fields})


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[None]:
    """The large parts, each compiled once for all combinations, which run one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        for part, static in ((ViT, (0, 4)), (Decoder, 0), (MlpHead, 0), (PrototypeHead, 0)):
            patch.setattr(part, "apply", jax.jit(part.apply, static_argnums=static))
        patch.setattr(ColorJitter, "__call__", jax.jit(ColorJitter.__call__, static_argnums=0))
        for name in ("random_visible", "rectangles_visible"):
            drawn = jax.jit(getattr(grid, name), static_argnums=(1, 2, 3)[: 2 + ("block" in name)])
            patch.setattr(grid, name, drawn)
        yield


def keys_of(step: int = 3) -> jax.Array:
    return image_rngs(jax.random.key(7), jnp.int32(step), IMAGES)


def batch_for(objective: Any) -> Any:
    """Images, and as many others for each crop, so that a view shows which it is of."""
    batch = make_batch()
    return batch.replace(
        crops=tuple(np.roll(batch.image, 1 + i, 1) for i in range(len(objective.crops)))
    )


def views_of(objective: Any) -> tuple[View, View]:
    batch = batch_for(objective)
    pixels = [x / np.float32(255) for x in (batch.image, *batch.crops)]
    return objective.transform(tuple(pixels) if batch.crops else pixels[0], keys_of())


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


@pytest.mark.parametrize("similarity", get_args(Similarity))
def test_every_valid_combination_trains(similarity: Similarity) -> None:
    """With a loss and metrics that are numbers, and a gradient to all that is to learn."""
    starts: dict[Any, Any] = {}
    for point in valid_combinations():
        if point.similarity != similarity:
            continue
        objective = of(point.name)
        kind = (objective.encoder.mask_token, point.targets)
        params, state = starts.setdefault(kind, None) or start(objective)
        starts[kind] = params, state
        batch = batch_for(objective)
        with jax.numpy_dtype_promotion("strict"):
            (loss, (after, metrics)), gradient = jax.value_and_grad(objective.loss, has_aux=True)(
                params, state, batch, keys_of(), jnp.int32(3)
            )
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state), point.name
        for leaf in jax.tree.leaves((loss, after, metrics, gradient)):
            assert np.isfinite(leaf).all(), point.name
        still = {
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
            if not np.any(leaf)
        }
        frozen = {"encoder/position", "decoder/position", *map("/".join, objective.learns_late)}
        decoded = point[:1] if similarity == "pixel_l2" else point[:2]
        if not set(decoded) & set(grid.OCCLUSIONS):
            frozen.add("decoder/mask_token")  # for removed patches, of which there are none
        assert still <= frozen, point.name


def test_every_refusal_is_one_line_whose_advice_leads_to_what_works() -> None:
    for point in REFUSED:
        with pytest.raises(UserError) as error:
            of(point.name)
        said = str(error.value)
        assert "\n" not in said and said.count("objective.") == 3, said
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
    ("name", "said"),
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
        ("identity-identity-ema-byol", "so there is nothing to be invariant to"),
        ("masking-jitter-ids-cross_entropy", "T1 cannot know the colors that T2 draws"),
        ("identity-blocks-pixels-pixel_l2", "T1 shows all that is asked"),
    ],
)
def test_what_is_said_of_what_cannot_work(name: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        of(name)


def test_numbers_that_cannot_work() -> None:
    with pytest.raises(UserError, match=r"mask ratio 1\.0, expected a number strictly between"):
        of("masking-identity-ema-byol", mask_ratio=1.0)
    with pytest.raises(UserError, match=r"t2_mask_ratio=0\.75, expected less than objective\."):
        of("masking-blocks-ema-byol", t2_mask_ratio=0.75)
    of("masking-masking-ema-byol", t2_mask_ratio=0.75)  # nothing draws by it
    with pytest.raises(UserError, match=r"objective\.tokenizer\.name='kmean'"):
        of("blocks-identity-ids-cross_entropy", tokenizer={"name": "kmean"})
    encoder = ViT(SIDE * PATCH, PATCH, width=16, depth=1, heads=2)
    setting = Setting(encoder, 3, 9, batch_size=1, num_images=9)
    with pytest.raises(
        UserError, match=r"train\.batch_size=1 .* the negatives are the other images"
    ):
        make_objective({"name": "grid", "similarity": "infonce"}, setting)
    make_objective({"name": "grid", "similarity": "byol"}, setting)


KEPT = {"masking": COUNT // 4, "blocks": COUNT // 4}


@pytest.mark.parametrize("t2", get_args(grid.Transformation))
@pytest.mark.parametrize("t1", get_args(grid.Transformation))
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
        is_its_own = np.allclose(view.pixels, normalize(image / np.float32(255)), atol=1e-5)
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
        ("blocks-identity-encoder-byol", lambda first, second: True),
        ("masking-blocks-ema-smoothed_l1", lambda first, second: not first and second),
        ("blocks-masking-encoder-decoder_distance", lambda first, second: not first and second),
        ("masking-identity-ids-cross_entropy", lambda first, second: not first),
        ("jitter-masking-ema-infonce", lambda first, second: second),
        ("jitter-blocks-pixels-pixel_l2", lambda first, second: second),
    ],
)
def test_which_patches_are_compared(name: str, expected: Any) -> None:
    objective = of(name)
    views = views_of(objective)
    first, second = (np.asarray(view.visible) for view in views)
    truth = [[expected(*pair) for pair in zip(*rows, strict=True)] for rows in zip(first, second)]  # noqa: B905
    np.testing.assert_array_equal(objective.compared(*views), truth)
    assert np.any(truth, 1).all()


def test_dropped_patches_leave_the_others_at_their_places() -> None:
    objective = of("jitter-masking-encoder-smoothed_l1")
    params, state = start(objective)
    view = views_of(objective)[1]
    tokens = np.asarray(objective.encode(params, view).tokens)
    z2 = np.asarray(objective.target(params, state, view, None, None))
    assert tokens.shape[1] == 1 + view.kept < 1 + COUNT
    for b in range(IMAGES):
        for place, n in enumerate(np.flatnonzero(view.visible[b])):
            token = tokens[b, 1 + place].astype(float)
            standard = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
            np.testing.assert_allclose(z2[b, n], standard, rtol=1e-3, atol=1e-4)


def test_crops_are_compared_by_their_mean_patch_token() -> None:
    objective = of("masking-crop-ema-smoothed_l1")
    params, state = start(objective)
    batch, views = batch_for(objective), views_of(objective)
    predictor = {name: np.asarray(x, float) for name, x in params["predictor"].items()}
    loss, _ = recorded(objective, views, params, state, batch)
    tokens = np.asarray(objective.encode(params, views[0]).tokens, float)
    theirs = np.asarray(objective.encode(state["target"], views[1]).tokens, float)
    for b in range(IMAGES):
        truth = theirs[b, 1:].mean(0)
        truth = (truth - truth.mean()) / np.sqrt(truth.var() + 1e-5)
        predicted = tokens[b, 1:].mean(0) @ predictor["kernel"] + predictor["bias"]
        far = np.abs(predicted - truth)
        expected = np.where(far < 2, far**2 / 4, far - 1).mean()
        assert loss[b] == pytest.approx(expected, rel=1e-3)


def recorded(objective: Any, views: Any, params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    """The loss of each image for given views, and the gradient of all together."""
    given = recording(objective, list(views))

    def total(params: Any) -> tuple[jax.Array, jax.Array]:
        loss = given.terms(params, state, batch, keys_of()).loss
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
    "blocks-identity-ids-cross_entropy": ("beit", {**TOKENS, "mask_ratio": 0.75, "color": None}),
    "blocks-identity-ema-smoothed_l1": (
        "data2vec",
        {"min_rectangle": 2, "mask_ratio": 0.75, "target_blocks": 1, "color": None},
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_corners_are_the_objectives_with_a_name(name: str) -> None:
    """Equal parameters, views and keys give an equal loss and gradient."""
    theirs = make(NAMED[name][0], **NAMED[name][1])
    ours = of(name)
    params, state = start(ours)
    assert jax.tree.map(np.shape, (params, state)) == jax.tree.map(np.shape, start(theirs))
    if "smoothed_l1" in name:  # the teacher's block has not passed the last norm in data2vec
        norm = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
        state["target"]["encoder"]["norm"] = norm
    views = views_of(theirs)
    given = params, state, make_batch()
    (loss, gradient), (expected, slope) = (recorded(x, views, *given) for x in (ours, theirs))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5), gradient, slope
    )
    moved, expected = (x.advance(params, state, jnp.int32(9)) for x in (ours, theirs))
    if NAMED[name][0] != "data2vec":  # whose momentum is another
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved, expected)


def test_the_centered_cross_entropy_is_dinos() -> None:
    ours = of("crop-crop-ema-cross_entropy")
    heads = {"num_prototypes": 10, "head_hidden": 12, "bottleneck": 8}
    theirs: Any = make("dino", local_crops=0, local_size=8, **heads)
    params, state = start(ours)
    their_params, their_state = start(theirs)
    for one, other in ((params, their_params), (state["target"], their_state["target"])):
        assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, other)
    tokens = np.random.default_rng(2).standard_normal((2, IMAGES, 16)).astype(np.float32)
    z1, z2 = (ours.through("head", params, jnp.asarray(x)) for x in tokens)
    apply = {"params": params["head"]}
    np.testing.assert_allclose(z1, theirs.head.apply(apply, tokens[0]), rtol=1e-6)
    state = {**state, "temperature": np.float32(0.04)}
    view = whole(jnp.zeros((IMAGES, SIDE * PATCH, SIDE * PATCH, 3)), COUNT)
    found = ours.measure(params, state, z1[:, None], z2[:, None], view, view)
    expected = theirs.measure(params, state, z1, z2, view, view)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)
    weight = np.arange(IMAGES, dtype=np.float32)  # the first is padding
    after = ours.observe(state, {}, {1: z2[:, None]}, weight)["center"]
    np.testing.assert_allclose(after, theirs.observe(state, {}, {1: z2}, weight)["center"], 1e-5)


@pytest.mark.parametrize("similarity", get_args(Similarity)[1:])
@pytest.mark.parametrize("targets", ["encoder", "ema"])
def test_which_targets_have_a_gradient(targets: str, similarity: str) -> None:
    objective = of(f"masking-identity-{targets}-{similarity}")
    params, state = start(objective)
    view = whole(normalize(make_batch().image / np.float32(255)), COUNT)

    def total(params: Any) -> jax.Array:
        z2 = objective.target(params, state, view, None, None)
        return ((z2.compared if isinstance(z2, grid.Decoded) else z2) ** 3).sum()

    has_gradient = any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(total)(params)))
    assert has_gradient == (targets == "encoder" and similarity in ("decoder_distance", "infonce"))
    assert objective.trains_target == has_gradient
