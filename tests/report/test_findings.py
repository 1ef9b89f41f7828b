"""Sentences follow the numbers: above, below, level, and what is only noise."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from example_run import COLUMNS, curves, row

from occinv.data.identity import pack
from occinv.report.differences import binomial_standard_error, difference, sentence
from occinv.report.findings import (
    POOLED,
    accuracy_finding,
    adjusted_p_values,
    budget_note,
    cka_finding,
    claim_finding,
    findings,
    psnr_finding,
)
from occinv.report.results import CkaCurves, Claim, Column, Results, Row, load_results
from occinv.report.statistics import mcnemar, needed_images, paired_t
from occinv.schema import UserError


def run(*accuracies: float, num_test: int | None = 10_000) -> Results:
    """Random init with the first accuracy, a method M1, M2, … for each of the others."""
    rows = [row("Random init", accuracies[0], pretrain=None)]
    rows += [row(f"M{i}", value) for i, value in enumerate(accuracies[1:], 1)]
    settings = {"num_test": num_test} if num_test else {}
    return Results(title="", rows=rows, settings=settings, columns=list(COLUMNS))


def from_first(results: Results, row: Row) -> str:
    """The sentence that compares a row with the first, and its corrected p-value."""
    first, column = results.rows[0], COLUMNS[0]
    p_value = adjusted_p_values(results).get((row.key, first.key, "finetune", "above"))
    return sentence(row, first, column, difference(results, row, first, column), p_value)


def accuracy(results: Results):
    return accuracy_finding(results, adjusted_p_values(results))


def on_claim(results: Results, claim: Claim):
    results.claims = [claim]
    return claim_finding(results, claim, adjusted_p_values(results))


def test_few_seeds_share_the_noise_of_all_rows():
    """Two rows of three seeds say little about their own noise; the page says what it assumes."""
    noise = np.random.default_rng(0).normal(0, 0.01, (6, 3))
    noise[0], noise[1] = (0.01, 0.0, -0.01), (-0.01, 0.0, 0.01)
    means = (0.70, 0.745, 0.70, 0.72, 0.74, 0.71)
    names = ("Random init", *"ABCDE")
    rows = [row(*one) for one in zip(names, *(means + noise.T), strict=True)]
    for one in rows:
        one.seeds["finetune"] = [0, 1, 2]
    rows[0].pretrain = None
    results = Results(title="", rows=rows, columns=list(COLUMNS))
    p_values = adjusted_p_values(results)
    assert p_values["a", "random init", "finetune", "above"] < 0.05
    assert POOLED in findings(results)[-1].details
    results.rows = rows[:2]
    assert adjusted_p_values(results)["a", "random init", "finetune", "above"] > 0.05
    assert POOLED not in findings(results)[-1].details


def test_direction_and_amount():
    results = run(0.80, 0.85, 0.70, 0.8001)
    above, below, level = (from_first(results, r) for r in results.rows[1:])
    assert above.startswith("M1: 85.0 %, 5.0 points above Random init (80.0 %)")
    assert below.startswith("M2: 70.0 %, 10.0 points below Random init (80.0 %)")
    assert level.startswith("M3: 80.0 %, equal to Random init (80.0 %)")


def test_without_predictions_one_seed_uses_the_binomial_error_of_the_difference():
    assert binomial_standard_error(0.5, 100) == pytest.approx(0.05)
    results = run(0.50, 0.60, num_test=100)
    found = difference(results, results.rows[1], results.rows[0], COLUMNS[0])
    # 1.96 * sqrt(.25 / 100 + .24 / 100) = 13.7 points, more than the 10 measured.
    assert found.comparison.high - found.comparison.difference == pytest.approx(13.72, abs=0.01)
    text = from_first(results, results.rows[1])
    assert "interval −3.7 to +23.7 over 100 validation images" in text
    assert "not significant" in text
    results = run(0.50, 0.60, num_test=1000)
    assert "not significant" not in from_first(results, results.rows[1])
    assert "seed" in accuracy(results).details[-1]


def with_hits(results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Record predictions of two models that are right on 50 and 56 of 100 images, mostly equal."""
    first = np.arange(100) < 50
    second = first | ((np.arange(100) >= 50) & (np.arange(100) < 57))
    second[0] = False
    for each, hits in zip(results.rows, (first, second), strict=True):
        each.hits["finetune"] = [pack(hits, np.arange(100), 100)]
        each.values["finetune"] = [float(hits.mean())]
    return first, second


