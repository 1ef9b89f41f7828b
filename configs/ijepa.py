"""I-JEPA: a teacher's features of four rectangles are predicted from the rest of the image.

    occinv train --config ijepa --workdir runs/ijepa
    occinv train --config linear --workdir runs/ijepa-linear \\
        --config.init_from=runs/ijepa --config.objective.pooling=mean

The paper's ViT-B/16 on ImageNet-1k: 600 epochs (72.9 % by linear probing). The optimizer is that of
the official file for ViT-H/14, the smallest published: batch 2048, lr 1e-3, weight decay 0.04 to
0.4, 40 epochs of warm-up, no color jitter and no flips. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

# Four targets would cover nearly all of a small grid.
NUM_TARGETS = {"imagenet": 4, "tiny_imagenet": 3, "quickstart": 2, "smoke": 2}
PREDICTOR = {
    "imagenet": {"predictor_width": 384, "predictor_depth": 6, "predictor_heads": 12},
    "tiny_imagenet": {"predictor_width": 96, "predictor_depth": 4, "predictor_heads": 3},
    "quickstart": {"predictor_width": 32, "predictor_depth": 2, "predictor_heads": 4},
    "smoke": {"predictor_width": 32, "predictor_depth": 1, "predictor_heads": 4},
}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1e-3 * 256 / 2048)
    config.objective = {
        "name": "ijepa",
        "target_scale": 0.175,
        "target_aspect": 1.125,
        "context_scale": 0.925,
        "num_targets": NUM_TARGETS[variant],
        "momentum": 0.996,
        **PREDICTOR[variant],
    }
    config.data.flip = False
    if variant == "imagenet":
        config.data.crop_scale = (0.3, 1.0)
        config.train.update({"batch_size": 2048, "duration": {"epochs": 600}})
        config.optimizer.update({"warmup": {"epochs": 40}, "min_lr": 1e-6})
    else:
        config.optimizer.base_lr = 4e-3  # at four times this, pretraining does not help on digits
    config.optimizer.update(
        {"betas": (0.9, 0.999), "weight_decay": 0.04, "final_weight_decay": 0.4}
    )
    return config
