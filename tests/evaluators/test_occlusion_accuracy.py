"""Which patches are removed, and the accuracy of what remains, image by image."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_models import (
    DECODER,
    PATCH,
    SIZE,
    N,
    at_most_by_chance,
    images,
    make,
    noise_images,
    save_run,
    subject,
)

from occinv.cli import main
from occinv.data.identity import unpack
from occinv.evaluators import occlusion_accuracy as module
from occinv.evaluators.base import Evaluator, Record, Subject, run_evaluator
from occinv.evaluators.knn import Knn
from occinv.evaluators.occlusion_accuracy import (
    GRAY,
    REMOVALS,
    OcclusionAccuracy,
    class_map,
    removal_order,
    shuffled,
)
from occinv.models.class_attention import class_attention
from occinv.objectives.base import Objective
from occinv.parallel import make_mesh
from occinv.schema import UserError
from occinv.train.records import read_records
from occinv.transforms.masking import lowest, paint
from occinv.transforms.view import View

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

CLASSIFICATION = {"name": "classification"}
MAE = {"name": "mae", **DECODER}
CMAE = {"name": "cmae", "head_hidden": 8, "head_out": 8}
SIDE = SIZE // PATCH
GRID = (SIDE, SIDE)
KEYS = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of random pixels of three classes."""
    return noise_images(tmp_path_factory.mktemp("data") / "noise")


# Removals.


def removed_patches(
    removal: str, removed: int, count: int = 200, grid: tuple[int, int] = GRID
) -> np.ndarray:
    """Which patches are removed from each image: bool [count, N]."""
    attention = np.random.default_rng(0).dirichlet(np.ones(N), count).astype(np.float32)
    order = removal_order(KEYS(jnp.arange(count)), removal, grid, jnp.asarray(attention))
    return ~np.asarray(lowest(order, N - removed))


@pytest.mark.parametrize("removal", [name for name in REMOVALS if name != "shuffle"])
def test_exactly_the_given_number_is_removed_and_more_includes_less(removal: str) -> None:
    before = np.zeros((200, N), bool)
    for removed in range(N + 1):
        now = removed_patches(removal, removed)
        assert (now.sum(1) == removed).all()
        assert (now | ~before).all()
        before = now


@pytest.mark.parametrize("removal", ["random", "block"])
def test_each_image_has_its_own_removals_whatever_its_batch(removal: str) -> None:
    removed = removed_patches(removal, 5)
    assert len(np.unique(removed, axis=0)) > 50
    assert (removed.mean(0) > 0.1).all()  # no patch always stays
    order = removal_order(KEYS(jnp.array([7, 3])), removal, GRID, None)
    np.testing.assert_array_equal(~np.asarray(lowest(order, N - 5)), removed[[7, 3]])


