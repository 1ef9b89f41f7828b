"""What a config may say: types, ranges, durations, and the errors."""

import dataclasses
import typing

import pytest

from occinv import schema
from occinv.schema import Duration, UserError, from_mapping, nearest, resolve

SMALL = {
    "objective": {"name": "mae"},
    "data": {"source": "digits", "image_size": 32},
    "encoder": {"patch_size": 8},
    "train": {"batch_size": 16, "duration": {"steps": 4}},
}


def changed(path, value):
    """SMALL with one field set."""
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in SMALL.items()}
    section, _, field = path.rpartition(".")
    (config.setdefault(section, {}) if section else config)[field] = value
    return config


def test_fields_not_given_have_their_defaults() -> None:
    experiment = resolve(SMALL)
    assert experiment.train == schema.Train(batch_size=16, duration=Duration(steps=4))
    assert experiment.optimizer == schema.Optimizer()
    assert experiment.data.crop_scale == (0.2, 1.0)
    assert experiment.objective == {"name": "mae"}


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    experiment = resolve(changed("data.crop_scale", [1, 1]))
    assert experiment.data.crop_scale == (1.0, 1.0)
    assert isinstance(experiment.data.crop_scale[0], float)


@dataclasses.dataclass(frozen=True)
class Several:
    """A field of any number of values."""

    values: tuple[float, ...] = ()


def test_a_tuple_may_have_any_length() -> None:
    for given in ((), (1,), [1, 0.5, 2]):
        values = from_mapping(Several, {"values": given}, "").values
        assert values == tuple(given) and all(isinstance(value, float) for value in values)
    with pytest.raises(UserError, match=r"^values\[1\]='b', expected \(float, \.\.\.\)$"):
        from_mapping(Several, {"values": (1.0, "b")}, "")
    with pytest.raises(UserError, match=r"^values=1.0, expected \(float, \.\.\.\)$"):
        from_mapping(Several, {"values": 1.0}, "")


