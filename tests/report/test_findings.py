"""Sentences follow the numbers: above, below, level, and what is only noise."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from example_run import COLUMNS, curves, row

from occinv.report.findings import (
    accuracy_finding,
    binomial_standard_error,
    budget_note,
    cka_finding,
    claim_finding,
    difference,
    findings,
    psnr_finding,
)
from occinv.report.results import Claim, Results, Row, load_results
from occinv.schema import UserError


def run(*accuracies: float, num_test: int | None = 10_000) -> Results:
    """Random init with the first accuracy, a method M1, M2, … for each of the others."""
    rows = [row("Random init", accuracies[0], pretrain=None)]
    rows += [row(f"M{i}", value) for i, value in enumerate(accuracies[1:], 1)]
    settings = {"num_test": num_test} if num_test else {}
    return Results(title="", rows=rows, settings=settings, columns=list(COLUMNS))


def from_first(results: Results, row: Row):
    return difference(results, row, results.rows[0], COLUMNS[0])


def test_direction_and_amount():
    results = run(0.80, 0.85, 0.70, 0.8001)
    above, below, level = (from_first(results, r).sentence for r in results.rows[1:])
    assert above.startswith("M1: 85.0 %, 5.0 points above Random init (80.0 %)")
    assert below.startswith("M2: 70.0 %, 10.0 points below Random init (80.0 %)")
    assert level.startswith("M3: 80.0 %, equal to Random init (80.0 %)")


def test_one_seed_uses_the_binomial_error_of_the_difference():
    assert binomial_standard_error(0.5, 100) == pytest.approx(0.05)
    results = run(0.50, 0.60, num_test=100)
    difference = from_first(results, results.rows[1])
    # 1.96 * sqrt(.25 / 100 + .24 / 100) = 13.7 points, more than the 10 measured.
    assert difference.margin == pytest.approx(13.72, abs=0.01)
    assert not difference.is_significant
    assert difference.sentence.endswith("100 test images ± 13.7: not significant.")
    results = run(0.50, 0.60, num_test=1000)
    assert from_first(results, results.rows[1]).is_significant
    assert "seed" in accuracy_finding(results).details[-1]


def test_without_the_size_of_the_test_set_the_verdict_is_inconclusive():
    finding = accuracy_finding(run(0.1, 0.9, num_test=None))
    assert finding.verdict == "inconclusive"
    assert "size of the test set is not recorded" in finding.details[0]


def test_several_seeds_are_compared_seed_by_seed():
    results = run(0.5, 0.6)
    results.rows[0].values["finetune"] = [0.50, 0.60, 0.70]
    results.rows[1].values["finetune"] = [0.52, 0.61, 0.73]
    difference = from_first(results, results.rows[1])
    assert difference.value == pytest.approx(2.0)
    # Differences 2, 1, 3: deviation 1, Student's quantile for two degrees of freedom 4.303.
    assert difference.margin == pytest.approx(4.303 / 3**0.5, abs=0.001)
    assert "above it in 3 of 3 seeds" in difference.sentence
    assert not difference.is_significant


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ((0.5, 0.6, 0.7), "supported"),
        ((0.5, 0.6, 0.4), "partly supported"),
        ((0.5, 0.505, 0.4), "inconclusive"),
        ((0.5, 0.4, 0.3), "not supported"),
    ],
)
def test_verdict_on_accuracy(accuracies, verdict):
    assert accuracy_finding(run(*accuracies)).verdict == verdict


def test_counts_in_the_claim():
    claim = accuracy_finding(run(0.5, 0.6, 0.505, 0.4)).claim
    assert claim.endswith(
        "above Random init in 2 of 3 rows, significantly in 1 (significantly below in 1)"
    )


def test_missing_rows_are_named_and_spoil_the_verdict(results):
    finding = accuracy_finding(results)
    assert "No number for R-MAE‡, C-MAE." in finding.details
    results.rows[2].values["finetune"] = [0.9]
    assert accuracy_finding(results).verdict == "partly supported"


def test_cka_is_compared_with_the_supervised_model(results):
    pretrained, finetuned = (cka_finding(results, s) for s in ("pretrained", "finetuned"))
    assert "(0.640) in 2 of 2 rows" in pretrained.claim
    assert "R-MAE†: 0.950, 0.310 above 0.640." in pretrained.details
    assert "(0.640) in 1 of 2 rows" in finetuned.claim
    assert "R-MAE†: 0.520, 0.120 below 0.640." in finetuned.details
    complete = replace(results, rows=results.rows[:2])
    assert cka_finding(complete, "finetuned").verdict == "supported"
    complete.rows[1].cka["finetuned"] = curves(0.1)
    assert cka_finding(complete, "finetuned").verdict == "not supported"
    complete.rows[0].cka = {}
    assert cka_finding(complete, "finetuned").verdict == "not measured"


def test_psnr_is_compared_with_mae(results):
    finding = psnr_finding(results)
    assert finding.claim.endswith("23.5 dB, by R-MAE†")
    assert finding.details[1].endswith("2.2 dB above MAE.")
    results.rows[2].values["psnr"] = [20.2, 20.4]
    assert psnr_finding(results).details[1].endswith("1.0 dB below MAE.")
    results.rows[2].values["psnr"] = [21.34]
    assert psnr_finding(results).details[1].endswith(", equal to MAE.")


def test_budgets_are_reported(results):
    assert "31 s; the pretrained rows for 62 s" in budget_note(results).details[0]


def test_nothing_is_claimed_without_numbers():
    assert findings(Results(title="", rows=[], columns=COLUMNS)) == []
    empty = row("MAE", status="running", cka={}, values={}, finetune=None)
    assert findings(Results(title="", rows=[empty], columns=COLUMNS)) == []


def test_each_finding_needs_its_column(results):
    results.columns = COLUMNS[1:]
    assert accuracy_finding(results) is None
    for of in results.rows:
        of.cka = {}
        of.values.pop("psnr", None)
    assert [found.claim for found in findings(results)] == ["The training budgets differ"]


def test_rows_of_different_data_have_no_common_baseline(results):
    results.same_data = False
    assert accuracy_finding(results) is None
    assert cka_finding(results, "finetuned") is None


def verdict_on(results: Results, relation: str, **changes) -> str:
    claim = Claim("M1 and M2", "m1", "m2", relation=relation)  # type: ignore[arg-type]
    return claim_finding(results, replace(claim, **changes)).verdict


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([0.60, 0.71, 0.82], [0.50, 0.60, 0.70], "supported"),
        ([0.52, 0.61, 0.70], [0.50, 0.60, 0.70], "inconclusive"),  # 2, 1, 0: 1.0 ± 2.5
        ([0.49, 0.60, 0.70], [0.50, 0.60, 0.70], "not supported"),
        ([0.40, 0.50, 0.60], [0.50, 0.60, 0.70], "not supported"),
        ([0.50, 0.60, 0.70], [0.50, 0.60, 0.70], "not supported"),
        ([], [0.50], "not measured"),
        ([0.50], [], "not measured"),
    ],
)
def test_verdict_on_a_claim_of_above(ours, theirs, verdict):
    results = run(0.1, 0.2, 0.3)
    results.rows[1].values["finetune"] = ours
    results.rows[2].values["finetune"] = theirs
    assert verdict_on(results, "above") == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.501, 0.602, 0.703], "supported"),  # 0.1, 0.2, 0.3: 0.2 ± 0.2
        ([0.499, 0.598, 0.697], "supported"),
        ([0.515, 0.616, 0.717], "not supported"),  # 1.6 ± 0.2
        ([0.485, 0.584, 0.683], "not supported"),
        ([0.52, 0.61, 0.69], "inconclusive"),  # 2, 1, -1: ± 3.8
        ([0.60, 0.71, 0.82], "not supported"),  # 11 ± 2.5: wide, and far from level
        ([], "not measured"),
    ],
)
def test_verdict_on_a_claim_of_equality(ours, verdict):
    results = run(0.1, 0.2, 0.3)
    results.rows[1].values["finetune"] = ours
    results.rows[2].values["finetune"] = [0.50, 0.60, 0.70]
    assert verdict_on(results, "equal", within=1.0) == verdict


def test_claims_say_what_was_measured_and_what_is_missing():
    results = run(0.1, 0.60, 0.50)
    results.claims = [Claim("M1 helps", "m1", "m2")]
    found = next(found for found in findings(results) if found.claim == "M1 helps")
    assert found.verdict == "supported"
    assert found.details[0].startswith("FT %: M1: 60.0 %, 10.0 points above M2 (50.0 %); 95 %")
    assert found.details[1].startswith("One seed")
    results.rows.pop()
    found = claim_finding(results, results.claims[0])
    assert (found.verdict, found.details) == ("not measured", ["No row m2."])
    assert verdict_on(run(0.1, 0.2, 0.3), "above", column="linear") == "not measured"
    assert verdict_on(run(0.1, 0.6, 0.5), "equal", within=1.0, column="psnr") == "inconclusive"


def test_another_relation_is_refused(tmp_path):
    results = run(0.1, 0.6)
    results.claims = [Claim("M1 helps", "m1", "m2", relation="sideways")]  # type: ignore[arg-type]
    (tmp_path / "results.json").write_text(json.dumps(asdict(results)))
    with pytest.raises(UserError, match=r"claims\.0\.relation: .* 'above' or 'equal'"):
        load_results(tmp_path)


def test_a_difference_in_decibels_is_not_scaled():
    results = run(0.1, 0.2)
    results.rows[0].values["psnr"] = [20.0]
    found = difference(results, results.rows[1], results.rows[0], COLUMNS[1])
    assert found.value == pytest.approx(1.3)
    assert found.margin is None, "the binomial error is one of accuracies"
    assert found.sentence.startswith("M1: 21.3 dB, 1.3 dB above Random init (20.0 dB)")
