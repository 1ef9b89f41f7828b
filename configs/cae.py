"""CAE: features and token ids of the masked half are predicted from the visible half.

    occinv weights import encoder.pkl --from dalle --to runs/dalle
    occinv train --config cae --workdir runs/cae
    occinv train --config finetune --workdir runs/cae-finetuned \\
        --config.init_from=runs/cae

The official settings for ViT-B/16: batch 2048, lr 1.5e-3, 98 of 196 patches removed in rectangles,
clip 3.0, alignment weight 2. Table 1 has 83.3 % after 300 epochs, which the official scripts warm
up for 10; for 800 epochs they use 20, for 1600 epochs 40.
As in configs/beit.py, small variants fit their codebook by k-means. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs import beit
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

DEPTH = {"imagenet": 4, "tiny_imagenet": 2, "quickstart": 1, "smoke": 1}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = beit.get_config(variant)
    config.objective.update(
        {
            "name": "cae",
            "mask_ratio": 0.5,
            "align_weight": 2.0,
            "regressor_depth": DEPTH[variant],
            "decoder_depth": DEPTH[variant],
        }
    )
    config.encoder.relative_position = None
    return config
