"""MAE: 75 % of the patches are removed, and their pixels are predicted.

    occinv train --config mae --workdir runs/mae
    occinv train --config mae:smoke --workdir runs/mae-smoke

Paper: Table 1, "MAE (our impl.)", 100 epochs: 83.1 % after fine-tuning, PSNR 22.2 dB.
Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import DECODER, pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1.5e-4)
    config.objective = {
        "name": "mae",
        "mask_ratio": 0.75,
        "normalize_target": True,
        **DECODER[variant],
    }
    return config
