"""SimMIM: large squares are removed, and a linear layer predicts their pixels.

    occinv train --config simmim --workdir runs/simmim
    occinv train --config finetune --workdir runs/simmim-finetuned \\
        --config.init_from=runs/simmim --config.encoder.relative_position=block

The official file for ViT-B/16 on ImageNet-1k: 800 epochs (83.8 % after fine-tuning), lr 1e-4 for
512 images, 60 % of the squares of 32 pixels, drop path 0.1, clip 5.0. It divides the learning rate
by ten after 700 epochs; here it follows a cosine. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

MASK_UNIT = {"imagenet": 2, "tiny_imagenet": 2, "quickstart": 1, "smoke": 1}  # patches a side


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1e-4 * 256 / 512)
    config.objective = {"name": "simmim", "mask_ratio": 0.6, "mask_unit": MASK_UNIT[variant]}
    if variant == "imagenet":
        # Relative position and LayerScale need more than a few hundred steps.
        config.encoder.update({"relative_position": "shared", "layer_scale": 0.1})
        config.encoder.drop_path = 0.1
        config.data.crop_scale = (0.67, 1.0)
        config.train.update({"batch_size": 2048, "duration": {"epochs": 800}})
        config.optimizer.update({"warmup": {"epochs": 10}, "min_lr": 2e-5})
    config.optimizer.update({"betas": (0.9, 0.999), "clip_norm": 5.0})
    return config
