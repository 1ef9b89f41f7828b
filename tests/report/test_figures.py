"""Figures have the panels, lines, scales and colors that their captions promise."""

from dataclasses import replace

import numpy as np
import pytest
from example_run import curves, large
from PIL import Image

from occinv.data.identity import Images
from occinv.evaluators.base import Record
from occinv.report import figures, read_run
from occinv.report.loss_curve import moving_mean, read_curve
from occinv.report.measured import curves_of, floor_rows
from occinv.report.results import Results, Row, StageRecord


def test_figure_1_has_a_panel_per_model_and_stage_and_a_line_per_ratio(results):
    figure = figures.cka_by_block(results)
    panels, rows = figure.axes[:-1], len(results.rows)
    assert len(panels) == 2 * rows
    assert [axes.get_title(loc="left") for axes in panels[:rows]] == [
        row.name for row in results.rows
    ]
    assert [len(axes.lines) for axes in panels] == [0, 10, 10, 0, 0, 10, 10, 10, 0, 0]
    missing = [text.get_text() for axes in panels for text in axes.texts]
    assert missing == ["no pretraining", "not yet run", "failed", "not yet run", "failed"]
    assert len({axes.get_ylim() for axes in panels}) == 1, "one scale for all"
    line = panels[1].lines[9]
    assert list(line.get_xdata()) == [1, 2, 3, 4]
    assert list(line.get_ydata()) == results.rows[1].cka["pretrained"].values[9]


def test_the_area_below_untrained_encoders_is_filled(results):
    assert not any(axes.collections for axes in figures.cka_by_block(results).axes[:-1])
    floor = [[0.2] * 4] * 7 + [[0.1] * 4] + [[0.2] * 4] * 2
    results.rows[1].cka["pretrained"].floor = floor
    results.rows.append(Row("Untrained encoder", "untrained", is_floor=True))
    results.rows[-1].cka = {"pretrained": curves(0.1)}
    panels = figures.cka_by_block(results).axes[:-1]
    assert [len(axes.collections) for axes in panels] == [0, 1, *[0] * 8], "no panel of its own"
    (area,) = panels[1].collections
    assert area.get_paths()[0].get_extents().y1 == pytest.approx(0.1), "at 75 %"
    by_ratio = figures.cka_by_ratio(results).axes[0]
    (area,) = by_ratio.collections
    assert area.get_paths()[0].get_extents().y1 == pytest.approx(0.2)
    assert "Untrained encoder" not in [line.get_label() for line in by_ratio.lines]


def test_a_published_row_has_no_panel(results):
    results.rows.insert(1, replace(results.rows[1], name="CAE", cka={}))
    figure = figures.cka_by_block(results)
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    assert "CAE" not in titles and {"MAE", "R-MAE‡", "C-MAE"} <= titles


def test_ratios_have_one_color_in_every_panel_and_darken_in_order(results):
    panels = figures.cka_by_block(results).axes
    colors = [tuple(line.get_color()) for line in panels[1].lines]
    assert colors == [tuple(line.get_color()) for line in panels[2].lines]
    brightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in colors]
    assert brightness == sorted(brightness, reverse=True)


def test_all_values_are_inside_the_common_scale(results):
    values = results.rows[2].cka["finetuned"].values
    assert figures.lowest_cka(results) <= min(map(min, values))
    values[0][0] = 0.03
    assert figures.lowest_cka(results) == 0.0
    for row in results.rows:
        for stage in row.cka:
            if row.cka[stage]:
                row.cka[stage].values = [[0.991] * 4] * 9
    assert figures.lowest_cka(results) == pytest.approx(0.98)


