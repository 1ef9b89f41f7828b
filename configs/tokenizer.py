"""A tokenizer for BEiT and CAE, trained on your own images: an autoencoder through a codebook.

    occinv train --config tokenizer:tiny_imagenet --workdir runs/tokenizer
    occinv train --config beit:tiny_imagenet --workdir runs/beit \\
        --config.objective.tokenizer.name=vq --config.objective.tokenizer.start=runs/tokenizer \\
        --config.objective.tokenizer.encoder.name=tiny \\
        --config.objective.tokenizer.encoder.patch_size=8

The evaluation's `used_codes` and `perplexity` show how much of the codebook is used, and its
images show what the codes preserve. Variants: configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.pretraining import DECODER, pretraining
from occinv.configs.scales import VARIANTS

__all__ = ["VARIANTS", "get_config"]

CODEBOOK = {
    "imagenet": {"num_ids": 8192, "code_width": 32},
    "tiny_imagenet": {"num_ids": 1024, "code_width": 16},
    "quickstart": {"num_ids": 64, "code_width": 8},
    "smoke": {"num_ids": 16, "code_width": 8},
}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = pretraining(variant, base_lr=1.5e-4)
    config.objective = {"name": "vq", "commitment": 0.25, **CODEBOOK[variant], **DECODER[variant]}
    return config
