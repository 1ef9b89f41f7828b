"""Linear probing against NumPy: batch norm, its running statistics, and the heads under LARS."""

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
from small_objectives import make, rngs_of
from tiny_runs import (
    Crash,
    assert_same_end,
    at_step,
    compile_once,
    crash,
    make_images,
    run,
    state_of,
    tiny,
)

from occinv import parallel, schema
from occinv.cli import main
from occinv.data.batch import Batch
from occinv.models.position import sincos
from occinv.objectives import forward
from occinv.objectives.base import make_objective
from occinv.objectives.linear_probe import AttentivePool
from occinv.train import workdir as files
from occinv.train.optimizer import make_optimizer
from occinv.train.step import TrainState, init_state, make_step

IMAGES, CLASSES, SIZE, WIDTH = 8, 3, 8, 16
FACTORS = (0.5, 2.0, 30.0)
LARS = schema.Optimizer(name="lars", momentum=0.9, trust_coefficient=1e-2, weight_decay=0.0)
RATES = (0.5, 1.0, 0.7, 0.2)


@pytest.fixture(autouse=True)
def optax_promotes() -> Any:
    """Allow type promotion, which Optax's own arithmetic needs."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def probe(**fields: Any) -> Any:
    return make("linear_probe", depth=2, drop_path=0.9, size=SIZE, num_classes=CLASSES, **fields)


def make_batch(seed: int, images: int = IMAGES) -> Batch:
    draw = np.random.default_rng(seed)
    shade = draw.integers(0, 200, (images, 1, 1, 3))
    return Batch(
        (shade + draw.integers(0, 56, (images, SIZE, SIZE, 3))).astype(np.uint8),
        draw.integers(0, CLASSES, images).astype(np.int32),
        np.arange(images, dtype=np.int32),
        np.ones(images, np.float32),
    )


def trained(objective: Any, config: Any = LARS, devices: int = 1) -> tuple[TrainState, TrainState]:
    """Return the state before the first and after the last of four steps."""
    rates = jnp.asarray(RATES)
    optimizer = make_optimizer(config, lambda step: rates[step], len(RATES), objective.param_groups)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    whole = parallel.replicated(mesh)
    start = jax.jit(lambda: init_state(objective, optimizer, 3), out_shardings=whole)()
    step = jax.jit(
        make_step(objective, optimizer),
        in_shardings=(whole, parallel.by_image(mesh)),
        out_shardings=whole,
    )
    state = start
    for number in range(len(RATES)):
        state, _ = step(state, parallel.put_batch(mesh, make_batch(number)))
    return jax.device_get(start), jax.device_get(state)


def feature(objective: Any, params: Any, batch: Batch, pooling: str = "class") -> np.ndarray:
    """Return the encoder's feature of each image, float64 [B, D]."""
    pixels, encoder = batch.image / np.float32(255), objective.networks.encoder
    tokens = np.asarray(encoder.apply({"params": params}, pixels).tokens, np.float64)
    return tokens[:, 0] if pooling == "class" else tokens[:, 1:].mean(1)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


@pytest.mark.parametrize("devices", [1, 8])
def test_steps_equal_those_of_loops(devices: int) -> None:
    start, state = trained(probe(lr_factors=FACTORS), devices=devices)
    for place, token in enumerate(("class", "mean")):
        check_steps(start, state, place, token)


