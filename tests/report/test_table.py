"""The table holds the numbers, fits its width and is plain text in a file."""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, replace

import pytest
from example_run import COLUMNS, curves, large, row
from rich.console import Console

from occinv.data.identity import Images
from occinv.evaluators.base import Record
from occinv.report import table
from occinv.report.results import CkaCurves, Results, Row, load_results, mean_and_std
from occinv.schema import UserError


def printed(results, **console) -> str:
    stream = io.StringIO()
    table.print_table(results, Console(file=stream, **console))
    return stream.getvalue()


def cell(text: str, method: str, column: int) -> str:
    line = next(line for line in text.splitlines() if line.startswith(f"|{method}"))
    return line.split("|")[column].strip()


def test_every_number_is_in_its_column(results):
    text = printed(results)
    assert [cell(text, "MAE", i) for i in range(6, 10)] == ["85.7", "21.3", "0.910", "0.820"]
    assert [cell(text, "R-MAE†", i) for i in range(6, 10)] == ["78.7", "23.5", "0.950", "0.520"]
    assert cell(text, "Random", 8) == "–"
    assert "R-MAE‡" in text and "(running)" in text and "(failed)" in text
    assert "paper (ViT-B, ImageNet)" in text
    said = " ".join(text.split())
    assert "with 75 % of its patches dropped, by the token that the objective trains" in said
    assert "pretrained, class token; fine-tuned, class token." in said
    assert "FT %: top-1 after fine-tuning." in text
    assert "C-MAE failed: loss is <script>" in text


def test_the_papers_number_and_the_difference_are_below_ours(results):
    lines = printed(results).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("|MAE"))
    below = [part.strip() for part in lines[place + 1].split("|")]
    assert below[6:10] == ["83.1 +2.6", "22.2 −0.9", "", ""]
    failed = next(i for i, line in enumerate(lines) if line.startswith("|C-MAE"))
    assert lines[failed + 1].split("|")[6].strip() == "83.1 –", "nothing of ours to compare"


def test_differences_are_ours_minus_the_papers_in_its_unit(results):
    accuracy, psnr = COLUMNS
    of = row("A", 0.80, 0.82, paper={"finetune": 81.0, "psnr": 21.34})
    assert table.number(of, accuracy).difference == "0.0"
    assert table.number(of, psnr).difference == "0.0", "not −0.0"
    of.paper = {"finetune": 83.5}
    assert table.number(of, accuracy).difference == "−2.5"
    assert table.number(of, psnr).difference == ""
    of.values = {}
    assert table.number(of, accuracy).difference == ""


def test_a_value_without_measurements_has_no_column(results):
    for of in results.rows:
        of.cka, of.paper = {}, {}
    text = printed(results) + table.markdown_table(results)
    assert "CKA" not in text and "paper" not in text and "Δ" not in text
    results.rows[1].cka = {"pretrained": curves(0.9), "finetuned": None}
    assert "| CKA pretrained |\n" in table.markdown_table(results)


def test_results_set_the_papers_setting(results):
    results.paper_setting = "ViT-S, ImageNet-100"
    for text in (printed(results), table.markdown_table(results)):
        assert "paper (ViT-S, ImageNet-100)" in text


@pytest.mark.parametrize("accuracies", [[0.8], [0.1, 0.2, 0.3]])
def test_file_output_is_plain_and_fits_100_columns(results, accuracies):
    for of in results.rows:
        of.values = {"finetune": accuracies}
    text = printed(results)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines()[:-1])) <= 100
    assert "independent" in text, "words are not broken"
    lines = [line for line in text.splitlines() if line.startswith("+")]
    assert all(line.endswith("+") for line in lines), "no column is cut off"


def test_sixteen_rows_with_every_column_fit_100_columns():
    results = large()
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "70.7 ± 1.2" in text and "40.0 +10.7" in text
    assert "left out" not in text


def test_axes_with_equal_values_are_left_out_first():
    results = large()
    extra = [replace(c, key=f"{c.key} again") for c in results.columns[:3]]
    for of in results.rows:
        of.values |= {c.key: [0.5, 0.6] for c in extra}
    results.columns += extra
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "Columns left out because the table is too wide: T2, target, M." in " ".join(
        text.split()
    )
    assert "75 %" in text, "T1, which differs from row to row, stays"
    assert "decoder distance" in table.markdown_table(results)


def test_the_time_is_the_last_column_if_it_fits(results):
    text = printed(results)
    assert cell(text, "MAE", 10) == "1 min 02 s" and cell(text, "C-MAE", 10) == "–"
    assert "Time: all trainings of the row." in " ".join(text.split())
    assert "in steps" not in text
    stages = results.rows[1].pretrain, results.rows[1].finetune
    for stage in stages:
        stage.seconds, stage.step_seconds = None, 1.2
    assert cell(printed(results), "MAE", 10) == "2.4 s"
    assert "in steps" in printed(results)
    for of in results.rows:
        of.pretrain = of.finetune = None
    assert "Time" not in printed(results)


