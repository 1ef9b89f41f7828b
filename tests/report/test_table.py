"""The table holds the numbers, fits its width and is plain text in a file."""

from __future__ import annotations

import io
import json

import pytest
from example_run import curves
from rich.console import Console

from occinv.report import table
from occinv.report.results import baseline, last_block_cka, load_results, mean_and_std
from occinv.schema import UserError


def printed(results, **console) -> str:
    stream = io.StringIO()
    table.print_table(results, Console(file=stream, **console))
    return stream.getvalue()


def cell(text: str, method: str, column: int) -> str:
    line = next(line for line in text.splitlines() if line.startswith(f"|{method}"))
    return line.split("|")[column].strip()


def test_every_number_stands_in_its_column(results):
    text = printed(results)
    assert [cell(text, "MAE", i) for i in range(6, 12)] == (
        ["85.7", "21.3", "0.910", "0.820", "83.1", "22.2"]
    )
    assert [cell(text, "R-MAE†", i) for i in range(6, 10)] == ["78.7", "23.5", "0.950", "0.520"]
    assert cell(text, "Random", 8) == "–"
    assert cell(text, "R-MAE‡", 6) == "running"
    assert cell(text, "C-MAE", 6) == "failed"
    assert "paper (ViT-B, ImageNet)" in text
    assert "interpolated between 70 % and 80 % dropped" in text
    assert "C-MAE failed: loss is <script>" in text


@pytest.mark.parametrize("accuracies", [None, [0.1, 0.2, 0.3]])
def test_file_output_is_plain_and_fits_100_columns(results, accuracies):
    for row in results["rows"]:
        row["accuracies"] = accuracies
    text = printed(results)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines()[:-1])) <= 100
    assert "independent" in text, "words are not broken"
    lines = [line for line in text.splitlines() if line.startswith("+")]
    assert all(line.endswith("+") for line in lines), "no column is cut off"


def test_terminal_output_has_colour_and_narrow_terminals_do_not_crash(results):
    assert "\x1b[" in printed(results, force_terminal=True, width=120)
    assert "85.7" in printed(results, force_terminal=True, width=70)


def test_markup_in_names_is_printed_not_interpreted(results):
    results["rows"][1]["name"] = "MAE[bold]"
    assert "MAE[bold]" in printed(results)


def test_several_seeds_give_mean_and_sample_deviation(results):
    results["rows"][1].update(accuracy=None, accuracies=[0.80, 0.82, 0.87])
    assert table.accuracy_text(results["rows"][1]) == "83.0 ± 3.6"
    assert mean_and_std([1.0]) == (1.0, None)
    assert "over 1 or 3 seeds" in table.caption(results)


def test_markdown_has_one_line_per_row_and_the_same_cells(results):
    results["rows"][1]["measure"] = "a|b"
    lines = table.markdown_table(results).splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 2 + len(results["rows"])
    assert "| MAE | 75 % removed | complement | same encoder | a\\|b | 85.7 | 21.3 |" in body[3]


def test_cka_says_where_it_comes_from():
    row = {"cka": {"pretrained": curves(0.6)}}
    assert last_block_cka(row, "pretrained") == (
        pytest.approx(0.6),
        "interpolated between 70 % and 80 % dropped",
    )
    assert last_block_cka(row, "pretrained", 0.7).origin == "measured"
    short = {"ratios": [0.5, 0.25], "blocks": [1], "values": [[0.4], [0.9]]}
    assert last_block_cka({"cka": {"finetuned": short}}, "finetuned") == (
        0.4,
        "nearest measured, 50 % dropped",
    )
    assert last_block_cka({"cka": {"finetuned": short}}, "pretrained") is None
    assert last_block_cka({"cka": None}, "pretrained") is None


def test_baseline_is_the_first_row_only_without_pretraining(results):
    assert baseline(results) is results["rows"][0]
    results["rows"] = results["rows"][1:]
    assert baseline(results) is None
    assert baseline({"rows": []}) is None


def test_loading_names_what_is_wrong(tmp_path, results):
    with pytest.raises(UserError, match=r"no results in .*results\.json"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match="rows"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert load_results(tmp_path) == results
