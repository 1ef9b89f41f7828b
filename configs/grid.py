"""Any T1, T2, target and M, each chosen by its name.

    occinv train --config grid --workdir runs/grid \\
        --config.objective.t1=rectangles --config.objective.t2=identity \\
        --config.objective.targets=ema --config.objective.similarity=smoothed_l1
    occinv reproduce grid --scale quickstart --workdir runs/grid-table

The fields of the four axes are `t1`, `t2`, `targets` (the target) and `similarity` (M):

t1, t2      identity, jitter, crop, masking, rectangles
targets     pixels, ids, encoder, ema
similarity  pixel_l2, decoder_distance, infonce, byol, cross_entropy, smoothed_l1

240 of the 600 combinations work. The others are rejected with the reason. All other settings are
those of configs/mae.py for every combination, so this compares axes, not recipes: the published
recipe of an objective is its own config. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.beit import MIN_RECTANGLE, TOKENIZER
from occinv.configs.cmae import HEADS
from occinv.configs.pretraining import DECODER, pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

# Fewer steps need a faster EMA, and fewer images fewer prototypes.
MOMENTUM = {"imagenet": 0.996, "tiny_imagenet": 0.996, "quickstart": 0.99, "smoke": 0.9}
PROTOTYPES = {"imagenet": 8192, "tiny_imagenet": 1024, "quickstart": 256, "smoke": 64}
# A crop shows less than the image of `identity`, whose area is data.crop_scale.
CROP_SCALE = {
    "imagenet": (0.08, 0.6),
    "tiny_imagenet": (0.08, 0.6),
    "quickstart": (0.3, 0.7),
    "smoke": (0.3, 0.7),
}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1.5e-4)
    config.objective = {
        "name": "grid",
        "t1": "masking",
        "t2": "masking",
        "targets": "ema",
        "similarity": "infonce",
        "mask_ratio": 0.75,
        "t2_mask_ratio": 0.25,
        "min_rectangle": MIN_RECTANGLE[variant],
        "crop_scale": CROP_SCALE[variant],
        "tokenizer": TOKENIZER[variant],
        "temperature": 0.2,
        "momentum": MOMENTUM[variant],
        "num_prototypes": PROTOTYPES[variant],
        **HEADS[variant],
        **DECODER[variant],
    }
    return config
