"""A learned codebook: its loss, how many codes it uses, and its ids in another run."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import (
    DECODER,
    IMAGES,
    PATCH,
    SIDE,
    Found,
    make,
    make_batch,
    rngs_of,
    run,
    start,
)
from tiny_runs import DECODER as TINY_DECODER
from tiny_runs import Crash, at_step, crash, state_of, tiny
from tiny_runs import run as train

from occinv import schema
from occinv.config import load_config
from occinv.models import vit
from occinv.models.tokenizers.base import make_tokenizer
from occinv.models.tokenizers.kmeans import KMeans
from occinv.objectives import forward
from occinv.objectives.base import Setting, make_objective
from occinv.schema import UserError
from occinv.train import workdir
from occinv.train.prepare import Run, prepare
from occinv.transforms.view import whole

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

NUM_IDS, WIDTH = 6, 3
FIELDS = {"num_ids": NUM_IDS, "code_width": WIDTH, **DECODER}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum())


def nearest(found: Found, b: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return vector, nearest code and id of each patch of image b, in float64."""
    quantizer = found.params["quantizer"]
    kernel, bias = (quantizer["project"][n].astype(float) for n in ("kernel", "bias"))
    codes = [unit(code) for code in quantizer["codes"].astype(float)]
    patches = []
    for token in found.given[0][b, 1:].astype(float):
        z = unit(token @ kernel + bias)
        distances = [((z - code) ** 2).sum() for code in codes]
        best = distances.index(min(distances))
        patches.append((z, codes[best], best))
    return patches


def tokens_and_patches(net: Any, views: Any, ctx: Any) -> Any:
    """Return the tokens of f, and the patches decoded from their codes."""
    return net.encode(views[0]).tokens, net.decode(net.quantize(views[0]).codes)


