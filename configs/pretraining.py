"""A helper for the other configs, not a config itself: the settings that all pretraining shares.

They are everything but the objective and the learning rate.
"""

from ml_collections import ConfigDict

from occinv.configs.scales import scale

DECODER = {
    "imagenet": {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
    "tiny_imagenet": {"decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3},
    "quickstart": {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 4},
    "smoke": {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4},
}


def pretraining(variant: str, base_lr: float) -> ConfigDict:
    """Return every section but `objective`. `base_lr` is the objective's on ImageNet."""
    config = scale(variant)
    config.train = {
        "imagenet": {"batch_size": 1024, "duration": {"epochs": 100}},
        "tiny_imagenet": {"batch_size": 64, "duration": {"epochs": 20}},
        "quickstart": {
            "batch_size": 32,
            "duration": {"epochs": 16},
            "log_every": {"steps": 40},
            "checkpoint_every": {"epochs": 8},
        },
        "smoke": {"batch_size": 16, "duration": {"steps": 8}, "log_every": {"steps": 2}},
    }[variant]
    config.optimizer = {
        "imagenet": {"base_lr": base_lr, "warmup": {"epochs": 20}},
        "tiny_imagenet": {"base_lr": 4e-3, "warmup": {"share": 0.1}},
        "quickstart": {"base_lr": 1.6e-2, "warmup": {"share": 3 / 16}},
        "smoke": {"base_lr": 8e-3, "warmup": {"share": 0.25}},
    }[variant]
    return config