def check_steps(start: TrainState, state: TrainState, place: int, token: str) -> None:
    """Check the heads and the running statistics of one token after four steps."""
    objective = probe(lr_factors=FACTORS)
    mean, variance = np.zeros(WIDTH), np.ones(WIDTH)
    names = [f"{token}_{factor:g}" for factor in FACTORS]
    heads = [{k: v.astype("f8") for k, v in start.params["head"][n].items()} for n in names]
    moments = [{k: np.zeros_like(v) for k, v in head.items()} for head in heads]
    for number, rate in enumerate(RATES):
        batch = make_batch(number)
        found = feature(objective, start.params["encoder"], batch, token)
        normed = np.empty_like(found)
        for d in range(WIDTH):
            m = sum(found[:, d]) / IMAGES
            squares = sum((x - m) ** 2 for x in found[:, d])
            normed[:, d] = (found[:, d] - m) / np.sqrt(squares / IMAGES + 1e-6)
            mean[d] += 0.1 * (m - mean[d])
            variance[d] += 0.1 * (squares / (IMAGES - 1) - variance[d])
        for factor, head, moment in zip(FACTORS, heads, moments, strict=True):
            slope = {k: np.zeros_like(v) for k, v in head.items()}
            for x, label in zip(normed, batch.label, strict=True):
                error = softmax(x @ head["kernel"] + head["bias"]) - np.eye(CLASSES)[label]
                slope["kernel"] += np.outer(x, error) / IMAGES
                slope["bias"] += error / IMAGES
            trust = 1e-2 * np.linalg.norm(head["kernel"]) / np.linalg.norm(slope["kernel"])
            for name, ratio in (("kernel", trust), ("bias", 1.0)):
                moment[name] = 0.9 * moment[name] + ratio * slope[name]
                head[name] = head[name] - factor * rate * moment[name]
    np.testing.assert_allclose(state.objective_state["mean"][place], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.objective_state["variance"][place], variance, rtol=1e-4)
    for name, head in zip(names, heads, strict=True):
        ours = state.params["head"][name]
        np.testing.assert_allclose(ours["kernel"], head["kernel"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(ours["bias"], head["bias"], rtol=1e-3, atol=1e-5)


def test_heads_trained_together_equal_heads_trained_alone() -> None:
    together = trained(probe(lr_factors=FACTORS))[1].params["head"]
    assert list(together) == [f"{token}_{f}" for token in ("class", "mean") for f in (0.5, 2, 30)]
    for factor in FACTORS:
        alone = trained(probe(lr_factors=(factor,)))[1].params["head"]
        assert len(alone) == 2
        for head, weights in alone.items():
            for name, value in weights.items():
                np.testing.assert_allclose(together[head][name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_the_encoder_is_frozen_and_has_no_optimizer_state(optimizer: str) -> None:
    config = dataclasses.replace(LARS, name=optimizer, weight_decay=0.3, decay="all")
    start, state = trained(probe(), config)
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], start.params["encoder"])
    for name, head in state.params["head"].items():
        assert (head["kernel"] != start.params["head"][name]["kernel"]).all()
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
    assert shapes == {(), (WIDTH, CLASSES), (CLASSES,)}


def test_evaluation_normalizes_by_the_running_statistics() -> None:
    objective = probe(lr_factors=(1.0, 2.0))
    draw = np.random.default_rng(5)
    params, _ = forward.init(objective, jax.random.key(0))
    params["head"] = jax.tree.map(lambda x: draw.normal(size=x.shape).astype("f4"), params["head"])
    state = {
        "mean": draw.normal(size=(2, WIDTH)).astype("f4"),
        "variance": draw.uniform(0.1, 3, (2, WIDTH)).astype("f4"),
    }
    batch = make_batch(0)
    batch = batch.replace(weight=np.array([1, 1, 1, 1, 1, 0, 0, 0], "f4"))  # three are padding
    rng = rngs_of(0, IMAGES, seed=0)
    for_evaluation = forward.for_evaluation(objective)
    evaluated = jax.jit(functools.partial(forward.evaluate, for_evaluation))
    found = evaluated(params, state, batch, rng, jnp.int32(1))
    means = {name: float(value.compute()) for name, value in found.items()}

    losses = []
    for name, head in params["head"].items():
        token = name.split("_")[0]
        place = ("class", "mean").index(token)
        normed = feature(objective, params["encoder"], batch, token) - state["mean"][place]
        normed /= np.sqrt(state["variance"][place] + 1e-6)
        chance = np.array([softmax(x) for x in normed @ head["kernel"] + head["bias"]])[:5]
        losses.append(-np.log(chance[np.arange(5), batch.label[:5]]).mean())
        right = (chance.argmax(1) == batch.label[:5]).sum()
        assert means[f"top1_at_{name}"] * 5 == pytest.approx(right, rel=1e-6)
        assert means[f"top5_at_{name}"] == 1  # of three classes
    assert len(losses) == 4
    assert means["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert {int(value.count) for value in found.values()} == {5}

    parts = [jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in ([0, 4], [2, 1, 3])]
    first, second = (
        evaluated(params, state, part, rng[: len(part.label)], jnp.int32(1)) for part in parts
    )
    for name, value in means.items():
        merged = first[name].merge(second[name])
        assert float(merged.compute()) == pytest.approx(value, rel=1e-5)
    assert for_evaluation.couples == "nothing"  # so that the padded last batch counts


def test_the_result_is_that_of_the_best_head() -> None:
    found = {
        "loss": 1.0,
        **{"top1_at_class_0.5": 0.3, "top1_at_class_2": 0.6, "top1_at_class_30": 0.5},
        **{"top5_at_class_0.5": 0.7, "top5_at_class_2": 0.8, "top5_at_class_30": 0.9},
        **{"top1_at_mean_0.5": 0.9, "top1_at_mean_2": 0.2, "top1_at_mean_30": 0.1},
        **{"top5_at_mean_0.5": 0.95, "top5_at_mean_2": 0.4, "top5_at_mean_30": 0.3},
    }
    tokens = {"top1_class": 0.6, "top1_mean": 0.9}
    best = {"class": (0.6, 0.8, 2.0), "mean": (0.9, 0.95, 0.5)}
    for pooling, (top1, top5, factor) in best.items():
        chosen = probe(lr_factors=FACTORS, pooling=pooling).summarize(found)
        assert chosen == {**found, **tokens, "top1": top1, "top5": top5, "lr_factor": factor}


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ((), r"=\(\), expected one or more different numbers above 0"),
        ((0.0,), r"\[0\]=0\.0, expected a number > 0"),
        ((1.0, -1.0), r"\[1\]=-1\.0, expected a number > 0"),
        ((float("nan"),), r"\[0\]=nan, expected a finite number"),
        ((2.0, 1.0, 2.0), r"=\(2\.0, 1\.0, 2\.0\), expected one or more different numbers above 0"),
    ],
)
def test_impossible_factors_are_refused(factors: tuple[float, ...], message: str) -> None:
    with pytest.raises(schema.UserError, match=r"^objective\.lr_factors" + message):
        probe(lr_factors=factors)


def test_probing_one_class_is_refused() -> None:
    setting = dataclasses.replace(probe().setting, num_classes=1)
    with pytest.raises(schema.UserError, match="1 classes, a linear probe needs 2 or more"):
        make_objective({"name": "linear_probe"}, setting)


def test_a_run_that_crashes_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    before = tmp_path / "mae"
    run(tiny("mae", images, "train.duration.steps=2"), before)
    arguments = tiny(
        "linear", images, "train.duration.steps=4", "train.checkpoint_every.epochs=None",
        "train.checkpoint_every.steps=1", f"init_from={before}", "objective.lr_factors=(1.0, 4.0)",
    )  # fmt: skip
    whole, again = tmp_path / "whole", tmp_path / "again"
    with compile_once(tmp_path / "compiled"):
        run(arguments, whole)
        with pytest.raises(Crash):
            run(arguments, again, watch=at_step(3, crash))
        run(arguments, again)
    assert_same_end(again, whole)
    state = state_of(whole)
    assert any("objective_state" in name and "variance" in name for name in state)
    start, end = (files.load_run(folder).params for folder in (before, whole))
    jax.tree.map(np.testing.assert_array_equal, end["encoder"], start["encoder"])
    assert (end["head"]["mean_1"]["kernel"] != end["head"]["mean_4"]["kernel"]).all()
    metrics = json.loads((whole / files.RESULT).read_text())["metrics"]
    assert metrics["top1"] == max(metrics["top1_at_class_1"], metrics["top1_at_class_4"])
    assert metrics["top1_mean"] == max(metrics["top1_at_mean_1"], metrics["top1_at_mean_4"])
    assert metrics["lr_factor"] in (1.0, 4.0)
    # There are 12 validation images, 4 of them in the incomplete last batch.
    assert metrics["top1"] * 12 == pytest.approx(round(metrics["top1"] * 12))


def test_an_attentive_probe_trains_its_queries_as_heads_of_their_own() -> None:
    """The gradient of each head's pool is that of the head alone, at its own learning rate."""
    both = trained(probe(pooling="attentive", lr_factors=(0.5, 2.0)))
    alone = trained(probe(pooling="attentive", lr_factors=(2.0,)))
    for name, leaf in both[1].params["pool"].items():
        before = jax.tree.leaves(both[0].params["pool"][name])
        moved = [(a != b).any() for a, b in zip(jax.tree.leaves(leaf), before, strict=True)]
        assert any(moved), name
    assert both[1].objective_state["mean"].shape == (2, WIDTH)
    assert alone[1].objective_state["mean"].shape == (1, WIDTH)
    jax.tree.map(np.testing.assert_array_equal, *(s.params["encoder"] for s in both))


def test_an_attentive_pool_is_cross_attention_of_one_query() -> None:
    """The feature is a convex mixture of projected values, image by image."""
    draw = np.random.default_rng(0)
    tokens = draw.normal(size=(3, 4, WIDTH)).astype(np.float32)
    pool = AttentivePool(("1",), heads=1, grid=(2, 2))
    params = pool.init(jax.random.key(0), tokens)["params"]
    found = np.asarray(pool.apply({"params": params}, tokens))

    def normed(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        layer = params["attention_1"][name]
        return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])

    for image, own in zip(tokens.astype(np.float64), found[0], strict=True):
        query = dense("q", normed(np.asarray(params["query_1"], np.float64)[0]))
        keys, values = dense("k", normed(image + sincos(2, WIDTH)[1:])), dense("v", normed(image))
        weight = softmax((query @ keys.T)[0] / WIDTH**0.5)
        np.testing.assert_allclose(own, dense("out", weight @ values), rtol=1e-4, atol=1e-5)


def test_validation_images_are_needed_but_may_be_the_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images") / "train"
    arguments = tiny("linear", images, "train.duration.steps=2", "optimizer.warmup.steps=1")
    workdir = tmp_path / "run"
    assert main(["train", *arguments, "--workdir", str(workdir)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("occinv: a linear probe needs validation images")
    assert "data.eval_source" in said and said.count("\n") == 1
    assert not workdir.exists()
    run(arguments, workdir, f"data.eval_source=folder:{images}")
    result = json.loads((workdir / files.RESULT).read_text())
    assert (result["images"]["split"], result["images"]["count"]) == ("training", 24)
    assert 0 <= result["metrics"]["top1"] <= 1