def test_overview_has_a_line_per_model_and_the_supervised_one_in_both_panels(results):
    pretrained, finetuned = figures.cka_by_ratio(results).axes
    names = [line.get_label() for line in pretrained.lines]
    assert names == ["Random init, supervised", "MAE", "R-MAE†"]
    assert names == [line.get_label() for line in finetuned.lines]
    reference = [line.lines[0].get_ydata().tolist() for line in (pretrained, finetuned)]
    assert reference[0] == reference[1]
    mae = results.rows[1].cka["pretrained"].values
    assert pretrained.lines[1].get_ydata().tolist() == [values[-1] for values in mae]


def test_an_encoder_without_curves_has_no_panel_by_ratio(results):
    for row in results.rows:
        row.cka["finetuned"] = None
    (axes,) = figures.cka_by_ratio(results).axes
    assert axes.get_title(loc="left") == "pretrained encoders"
    assert axes.lines


def test_a_last_value_of_fewer_steps_is_merged_with_the_one_before():
    curve = read_curve([(10, 1.0), (20, 0.8), (30, 0.6), (31, 5.0)])
    assert curve.steps.tolist() == [10, 20, 31]
    assert curve.values == pytest.approx([1.0, 0.8, (10 * 0.6 + 5.0) / 11])
    assert curve.num_steps.tolist() == [10, 10, 11]
    curve = read_curve([(10, 1.0), (13, 2.0)])
    assert curve.steps.tolist() == [13] and curve.values == pytest.approx([16 / 13])
    whole = [(10, 1.0), (20, 0.8), (30, 5.0)]
    assert read_curve(whole).values.tolist() == [1.0, 0.8, 5.0], "ten steps like the others"
    assert read_curve([(10, 1.0), (20, 0.5), (21, None)]).values[:2].tolist() == [1.0, 0.5]
    assert read_curve([(10, 1.0), (20, None), (21, 5.0)]).steps.tolist() == [10, 20, 21]


def test_a_short_curve_has_no_hook(results):
    results.rows[1].pretrain.loss = [(10 * i, 1.0) for i in range(1, 20)] + [(191, 12.0)]
    (line,) = figures.pretraining_losses(results).axes[0].lines
    assert line.get_xdata()[-1] == 191
    assert line.get_ydata()[-1] == pytest.approx(2.0), "eleven steps, not one"


