"""data2vec: an EMA teacher's features of the whole image are predicted from an occluded one.

    occinv train --config data2vec --workdir runs/data2vec
    occinv train --config finetune --workdir runs/data2vec-finetuned \\
        --config.init_from=runs/data2vec

The official command for ViT-B/16 on ImageNet-1k: batch 2048, lr 2e-3, 800 epochs (84.2 % after
fine-tuning in the paper), 120 of 196 patches, drop path 0.25, clip 3.0. The small variants run for
a few hundred to a few thousand steps, and use a smaller EMA momentum. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.beit import MIN_RECTANGLE, published
from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

AVERAGE_TOP_K = {"imagenet": 6, "tiny_imagenet": 6, "quickstart": 2, "smoke": 2}
MOMENTUM = {"imagenet": 0.9998, "tiny_imagenet": 0.996, "quickstart": 0.99, "smoke": 0.9}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=2e-3 * 256 / 2048)
    config.objective = {
        "name": "data2vec",
        "mask_ratio": 120 / 196,
        "min_rectangle": MIN_RECTANGLE[variant],
        "average_top_k": AVERAGE_TOP_K[variant],
        "beta": 2.0,
        "momentum": MOMENTUM[variant],
    }
    return published(config, variant, epochs=800, drop_path=0.25, layer_scale=1e-4)