def test_an_experiment_survives_its_own_fields() -> None:
    """config.json is written from `asdict` and read back by `resolve`."""
    experiment = resolve(changed("train.evaluate_every", {"epochs": 2}))
    assert resolve(dataclasses.asdict(experiment)) == experiment


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("sede", 1, "unknown field 'sede' (did you mean 'seed'?)"),
        ("train.steps", 8, "unknown field 'train.steps' (did you mean 'train.duration.steps'?)"),
        ("batch_size", 8, "unknown field 'batch_size' (did you mean 'train.batch_size'?)"),
        ("train.batch_sise", 8, "unknown field 'train.batch_sise' (did you mean 'batch_size'?)"),
        ("train.duration", {"step": 8}, "'train.duration.step' (did you mean 'steps'?)"),
        ("train.batch_size", "eight", "train.batch_size='eight', expected int >= 1, such as 1024"),
        ("train.batch_size", 8.0, "train.batch_size=8.0, expected int >= 1"),
        ("train.batch_size", True, "train.batch_size=True, expected int >= 1"),
        ("train.batch_size", None, "train.batch_size=None, expected int >= 1"),
        ("train.batch_size", 0, "train.batch_size=0, expected a number >= 1"),
        ("train.accumulate", 3, "train.accumulate=3, expected a divisor of train.batch_size=16"),
        ("train.accumulate", 0, "train.accumulate=0"),
        ("train.keep", 0, "train.keep=0, expected a number >= 1"),
        (
            "train.max_nonfinite",
            -1,
            "train.max_nonfinite=-1, expected a number >= 0",
        ),
        (
            "train.precision",
            "float16",
            "expected 'auto', 'float32' or 'bfloat16' (did",
        ),
        (
            "train.duration",
            8,
            "train.duration=8, expected a length; set train.duration.steps, .exam",
        ),
        (
            "train.duration",
            {"steps": 8, "epochs": 2.0},
            "give one, such as train.duration={'epochs': 2.0} in",
        ),
        ("train.duration", {"share": 0.1}, "optimizer.cooldown can be a share of the run; set"),
        ("optimizer.warmup", {"share": 1.1}, "optimizer.warmup.share=1.1, expected a number <= 1"),
        ("train.duration", {}, "train.duration has no length; set one of train.duration.steps"),
        ("train.duration", {"steps": -8}, "train.duration.steps=-8, expected a number >= 0"),
        ("train.evaluate_every", {"steps": 1, "examples": 2}, "train.evaluate_every.examples=2"),
        ("optimizer.warmup", {"steps": 1, "epochs": 1.0}, "optimizer.warmup.epochs=1.0"),
        ("optimizer.betas", (0.9,), "optimizer.betas=(0.9,), expected (float >= 0 and < 1, float"),
        ("optimizer.betas", (0.9, 0.9, 0), "betas=(0.9, 0.9, 0), expected (float"),
        ("optimizer.betas", 0.9, "=0.9, expected (float >= 0 and < 1, float >="),
        ("optimizer.betas", (0.9, 1.0), "optimizer.betas[1]=1.0, expected a number < 1"),
        ("optimizer.betas", (0.9, "b"), "optimizer.betas[1]='b', expected (float"),
        (
            "optimizer.base_lr",
            -1e-3,
            "optimizer.base_lr=-0.001, expected a number >= 0",
        ),
        ("optimizer.base_lr", float("nan"), "optimizer.base_lr=nan, expected a finite number"),
        (
            "optimizer.weight_decay",
            -0.1,
            "optimizer.weight_decay=-0.1, expected a number >= 0",
        ),
        ("optimizer.clip_norm", 0.0, "optimizer.clip_norm=0.0, expected a number > 0"),
        (
            "optimizer.layer_decay",
            1.5,
            "optimizer.layer_decay=1.5, expected a number <= 1",
        ),
        (
            "optimizer",
            {"name": "lamb", "independent_decay": True},
            "optimizer.independent_decay=True with optimizer.name=lamb, whose trust ratio",
        ),
        (
            "optimizer",
            {"base_lr": 1.0, "scale": "sqrt", "min_lr": 0.5},
            "is above the peak of the learning rate, 0.25 (optimizer.base_lr at train.batch_size=",
        ),
        ("data.image_size", 30, "data.image_size=30 is not divisible by encoder.patch_size=8"),
        ("data.image_size", 0, "data.image_size=0, expected a number >= 1"),
        ("data.image_size", (32, 0), "data.image_size[1]=0, expected a number >= 1"),
        ("data.image_size", "8", "data.image_size='8', expected int >= 1 and <= 16384 or (int"),
        (
            "encoder.patch_size",
            (16, 12),
            "data.image_size=32 is not divisible by encoder.patch_size=(16, 12)",
        ),
        ("data.crop_scale", (0.0, 1.0), "data.crop_scale[0]=0.0, expected a number >= 0.0001"),
        ("data.crop_scale", (0.9, 0.5), "data.crop_scale=(0.9, 0.5), expected smallest <= largest"),
        ("data.fraction", 0.0, "data.fraction=0.0, expected a number > 0"),
        ("data.fraction", 1.5, "data.fraction=1.5"),
        (
            "data.num_threads",
            -1,
            "data.num_threads=-1, expected a number >= 0",
        ),
        (
            "data.max_corrupt",
            -1,
            "data.max_corrupt=-1, expected a number >= 0",
        ),
        (
            "encoder.patch_size",
            0,
            "encoder.patch_size=0, expected a number >= 1",
        ),
        ("encoder.depth", 0, "encoder.depth=0, expected a number >= 1"),
        ("encoder.width", -16, "encoder.width=-16, expected a number >= 1"),
        ("encoder.heads", 0, "encoder.heads=0, expected a number >= 1"),
        ("encoder.name", "bas", "(did you mean 'base'?)"),
        ("encoder.drop_path", 1.0, "encoder.drop_path=1.0, expected a number < 1"),
        ("encoder", "base", "encoder='base', expected a section, such as {'name': 'base'}"),
        ("objective", "mae", "objective='mae', expected a section, such as {'name': 'mae'}"),
        ("evals", "knn", "evals='knn', expected a section, such as {'knn': {}}"),
        ("evals", {"knn": 5}, "evals.knn=5, expected a section"),
        ("init_from", 3, "init_from=3, expected str or None"),
        ("data.flip", "yes", "data.flip='yes', expected bool, such as True"),
        ("data.source", None, "data.source=None, expected str, such as 'digits'"),
        ("seed", -1, "seed=-1, expected a number >= 0"),
    ],
)
def test_a_mistake_is_quoted(path: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve(changed(path, value))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_section_that_is_needed_is_missed() -> None:
    with pytest.raises(UserError, match=r"^objective is missing$"):
        resolve({"data": {"source": "digits"}})
    with pytest.raises(UserError, match=r"^data\.source is missing$"):
        resolve({"objective": {}, "data": {}})


def test_both_parts_of_the_data_are_refused() -> None:
    config = changed("data.per_class", 3)
    config["data"]["fraction"] = 0.1
    with pytest.raises(UserError, match=r"data\.per_class=3 and data\.fraction=0\.1 are both"):
        resolve(config)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (Duration(steps=7), 7),
        (Duration(examples=100), 10),
        (Duration(examples=104), 10),
        (Duration(epochs=2.0), 50),
        (Duration(epochs=0.5), 12),  # 12.5: to even, as Python rounds
        (Duration(epochs=0.0), 0),
        (Duration(share=0.3), 24),
        (Duration(share=0.0), 0),
    ],
)
def test_a_duration_in_steps_of_10_over_250_images(duration: Duration, steps: int) -> None:
    assert duration.in_steps(10, 250, total_steps=80) == steps


def test_nearest_names_one_or_lists_all() -> None:
    assert nearest("rmea", ["mae", "rmae", "cmae"]) == " (did you mean 'rmae'?)"
    assert nearest("xyz", ["b", "a"]) == " (expected one of: a, b)"


def test_a_config_cannot_set_what_the_program_sets() -> None:
    @dataclasses.dataclass(frozen=True)
    class Section:
        setting: int
        size: int = 3

    assert from_mapping(Section, {"size": 4}, "section", setting=1) == Section(1, 4)
    with pytest.raises(UserError, match=r"unknown field 'section\.setting'"):
        from_mapping(Section, {"setting": 2}, "section", setting=1)


def test_every_field_has_a_type_that_can_be_checked() -> None:
    """A field whose type cannot be checked would refuse every value."""
    experiment = resolve(SMALL)
    for section in (experiment.data, experiment.encoder, experiment.optimizer, experiment.train):
        name = type(section).__name__.lower()
        assert from_mapping(type(section), dataclasses.asdict(section), name) == section
        assert set(typing.get_type_hints(type(section))) == set(dataclasses.asdict(section))


def test_a_pair_of_equal_sides_is_a_square() -> None:
    assert resolve(changed("data.image_size", [16, 16])) == resolve(changed("data.image_size", 16))
    assert resolve(changed("data.image_size", [16, 24])).data.image_size == (16, 24)


def test_rand_augment_is_for_rgb() -> None:
    data = {**SMALL["data"], "channels": 1, "rand_augment": True}
    with pytest.raises(UserError, match=r"^data.rand_augment with data.channels=1, but"):
        resolve({**SMALL, "data": data})