def test_with_predictions_one_seed_is_compared_image_by_image():
    results = run(0.50, 0.56, num_test=100)
    first, second = with_hits(results)
    found = difference(results, results.rows[1], results.rows[0], COLUMNS[0])
    in_points = [100 * value for value in mcnemar(second, first)[:3]]
    assert list(found.comparison[:3]) == pytest.approx(in_points)
    # Only 8 of 100 images tell the models apart: the unpaired test would need far more.
    assert found.comparison.p_value == pytest.approx(2 * 9 / 256)
    assert found.needed == f"{needed_images(second, first)} images"
    text = from_first(results, results.rows[1])
    assert "McNemar" in text
    assert f"would need about {found.needed}" in text


def test_equivalence_of_one_seed_is_tested_image_by_image():
    results = run(0.50, 0.56, num_test=100)
    with_hits(results)
    claim = Claim("level", "m1", "random init", relation="equal", within=3.0)
    assert on_claim(results, claim).verdict == "inconclusive"
    assert on_claim(results, replace(claim, within=1.0)).verdict == "not supported"
    assert on_claim(results, replace(claim, within=20.0)).verdict == "supported"


def test_p_values_are_corrected_for_the_number_of_comparisons():
    alone, many = run(0.50, 0.52, num_test=5000), run(0.50, *[0.52] * 6, num_test=5000)
    (p_value,) = adjusted_p_values(alone).values()
    assert 0.04 < p_value < 0.05
    assert accuracy(alone).verdict == "supported"
    assert min(adjusted_p_values(many).values()) == pytest.approx(6 * p_value)
    assert accuracy(many).verdict == "inconclusive"
    last = findings(many)[-1].details
    assert "p-values are adjusted for 6 comparisons on this page (Holm)." in last


def test_without_the_number_of_validation_images_the_verdict_is_inconclusive():
    finding = accuracy(run(0.1, 0.9, num_test=None))
    assert finding.verdict == "inconclusive"
    assert "number of validation images is not recorded" in finding.details[0]


def test_several_seeds_are_compared_seed_by_seed():
    results = run(0.5, 0.6)
    results.rows[0].values["finetune"] = [0.50, 0.60, 0.70]
    results.rows[1].values["finetune"] = [0.52, 0.61, 0.73]
    found = difference(results, results.rows[1], results.rows[0], COLUMNS[0])
    assert found.value == pytest.approx(2.0)
    # Differences 2, 1, 3: deviation 1, Student's quantile for two degrees of freedom 4.303.
    half = found.comparison.high - found.comparison.difference
    assert half == pytest.approx(4.303 / 3**0.5, abs=0.001)
    text = from_first(results, results.rows[1])
    assert "above it in 3 of 3 seeds" in text and "not significant" in text
    assert found.needed == "5 seeds" and "about 5 seeds" in text


def test_the_needed_seeds_are_those_of_the_test_without_its_adjustment():
    """Two rows that happen to differ alike in three seeds once "would need about 2 seeds"."""
    results = run(0.5, 0.6, 0.5)
    for each, values in zip(
        results.rows, ([0.50, 0.60, 0.70], [0.52, 0.62, 0.72], [0.50, 0.90, 0.10]), strict=True
    ):
        each.values["finetune"] = values
    found = difference(results, results.rows[1], results.rows[0], COLUMNS[0])
    assert found.comparison.p_value > 0.05
    assert int(found.needed.removesuffix(" seeds")) > 100
    assert "Without the adjustment, a true difference" in from_first(results, results.rows[1])


def test_different_seeds_are_not_compared_seed_by_seed():
    results = run(0.5, 0.6)
    for each, values in zip(results.rows, ([0.50, 0.60, 0.70], [0.52, 0.61, 0.73]), strict=True):
        each.values["finetune"] = values
    results.rows[1].seeds["finetune"] = [3, 4, 5]
    assert "the noise is unknown (different seeds)" in accuracy(results).details[0]
    results.rows[1].seeds["finetune"] = [2, 3, 4]
    assert "the noise is unknown (different seeds)" in accuracy(results).details[0]