def test_the_loss() -> None:
    found = run(make("vq", commitment=0.3, **FIELDS), tokens_and_patches)
    for b in range(IMAGES):
        target = found.image[b].astype(float) / 255
        target = (target - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        target = target.reshape(SIDE, PATCH, SIDE, PATCH, 3).swapaxes(1, 2).reshape(SIDE**2, -1)
        reconstruction = ((found.given[1][b] - target) ** 2).mean()
        apart = np.mean([((z - code) ** 2).sum() for z, code, _ in nearest(found, b)])
        assert found.metrics["reconstruction"][b] == pytest.approx(reconstruction, rel=1e-4)
        assert found.metrics["distance_to_code"][b] == pytest.approx(apart, rel=1e-4)
        assert found.loss[b] == pytest.approx(reconstruction + 1.3 * apart, rel=1e-4)


def test_the_gradient_of_each_term() -> None:
    """The pixels' gradient passes the choice of a code and reaches f, but no code."""
    objective = make("vq", commitment=0.0, **FIELDS)
    committed = make("vq", commitment=1.0, **FIELDS)
    params, state = start(objective)
    batch = make_batch()

    def losses(params: Any) -> tuple[jax.Array, ...]:
        terms = [
            forward.terms_of(which, params, state, batch, rngs_of(), jnp.int32(0))
            for which in (objective, committed)
        ]
        pixels = terms[0].metrics["reconstruction"]
        return tuple(loss.mean() for loss in (pixels, *(term.loss for term in terms)))

    _, pull = jax.vjp(jax.jit(losses), params)
    pixels, plain, more = (
        {"codes": slope["quantizer"]["codes"], "f": slope["encoder"]["patch_embed"]["kernel"]}
        for weights in np.eye(3, dtype=np.float32)
        for slope in pull(tuple(weights))
    )
    assert not np.any(pixels["codes"]) and np.any(pixels["f"]) and np.any(plain["codes"])
    # Without commitment f learns from the pixels alone, and the codes do not depend on it at all.
    np.testing.assert_allclose(plain["f"], pixels["f"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(more["codes"], plain["codes"], rtol=1e-3, atol=1e-6)
    assert np.abs(more["f"] - plain["f"]).max() > 1e-4


def test_the_use_of_the_codebook() -> None:
    objective = make("vq", **FIELDS)
    uses = np.array([0.5, 0.25, 0.25, 0, 0, 0])
    summary = objective.summarize({"loss": 1.0, "uses": uses})
    assert summary["used_codes"] == 3 and summary["loss"] == 1.0
    assert summary["perplexity"] == pytest.approx(2**1.5)
    params, state = start(objective)
    batch = make_batch().replace(weight=np.array([1, 0, 1, 1, 0], np.float32))
    evaluate = jax.jit(functools.partial(forward.evaluate, forward.for_evaluation(objective)))
    evaluated = evaluate(params, state, batch, rngs_of(), jnp.int32(1))
    found = run(objective, tokens_and_patches)
    expected = np.zeros(NUM_IDS)
    for b in (0, 2, 3):
        for _, _, best in nearest(found, b):
            expected[best] += 1 / SIDE**2
    np.testing.assert_allclose(evaluated["uses"].compute(), expected / 3, rtol=1e-5)
    assert evaluated["loss"].count == 3 and evaluated["loss"].compute().shape == ()


CODEBOOK = ("objective.num_ids=8", "objective.code_width=4", *TINY_DECODER)
STEPS = ("train.duration.steps=2", "train.checkpoint_every.steps=1")
STEPS += ("train.checkpoint_every.epochs=None",)
TOKENIZER = {
    "name": "vq",
    "num_ids": 8,
    "code_width": 4,
    "encoder": {"name": "micro", "patch_size": 8, "width": 16, "depth": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workdir of a run of configs/tokenizer.py."""
    folder = tmp_path_factory.mktemp("runs") / "tokenizer"
    train(tiny("tokenizer", images, *STEPS, *CODEBOOK), folder)
    return folder


def test_a_run_reports_the_use_of_its_codebook(trained: Path) -> None:
    metrics = json.loads((trained / workdir.RESULT).read_text())["metrics"]
    assert 1 <= metrics["perplexity"] <= metrics["used_codes"] <= 8
    assert metrics["used_codes"] == int(metrics["used_codes"])
    assert math.isfinite(metrics["loss"]) and "uses" not in metrics


def beit(images: Path, *fields: str) -> list[str]:
    return tiny("beit", images, *STEPS, "objective.color=None", *fields)


def prepared(arguments: list[str]) -> Run:
    return prepare(schema.resolve(load_config(arguments[1], arguments[2:])))


def obtained(arguments: list[str]) -> Any:
    """Return the parameters of the tokenizer that a run starts with."""
    return prepared(arguments).obtain["tokenizer"]()


def test_beit_predicts_the_ids_of_that_run(trained: Path, images: Path) -> None:
    section = {**TOKENIZER, "start": str(trained)}
    found = obtained(beit(images, f"objective.tokenizer={section}"))
    theirs = workdir.load_run(trained).params
    expected = {name: theirs[name] for name in ("encoder", "quantizer")}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # Its ids are those of the tokenizer's own run.
    objective = workdir.load_run(trained).objective
    pixels = np.random.default_rng(0).random((3, 16, 16, 3)).astype(np.float32)
    view = whole(pixels, objective.setting.encoder.num_patches)
    bind = objective.networks.bind
    expected = jax.jit(lambda params: bind({"params": params}).quantize(view).ids)(theirs)
    given = make_tokenizer(TOKENIZER, 16, 8)
    np.testing.assert_array_equal(jax.jit(given.ids)(found, pixels), expected)


def test_kmeans_depends_on_the_seed(images: Path) -> None:
    def means(*fields: str) -> np.ndarray:
        return obtained(beit(images, "objective.tokenizer.num_ids=5", *fields))["means"]

    first = means()
    assert first.shape == (5, 8 * 8 * 3) and np.ptp(first, 0).max() > 0.01
    np.testing.assert_array_equal(means(), first)
    assert (means("seed=1") != first).any()


def test_a_run_that_resumes_uses_the_means_of_its_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = beit(images, "objective.tokenizer.num_ids=5")
    with pytest.raises(Crash):
        train(arguments, tmp_path, watch=at_step(2, crash))
    assert workdir.load_run(tmp_path).step == 1
    monkeypatch.setattr(KMeans, "fit", lambda *_: pytest.fail("fitted again"))
    before = state_of(tmp_path)
    train(arguments, tmp_path)
    after = state_of(tmp_path)
    (name,) = (name for name in after if "means" in name)
    assert np.any(after[name])
    np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": None}, "objective.tokenizer.start is missing"),
        ({"start": "nowhere"}, "nowhere is not the workdir of a run"),
        ({"num_ids": 9}, "with other shapes than those of ['encoder', 'quantizer'] here"),
        ({"name": "dalle", "encoder": None, "code_width": None}, "of ['dalle'] here; set"),
        ({"encoder": {**TOKENIZER["encoder"], "heads": 4}}, "heads=4 (2 there)"),
        ({"encoder": {**TOKENIZER["encoder"], "gelu": "tanh"}}, "gelu='tanh' ('erf' there)"),
        ({"encoder": {"patch_size": 4}}, "encoder.patch_size=4, expected 8: a patch has one id"),
    ],
)
def test_mistakes_before_anything_is_written(
    change: dict[str, Any], message: str, trained: Path, images: Path, tmp_path: Path
) -> None:
    section = {**TOKENIZER, "start": str(trained), **change}
    section = {name: value for name, value in section.items() if value is not None}
    with pytest.raises(UserError) as caught:
        train(beit(images, f"objective.tokenizer={section}"), tmp_path / "run")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_another_grid_of_as_many_patches_is_refused(trained: Path) -> None:
    run = workdir.load_run(trained)
    tokenizer = make_tokenizer({**TOKENIZER, "start": "there"}, (8, 32), 8)
    with pytest.raises(UserError, match=r"in 'there': image_size=\(8, 32\) \(16 there\); set"):
        tokenizer.obtain(lambda _: (run.experiment, run.params), lambda: iter(()))


def test_parameters_can_be_initialized_without_the_tokenizers_run() -> None:
    section = {"name": "beit", "tokenizer": {**TOKENIZER, "start": "gone"}}
    encoder = schema.Encoder(**TOKENIZER["encoder"])  # type: ignore[arg-type]
    objective = make_objective(section, Setting(vit.make_vit(encoder, 16), 2, 1))
    shapes = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    assert set(shapes[1]["tokenizer"]) == {"encoder", "quantizer"}
