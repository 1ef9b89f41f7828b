"""MSN: crops with few or small patches are assigned to the prototypes of another, whole crop.

    occinv train --config msn --workdir runs/msn

The settings of the official file for ViT-S/16 (msn_vits16.yaml): batch 1024, lr 1e-3, 15 epochs of
warm-up, weight decay 0.04 to 0.4, ten focal crops of 96². It removes 15 % of the patches and trains
800 epochs; for ViT-B/16, we choose 30 % and 600. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

# No more prototypes than images in a batch, as published: Sinkhorn-Knopp shares them among these.
SIZES = {
    "imagenet": {
        "focal_crops": 10,
        "focal_size": 96,
        "focal_scale": (0.05, 0.3),
        "num_prototypes": 1024,
        "head_hidden": 2048,
        "head_out": 256,
    },
    "tiny_imagenet": {
        "focal_crops": 4,
        "focal_size": 32,
        "focal_scale": (0.05, 0.3),
        "num_prototypes": 64,
        "head_hidden": 512,
        "head_out": 64,
    },
    "quickstart": {
        "focal_crops": 2,
        "focal_size": 8,
        "focal_scale": (0.4, 0.8),
        "num_prototypes": 16,
        "head_hidden": 128,
        "head_out": 32,
    },
    "smoke": {
        "focal_crops": 1,
        "focal_size": 8,
        "focal_scale": (0.4, 0.8),
        "num_prototypes": 16,
        "head_hidden": 64,
        "head_out": 16,
    },
}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1e-3 * 256 / 1024)
    config.objective = {
        "name": "msn",
        "mask_ratio": 0.3,
        "temperature": 0.1,
        "sharpening": 0.25,
        "sinkhorn": True,
        "me_max_weight": 1.0,
        "momentum": 0.996 if variant == "imagenet" else 0.98,  # the small runs are short
        **SIZES[variant],
    }
    config.encoder.train_position = True
    if variant == "imagenet":
        config.data.crop_scale = (0.3, 1.0)
        config.train.duration = {"epochs": 600}
        config.optimizer.update({"warmup": {"epochs": 15}, "min_lr": 1e-6})
    else:
        config.optimizer.base_lr = 4e-3
    config.optimizer.update(
        {
            "betas": (0.9, 0.999),
            "weight_decay": 0.04,
            "final_weight_decay": 0.4,
            "decay": "positions",
            "clip_norm": 3.0,
        }
    )
    return config
