"""DINO: every crop of an image predicts the output of an EMA teacher for its two large crops.

    occinv train --config dino --workdir runs/dino

The published settings for ViT-B/16: batch 1024, 400 epochs, lr 7.5e-4 · batch / 256, two crops of
224² and ten of 96² (Table 1 has 82.8 % after 800 epochs and fine-tuning). Variants:
configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

HEADS = {
    "imagenet": {
        "num_prototypes": 65536,
        "head_hidden": 2048,
        "bottleneck": 256,
        "local_crops": 10,
        "local_size": 96,
        "local_scale": (0.05, 0.25),
        "teacher_temperature": 0.07,
        "warmup": {"epochs": 50},
        "freeze_last_layer": {"epochs": 3},
    },
    "tiny_imagenet": {
        "num_prototypes": 1024,
        "head_hidden": 512,
        "bottleneck": 64,
        "local_crops": 4,
        "local_size": 32,
        "warmup": {"epochs": 0},
        "freeze_last_layer": {"epochs": 0.1},
    },
    "quickstart": {
        "num_prototypes": 256,
        "head_hidden": 128,
        "bottleneck": 32,
        "local_crops": 2,
        "local_size": 8,
        "local_scale": (0.2, 0.5),
        "warmup": {"epochs": 0},
        "freeze_last_layer": {"epochs": 1},
    },
    "smoke": {
        "num_prototypes": 64,
        "head_hidden": 64,
        "bottleneck": 16,
        "local_crops": 2,
        "local_size": 8,
        "local_scale": (0.2, 0.5),
        "warmup": {"epochs": 0},
        "freeze_last_layer": {"steps": 2},
    },
}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=7.5e-4)
    config.objective = {
        "name": "dino",
        "student_temperature": 0.1,
        "first_teacher_temperature": 0.04,
        "momentum": 0.996,
        "center_momentum": 0.9,
        "normalize_last_layer": True,
        **HEADS[variant],
    }
    config.encoder.train_position = True
    if variant == "imagenet":
        config.encoder.drop_path = 0.1
        config.data.crop_scale = (0.25, 1.0)
        config.train.duration = {"epochs": 400}
        config.optimizer.update({"warmup": {"epochs": 10}, "min_lr": 2e-6})
    config.optimizer.update(
        {
            "betas": (0.9, 0.999),
            "weight_decay": 0.04,
            "final_weight_decay": 0.4,
            "decay": "positions",
            "clip_norm": 0.3 if variant == "imagenet" else 3.0,
            "clip_by": "parameter",
        }
    )
    return config
