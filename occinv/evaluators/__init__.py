"""Evaluators: one file for each measurement or picture of a trained model.

`EVALUATORS` maps each name in `occinv evaluate NAME` and in `config.evals` to its class. An
evaluator outside the library needs no entry: its name is `module:Class` in the same form.
"""

from collections.abc import Sequence

QUOTED_RATIO = 0.75  # of removed patches, where tables quote invariance: MAE's mask ratio

EVALUATORS = {
    "invariance": "occinv.evaluators.invariance:Invariance",
    "knn": "occinv.evaluators.knn:Knn",
    "probe": "occinv.evaluators.probe:Probe",
    "occlusion": "occinv.evaluators.occlusion_accuracy:OcclusionAccuracy",
    "psnr": "occinv.evaluators.psnr:Psnr",
    "reconstructions": "occinv.evaluators.reconstructions:Reconstructions",
    "attention": "occinv.evaluators.attention:Attention",
}


def quoted_place(ratios: Sequence[float]) -> int:
    """Return the place of the ratio that is nearest to `QUOTED_RATIO`."""
    return min(range(len(ratios)), key=lambda place: abs(ratios[place] - QUOTED_RATIO))