def test_rows_are_compared_over_the_seeds_that_both_have():
    results = run(0.5, 0.6)
    results.rows[0].values["finetune"] = [0.50, 0.60, 0.70, 0.99]
    results.rows[1].seeds["finetune"] = [2, 0, 5]
    results.rows[1].values["finetune"] = [0.73, 0.52, 0.01]
    (text,) = accuracy(results).details[:1]
    assert text.startswith("M1: 62.5 %, 2.5 points above Random init (60.0 %)")
    found = difference(results, results.rows[1], results.rows[0], COLUMNS[0])
    assert found.comparison == pytest.approx(paired_t([73, 52], [70, 50]))


def test_only_the_accuracy_of_training_is_taken_as_measured_on_the_validation_images():
    """k-NN on 100 images, or a mean over ratios, has no binomial error on num_test images."""
    results = run(0.50, 0.60)
    results.columns = [Column("knn", "k-NN %", "%")]
    for each, value in zip(results.rows, (0.4, 0.5), strict=True):
        each.values["knn"] = [value]
    found = difference(results, results.rows[1], results.rows[0], results.columns[0])
    assert found.comparison is None


def test_two_seeds_with_equal_differences_decide_nothing():
    results = run(0.5, 0.6)
    results.rows[0].values["finetune"] = [0.50, 0.60]
    results.rows[1].values["finetune"] = [0.52, 0.62]
    assert accuracy(results).verdict == "inconclusive"
    assert "two equal differences have no interval" in accuracy(results).details[0]


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
    assert accuracy(run(*accuracies)).verdict == verdict


def test_counts_in_the_claim():
    claim = accuracy(run(0.5, 0.6, 0.505, 0.4)).claim
    assert claim.endswith(
        "above Random init in 2 of 3 rows, significantly in 1 (significantly below in 1)"
    )


def test_rows_without_masking_are_not_judged_and_the_claim_says_so():
    results = run(0.5, 0.6, 0.7, 0.8)
    results.rows[2].transformation = "rectangle masking"
    results.rows[3].transformation = "crop, color, blur"
    found = accuracy(results)
    assert "in 2 of 2 rows that mask patches, significantly in 2" in found.claim
    assert not any("M3" in detail for detail in found.details)


def test_the_claim_on_cka_says_which_rows_are_judged(results):
    results.rows[1].transformation = "crop, color, blur"
    found = on_cka(results, "pretrained")
    assert "rows that mask patches" in found.claim
    assert not any(detail.startswith(f"{results.rows[1].name}:") for detail in found.details)


def test_missing_rows_are_named_and_spoil_the_verdict(results):
    finding = accuracy(results)
    assert "No number for R-MAE‡, C-MAE." in finding.details
    results.rows[2].values["finetune"] = [0.9]
    assert accuracy(results).verdict == "partly supported"


def on_cka(results: Results, encoder: str):
    return cka_finding(results, encoder, adjusted_p_values(results))


def test_cka_is_compared_with_the_supervised_model(results):
    pretrained, finetuned = (on_cka(results, s) for s in ("pretrained", "finetuned"))
    assert "(0.640) in 2 of 2 rows" in pretrained.claim
    assert "R-MAE†: 0.950 (class token), 0.310 above 0.640." in pretrained.details
    assert "(0.640) in 1 of 2 rows" in finetuned.claim
    assert "R-MAE†: 0.520 (class token), 0.120 below 0.640." in finetuned.details
    complete = replace(results, rows=results.rows[:2])
    assert on_cka(complete, "finetuned").verdict == "inconclusive", "one seed has unknown noise"
    complete.rows[1].cka["finetuned"] = curves(0.1)
    assert on_cka(complete, "finetuned").verdict == "not supported"
    complete.rows[0].cka = {}
    assert on_cka(complete, "finetuned").verdict == "not measured"


def seeds_of_cka(*last: float) -> CkaCurves:
    found = curves(sum(last) / len(last))
    found.by_seed = [curves(value).values for value in last]
    return found


