"""MaskFeat: rectangles of patches are removed, and their oriented gradients are predicted.

    occinv train --config maskfeat --workdir runs/maskfeat
    occinv train --config finetune --workdir runs/maskfeat-finetuned \\
        --config.init_from=runs/maskfeat

The official file for ViT-B/16 on ImageNet-1k: 300 epochs, lr 2e-4 for 256 images, 78 of 196
patches, no color jitter, clip 0.02. Its published weights are those of 1600 epochs (84.0 % after
fine-tuning). Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

MIN_RECTANGLE = {"imagenet": 15, "tiny_imagenet": 6, "quickstart": 2, "smoke": 2}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=2e-4)
    config.objective = {
        "name": "maskfeat",
        "mask_ratio": 78 / 196,
        "min_rectangle": MIN_RECTANGLE[variant],
        "cell_size": 8,
    }
    config.encoder.train_position = True
    if variant == "imagenet":
        config.data.crop_scale = (0.5, 1.0)
        config.train.update({"batch_size": 2048, "duration": {"epochs": 300}})
        config.optimizer.update({"warmup": {"epochs": 30}, "min_lr": 1e-6, "clip_norm": 0.02})
    config.optimizer.update({"betas": (0.9, 0.999), "decay": "positions"})
    return config