def test_a_block_grows_in_square_rings_around_a_patch() -> None:
    across = N // 2  # of a grid of two rows
    for removed in range(1, N):
        for image in removed_patches("block", removed, count=50, grid=(2, across)):
            rows, columns = np.divmod(np.flatnonzero(image), across)
            fits = []
            for center in range(N):
                row, column = divmod(center, across)
                every = np.arange(N)
                distance = np.maximum(abs(every // across - row), abs(every % across - column))
                own = distance[image].max()
                # Every patch of the rings within the last one is removed.
                fits.append(distance[image].min() == 0 and image[distance < own].all())
            assert any(fits), image.reshape(SIDE, SIDE)
            side = max(np.ptp(rows), np.ptp(columns)) + 1
            assert removed == 1 or side <= 2 * np.ceil(np.sqrt(removed)) + 1


def test_a_random_removal_is_not_a_block() -> None:
    neighbors = {
        removal: np.mean(
            [
                (grid[1:] & grid[:-1]).sum() + (grid[:, 1:] & grid[:, :-1]).sum()
                for grid in removed_patches(removal, 4).reshape(-1, SIDE, SIDE)
            ]
        )
        for removal in ("random", "block")
    }
    assert neighbors["block"] > 1.5 * neighbors["random"]


def test_the_salient_patches_have_most_attention() -> None:
    attention = np.random.default_rng(0).dirichlet(np.ones(N), 200)
    salient, other = (removed_patches(name, 5) for name in ("salient", "other"))
    for of_image, most, least in zip(attention, salient, other, strict=True):
        assert of_image[most].min() > of_image[~most].max()
        assert of_image[least].max() < of_image[~least].min()


def patches(pixels: Any) -> np.ndarray:
    """[B, H, W, 3] to [B, N, P], by slicing."""
    x = np.asarray(pixels)
    cut = [
        x[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].reshape(len(x), -1)
        for r in range(SIDE)
        for c in range(SIDE)
    ]
    return np.stack(cut, 1)


@pytest.mark.parametrize("moving", [0, 2, 7, N])
def test_shuffled_patches_change_places_among_themselves(moving: int) -> None:
    pixels = images(6).image / np.float32(255)
    found = shuffled(KEYS(jnp.arange(6)), jnp.asarray(pixels), PATCH, moving)
    before, after = patches(pixels), patches(found)
    moved = (before != after).any(2)
    assert (moved.sum(1) == moving).all()
    for old, new in zip(before, after, strict=True):
        assert sorted(map(bytes, old)) == sorted(map(bytes, new))
    if 0 < moving < N:
        assert len(np.unique(moved, axis=0)) > 3


def test_painted_patches_are_gray() -> None:
    pixels = images(3).image / np.float32(255)
    visible = np.random.default_rng(0).random((3, N)) < 0.5
    found = patches(paint(jnp.asarray(pixels), jnp.asarray(visible), PATCH, GRAY))
    assert (found[~visible] == 0.5).all()
    np.testing.assert_array_equal(found[visible], patches(pixels)[visible])


# Outputs of occluded images.


@functools.partial(jax.jit, static_argnames=("objective", "kept"))
def logits_of_one(
    objective: Objective, params: Any, pixels: jax.Array, visible: jax.Array, kept: int
) -> jax.Array:
    net = objective.networks.bind({"params": params})
    return net.head(net.encode(View(pixels[None], visible[None], kept)).tokens)[0]


@pytest.mark.parametrize("removed", ["drop", "gray"])
@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_logits_are_those_of_the_head_image_by_image(pooling: str, removed: Any) -> None:
    objective, params = make({**CLASSIFICATION, "pooling": pooling})
    batch, kept = images(4, first=3), 6
    mesh = make_mesh(jax.devices()[:1])
    found, label, weight = module._outputs(
        params, batch, jax.random.key(0), objective, (0.6,), REMOVALS, removed, mesh
    )
    np.testing.assert_array_equal(label, batch.label)
    np.testing.assert_array_equal(weight, 1)
    assert set(found) == set(REMOVALS)
    pixels = jnp.asarray(batch.image) / np.float32(255)
    attention = class_attention(objective.networks.encoder, params["encoder"], pixels)[-1].mean(1)
    keys = KEYS(jnp.asarray(batch.index))
    everything = jnp.ones(N, bool)
    for name in REMOVALS:
        shown, places = pixels, jnp.ones((4, N), bool)
        if name == "shuffle":
            shown = shuffled(keys, pixels, PATCH, N - kept)
        else:
            places = lowest(removal_order(keys, name, GRID, attention), kept)
        for image in range(4):
            whole = logits_of_one(objective, params, pixels[image], everything, N)
            np.testing.assert_allclose(found[name][0][image], whole, atol=2e-5)
            if name == "shuffle":
                expected = logits_of_one(objective, params, shown[image], everything, N)
            elif removed == "drop":
                expected = logits_of_one(objective, params, pixels[image], places[image], kept)
            else:
                gray = np.array(pixels[image])
                for patch in np.flatnonzero(~np.asarray(places[image])):
                    row, column = PATCH * (patch // SIDE), PATCH * (patch % SIDE)
                    gray[row : row + PATCH, column : column + PATCH] = 0.5
                expected = logits_of_one(objective, params, jnp.asarray(gray), everything, N)
            np.testing.assert_allclose(found[name][1][image], expected, atol=2e-5)
            assert abs(found[name][1][image] - whole).max() > 1e-3


@pytest.mark.parametrize("removed", ["drop", "mask_token"])
def test_patches_are_dropped_from_an_encoder_with_a_mask_token_unless_it_is_chosen(
    removed: Any,
) -> None:
    objective, params = make(CMAE)
    batch = images(3)
    mesh = make_mesh(jax.devices()[:1])
    found, _, _ = module._outputs(
        params, batch, jax.random.key(0), objective, (0.75,), ("random",), removed, mesh
    )
    encoder = objective.networks.encoder.clone(mask_token=removed == "mask_token")
    visible = lowest(removal_order(KEYS(jnp.asarray(batch.index)), "random", GRID, None), 4)
    pixels = jnp.asarray(batch.image) / np.float32(255)
    encoded: Any = jax.jit(encoder.apply, static_argnums=3)
    tokens = np.array(encoded({"params": params["encoder"]}, pixels, visible, 4).tokens)
    assert objective.axes.token == "mean"
    feature = tokens[:, 1:].mean(1)
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    np.testing.assert_allclose(found["random"][1], feature, rtol=1e-5, atol=1e-5)


# Curves.


def measure(evaluator: Evaluator, model: Subject) -> Record:
    return run_evaluator("occlusion", evaluator, model, "run", "name", 3)[0]


def assert_hits_are_of_the_curves(record: Record) -> None:
    for name, curve in record.details["top1"].items():
        packed = record.details["hits"][name]
        assert [unpack(text).mean() for text in packed] == pytest.approx(curve)
    json.dumps(dataclasses.asdict(record), allow_nan=False)


@pytest.fixture(scope="module")
def classified(noise: Path) -> tuple[Subject, Record]:
    """A classifier, and its accuracy at three ratios."""
    model = subject(CLASSIFICATION, source=f"folder:{noise}")
    evaluator = OcclusionAccuracy(ratios=(0.25, 0.75), batch_size=32)
    return model, measure(evaluator, model)


def predicted(model: Subject, image: np.ndarray) -> np.ndarray:
    """Logits [3] of a whole image."""
    pixels = jnp.asarray(image / np.float32(255))
    return np.asarray(logits_of_one(model.objective, model.params, pixels, jnp.ones(N, bool), N))


def test_the_curves_of_a_classifier(classified: tuple[Subject, Record]) -> None:
    model, record = classified
    source, _ = model.open(None)
    right = [
        predicted(model, source.read(i).image).argmax() == source.labels[i]
        for i in range(len(source))
    ]
    curves = record.details["top1"]
    assert record.details["shares"] == [0.0, 0.25, 0.75] and tuple(curves) == REMOVALS
    for name, curve in curves.items():
        assert curve[0] == np.mean(right) == record.values["top1"]
        np.testing.assert_array_equal(unpack(record.details["hits"][name][0]), right)
        area = (curve[0] + curve[1]) / 2 * 0.25 + (curve[1] + curve[2]) / 2 * 0.5
        assert record.values[f"area_{name}"] == pytest.approx(area / 0.75)
    assert_hits_are_of_the_curves(record)
    assert record.protocol["classifier"] == "own" and record.protocol["token"] == "mean"
    assert record.images.split == "training"


def test_the_order_of_the_ratios_does_not_change_the_area(
    classified: tuple[Subject, Record],
) -> None:
    model, record = classified
    evaluator = OcclusionAccuracy(ratios=(0.75, 0.25), batch_size=32)
    backwards = measure(evaluator, model)
    assert backwards.values == pytest.approx(record.values)
    assert backwards.details["shares"] == [0.0, 0.75, 0.25]
    for name, (whole, few, many) in record.details["top1"].items():
        assert backwards.details["top1"][name] == pytest.approx([whole, many, few])


def test_features_are_classified_by_whole_neighbors(noise: Path) -> None:
    """At ratio 0 this is the evaluator knn. No image is its own neighbor."""
    model = subject(MAE, source=f"folder:{noise}")
    evaluator = OcclusionAccuracy(
        ratios=(0.5,), removals=("random", "shuffle"), neighbors=3, batch_size=32
    )
    record = measure(evaluator, model)
    plain = measure(Knn(neighbors=3, batch_size=32), model)
    assert plain.protocol["leave_one_out"]
    for name in ("random", "shuffle"):
        assert record.details["top1"][name][0] == plain.values["top1"]
        assert record.details["hits"][name][0] == plain.details["hits"]
        # If occluded images could vote for themselves as whole ones, they would be recognized.
        assert max(record.details["top1"][name]) <= at_most_by_chance(1 / 3, 60)
    assert_hits_are_of_the_curves(record)
    assert record.protocol["classifier"] == "3 nearest neighbors"
    assert record.protocol["training_digest"] == plain.protocol["training_digest"]


@pytest.mark.parametrize("section", [CLASSIFICATION, MAE], ids=lambda section: section["name"])
def test_a_blind_classifier_stays_at_chance(section: dict[str, Any], noise: Path) -> None:
    model = subject(section, source=f"folder:{noise}")
    encoder = model.params["encoder"]
    encoder["patch_embed"] = jax.tree.map(np.zeros_like, encoder["patch_embed"])
    record = measure(OcclusionAccuracy(ratios=(0.25, 0.75), neighbors=5, batch_size=32), model)
    highest = at_most_by_chance(1 / 3, 60)
    assert all(max(curve) <= highest for curve in record.details["top1"].values())


def test_a_model_that_prefers_no_class_is_never_right(noise: Path) -> None:
    model = subject(CLASSIFICATION, source=f"folder:{noise}")
    model.params["head"] = jax.tree.map(np.zeros_like, model.params["head"])
    record = measure(OcclusionAccuracy(ratios=(0.75,), removals=("random",), batch_size=32), model)
    assert record.details["top1"] == {"random": [0.0, 0.0]}


def test_classes_are_mapped_by_name() -> None:
    allowed, label_of = class_map(("dog", "cat", "fox", "ant"), ("ant", "dog", "cat"))
    np.testing.assert_array_equal(allowed, [True, True, False, True])
    np.testing.assert_array_equal(label_of, [3, 0, 1])
    with pytest.raises(UserError, match="2 classes that the model does not know, such as 'emu'"):
        class_map(("dog", "cat"), ("dog", "emu", "owl"))


def test_images_of_some_classes_in_another_order(noise: Path, tmp_path: Path) -> None:
    """As ImageNet-A, which has 200 of the 1000 classes."""
    for name in ("a", "c"):
        (tmp_path / "some" / name).mkdir(parents=True)
        for path in (noise / name).iterdir():
            (tmp_path / "some" / name / path.name).write_bytes(path.read_bytes())
    trained = ("c", "b", "a")  # the classes of the logits
    model = dataclasses.replace(subject(CLASSIFICATION, source=f"folder:{noise}"), classes=trained)
    source = f"folder:{tmp_path / 'some'}"
    images, _ = model.open(source)
    assert images.classes == ("a", "c")
    right, others = [], 0
    for i in range(len(images)):
        logits = predicted(model, images.read(i).image)
        others += trained[int(logits.argmax())] == "b"
        best = "a" if logits[2] > logits[0] else "c"
        right.append(best == images.classes[images.labels[i]])
    assert others > 0 and 0.2 < np.mean(right) < 0.8
    evaluator = OcclusionAccuracy(
        source=source, ratios=(0.75,), removals=("random",), batch_size=32
    )
    record = measure(evaluator, model)
    np.testing.assert_array_equal(unpack(record.details["hits"]["random"][0]), right)
    unknown = dataclasses.replace(model, classes=("a", "b", "d"))
    with pytest.raises(UserError, match="1 classes that the model does not know, such as 'c'"):
        measure(evaluator, unknown)


def test_the_command(noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = save_run(tmp_path / "run", CLASSIFICATION, source=f"folder:{noise}")
    command = ["evaluate", "occlusion", "--workdir", str(workdir), "--batch-size", "32"]
    options = ["--removals", "salient,block", "--removed", "gray", "--ratios", "0.5,0.9"]
    assert main([*command, *options]) == 0
    said = capsys.readouterr().out
    assert "on whole images; area under the curve salient " in said and ", block " in said
    assert "the training images of the run" in said.replace("\n", " ")
    (record,) = read_records(workdir / "evaluate" / "occlusion.json")
    assert list(record.details["top1"]) == ["salient", "block"]
    assert record.details["shares"] == [0.0, 0.5, 0.9]
    assert main([*command, "--removals", "blok"]) == 2
    assert "removals[0]='blok'" in (said := capsys.readouterr().err)
    assert "did you mean 'block'?" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (MAE, {"removed": "mask_token"}, "trained without a mask token"),
        (MAE, {"ratios": (0.5, 1.0)}, "mask ratio 1.0"),
        (MAE, {"ratios": ()}, "ratios is empty"),
        (MAE, {"removals": ()}, "removals is empty"),
    ],
)
def test_an_impossible_choice_is_an_error(
    section: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        measure(OcclusionAccuracy(**change), subject(section))