def test_the_moving_mean_weights_values_by_their_steps(results):
    points = [(50 * i, 2.0) for i in range(1, 1000)] + [(49951, 53.0)]
    results.rows[1].pretrain.loss = points
    pale, mean = figures.pretraining_losses(results).axes[0].lines
    assert pale.get_xdata()[[0, -1]].tolist() == [50, 49951], "both ends of a long curve are drawn"
    width = len(points) // 20
    assert mean.get_ydata().max() == pytest.approx(2 + 51 / (50 * (width // 2)), rel=0.02)
    assert mean.get_ydata()[0] == pytest.approx(2.0)


def test_values_that_are_not_finite_are_gaps_of_the_moving_mean():
    points = [(10 * i, 2.0) for i in range(1, 101)]
    points[40] = (410, None)
    points[70] = (710, float("inf"))
    mean = moving_mean(read_curve(points), 5)
    assert np.flatnonzero(np.isnan(mean)).tolist() == [40, 70]
    assert mean[np.isfinite(mean)] == pytest.approx(2.0)


def test_values_without_neighbors_are_dots(results):
    results.rows[1].pretrain.loss = [(10, 1.0), (20, None), (30, 2.0)]
    results.rows[2].pretrain.loss = [(10, 1.0), (20, 2.0), (30, None)]
    first, second = (axes.lines[0] for axes in figures.pretraining_losses(results).axes[:2])
    assert (first.get_marker(), second.get_marker()) == ("o", "None")


def test_an_empty_panel_is_a_sentence_without_axes(results):
    for row in results.rows:
        if row.finetune:
            row.finetune.accuracy = []
    loss, accuracy = figures.training_curves(results, "finetune").axes
    assert loss.lines and not loss.texts
    assert [text.get_text() for text in accuracy.texts] == [
        "There is no validation accuracy to show."
    ]
    assert not [*accuracy.get_xticks(), *accuracy.get_yticks()]
    assert accuracy.get_xlabel() == accuracy.get_ylabel() == ""
    results.rows[1].pretrain.loss = [(1, None), (2, float("nan"))]
    panel = figures.pretraining_losses(results).axes[0]
    assert [text.get_text() for text in panel.texts] == ["There is no training loss to show."]
    assert not [*panel.get_xticks(), *panel.get_yticks()]


def test_training_and_validation_have_their_names(results):
    panels = figures.training_curves(results, "finetune").axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["training loss", "validation accuracy"]
    assert figures.pretraining_losses(results).axes[0].get_ylabel() == "training loss"


def test_training_curves(results):
    titles = [axes.get_title(loc="left") for axes in figures.pretraining_losses(results).axes]
    assert titles == ["MAE", "R-MAE†", "R-MAE‡"]
    loss, accuracy = figures.training_curves(results, "finetune").axes
    assert len(accuracy.lines) == 3
    assert len({line.get_color() for line in loss.lines}) == 3
    last = results.rows[1].finetune.accuracy[-1]
    assert accuracy.lines[1].get_xydata()[-1].tolist() == [last[0], 100 * last[1]]


def test_moving_mean_keeps_a_constant_curve_constant_up_to_its_ends(results):
    results.rows[1].pretrain.loss = [(i, 2.0) for i in range(1000)]
    pale, mean = figures.pretraining_losses(results).axes[0].lines
    assert len(pale.get_xdata()) <= figures.LONGEST_CURVE
    assert mean.get_ydata() == pytest.approx(2.0)


def test_short_broken_and_missing_curves_do_not_stop_the_report(results):
    results.rows[1].pretrain.loss = [(0, 1.0)]
    results.rows[2].pretrain.loss = [(0, 1.0), (1, None), (2, float("nan"))]
    assert len(figures.pretraining_losses(results).axes) == 3
    for row in results.rows:
        row.cka, row.pretrain, row.finetune = {}, None, None
    for draw in (
        figures.cka_by_block,
        figures.cka_by_ratio,
        figures.pretraining_losses,
        lambda results: figures.training_curves(results, "finetune"),
    ):
        assert draw(results) is None
        assert draw(Results(title="", rows=[], columns=[])) is None


def test_each_stage_on_labels_has_curves_of_its_own(results):
    assert figures.training_curves(results, "linear") is None
    results.rows[1].linear = StageRecord(loss=[(0, 3.0)], accuracy=[(0, 0.25)])
    loss, accuracy = figures.training_curves(results, "linear").axes
    assert [len(loss.lines), len(accuracy.lines)] == [1, 1]
    assert accuracy.lines[0].get_ydata() == pytest.approx(25.0)


def test_many_rows_take_several_lines_of_panels():
    results = large()
    panels = figures.cka_by_block(results).axes[:-1]
    assert len(panels) == 2 * 16
    figure = figures.cka_by_block(results)
    assert figure.get_figwidth() < 12
    assert figure.get_figheight() > 12
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in panels]
    assert [title for title in titles if title] == [row.name for row in results.rows]
    assert titles[:7] == [*(row.name for row in results.rows[:6]), ""], "six in a line"
    assert len(figures.cka_by_block(replace(results, rows=results.rows[:7])).axes) == 2 * 7 + 1


def test_our_dots_have_deviations_and_the_papers_another_scale():
    results = large()
    panels = figures.accuracies(results).axes
    assert [axes.get_title(loc="left") for axes in panels[::2]] == ["FT %", "Linear %", "10 % FT %"]
    ours, paper = panels[2:4]
    marker, _, bars = ours.containers[3]
    values = [100 * value for value in results.rows[3].values["linear"]]
    mean = sum(values) / 3
    assert marker.get_xydata()[0].tolist() == [pytest.approx(mean), 3]
    low, high = bars[0].get_segments()[0][:, 0]
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert (high - low) / 2 == pytest.approx(deviation)
    assert [line.get_xydata()[0].tolist() for line in paper.lines] == [
        [row.paper["linear"], place] for place, row in enumerate(results.rows)
    ]
    assert {line.get_fillstyle() for line in paper.lines} == {"none"}
    assert paper.get_xlim() != ours.get_xlim()
    assert ours.get_ylim() == (15.5, -0.5), "the first row on top"
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        row.name for row in results.rows
    ]


def test_missing_values_have_no_dots(results):
    ours, paper = figures.accuracies(results).axes
    assert len(ours.containers) == 3
    assert len(paper.lines) == 4, "R-MAE‡ has no number in the paper"
    for row in results.rows:
        row.paper = {}
    assert len(figures.accuracies(results).axes) == 1
    for row in results.rows:
        row.values.pop("finetune", None)
    assert figures.accuracies(results) is None


def test_the_cka_of_single_runs_is_white_and_names_no_encoder(results, tmp_path, monkeypatch):
    curves = results.rows[1].cka["finetuned"]
    details = {"token": "mean", "ratios": curves.ratios, "blocks": curves.blocks, "floor": {}}
    details["cka"] = {"mean": curves.values}
    images = Images("digits", 3, "d", "validation")
    made = ("invariance", "runs/ft", "mae", 3, images, {}, "0", {}, details)
    drawn = []
    draw = figures.cka_by_block
    monkeypatch.setattr(
        figures, "cka_by_block", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1]
    )
    record = Record(*made)
    masked = replace(record, protocol={"removed": "mask_token"})
    path = figures.save_cka([record, masked], tmp_path / "cka.png")
    assert [a.get_title("left") for a in drawn[0].axes[:2]] == ["ft", "ft, mask token"]
    assert drawn[0].axes[0].get_ylabel() == "CKA"
    with Image.open(path) as picture:
        assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert "pretrained" in draw(results).axes[0].get_ylabel()


