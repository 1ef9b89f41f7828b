"""MoCo v3: InfoNCE of the class tokens of two crops; the other images of the batch are negatives.

    occinv train --config mocov3 --workdir runs/mocov3

The official ViT-B/16 settings: batch 4096, 300 epochs (83.2 % after fine-tuning in Table 1), lr
1.5e-4 · batch / 256, weight decay 0.1 on every parameter. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

HEADS = {
    "imagenet": {"head_hidden": 4096, "head_out": 256},
    "tiny_imagenet": {"head_hidden": 512, "head_out": 64},
    "quickstart": {"head_hidden": 128, "head_out": 64},
    "smoke": {"head_hidden": 64, "head_out": 16},
}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1.5e-4)
    config.objective = {
        "name": "mocov3",
        "temperature": 0.2,
        "momentum": 0.99,
        **HEADS[variant],
    }
    config.encoder.train_patch = False
    if variant == "imagenet":
        config.data.crop_scale = (0.08, 1.0)
        config.train.batch_size = 4096
        config.train.duration = {"epochs": 300}
        config.optimizer.warmup = {"epochs": 40}
    config.optimizer.update({"betas": (0.9, 0.999), "weight_decay": 0.1, "decay": "all"})
    return config
