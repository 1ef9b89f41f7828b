"""BEiT: rectangles of patches are removed, and their token ids are predicted.

    occinv weights import encoder.pkl --from dalle --to runs/dalle
    occinv train --config beit --workdir runs/beit
    occinv train --config finetune --workdir runs/beit-finetuned \\
        --config.init_from=runs/beit --config.encoder.relative_position=block

The published settings for ViT-B/16 on ImageNet-1k: batch 2048, lr 1.5e-3, 75 of 196 patches, clip
3.0, jitter 0.4. Table 1 has 82.9 % after 300 epochs; the official command trains 800. The small
variants fit their codebook by k-means before the first step. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

TOKENIZER = {
    "imagenet": {"name": "dalle", "start": "runs/dalle"},
    "tiny_imagenet": {"name": "kmeans", "num_ids": 1024},
    "quickstart": {"name": "kmeans", "num_ids": 64},
    "smoke": {"name": "kmeans", "num_ids": 16, "fit_images": 64},
}
MIN_RECTANGLE = {"imagenet": 16, "tiny_imagenet": 6, "quickstart": 2, "smoke": 2}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1.5e-3 * 256 / 2048)
    config.objective = {
        "name": "beit",
        "tokenizer": TOKENIZER[variant],
        "mask_ratio": 75 / 196,
        "min_rectangle": MIN_RECTANGLE[variant],
    }
    return published(config, variant, epochs=300, drop_path=0.1, layer_scale=0.1)


def published(
    config: ConfigDict, variant: str, epochs: int, drop_path: float, layer_scale: float
) -> ConfigDict:
    """Set what the official commands of BEiT and data2vec share."""
    if variant == "imagenet":
        # Relative position and LayerScale need more than a few hundred steps.
        config.encoder.update({"relative_position": "shared", "layer_scale": layer_scale})
        config.encoder.drop_path = drop_path
        config.data.crop_scale = (0.08, 1.0)
        config.train.update({"batch_size": 2048, "duration": {"epochs": epochs}})
        config.optimizer.update({"warmup": {"epochs": 10}, "min_lr": 1e-5})
    config.optimizer.update({"betas": (0.9, 0.999), "clip_norm": 3.0})
    return config
