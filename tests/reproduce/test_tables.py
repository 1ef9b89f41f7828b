"""The runs of every table at every scale. test_run_table.py and test_chain.py run some."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from occinv import schema
from occinv.cli import make_parser
from occinv.config import load_config
from occinv.objectives.base import objective_of
from occinv.objectives.grid_axes import valid_combinations
from occinv.reproduce.collect import read_values
from occinv.reproduce.methods import BEIT, CAE, CMAE, MAE, RANDOM, RMAE, Method
from occinv.reproduce.options import parse_overrides
from occinv.reproduce.run import Stage, TableRun, Trial, scale_durations
from occinv.reproduce.specs import COLUMNS, LINEAR, SCALES, RowSpec, TableSpec
from occinv.reproduce.tables import TABLES, choose, make_table
from occinv.schema import UserError
from occinv.train.disk import write_json
from occinv.train.workdir import CONFIG, RESULT, as_json

EVERY = [(key, scale) for key in TABLES for scale in SCALES]
QUICKSTART = ["random", "mae", "rmae", "cmae"]


def table_run(key: str, scale: str = "smoke", **fields: object) -> TableRun:
    table = make_table(key, scale)
    return TableRun(table, table.rows, Path("w"), scale, **fields)  # type: ignore[arg-type]


def trials(given: TableRun, seed: int = 0) -> list[Trial]:
    return [Trial(row.method, seed, given) for row in given.rows if row.method is not None]


@pytest.mark.parametrize(("key", "scale"), EVERY)
def test_every_run_of_every_table_resolves(key: str, scale: str) -> None:
    given = table_run(key, scale)
    for trial in trials(given):
        for run, stage in trial.stages.items():
            assert objective_of(stage.experiment) is not None
            assert stage.workdir == trial.folder / run
            if trial.encoder is not None and run != "pretrain":
                assert stage.experiment.init_from == str(trial.encoder)


@pytest.mark.parametrize("key", [key for key in TABLES if key != "grid"])
def test_a_row_masks_patches_if_its_objective_says_so(key: str) -> None:
    """A page of runs judges rows by T1 of the objective, a table by what its method says."""
    for trial in trials(table_run(key)):
        if (stage := trial.stages.get("pretrain")) is not None:
            removes = "removed" in objective_of(stage.experiment).axes.t1
            assert ("masking" in trial.method.transformation) == removes, trial.method.key


@pytest.mark.parametrize(("key", "scale"), EVERY)
def test_the_reported_commands_resolve_to_the_same_experiments(key: str, scale: str) -> None:
    """The report prints these commands for every stage."""
    parser = make_parser(("train",))
    for trial in trials(table_run(key, scale), seed=3):
        for stage in trial.stages.values():
            options, rest = parser.parse_known_args(shlex.split(stage.command)[1:])
            assert options.workdir == stage.workdir
            experiment = schema.resolve(load_config(options.config, rest))
            assert experiment == stage.experiment
            assert experiment.seed == 3


@pytest.mark.parametrize("scale", SCALES)
def test_tables_in_one_workdir_agree_on_its_runs(scale: str) -> None:
    """Otherwise one table would refuse the runs of another."""
    found: dict[Path, Stage] = {}
    for key in TABLES:
        for trial in trials(table_run(key, scale)):
            for stage in trial.stages.values():
                assert found.setdefault(stage.workdir, stage) == stage, (key, stage.workdir)
    assert len({repr(stage.experiment) for stage in found.values()}) == len(found)


def test_noise_stays_noise() -> None:
    """The control of the study is of no use on the images of the other rows."""
    given = table_run("study", "small", overrides={"config": ("data.source=folder:mine",)})
    sources = {
        trial.method.key: trial.stages["pretrain"].experiment.data.source
        for trial in trials(given)
        if trial.encoder is not None
    }
    assert sources.pop("mae_noise") == "occinv.data.noise:Noise:8000x64"
    assert set(sources.values()) == {"folder:mine"}


@pytest.mark.parametrize(("key", "scale"), EVERY)
def test_columns_and_claims_of_a_table_exist(key: str, scale: str) -> None:
    table = make_table(key, scale)
    keys = [row.key for row in table.rows]
    assert len(set(keys)) == len(keys)
    assert set(table.columns) <= set(COLUMNS)
    for row in table.rows:
        assert set(row.paper) <= {*table.columns}
    texts = [claim.text for claim in table.claims]
    assert len(set(texts)) == len(texts)
    for claim in table.claims:
        assert {claim.row, claim.than} <= set(keys), claim
        assert claim.column in table.columns


def numbers(table: TableSpec, column: str) -> dict[str, float]:
    return {row.key: row.paper[column] for row in table.rows if column in row.paper}


def test_the_papers_numbers() -> None:
    """The numbers were typed a second time, from another source."""
    assert numbers(make_table("table1", "paper"), "psnr") == {
        "mae_published": 19.3,
        "mae": 22.2,
        "rmae": 23.7,
        "rmae_independent": 23.0,
        "rmae_identity": 22.9,
    }
    assert list(numbers(make_table("table1", "paper"), "finetune").values()) == [
        *(80.9, 82.1, 83.2, 82.8, 82.9, 83.6, 83.3, 83.1, 82.7, 82.8, 82.7)
    ]
    assert list(numbers(make_table("table2", "paper"), "finetune").values()) == [
        *(80.9, 83.2, 82.8, 83.6, 83.1, 82.9, 83.2, 83.1)
    ]
    assert list(numbers(make_table("table3", "paper"), "finetune").values()) == [
        *(82.5, 82.6, 82.9, 82.9)
    ]
    four = make_table("table4", "paper")
    assert list(numbers(four, "linear").values()) == [54.5, 53.4, 54.0, 41.1, 56.2, 26.9, 55.2]
    assert list(numbers(four, "finetune").values()) == [83.1, 83.1, 83.0, 82.9, 82.6, 82.8, 82.5]
    assert list(numbers(four, "tenth").values()) == [67.5, 67.3, 67.3, 66.4, 67.5, 65.2, 66.1]
    eight = make_table("table8", "paper")
    assert list(numbers(eight, "linear").values()) == [6.1, 33.1, 37.3, 13.8, 25.9, 20.1]
    assert list(numbers(eight, "finetune").values()) == [80.9, 81.0, 79.2, 82.2, 82.1, 82.1]
    assert list(numbers(eight, "tenth").values()) == [34.9, 52.6, 45.8, 57.6, 58.8, 61.9]


def test_table_5_has_every_combination_of_its_axes() -> None:
    for name in ("mae", "cmae"):
        found = {}
        for trial in trials(table_run("table5")):
            if trial.method.config != name:
                continue
            fields = trial.stage("pretrain").experiment.objective
            axes = fields["mask_ratio"] > 0, fields["cutmix"] > 0, fields["color"] is not None
            found[axes] = trial.method.key.split("_")[1:]
        assert set(found) == set(itertools.product((False, True), repeat=3))
        for axes, words in found.items():
            names = zip(("patch", "cutmix", "color"), axes, strict=True)
            assert words == ([word for word, is_on in names if is_on] or ["none"])


def test_few_images_are_trained_on_for_as_long_as_the_paper_says() -> None:
    data = {
        row.name: (trial.stage("pretrain").experiment, trial)
        for row in make_table("table6", "paper").rows
        for trial in [Trial(row.method, 0, table_run("table6", "paper"))]  # type: ignore[arg-type]
        if row.method is not None and row.method.config is not None
    }
    lengths = {name: experiment.train.duration.epochs for name, (experiment, _) in data.items()}
    assert lengths == {
        "1 image, stronger": 5,
        "10 images": 2,
        "10 images, stronger": 5,
        "100 images": 10,
        "100 images, stronger": 10,
        "1000 images": 100,
        "1000 images, stronger": 100,
    }
    for name, (experiment, _) in data.items():
        assert str(experiment.data.num_images) == name.split()[0]
        assert experiment.data.rand_augment == ("stronger" in name)
        assert (experiment.objective.get("color") is not None) == ("stronger" in name)
    sources = {t.stage("finetune").experiment.data.num_images for _, t in data.values()}
    assert sources == {None}


def test_every_row_is_fine_tuned_alike() -> None:
    """Rows differ in their initialization. Random initialization has no layer-wise decay."""
    stages = [trial.stage("finetune").experiment for trial in trials(table_run("quickstart"))]
    for experiment in stages[1:]:
        for section in ("objective", "data", "encoder", "train"):
            assert getattr(experiment, section) == getattr(stages[0], section)
        assert experiment.optimizer == stages[1].optimizer
    assert stages[0].optimizer.layer_decay == 1 > stages[1].optimizer.layer_decay


def test_layer_scale_and_relative_position_are_fine_tuned() -> None:
    for method, position in ((BEIT, "block"), (CAE, None)):
        trial = Trial(method, 0, table_run("table1", "paper"))
        before, after = (trial.stage(run).experiment.encoder for run in ("pretrain", "finetune"))
        assert before.layer_scale == after.layer_scale == 0.1
        assert after.relative_position == position
        assert before.relative_position == (position and "shared")
    for trial in (Trial(MAE, 0, table_run("table1", "paper")), Trial(BEIT, 0, table_run("table1"))):
        assert trial.encoder_overrides == ()
        assert trial.stage("finetune").experiment.encoder.layer_scale is None


def test_ten_percent_and_probes() -> None:
    trial = Trial(MAE, 0, table_run("table4"))
    assert list(trial.stages) == ["pretrain", "linear", "finetune", "tenth"]
    assert trial.stage("tenth").experiment.data.fraction == 0.1
    assert trial.stage("finetune").experiment.data.fraction is None
    assert trial.stage("linear").experiment.objective["name"] == "linear_probe"
    assert trial.stage("linear").experiment.objective["pooling"] == "class"
    pooling = Trial(CMAE, 0, table_run("table4")).stage("linear").experiment.objective["pooling"]
    assert pooling == "mean"


def test_random_initialization_has_no_encoder() -> None:
    trial = Trial(RANDOM, 0, table_run("table8"))
    assert list(trial.stages) == ["linear", "finetune", "tenth"]
    assert all(stage.experiment.init_from is None for stage in trial.stages.values())
    assert trial.stage("finetune").config == "supervised:smoke"


def test_workdirs_are_different() -> None:
    found = [
        stage.workdir
        for seed in (0, 1)
        for trial in trials(table_run("table4"), seed)
        for stage in trial.stages.values()
    ]
    assert len(set(found)) == len(found) == 2 * 11 * 4


def test_rows_are_chosen_in_the_order_of_the_table() -> None:
    quickstart = make_table("quickstart", "quickstart")
    assert [row.key for row in choose(quickstart, None)] == QUICKSTART
    assert choose(quickstart, "all") == quickstart.rows
    assert [row.key for row in choose(quickstart, "cmae,mae")] == ["mae", "cmae"]
    with pytest.raises(UserError, match=r"--rows has 'rmea' \(did you mean 'rmae'\?\)"):
        choose(quickstart, "mae,rmea")


def test_every_combination_of_the_grid_is_a_row_by_its_name() -> None:
    grid = make_table("grid", "smoke")
    assert len(grid.rows) == 25
    for point in valid_combinations():
        (row,) = choose(grid, point.name)
        assert row.method is not None and row.key == point.name
        assert (row in grid.rows) == (row.key in {each.key for each in grid.rows})
    rows = choose(grid, "jitter-rectangles-ema-byol,random")
    assert [row.name for row in rows] == ["Random init", "jitter → rectangles, ema, byol"]
    trial = Trial(rows[1].method, 0, table_run("grid"))  # type: ignore[arg-type]
    objective = objective_of(trial.stage("pretrain").experiment)
    axes = [getattr(objective, axis) for axis in ("t1", "t2", "targets", "similarity")]
    assert "-".join(axes) == rows[1].key
    assert list(trial.evaluations) == [
        *("invariance_pretrained", "invariance_finetuned", "occlusion"),
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("identity-identity-ema-byol", "so no invariance is learned; use objective.t1="),
        ("masking-masking-emma-byol", r"did you mean 'masking-masking-ema-byol'\?"),
        ("mae", "--rows has 'mae', expected T1-T2-target-M such as masking-identity-ema-byol"),
    ],
)
def test_invalid_rows_of_the_grid_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(make_table("grid", "smoke"), f"random,{name}")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"no table 'tabel3' \(did you mean 'table3'\?\)"):
        make_table("tabel3", "smoke")
    with pytest.raises(UserError, match=r"--scale 'smal' \(did you mean 'small'\?\)"):
        make_table("table3", "smal")


def test_images_sets_the_number_of_images() -> None:
    table = make_table("table8", "small", 1000)
    assert "1000 images" in table.subject
    keys = [row.key for row in table.rows]
    assert keys[1:4] == [
        "supervised_1000_one_per_class",
        "mocov3_1000_one_per_class",
        "mae_1000_one_per_class",
    ]
    with pytest.raises(UserError, match="--images 5: only table7 and table8"):
        make_table("table3", "small", 5)


def test_length_multiplies_every_duration() -> None:
    spec = "mae:quickstart"
    assert scale_durations(spec, 1, 1) == ()
    halved = scale_durations(spec, 0.5, 0.5)
    assert halved == ("train.duration.epochs=8",)  # the warm-up is a share of it
    longer = ("train.duration.epochs=64", "optimizer.warmup.share=0.046875")
    assert scale_durations(spec, 4, 1) == longer  # 3 epochs of warm-up, as before
    in_epochs = scale_durations("mae:imagenet", 0.5, 0.5)
    assert in_epochs == ("train.duration.epochs=50", "optimizer.warmup.epochs=10")
    steps = scale_durations("mae:smoke", 0.01, 0.01)
    assert steps == ("train.duration.steps=1",)
    method = Method("longer", "mae", length=4.0)
    for length, epochs in ((1.0, 64), (0.25, 16)):
        trial = Trial(method, 0, table_run("quickstart", "quickstart", length=length))
        assert trial.stage("pretrain").experiment.train.duration.epochs == epochs
        assert trial.stage("finetune").experiment.train.duration.epochs == 8 * length
        warmup = trial.stage("pretrain").experiment.optimizer.warmup.share
        assert warmup * epochs == 3 * length  # 64 epochs have the warm-up of 16
        assert trial.stage("finetune").experiment.optimizer.warmup.share == 1 / 8
    with pytest.raises(UserError, match="--length 0, expected a finite factor above 0"):
        table_run("quickstart", length=0)
    random = Trial(Method("random_3", None, length=3.0), 0, table_run("quickstart", "quickstart"))
    assert random.stage("finetune").experiment.train.duration.epochs == 24


def test_overrides_are_for_every_run_or_for_one_kind() -> None:
    given = parse_overrides(
        ["--config.data.num_threads=3", "--pretrain.objective.mask_ratio=0.5", "--linear.seed=9"]
    )
    trial = Trial(RMAE, 4, table_run("table8", overrides=given))
    for run, stage in trial.stages.items():
        experiment = stage.experiment
        assert experiment.data.num_threads == 3
        assert experiment.seed == 4  # the table's own, whatever is given
        assert (experiment.objective.get("mask_ratio") == 0.5) == (run == "pretrain")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--pretain.seed=1", "did you mean 'pretrain'"),
        ("--config.seed", "expected --config.section.field=value"),
        ("3", "unknown argument '3'"),
        ("--sed=1", "unknown argument '--sed=1'"),
    ],
)
def test_invalid_overrides_are_refused(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_overrides([argument])


def test_a_published_number_runs_nothing() -> None:
    rows = {row.key: row for row in make_table("table1", "smoke").rows}
    assert rows["mae_published"].method is None
    assert isinstance(rows["mae"], RowSpec) and rows["mae"].method is MAE


@pytest.mark.parametrize(("method", "token"), [(MAE, "class"), (CMAE, "mean")])
def test_a_probe_has_a_value_for_each_token_and_for_the_published_rate(
    tmp_path: Path, method: Method, token: str
) -> None:
    table = make_table("table4", "smoke")
    trial = Trial(method, 0, TableRun(table, table.rows, tmp_path, "smoke"))
    metrics = {"top1": 0.5, "top1_class": 0.4, "top1_mean": 0.3}
    metrics |= {f"top1_at_{token}_1": 0.2, f"top1_at_{token}_3": 0.1}
    folder = trial.stages["linear"].workdir
    stored = {"experiment": as_json(trial.stages["linear"].experiment), "classes": []}
    write_json(folder / CONFIG, stored)
    write_json(folder / RESULT, {"step": 8, "metrics": metrics})
    values = read_values([trial])
    found = {key: values[key] for key in LINEAR}
    assert found == {
        "linear": [0.5],
        "linear_published": [0.2],
        "linear_class": [0.4],
        "linear_mean": [0.3],
    }
