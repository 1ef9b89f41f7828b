"""Supervised training from scratch: fine-tuning without a pretrained encoder.

    occinv train --config supervised --workdir runs/supervised

The settings are those of configs/finetune.py, as in the paper (Table 1, "Random Init": 80.9 % after
100 epochs, 82.1 % after 300), but without layer-wise learning-rate decay: at 0.65 a block, the
first block would hardly move from its random start. The paper does not say whether it has it;
`--config.optimizer.layer_decay=0.65` does. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs import finetune
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = finetune.get_config(variant)
    config.optimizer.layer_decay = 1.0
    return config
