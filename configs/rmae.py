"""R-MAE, Eq. (8): the distance of two decoded views, and the relaxed constraint.

    occinv train --config rmae --workdir runs/rmae
    occinv train --config rmae --workdir runs/rmae-dagger \\
        --config.objective.t2=independent            # R-MAE†; identity is R-MAE‡

Paper: Table 1, 100 epochs: R-MAE 82.7 %, 23.7 dB; † 82.8 %, 23.0 dB; ‡ 82.7 %, 22.9 dB.
Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import DECODER, pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

TUNED = {"tiny_imagenet": 1.6e-2, "quickstart": 3.2e-2}  # base_lr (docs/study.md)


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=3.0e-4)
    if variant in TUNED:
        config.optimizer.base_lr = TUNED[variant]
    config.objective = {
        "name": "rmae",
        "mask_ratio": 0.75,
        "t2": "complement",
        "t2_mask_ratio": 0.25,
        "constraint_weight": 1.0,
        "constraint_region": "all",
        "normalize_target": True,
        **DECODER[variant],
    }
    return config