def test_the_time_is_left_out_before_any_axis():
    assert "Time" not in printed(large()) and "|M " in printed(large())


def test_terminal_output_has_color_and_narrow_terminals_do_not_crash(results):
    assert "\x1b[" in printed(results, force_terminal=True, width=120)
    assert "85.7" in printed(results, force_terminal=True, width=70)


def test_markup_in_names_is_printed_not_interpreted(results):
    results.rows[1].name = "MAE[bold]"
    assert "MAE[bold]" in printed(results)


def test_several_seeds_give_mean_and_sample_deviation(results):
    results.rows[1].values["finetune"] = [0.80, 0.82, 0.87]
    assert table.value_text(results.rows[1], COLUMNS[0]) == "83.0 ± 3.6"
    assert mean_and_std([1.0]) == (1.0, None)
    assert "over 1 or 3 seeds" in table.caption_text(results)


def test_markdown_has_one_line_per_row_and_the_same_cells(results):
    results.rows[1].measure = "a|b"
    lines = table.markdown_table(results).splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 2 + len(results.rows)
    assert "| FT % | paper (ViT-B, ImageNet): FT % (Δ) | PSNR |" in body[0]
    words = "| MAE | 75 % removed | complement | same encoder | a\\|b |"
    assert body[3] == f"{words} 85.7 | 83.1 (+2.6) | 21.3 | 22.2 (−0.9) | 0.910 | 0.820 |"
    assert "| – | 83.1 | – | 22.2 |" in body[6]
    assert len({line.replace("\\|", "").count("|") for line in body}) == 1


def test_cka_is_that_of_the_measured_ratio_next_to_the_quoted_one():
    of = row("A", cka={"pretrained": curves(0.6)})
    assert of.last_block_cka("pretrained") == (pytest.approx(0.6), 0.75, "class", None)
    of.cka = {"finetuned": CkaCurves([0.5, 0.25], [1], [[0.4], [0.9]], [], "mean", [[0.1], [0.2]])}
    assert of.last_block_cka("finetuned") == (0.4, 0.5, "mean", 0.1)
    assert of.last_block_cka("pretrained") is None
    assert row("A", cka={"pretrained": None}).last_block_cka("pretrained") is None


def test_the_caption_says_which_token_a_row_is_judged_by(results):
    results.rows[1].cka["pretrained"].token = "mean"
    said = table.caption_text(results)
    judged = "pretrained, mean token (MAE) or class token (R-MAE†); fine-tuned, class token."
    assert judged in said
    assert "untrained" not in said
    results.rows.append(Row("Untrained encoder", "untrained", is_floor=True))
    results.rows[-1].cka = {"pretrained": curves(0.1)}
    results.rows[-1].values = {"finetune": [0.1, 0.2]}
    said = table.caption_text(results)
    assert judged in said
    assert "Its floor is that of encoders that have learned nothing" in said
    assert "One seed." in said, "the seeds of the floor are not those of the rows"
    assert results.baseline is results.rows[0]


def test_invariance_is_printed_with_its_floor_for_every_token():
    def curves(cka: float, retrieval: float) -> dict:
        values = {token: [[0.0], [cka]] for token in ("class", "uncentered_tokens")}
        found = {"class": [[0.0], [retrieval]]}
        return {"ratios": [0.5, 0.75], "cka": values, "retrieval": found, "cosine": found}

    floor = {"untrained 0": curves(0.1, 0.2), "untrained 1": curves(0.3, 0.1)}
    details = curves(0.8, 0.7) | {"token": "class", "floor": floor | {"blind": curves(0.0, 0.0)}}
    images = Images("digits", 3, "d", "validation")
    made = ("invariance", "runs/mae", "mae", 3, images, {}, "0", {}, details)
    stream = io.StringIO()
    table.print_invariance([Record(*made)], Console(file=stream, width=120))
    lines = [re.findall(r"[^|]+", line) for line in stream.getvalue().splitlines() if "0.8" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert cells == [
        ["mae", "class (trained)", "0.800", "0.300", "0.700", "0.200", "0.700", "0.200"],
        ["", "uncentered tokens", "0.800", "0.300", *["–"] * 4],
    ]


def test_baseline_is_the_first_row_only_without_pretraining(results):
    assert results.baseline is results.rows[0]
    results.rows = results.rows[1:]
    assert results.baseline is None
    assert Results(title="", columns=[], rows=[]).baseline is None


def test_loading_errors_name_the_field(tmp_path, results):
    with pytest.raises(UserError, match=r"results\.json does not exist. Run `occinv reproduce`"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(UserError, match="the file: Input should be a"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"title": "x", "rows": []}))
    with pytest.raises(UserError, match=r"columns: Field required\. Run `occinv reproduce` again"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(asdict(results)))
    assert load_results(tmp_path) == results
