"""The figure of the claims shows the numbers that decide them."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest
from example_run import COLUMNS, row

from occinv.report.claims import claims
from occinv.report.findings import adjusted_p_values, claim_finding, judged_rows
from occinv.report.html import write_html
from occinv.report.results import Claim, Results
from occinv.report.statistics import equivalence_over_seeds, paired_t
from occinv.report.svg import BLACK, COLORS

SEEDS = 6
CLAIMS = [
    Claim("A is better", "a", "random init", conclusion="Better"),
    Claim("B is better", "b", "random init", conclusion="Better"),
    Claim("C is better", "c", "random init", conclusion="Better"),
    Claim("A matches B", "a", "b", relation="equal", within=1.0, conclusion="Level"),
    Claim("A is better than D", "a", "d", conclusion="Level"),
]


@pytest.fixture
def results() -> Results:
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.01, (4, SEEDS))
    means = {"Random init": 0.70, "A": 0.80, "B": 0.60, "C": 0.705}
    rows = [row(name, *(mean + noise[i])) for i, (name, mean) in enumerate(means.items())]
    rows[0].pretrain = None
    for one in rows:
        one.seeds["finetune"] = list(range(SEEDS))
    columns = [column for column in COLUMNS if column.key == "finetune"]
    return Results(title="", rows=rows, columns=columns, claims=list(CLAIMS))


def test_each_claim_has_its_interval_and_the_color_of_its_verdict(results: Results) -> None:
    figure = claims(results)
    better, level = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == ["Better", "Level"]
    (alone,) = claims(results, only="Better").axes
    assert len(alone.containers) == len(better.containers)
    assert [text.get_text() for text in level.get_yticklabels()] == ["A matches B"]
    values = [one.seed_values(results.columns[0]) for one in results.rows]
    tests = [paired_t(ours, values[0]) for ours in values[1:]]
    verdicts = [
        claim_finding(results, claim, adjusted_p_values(results)).verdict for claim in CLAIMS[:3]
    ]
    assert verdicts == ["supported", "not supported", "inconclusive"]
    for bar, test, color in zip(
        better.containers, tests, (COLORS[0], COLORS[1], BLACK), strict=True
    ):
        middle, _, (lines,) = bar
        assert middle.get_xdata() == pytest.approx([test.difference])
        assert lines.get_segments()[0][:, 0] == pytest.approx([test.low, test.high])
        assert matplotlib.colors.to_hex(middle.get_color()) == matplotlib.colors.to_hex(color)
    test = equivalence_over_seeds(values[1], values[2], 1.0)
    (_, _, (lines,)) = level.containers[0]
    assert lines.get_segments()[0][:, 0] == pytest.approx([test.low, test.high])
    margin = level.collections[0].get_paths()[0].vertices[:, 0]
    assert (margin.min(), margin.max()) == (-1, 1)


def test_one_dot_is_the_difference_of_one_seed(results: Results) -> None:
    first = claims(results).axes[0]
    values = [one.seed_values(results.columns[0]) for one in results.rows]
    dots = [line for line in first.lines if line.get_marker() == "."]
    assert dots[0].get_xdata() == pytest.approx(np.subtract(values[1], values[0]))


def test_without_an_interval_there_is_no_figure(results: Results) -> None:
    for one in results.rows:
        one.values["finetune"], one.seeds["finetune"] = [], []
    assert claims(results) is None
    results.claims = []
    assert claims(results) is None


def test_a_table_of_conclusions_judges_the_rows_that_it_names(results: Results) -> None:
    """Every other comparison would raise the corrected p-values of its hypotheses."""
    assert [one.key for one in judged_rows(results)] == ["a", "b", "c"]
    pairs = {pair[:2] for pair in adjusted_p_values(results)}
    results.claims = [claim for claim in CLAIMS if claim.row == "a"]
    assert [one.key for one in judged_rows(results)] == ["a"]
    assert {pair[:2] for pair in adjusted_p_values(results)} < pairs


def test_the_page_has_the_figure(results: Results, tmp_path) -> None:
    page = write_html(results, tmp_path).read_text()
    assert "The difference that decides each claim" in page
    assert "A matches B" in page
