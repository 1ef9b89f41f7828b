"""iBOT: DINO, and the student also predicts the teacher's output for its removed patches.

    occinv train --config ibot --workdir runs/ibot

The published command for ViT-S/16: batch 1024, lr 5e-4 · batch / 256, DINO's crops; in half of the
large crops, 10 to 50 % of the patches are removed in rectangles. For ViT-B/16 the paper trains
400 epochs (84.0 % after fine-tuning), and the code recommends unit-length prototypes. Variants:
configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs import dino
from occinv.configs.beit import MIN_RECTANGLE
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = dino.get_config(variant)
    config.objective.update(
        {
            "name": "ibot",
            "mask_probability": 0.5,
            "mask_ratio": (0.1, 0.5),
            "min_rectangle": MIN_RECTANGLE[variant],
        }
    )
    if variant == "imagenet":
        config.objective.update(
            {
                "num_prototypes": 8192,
                "warmup": {"epochs": 30},
                "freeze_last_layer": {"epochs": 1},
            }
        )
        config.optimizer.update({"base_lr": 5e-4, "min_lr": 1e-6, "clip_norm": 3.0})
    return config
