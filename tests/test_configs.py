"""Every config file in every variant; the defaults are the paper's settings."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.models import vit
from occinv.models.decoder import Decoder
from occinv.objectives.base import FROZEN, Objective, Setting, make_objective
from occinv.schema import Duration, Experiment
from occinv.train.step import frozen_parts
from occinv.transforms.masking import kept_patches

PRETRAINING = ("mae", "rmae", "cmae")
# With the settings of their own papers.
THEIRS = (
    "mocov3",
    "dino",
    "ibot",
    "msn",
    "beit",
    "cae",
    "simmim",
    "maskfeat",
    "data2vec",
    "ijepa",
    "tokenizer",
)
NAMES = (*PRETRAINING, "grid", "finetune", "supervised", "linear", *THEIRS)
VARIANTS = ("imagenet", "tiny_imagenet", "quickstart", "smoke")


def resolve(name: str, variant: str = "", *overrides: str) -> Experiment:
    """The experiment of `configs/<name>.py:<variant>`."""
    spec = str(CONFIGS / f"{name}.py") + (f":{variant}" if variant else "")
    return schema.resolve(load_config(spec, overrides))


def objective_of(experiment: Experiment) -> Objective:
    """The objective, for ten classes and a hundred steps."""
    encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
    return make_objective(experiment.objective, Setting(encoder, 10, 100))


def test_every_config_file_is_tested_here() -> None:
    shared = {"__init__", "pretraining", "scales"}
    assert {path.stem for path in CONFIGS.glob("*.py")} - shared == set(NAMES)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_variant_resolves_and_builds(name: str, variant: str) -> None:
    experiment = resolve(name, variant)
    objective = objective_of(experiment)
    assert all(objective.axes)
    batch = experiment.train.batch_size
    assert batch % 8 == 0  # a host of 8 devices, as in the tests, can run it
    images = {"imagenet": 1_281_167, "tiny_imagenet": 10_000}.get(variant, 1400)
    steps = experiment.train.duration.in_steps(batch, images)
    assert 0 < experiment.optimizer.warmup.in_steps(batch, images, steps) < steps


@pytest.mark.parametrize("name", NAMES)
def test_imagenet_is_what_a_config_says_without_a_variant(name: str) -> None:
    assert resolve(name) == resolve(name, "imagenet")


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_the_papers_in_every_default(name: str) -> None:
    experiment = resolve(name)
    assert experiment.data.source == "tfds:imagenet2012"
    assert experiment.data.image_size == 224
    encoder = objective_of(experiment).networks.encoder
    assert (encoder.width, encoder.depth, encoder.heads) == (768, 12, 12)
    assert (encoder.patch_size, encoder.num_patches) == (16, 196)
    assert experiment.train.precision == "auto"
    assert experiment.train.accumulate == 1
    if name not in THEIRS:
        assert experiment.optimizer.clip_norm is None
        assert experiment.optimizer.weight_decay == (0.0 if name == "linear" else 0.05)


def test_mocov3_is_the_official_recipe() -> None:
    experiment = resolve("mocov3")
    train, optimizer = experiment.train, experiment.optimizer
    assert (train.batch_size, train.duration) == (4096, Duration(epochs=300))
    assert (optimizer.base_lr, optimizer.warmup) == (1.5e-4, Duration(epochs=40))
    assert (optimizer.weight_decay, optimizer.decay) == (0.1, "all")
    assert optimizer.betas == (0.9, 0.999)
    assert experiment.data.crop_scale == (0.08, 1.0)
    objective = objective_of(experiment)
    assert (objective.temperature, objective.momentum) == (0.2, 0.99)
    assert (objective.head_hidden, objective.head_out) == (4096, 256)
    assert (objective.first.blur, objective.first.solarize) == (1.0, 0.0)
    assert (objective.second.blur, objective.second.solarize) == (0.1, 0.2)
    frozen = {("encoder", "patch_embed"): FROZEN, ("encoder", "position"): FROZEN}
    assert frozen_parts(experiment.encoder, optimizer.decay) == frozen
    assert not objective.setting.encoder.train_patch


def test_dino_is_the_published_recipe() -> None:
    experiment = resolve("dino")
    train, optimizer = experiment.train, experiment.optimizer
    assert (train.batch_size, train.duration) == (1024, Duration(epochs=400))
    assert (optimizer.base_lr, optimizer.min_lr) == (7.5e-4, 2e-6)
    assert (optimizer.weight_decay, optimizer.final_weight_decay) == (0.04, 0.4)
    assert (optimizer.clip_norm, optimizer.clip_by) == (0.3, "parameter")
    objective = objective_of(experiment)
    assert [crop.size for crop in objective.crops] == [224, *[96] * 10]
    assert (objective.first.blur, objective.second.blur, objective.local.blur) == (1.0, 0.1, 0.5)
    assert objective.second.solarize == 0.2
    assert objective.temperature(jnp.int32(0)) == pytest.approx(0.04)


def test_ibot_is_the_published_recipe() -> None:
    experiment = resolve("ibot")
    train, optimizer = experiment.train, experiment.optimizer
    assert (train.batch_size, train.duration) == (1024, Duration(epochs=400))
    assert (optimizer.base_lr, optimizer.min_lr) == (5e-4, 1e-6)
    assert (optimizer.warmup, optimizer.betas) == (Duration(epochs=10), (0.9, 0.999))
    assert (optimizer.weight_decay, optimizer.final_weight_decay) == (0.04, 0.4)
    assert (optimizer.clip_norm, optimizer.clip_by) == (3.0, "parameter")
    assert (experiment.encoder.drop_path, experiment.data.crop_scale) == (0.1, (0.25, 1.0))
    objective: Any = objective_of(experiment)
    assert [crop.size for crop in objective.crops] == [224, *[96] * 10]
    assert objective.local_scale == (0.05, 0.25)
    assert (objective.mask_probability, objective.mask_ratio) == (0.5, (0.1, 0.5))
    head = objective.networks.head
    assert (head.prototypes, head.hidden, head.bottleneck) == (8192, 2048, 256)
    assert (objective.momentum, objective.center_momentum) == (0.996, 0.9)
    assert (objective.student_temperature, objective.teacher_temperature) == (0.1, 0.07)
    assert (objective.first_teacher_temperature, objective.warmup) == (0.04, Duration(epochs=30))
    assert objective.freeze_last_layer == Duration(epochs=1)
    assert objective.min_rectangle == (14 // 3) ** 2


def test_msn_is_the_published_recipe() -> None:
    experiment = resolve("msn")
    train, optimizer = experiment.train, experiment.optimizer
    assert (train.batch_size, train.duration) == (1024, Duration(epochs=600))
    assert optimizer.base_lr * 1024 / 256 == pytest.approx(1e-3)
    assert (optimizer.min_lr, optimizer.betas) == (1e-6, (0.9, 0.999))
    assert (optimizer.warmup, optimizer.decay) == (Duration(epochs=15), "positions")
    assert (optimizer.weight_decay, optimizer.final_weight_decay) == (0.04, 0.4)
    assert (optimizer.clip_norm, optimizer.clip_by) == (3.0, "global")
    assert (experiment.encoder.drop_path, experiment.encoder.train_position) == (0.0, True)
    assert (experiment.data.crop_scale, experiment.data.flip) == ((0.3, 1.0), True)
    objective: Any = objective_of(experiment)
    assert [crop.size for crop in objective.crops] == [*[96] * 10, 224]
    assert (objective.focal_scale, objective.mask_ratio) == ((0.05, 0.3), 0.3)
    networks = objective.networks
    assert (networks.head.hidden, networks.head.out, networks.prototypes.count) == (2048, 256, 1024)
    assert (objective.temperature, objective.sharpening) == (0.1, 0.25)
    assert (objective.sinkhorn, objective.me_max_weight) == (True, 1.0)
    target = objective.state["target"]
    assert (target.networks, target.momentum) == (("encoder", "head"), 0.996)
    assert (target.schedule, target.lag) == ("linear", 1)


@pytest.mark.parametrize("name", ["beit", "cae"])
def test_beit_and_cae_are_the_published_recipes(name: str) -> None:
    experiment = resolve(name)
    train, optimizer = experiment.train, experiment.optimizer
    assert (train.batch_size, train.duration) == (2048, Duration(epochs=300))
    assert optimizer.base_lr * 2048 / 256 == pytest.approx(1.5e-3)
    assert (optimizer.min_lr, optimizer.betas, optimizer.clip_norm) == (1e-5, (0.9, 0.999), 3.0)
    assert optimizer.warmup == Duration(epochs=10)
    assert (optimizer.weight_decay, optimizer.clip_by) == (0.05, "global")
    assert experiment.data.crop_scale == (0.08, 1.0)
    encoder = experiment.encoder
    assert (encoder.layer_scale, encoder.drop_path) == (0.1, 0.1)
    assert encoder.relative_position == {"beit": "shared", "cae": None}[name]
    objective: Any = objective_of(experiment)
    assert 196 - objective.kept == {"beit": 75, "cae": 98}[name]
    assert objective.min_rectangle == 16
    assert (objective.codebook.num_ids, objective.codebook.grid) == (8192, (14, 14))
    if name == "cae":
        assert (objective.regressor_depth, objective.decoder_depth) == (4, 4)
        assert (objective.align_weight, objective.color) == (2.0, None)
    else:
        assert dataclasses.astuple(objective.color) == (0.4, 0.4, 0.4, 0.0, 1.0, 0.0)


def test_simmim_is_the_published_recipe() -> None:
    experiment = resolve("simmim")
    train, optimizer, encoder = experiment.train, experiment.optimizer, experiment.encoder
    assert (train.batch_size, train.duration) == (2048, Duration(epochs=800))
    assert optimizer.base_lr * 512 / 256 == pytest.approx(1e-4)
    assert (optimizer.warmup, optimizer.betas) == (Duration(epochs=10), (0.9, 0.999))
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.05, 5.0)
    assert experiment.data.crop_scale == (0.67, 1.0)
    assert (encoder.layer_scale, encoder.drop_path) == (0.1, 0.1)
    assert encoder.relative_position == "shared"
    objective: Any = objective_of(experiment)
    assert objective.mask_unit * encoder.patch_size == 32
    assert (49 - objective.kept_squares, objective.mask_ratio) == (30, 0.6)
    assert objective.networks.decoder.features == 16 * 16 * 3


def test_maskfeat_is_the_published_recipe() -> None:
    experiment = resolve("maskfeat")
    train, optimizer, encoder = experiment.train, experiment.optimizer, experiment.encoder
    assert (train.batch_size, train.duration) == (2048, Duration(epochs=300))
    assert (optimizer.base_lr, optimizer.min_lr) == (2e-4, 1e-6)
    assert (optimizer.warmup, optimizer.betas) == (Duration(epochs=30), (0.9, 0.999))
    assert (optimizer.weight_decay, optimizer.decay) == (0.05, "positions")
    assert (optimizer.clip_norm, optimizer.clip_by) == (0.02, "global")
    assert (experiment.data.crop_scale, encoder.drop_path) == ((0.5, 1.0), 0.0)
    assert encoder.train_position
    objective: Any = objective_of(experiment)
    assert (196 - objective.kept, objective.min_rectangle) == (78, 15)
    assert (objective.cell, objective.color) == (8, None)
    assert objective.networks.head.features == 108


def test_data2vec_is_the_published_recipe() -> None:
    experiment = resolve("data2vec")
    train, optimizer, encoder = experiment.train, experiment.optimizer, experiment.encoder
    assert (train.batch_size, train.duration) == (2048, Duration(epochs=800))
    assert optimizer.base_lr * 2048 / 256 == pytest.approx(2e-3)
    assert (optimizer.min_lr, optimizer.betas, optimizer.clip_norm) == (1e-5, (0.9, 0.999), 3.0)
    assert (optimizer.warmup, optimizer.weight_decay) == (Duration(epochs=10), 0.05)
    assert experiment.data.crop_scale == (0.08, 1.0)
    assert (encoder.layer_scale, encoder.drop_path) == (1e-4, 0.25)
    assert encoder.relative_position == "shared"
    objective: Any = objective_of(experiment)
    assert 196 - kept_patches(196, objective.mask_ratio) == 120
    assert (objective.min_rectangle, objective.average_top_k) == (16, 6)
    assert (objective.beta, objective.momentum) == (2.0, 0.9998)
    assert dataclasses.astuple(objective.color) == (0.4, 0.4, 0.4, 0.0, 1.0, 0.0)


def test_ijepa_is_the_published_recipe() -> None:
    experiment = resolve("ijepa")
    train, optimizer, data = experiment.train, experiment.optimizer, experiment.data
    assert (train.batch_size, train.duration) == (2048, Duration(epochs=600))
    assert optimizer.base_lr * 2048 / 256 == pytest.approx(1e-3)
    assert (optimizer.min_lr, optimizer.betas) == (1e-6, (0.9, 0.999))
    assert (optimizer.warmup, optimizer.clip_norm) == (Duration(epochs=40), None)
    assert (optimizer.weight_decay, optimizer.final_weight_decay) == (0.04, 0.4)
    assert (data.crop_scale, data.flip) == ((0.3, 1.0), False)
    objective: Any = objective_of(experiment)
    assert (objective.num_targets, objective.target_size) == (4, (6, 5))
    assert (objective.context_size, objective.kept) == ((13, 13), 49)
    predictor = objective.networks.predictor
    assert (predictor.width, predictor.depth, predictor.heads) == (384, 6, 12)
    assert objective.momentum == 0.996


@pytest.mark.parametrize(("name", "base_lr"), [("mae", 1.5e-4), ("rmae", 3e-4), ("cmae", 1.5e-4)])
def test_pretraining_is_the_papers(name: str, base_lr: float) -> None:
    experiment = resolve(name)
    assert experiment.objective["name"] == name
    assert experiment.objective["mask_ratio"] == 0.75
    assert experiment.train.batch_size == 1024
    assert experiment.train.duration == Duration(epochs=100)
    optimizer = experiment.optimizer
    assert optimizer.warmup == Duration(epochs=20)
    assert optimizer.base_lr == base_lr
    assert optimizer.betas == (0.9, 0.95)
    assert optimizer.min_lr == 0
    assert optimizer.layer_decay == 1
    assert optimizer.decay == "tokens"
    assert experiment.data.crop_scale == (0.2, 1.0)
    assert experiment.data.flip
    assert experiment.encoder.drop_path == 0
    assert not experiment.encoder.train_position


def test_the_peak_learning_rate_is_base_lr_by_batch_over_256() -> None:
    from occinv.train.optimizer import learning_rate

    experiment = resolve("mae")
    schedule = learning_rate(experiment.optimizer, 1024, warmup=20, steps=100)
    assert float(schedule(20)) == pytest.approx(1.5e-4 * 4)
    assert float(schedule(10)) == pytest.approx(1.5e-4 * 2)
    assert float(schedule(60)) == pytest.approx(1.5e-4 * 2)
    assert float(schedule(100)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["mae", "rmae"])
def test_the_decoder_is_the_official_one(name: str) -> None:
    objective = objective_of(resolve(name))
    decoder = objective.networks.decoder  # type: ignore[attr-defined]
    assert isinstance(decoder, Decoder)
    assert (decoder.width, decoder.depth, decoder.heads) == (512, 8, 16)
    assert objective.normalize_target  # type: ignore[attr-defined]


def test_rmae_is_the_papers() -> None:
    objective = resolve("rmae").objective
    assert objective["constraint_weight"] == 1.0
    assert objective["t2"] == "complement"
    assert objective["t2_mask_ratio"] == 0.25
    assert objective["constraint_region"] == "all"
    for t2 in ("independent", "identity"):
        changed = resolve("rmae", "", f"--config.objective.t2={t2}")
        assert objective_of(changed).t2 == t2  # type: ignore[attr-defined]


def test_cmae_is_the_papers() -> None:
    expected = {
        "name": "cmae",
        "mask_ratio": 0.75,
        "tokens": "patch",
        "similarity": "infonce",
        "negatives": "position",
        "mask_token": True,
        "symmetric": True,
        "temperature": 0.2,
        "momentum": 0.996,
        "momentum_schedule": "constant",
        "head_norm": "none",
        "head_hidden": 2048,
        "head_out": 768,
    }
    experiment = resolve("cmae")
    assert experiment.objective == expected
    jitter = objective_of(experiment).color  # type: ignore[attr-defined]
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4,) * 3 + (
        0.1,
    )


@pytest.mark.parametrize(("name", "layer_decay"), [("finetune", 0.65), ("supervised", 1.0)])
def test_training_on_labels_is_the_papers(name: str, layer_decay: float) -> None:
    experiment = resolve(name)
    assert experiment.objective == {
        "name": "classification",
        "pooling": "mean",
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "erase": 0.25,
    }
    assert experiment.train.batch_size == 1024
    assert experiment.train.duration == Duration(epochs=100)
    optimizer = experiment.optimizer
    assert optimizer.warmup == Duration(epochs=5)
    assert optimizer.base_lr == 1e-3
    assert optimizer.betas == (0.9, 0.999)
    assert optimizer.min_lr == 1e-6
    assert optimizer.layer_decay == layer_decay
    assert optimizer.decay == "kernels"
    assert experiment.encoder.drop_path == 0.1
    assert experiment.data.crop_scale == (0.08, 1.0)
    assert experiment.data.rand_augment
    assert experiment.init_from is None


def test_linear_probing_is_the_official_one() -> None:
    experiment = resolve("linear")
    train, optimizer = experiment.train, experiment.optimizer
    assert (train.batch_size, train.duration) == (16384, Duration(epochs=90))
    assert (optimizer.name, optimizer.base_lr, optimizer.min_lr) == ("lars", 0.1, 0.0)
    assert (optimizer.warmup, optimizer.momentum) == (Duration(epochs=10), 0.9)
    assert optimizer.trust_coefficient == 1e-3
    assert (experiment.data.crop_scale, experiment.data.flip) == ((0.08, 1.0), True)
    objective = objective_of(experiment)
    assert objective.pooling == "class"  # type: ignore[attr-defined]
    assert 1.0 in objective.lr_factors  # type: ignore[attr-defined]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_only_training_on_labels_of_imagenet_augments_by_rand_augment(
    name: str, variant: str
) -> None:
    expected = name in ("finetune", "supervised") and variant == "imagenet"
    assert resolve(name, variant).data.rand_augment is expected


@pytest.mark.parametrize("after", ["finetune", "linear"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_on_labels_takes_every_pretrained_encoder(variant: str, after: str) -> None:
    """The same images and the same sizes, so that `init_from` fits."""
    labels = resolve(after, variant)
    for name in PRETRAINING:
        before = resolve(name, variant)
        assert before.data.source == labels.data.source
        assert before.data.image_size == labels.data.image_size
        for field in ("name", "patch_size", "width", "depth", "heads"):
            assert getattr(before.encoder, field) == getattr(labels.encoder, field)


@pytest.mark.parametrize("after", ["finetune", "linear", "supervised"])
def test_training_on_labels_from_scratch_has_the_scale_of_pretraining(after: str) -> None:
    for variant in VARIANTS:
        labels, before = load_config(f"{after}:{variant}"), load_config(f"mae:{variant}")
        assert "from_scratch" not in labels
        assert labels["data"]["image_size"] == before["data"]["image_size"]
        assert labels["encoder"] == before["encoder"] | {
            name: labels["encoder"][name]
            for name in ("train_position", "drop_path")
            if name in labels["encoder"]
        }


@pytest.mark.parametrize(("name", "warmup"), [("mae", 131), ("finetune", 22), ("linear", 44)])
def test_warm_up_in_shares_is_that_of_the_published_results(name: str, warmup: int) -> None:
    """3 epochs of pretraining, 1 of fine-tuning and 2 of probing 1400 digits."""
    experiment = resolve(name, "quickstart")
    batch, optimizer = experiment.train.batch_size, experiment.optimizer
    steps = experiment.train.duration.in_steps(batch, 1400)
    assert optimizer.warmup.in_steps(batch, 1400, steps) == warmup
