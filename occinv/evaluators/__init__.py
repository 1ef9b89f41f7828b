"""Evaluators: one file for each measurement or picture of a trained model.

`EVALUATORS` maps each name in `occinv evaluate NAME` and in `config.evals` to its class. An
evaluator outside the library needs no entry: its name is `module:Class` in the same form.
"""

EVALUATORS = {
    "invariance": "occinv.evaluators.invariance:Invariance",
    "knn": "occinv.evaluators.knn:Knn",
    "probe": "occinv.evaluators.probe:Probe",
    "occlusion": "occinv.evaluators.occlusion_accuracy:OcclusionAccuracy",
    "psnr": "occinv.evaluators.psnr:Psnr",
    "reconstructions": "occinv.evaluators.reconstructions:Reconstructions",
    "attention": "occinv.evaluators.attention:Attention",
}
