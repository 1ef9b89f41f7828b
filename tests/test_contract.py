"""What every objective promises, whatever it measures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from occinv import parallel, schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives import forward
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.rng import image_rngs
from occinv.train.step import TrainState, init_state, make_step
from occinv.transforms.masking import random_visible

BATCH, SIZE = 8, 16
DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
HEADS = {"head_hidden": 24, "head_out": 12}
KMEANS = {"name": "kmeans", "num_ids": 6}
CASES: dict[str, dict[str, Any]] = {
    "mae": {"name": "mae", **DECODER},
    "mae, no masking, augmented": {
        "name": "mae",
        "mask_ratio": 0.0,
        "cutmix": 1.0,
        "color": {},
        "augmented": "image",
        **DECODER,
    },
    "rmae": {"name": "rmae", **DECODER},
    "rmae independent": {"name": "rmae", "t2": "independent", **DECODER},
    "rmae identity": {"name": "rmae", "t2": "identity", **DECODER},
    "cmae": {"name": "cmae", "symmetric": False, **HEADS},
    "cmae batch, batch norm": {
        "name": "cmae",
        "tokens": "patch+class",
        "negatives": "batch",
        "head_norm": "batchnorm",
        "symmetric": False,
        **HEADS,
    },
    "cmae, dropped patches": {
        "name": "cmae",
        "mask_token": False,
        "t2": "identity",
        "head_norm": "layernorm",
        **HEADS,
    },
    "cmae BYOL, queries": {
        "name": "cmae",
        "similarity": "byol",
        "mask_token": False,
        "predictor": "queries",
        "symmetric": False,
        **HEADS,
    },
    "cmae, no masking, mixed": {
        "name": "cmae",
        "mask_ratio": 0.0,
        "cutmix": 1.0,
        "color": None,
        "symmetric": False,
        **HEADS,
    },
    "mocov3": {"name": "mocov3", **HEADS},
    "dino": {
        "name": "dino",
        "num_prototypes": 12,
        "head_hidden": 24,
        "bottleneck": 8,
        "local_crops": 1,
        "local_size": 8,
    },
    "ibot": {
        "name": "ibot",
        "num_prototypes": 12,
        "head_hidden": 24,
        "bottleneck": 8,
        "local_crops": 0,
        "local_size": 8,
        "min_rectangle": 2,
    },
    "msn": {
        "name": "msn",
        "num_prototypes": 12,
        "head_hidden": 24,
        "head_out": 8,
        "focal_crops": 1,
        "focal_size": 8,
    },
    "beit": {"name": "beit", "tokenizer": KMEANS, "min_rectangle": 2, "color": None},
    "cae": {
        "name": "cae",
        "tokenizer": KMEANS,
        "min_rectangle": 2,
        "regressor_depth": 1,
        "decoder_depth": 1,
    },
    "simmim": {"name": "simmim"},
    "maskfeat": {"name": "maskfeat", "min_rectangle": 2},
    "data2vec": {"name": "data2vec", "min_rectangle": 2, "average_top_k": 1, "color": None},
    "ijepa": {
        "name": "ijepa",
        "num_targets": 2,
        "predictor_width": 16,
        "predictor_depth": 1,
        "predictor_heads": 2,
    },
    "grid, color against dropped patches": {
        "name": "grid",
        "t1": "jitter",
        "t2": "masking",
        "targets": "encoder",
        "similarity": "infonce",
        **HEADS,
    },
    "grid, Eq. 8 with an EMA": {
        "name": "grid",
        "t2": "rectangles",
        "similarity": "decoder_distance",
        "min_rectangle": 2,
        **DECODER,
    },
    "grid, prototypes of crops": {
        "name": "grid",
        "t1": "rectangles",
        "t2": "crop",
        "similarity": "cross_entropy",
        "min_rectangle": 2,
        "num_prototypes": 12,
        **HEADS,
    },
    "vq": {"name": "vq", "num_ids": 6, "code_width": 4, **DECODER},
    "classification": {"name": "classification"},
    "classification, mixed": {"name": "classification", "mixup": 0.8, "cutmix": 1.0, "erase": 0.25},
    "linear_probe": {"name": "linear_probe", "lr_factors": (1.0, 3.0)},
}
COUPLED = {
    "mae, no masking, augmented",
    "cmae",
    "cmae batch, batch norm",
    "cmae, dropped patches",
    "cmae, no masking, mixed",
    "mocov3",
    "msn",
    "grid, color against dropped patches",
    "classification, mixed",
    "linear_probe",
}
# Statistics of the batch leave out images of weight 0, so that the others' loss depends on weights.
WEIGHTED = {"msn"}
# What they compute over devices other cases show, of the same class or of the same parts.
ON_ONE_DEVICE = {
    "rmae",
    "cmae BYOL, queries",
    "ibot",
    "cae",
    "simmim",
    "maskfeat",
    "data2vec",
    "ijepa",
    "grid, color against dropped patches",
    "grid, Eq. 8 with an EMA",
    "classification",
}
SEED = 5


def make(case: str, dtype: Any = jnp.float32) -> Objective:
    encoder = schema.Encoder(name="micro", patch_size=4, width=16, depth=1, heads=2)
    setting = Setting(vit.make_vit(encoder, SIZE, dtype), 3, total_steps=100, dtype=dtype)
    return make_objective(CASES[case], setting)


def make_batch(objective: Objective) -> Batch:
    rng = np.random.default_rng(0)
    smooth = rng.random((BATCH, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    image = (200 * smooth + 55 * rng.random((BATCH, SIZE, SIZE, 3))).astype(np.uint8)
    return Batch(
        image=image,
        label=np.arange(BATCH, dtype=np.int32) % 3,
        index=np.arange(BATCH, dtype=np.int32),
        weight=np.ones(BATCH, np.float32),
        crops=tuple(image[:, : crop.size, : crop.size] for crop in objective.crops),
    )


def started() -> Callable[[Any, jax.ShapeDtypeStruct], np.ndarray]:
    """A function of (path, shape) that starts parameters as `init` does, without compiling it."""
    rng = np.random.default_rng(1)

    def start(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = getattr(path[-1], "key", "")
        if name == "scale":
            return np.ones(leaf.shape, leaf.dtype)
        if name in (
            "kernel",
            "position",
            "class_token",
            "mask_token",
            "means",
            "codes",
            "prototypes",
        ):
            deviation = {"kernel": leaf.shape[-2:][0] ** -0.5, "position": 0.7}.get(name, 0.02)
            return (deviation * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        return np.zeros(leaf.shape, leaf.dtype)

    return start


class Run:
    """One objective with its compiled steps, which the tests of a case share."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.objective = make(case)
        # The first link keeps the gradient where a test can read it.
        self.optimizer = optax.chain(optax.trace(0.0), optax.scale_by_sign(), optax.scale(-3e-3))
        shapes = jax.eval_shape(lambda: init_state(self.objective, self.optimizer, SEED))
        start = jax.tree_util.tree_map_with_path(started(), shapes)
        self.start: TrainState = start.replace(seed=np.uint32(SEED))
        self.batch = make_batch(self.objective)

    @functools.cache  # noqa: B019 (a Run lives as long as its tests)
    def compiled(self, devices: int, accumulate: int) -> Any:
        mesh = parallel.make_mesh(jax.devices()[:devices])
        whole, parted = parallel.replicated(mesh), parallel.by_image(mesh)
        step = jax.jit(
            make_step(self.objective, self.optimizer, accumulate),
            in_shardings=(whole, parted),
            out_shardings=whole,
        )
        return lambda state, batch: step(
            jax.device_put(state, whole), parallel.put_batch(mesh, batch)
        )

    def step(
        self,
        state: TrainState | None = None,
        batch: Batch | None = None,
        devices: int = 1,
        accumulate: int = 1,
    ) -> tuple[TrainState, dict[str, Any]]:
        step = self.compiled(devices, accumulate)
        return jax.device_get(step(state or self.start, batch or self.batch))