def test_cka_over_seeds_is_tested(results):
    complete = replace(results, rows=results.rows[:2])
    complete.rows[0].cka["finetuned"] = seeds_of_cka(0.60, 0.65, 0.62)
    complete.rows[1].cka["finetuned"] = seeds_of_cka(0.80, 0.84, 0.82)
    found = on_cka(complete, "finetuned")
    assert found.verdict == "supported" and found.claim.endswith("1 rows, significantly in 1")
    # Differences 0.20, 0.19, 0.20: mean 0.1967, ± 4.303 * 0.00577 / √3.
    interval = "95 % confidence interval +0.182 to +0.211 over seeds, Holm-adjusted p < 0.001"
    assert f"above Random init in 3 of 3 seeds, {interval}" in found.details[0]
    complete.rows[1].cka["finetuned"] = seeds_of_cka(0.61, 0.64, 0.70)
    assert on_cka(complete, "finetuned").verdict == "inconclusive"


def test_cka_must_be_above_the_floor(results):
    """An untrained encoder can be above a supervised one: that shows no learned invariance."""
    complete = replace(results, rows=results.rows[:2])
    complete.rows[0].cka["finetuned"] = seeds_of_cka(0.60, 0.65, 0.62)
    own = complete.rows[1].cka["pretrained"] = seeds_of_cka(0.80, 0.84, 0.82)
    own.floor = curves(0.83).values
    found = on_cka(complete, "pretrained")
    assert found.verdict == "not supported"
    assert "0.010 below the floor of 0.830" in found.details[0]
    own.floor = curves(0.81).values
    assert on_cka(complete, "pretrained").verdict == "supported"


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
    assert accuracy(results) is None
    for of in results.rows:
        of.cka = {}
        of.values.pop("psnr", None)
    assert [found.claim for found in findings(results)] == ["The training budgets differ"]


def test_rows_of_different_data_have_no_common_baseline(results):
    results.same_data = False
    assert accuracy(results) is None
    assert on_cka(results, "finetuned") is None


def verdict_on(results: Results, relation: str, **changes) -> str:
    claim = Claim("M1 and M2", "m1", "m2", relation=relation)  # type: ignore[arg-type]
    return on_claim(results, replace(claim, **changes)).verdict


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
    found = on_claim(results, results.claims[0])
    assert (found.verdict, found.details) == ("not measured", ["No row m2."])
    assert verdict_on(run(0.1, 0.2, 0.3), "above", column="linear") == "not measured"
    assert verdict_on(run(0.1, 0.6, 0.5), "equal", within=1.0, column="psnr") == "inconclusive"


def test_another_relation_is_refused(tmp_path):
    results = run(0.1, 0.6)
    results.claims = [Claim("M1 helps", "m1", "m2", relation="sideways")]  # type: ignore[arg-type]
    (tmp_path / "results.json").write_text(json.dumps(asdict(results)))
    with pytest.raises(UserError, match=r"claims\.0\.relation: .* 'above' or 'equal'"):
        load_results(tmp_path)


def test_runs_without_a_claim_are_compared_with_the_first():
    """Two pretrained runs with predictions: the page says whether they differ."""
    results = run(0.50, 0.56, num_test=100)
    with_hits(results)
    for each in results.rows:
        each.pretrain = results.rows[1].pretrain
    assert results.baseline is None
    (note,) = [f for f in findings(results) if f.claim.startswith("Differences")]
    assert (note.claim, note.verdict) == ("Differences from Random init", "note")
    assert note.details[0].startswith("FT %: M1: 56.0 %, 6.0 points above Random init (50.0 %)")
    assert "McNemar's test, Holm-adjusted p = 0.070" in note.details[0]
    results.same_data = False
    assert not [f for f in findings(results) if f.claim.startswith("Differences")]


def test_a_difference_in_decibels_is_not_scaled():
    results = run(0.1, 0.2)
    results.rows[0].values["psnr"] = [20.0]
    found = difference(results, results.rows[1], results.rows[0], COLUMNS[1])
    assert found.value == pytest.approx(1.3)
    assert found.comparison is None, "the binomial error is one of accuracies"
    text = sentence(results.rows[1], results.rows[0], COLUMNS[1], found, None)
    assert text.startswith("M1: 21.3 dB, 1.3 dB above Random init (20.0 dB)")