def test_monitors_have_a_panel_each_and_a_line_for_each_row(results):
    assert figures.monitors(results) is None
    lines = [
        {"step": 2, "loss": 1.0, "feature_rank": 3.0, "noise_scale": None}
        | {"agreement": 0.5, "agreement_by_chance": 0.1},
        {"step": 3, "eval/top1": 0.5},
        {"step": 4, "feature_rank": 2.0, "noise_scale": 8.0}
        | {f"attention_entropy/encoder/blocks/{i}": i / 20 for i in range(12)},
    ]
    found = read_run._monitors(lines)
    assert found == {
        "feature_rank": [(2, 3.0), (4, 2.0)],
        "noise_scale": [(2, None), (4, 8.0)],
        "attention_entropy": [(4, 11 / 20)],
        "agreement": [(2, 0.5)],
        "agreement_by_chance": [(2, 0.1)],
    }
    for row in results.rows[1:3]:
        row.pretrain.monitors = found
    figure = figures.monitors(results)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:3] == ["noise scale (images)", "rank of features", "entropy of attention"]
    assert titles[3:] == ["agreement (dotted: by chance)"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2, 4]


def test_the_floor_of_a_row_is_that_of_the_table():
    """Both are the highest of the untrained encoders, which a mean would hide."""

    def measured(value):
        return {"ratios": [0.75], "blocks": [1], "cka": {"class": [[value]]}} | {
            "retrieval": {"class": [[value / 2]]}
        }

    floor = {"untrained_0": measured(0.2), "untrained_1": measured(0.3), "blind": measured(0.0)}
    details = measured(0.25) | {"token": "class", "floor": floor}
    images = Images("digits", 40, "digest", "validation")
    record = Record("invariance", "w", "mae", 1, images, {}, "", {}, details)
    (untrained, blind) = floor_rows([record])
    assert curves_of([record]).floor == untrained.cka["pretrained"].values == [[0.3]]
    assert untrained.values["retrieval"] == [0.15]
    assert blind.cka["pretrained"].values == [[0.0]]