def gradients(state: TrainState) -> Any:
    return state.opt_state[0].trace


def assert_close(first: Any, second: Any, rtol: float, atol: float = 0.0) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), first, second)


def assert_equal(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


@functools.cache
def shared(case: str) -> Run:
    return Run(case)


@pytest.fixture(params=CASES)
def run(request: pytest.FixtureRequest) -> Run:
    return shared(request.param)


@pytest.fixture(autouse=True)
def optax_promotes() -> Any:
    """Only our own code keeps to strict promotion; `test_types_never_promote` asks it to."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_loss_gradients_and_state_are_finite(run: Run) -> None:
    after, metrics = run.step()
    for leaf in jax.tree.leaves((after.params, after.objective_state, gradients(after), metrics)):
        assert np.isfinite(leaf).all()
    assert after.step == 1 and after.nonfinite == 0
    assert jax.tree.structure(after) == jax.tree.structure(run.start)


def test_everything_learns_but_the_position_embeddings(run: Run) -> None:
    after, _ = run.step()

    def check(path: Any, gradient: np.ndarray) -> None:
        names = tuple(key.key for key in path)
        groups = run.objective.param_groups
        frozen = [below for below, group in groups.items() if group.start is None]
        frozen.append((names[0], "position"))
        if run.case in ("mae, no masking, augmented", "vq"):
            frozen.append(("decoder", "mask_token"))  # stands for removed patches, and none is
        learns = not any(names[: len(below)] == below for below in frozen)
        assert gradient.any() == learns, names

    jax.tree_util.tree_map_with_path(check, gradients(after))


def test_the_same_key_gives_the_same_step_and_another_key_another(run: Run) -> None:
    first, again = run.step(), run.step()
    assert_equal(first, again)
    _, elsewhen = run.step(run.start.replace(step=np.int32(1)))
    is_random = run.case not in ("classification", "linear_probe", "vq")
    assert (elsewhen["loss"] != first[1]["loss"]) == is_random


# Without jit every operation compiles by itself, which takes long: one objective of each kind.
@pytest.mark.parametrize("case", ["mae", "cmae", "classification"])
def test_jit_changes_nothing(case: str) -> None:
    run = shared(case)
    _, compiled = run.step()
    rng = image_rngs(jax.random.fold_in(jax.random.key(SEED), 1), jnp.int32(0), BATCH)
    state = run.start
    plain, (_, metrics) = forward.mean_loss(
        run.objective, state.params, state.objective_state, run.batch, rng, jnp.int32(0)
    )
    for name, value in {"loss": plain, **metrics}.items():
        assert compiled[name] == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


# Every count compiles anew, the most expensive thing here: one objective for each of 2 and 4.
@pytest.mark.parametrize(
    ("case", "devices"),
    [("cmae", 2), ("mae", 4), *((case, 8) for case in CASES if case not in ON_ONE_DEVICE)],
)
def test_the_number_of_devices_changes_nothing(case: str, devices: int) -> None:
    run = shared(case)
    one, metrics = run.step()
    many, their_metrics = run.step(devices=devices)
    assert_close(their_metrics, metrics, rtol=1e-5, atol=1e-6)
    assert_close(gradients(many), gradients(one), rtol=1e-3, atol=1e-5)
    assert_close(many.objective_state, one.objective_state, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", ["mae", "rmae independent", "cmae"])
def test_the_number_of_devices_does_not_change_what_is_drawn(case: str) -> None:
    objective = make(case)

    def draw(pixels: jax.Array) -> Any:
        rng = image_rngs(jax.random.key(3), jnp.int32(0), BATCH)
        return [view.visible for view in objective.views(pixels, rng)]

    def draw_on(devices: int) -> Any:
        rows = parallel.by_image(parallel.make_mesh(jax.devices()[:devices]))
        compiled = jax.jit(draw, in_shardings=rows, out_shardings=rows)
        return jax.device_get(compiled(np.zeros((BATCH, SIZE, SIZE, 3), np.float32)))

    expected = draw_on(1)
    for devices in (2, 4, 8):
        assert_equal(draw_on(devices), expected)


def test_types_never_promote(run: Run) -> None:
    state = run.start
    rng = image_rngs(jax.random.key(3), jnp.int32(0), BATCH)
    arguments = (state.params, state.objective_state, run.batch, rng, jnp.int32(0))
    with jax.numpy_dtype_promotion("strict"):
        strict = jax.eval_shape(functools.partial(forward.mean_loss, run.objective), *arguments)
    # Flax's layer norm promotes when it computes in bfloat16; what we keep and report is float32.
    in_bfloat16 = make(run.case, jnp.bfloat16)
    mixed = jax.eval_shape(functools.partial(forward.mean_loss, in_bfloat16), *arguments)
    for outcome in (strict, mixed):
        assert {leaf.dtype for leaf in jax.tree.leaves(outcome)} == {np.dtype(np.float32)}


# Which losses can be parted at all is what the test of padding below shows, for every objective.
@pytest.mark.parametrize("case", ["mae", "dino", "classification"])
def test_parts_give_the_same_gradient(case: str) -> None:
    run = shared(case)
    one, metrics = run.step()
    parts, their_metrics = run.step(accumulate=2)
    assert_close(their_metrics, metrics, rtol=1e-5)
    assert_close(gradients(parts), gradients(one), rtol=1e-3, atol=1e-6)
    assert_close(parts.objective_state, one.objective_state, rtol=1e-4, atol=1e-7)


def test_padding_counts_for_nothing_unless_the_batch_is_coupled(run: Run) -> None:
    couples = run.objective.couples != "nothing"
    assert couples == (run.case in COUPLED)
    batch, real = run.batch, 5

    def loss(image: np.ndarray, weight: np.ndarray) -> float:
        padded = batch.replace(image=image, weight=weight.astype(np.float32))
        return float(run.step(batch=padded)[1]["loss"])

    is_real = np.arange(BATCH) < real
    padded = np.where(is_real[:, None, None, None], batch.image, np.uint8(0))
    if run.case in WEIGHTED:
        found = loss(padded, is_real)
        assert found == pytest.approx(loss(batch.image, is_real), rel=1e-5)
        assert found != pytest.approx(loss(batch.image, is_real | ~is_real), rel=1e-3)
        return
    alone = [loss(batch.image, np.arange(BATCH) == i) for i in range(real)]
    assert len(set(alone)) == real
    matches = [
        loss(image, is_real) == pytest.approx(np.mean(alone), rel=1e-5)
        for image in (batch.image, padded)
    ]
    # Coupled images are told apart from the padding, too: such an objective needs full batches.
    assert matches == [True, not couples]


def test_twenty_steps_on_one_batch_bring_the_loss_down(run: Run) -> None:
    state, losses = run.start, []
    for _ in range(24):
        state, metrics = run.step(state)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.02, losses
    if run.case != "mae":
        return
    reconstruct = jax.jit(run.objective.reconstruct)
    pixels = np.asarray(run.batch.image, np.float32) / 255
    visible = random_visible(image_rngs(jax.random.key(9), jnp.int32(0), BATCH), 16, 4)
    errors = []
    for params in (run.start.params, state.params):
        found = reconstruct(params, pixels, visible)
        errors.append(float(np.square(found.reconstructed - found.original).mean()))
    assert errors[1] < 0.9 * errors[0]
