"""What every table is going to run, at every scale. test_work.py and test_chain.py run some."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from occinv import schema
from occinv.arguments import make_parser
from occinv.config import CONFIGS, load_config
from occinv.models import vit
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.objectives.grid_axes import valid_combinations
from occinv.reproduce.definition import COLUMNS, SCALES, Row, Table
from occinv.reproduce.methods import BEIT, CAE, CMAE, MAE, RANDOM, RMAE, Method
from occinv.reproduce.tables import TABLES, choose, make_table
from occinv.reproduce.trial import Plan, Stage, Trial, parse_overrides, stretched
from occinv.schema import UserError

EVERY = [(key, scale) for key in TABLES for scale in SCALES]
QUICKSTART = ["random", "mae", "rmae", "rmae_independent", "rmae_identity", "cmae"]


def plan(key: str, scale: str = "smoke", **fields: object) -> Plan:
    return Plan(make_table(key, scale), Path("w"), scale, **fields)  # type: ignore[arg-type]


def trials(given: Plan, seed: int = 0) -> list[Trial]:
    return [Trial(row.method, seed, given) for row in given.table.rows if row.method is not None]


def objective_of(stage: Stage) -> Objective:
    experiment = stage.experiment
    encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
    return make_objective(experiment.objective, Setting(encoder, num_classes=3, total_steps=1))


@pytest.mark.parametrize(("key", "scale"), EVERY)
def test_every_run_of_every_table_can_be(key: str, scale: str) -> None:
    given = plan(key, scale)
    for trial in trials(given):
        for run, stage in trial.stages.items():
            assert objective_of(stage) is not None
            assert stage.workdir == trial.folder / run
            if trial.encoder is not None and run != "pretrain":
                assert stage.experiment.init_from == str(trial.encoder)


@pytest.mark.parametrize(("key", "scale"), EVERY)
def test_the_commands_in_the_report_are_what_is_run(key: str, scale: str) -> None:
    """Typed as they stand, they resolve to the very experiments of the stages."""
    for trial in trials(plan(key, scale), seed=3):
        for stage in trial.stages.values():
            options, rest = make_parser().parse_known_args(shlex.split(stage.command)[1:])
            assert options.workdir == stage.workdir
            path, _, variant = options.config.partition(":")
            found = CONFIGS.parent / path
            experiment = schema.resolve(load_config(f"{found}:{variant}", rest))
            assert experiment == stage.experiment
            assert experiment.seed == 3


@pytest.mark.parametrize("scale", SCALES)
def test_tables_that_share_a_folder_share_what_is_in_it(scale: str) -> None:
    """Else one table would refuse the runs of another."""
    found: dict[Path, Stage] = {}
    for key in TABLES:
        for trial in trials(plan(key, scale)):
            for stage in trial.stages.values():
                assert found.setdefault(stage.workdir, stage) == stage, (key, stage.workdir)
    assert len({repr(stage.experiment) for stage in found.values()}) == len(found)


@pytest.mark.parametrize(("key", "scale"), EVERY)
def test_a_table_speaks_of_what_it_has(key: str, scale: str) -> None:
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


def figures(table: Table, column: str) -> dict[str, float]:
    return {row.key: row.paper[column] for row in table.rows if column in row.paper}


def test_figures_of_the_paper() -> None:
    """Those that were typed once more, from the page beside the paper."""
    assert figures(make_table("table1", "paper"), "psnr") == {
        "mae_published": 19.3,
        "mae": 22.2,
        "rmae": 23.7,
        "rmae_independent": 23.0,
        "rmae_identity": 22.9,
    }
    assert list(figures(make_table("table1", "paper"), "finetune").values()) == [
        *(80.9, 82.1, 83.2, 82.8, 82.9, 83.6, 83.3, 83.1, 82.7, 82.8, 82.7)
    ]
    assert list(figures(make_table("table2", "paper"), "finetune").values()) == [
        *(80.9, 83.2, 82.8, 83.6, 83.1, 82.9, 83.2, 83.1)
    ]
    assert list(figures(make_table("table3", "paper"), "finetune").values()) == [
        *(82.5, 82.6, 82.9, 82.9)
    ]
    four = make_table("table4", "paper")
    assert list(figures(four, "linear").values()) == [54.5, 53.4, 54.0, 41.1, 56.2, 26.9, 55.2]
    assert list(figures(four, "finetune").values()) == [83.1, 83.1, 83.0, 82.9, 82.6, 82.8, 82.5]
    assert list(figures(four, "tenth").values()) == [67.5, 67.3, 67.3, 66.4, 67.5, 65.2, 66.1]
    eight = make_table("table8", "paper")
    assert list(figures(eight, "linear").values()) == [6.1, 33.1, 37.3, 13.8, 25.9, 20.1]
    assert list(figures(eight, "finetune").values()) == [80.9, 81.0, 79.2, 82.2, 82.1, 82.1]
    assert list(figures(eight, "tenth").values()) == [34.9, 52.6, 45.8, 57.6, 58.8, 61.9]


def test_table_5_has_every_combination_of_its_axes() -> None:
    for name in ("mae", "cmae"):
        found = {}
        for trial in trials(plan("table5")):
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
        for trial in [Trial(row.method, 0, plan("table6", "paper"))]  # type: ignore[arg-type]
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
    """But for where it starts, and that a random start has no layer-wise decay."""
    stages = [trial.stage("finetune").experiment for trial in trials(plan("quickstart"))]
    for experiment in stages[1:]:
        for section in ("objective", "data", "encoder", "train"):
            assert getattr(experiment, section) == getattr(stages[0], section)
        assert experiment.optimizer == stages[1].optimizer
    assert stages[0].optimizer.layer_decay == 1 > stages[1].optimizer.layer_decay


def test_what_an_encoder_has_besides_is_fine_tuned_with_it() -> None:
    for method, position in ((BEIT, "block"), (CAE, None)):
        trial = Trial(method, 0, plan("table1", "paper"))
        before, after = (trial.stage(run).experiment.encoder for run in ("pretrain", "finetune"))
        assert before.layer_scale == after.layer_scale == 0.1
        assert after.relative_position == position
        assert before.relative_position == (position and "shared")
    for trial in (Trial(MAE, 0, plan("table1", "paper")), Trial(BEIT, 0, plan("table1"))):
        assert trial.additions == ()
        assert trial.stage("finetune").experiment.encoder.layer_scale is None


def test_ten_percent_and_probes() -> None:
    trial = Trial(MAE, 0, plan("table4"))
    assert list(trial.stages) == ["pretrain", "linear", "finetune", "tenth"]
    assert trial.stage("tenth").experiment.data.fraction == 0.1
    assert trial.stage("finetune").experiment.data.fraction is None
    assert trial.stage("linear").experiment.objective["name"] == "linear_probe"
    assert trial.stage("linear").experiment.objective["pooling"] == "class"
    pooling = Trial(CMAE, 0, plan("table4")).stage("linear").experiment.objective["pooling"]
    assert pooling == "mean"


def test_a_random_start_has_no_encoder_to_start_from() -> None:
    trial = Trial(RANDOM, 0, plan("table8"))
    assert list(trial.stages) == ["linear", "finetune", "tenth"]
    assert all(stage.experiment.init_from is None for stage in trial.stages.values())
    assert trial.stage("finetune").config == "configs/supervised.py:smoke"


def test_workdirs_are_apart() -> None:
    found = [
        stage.workdir
        for seed in (0, 1)
        for trial in trials(plan("table4"), seed)
        for stage in trial.stages.values()
    ]
    assert len(set(found)) == len(found) == 2 * 7 * 4


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
    rows = choose(grid, "jitter-blocks-ema-byol,random")
    assert [row.name for row in rows] == ["Random init", "jitter → blocks, ema, byol"]
    trial = Trial(rows[1].method, 0, plan("grid"))  # type: ignore[arg-type]
    objective = objective_of(trial.stage("pretrain"))
    assert objective.combination.name == rows[1].key  # type: ignore[attr-defined]
    assert list(trial.measured) == ["cka_pretrained", "cka_finetuned"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("identity-identity-ema-byol", "there is nothing to be invariant to; use objective.t1="),
        ("masking-masking-emma-byol", r"did you mean 'masking-masking-ema-byol'\?"),
        ("mae", "--rows has 'mae', expected T1-T2-target-M such as masking-identity-ema-byol"),
    ],
)
def test_what_is_no_row_of_the_grid(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(make_table("grid", "smoke"), f"random,{name}")


def test_names_that_are_not() -> None:
    with pytest.raises(UserError, match=r"no table 'tabel3' \(did you mean 'table3'\?\)"):
        make_table("tabel3", "smoke")
    with pytest.raises(UserError, match=r"--scale 'smal' \(did you mean 'small'\?\)"):
        make_table("table3", "smal")


def test_few_images_are_as_many_as_asked() -> None:
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


def test_a_length_is_a_factor_of_every_duration() -> None:
    spec = "configs/mae.py:quickstart"
    assert stretched(spec, 1) == ()
    assert stretched(spec, 0.5) == ("train.duration.epochs=8", "optimizer.warmup.epochs=1.5")
    steps = stretched("configs/mae.py:smoke", 0.01)
    assert steps == ("train.duration.steps=1", "optimizer.warmup.steps=0")
    longer = Method("longer", "mae", length=4.0)
    for length, epochs in ((1.0, 64), (0.25, 16)):
        trial = Trial(longer, 0, plan("quickstart", "quickstart", length=length))
        assert trial.stage("pretrain").experiment.train.duration.epochs == epochs
        assert trial.stage("finetune").experiment.train.duration.epochs == 8 * length
    with pytest.raises(UserError, match="--length 0, expected a factor above 0"):
        plan("quickstart", length=0)
    random = Trial(Method("random_3", None, length=3.0), 0, plan("quickstart", "quickstart"))
    assert random.stage("finetune").experiment.train.duration.epochs == 24


def test_overrides_are_for_every_run_or_for_one_kind() -> None:
    given = parse_overrides(
        ["--config.data.num_threads=3", "--pretrain.objective.mask_ratio=0.5", "--linear.seed=9"]
    )
    trial = Trial(RMAE, 4, plan("table8", overrides=given))
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
def test_overrides_that_are_not(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_overrides([argument])


def test_a_published_figure_runs_nothing() -> None:
    rows = {row.key: row for row in make_table("table1", "smoke").rows}
    assert rows["mae_published"].method is None
    assert isinstance(rows["mae"], Row) and rows["mae"].method is MAE
