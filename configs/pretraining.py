"""What MAE, R-MAE and C-MAE share: data, encoder, optimizer and length, in each variant.

imagenet        the paper: ViT-B/16, 224², batch 1024, 100 epochs, 20 of warm-up
tiny_imagenet   ViT-tiny on 64² images of a folder, patch 8
quickstart      32² tiles of the photographs in scikit-image, on two CPU cores
smoke           the quickstart's model for a handful of steps
"""

from ml_collections import ConfigDict

DECODER = {
    "imagenet": {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
    "tiny_imagenet": {"decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3},
    "quickstart": {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4},
    "smoke": {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4},
}


def pretraining(variant: str, base_lr: float) -> ConfigDict:
    """Every section but `objective`."""
    config = ConfigDict({"seed": 0})
    config.data = {
        "imagenet": {"source": "tfds:imagenet2012", "image_size": 224},
        "tiny_imagenet": {
            "source": "folder:tiny_imagenet_20",
            "image_size": 64,
            "resize_ratio": 1.0,
        },
        "quickstart": {"source": "photos", "image_size": 32, "resize_ratio": 1.0},
        "smoke": {"source": "photos", "image_size": 32, "resize_ratio": 1.0},
    }[variant]
    config.encoder = {
        "imagenet": {"name": "base", "patch_size": 16},
        "tiny_imagenet": {"name": "tiny", "patch_size": 8},
        "quickstart": {"name": "micro", "patch_size": 8},
        "smoke": {"name": "micro", "patch_size": 8},
    }[variant]
    config.train = {
        "imagenet": {"batch_size": 1024, "duration": {"epochs": 100}},
        "tiny_imagenet": {"batch_size": 64, "duration": {"epochs": 1}, "log_every": {"steps": 10}},
        "quickstart": {
            "batch_size": 128,
            "duration": {"epochs": 20},
            "log_every": {"steps": 10},
            "checkpoint_every": {"epochs": 5},
        },
        "smoke": {"batch_size": 16, "duration": {"steps": 8}, "log_every": {"steps": 2}},
    }[variant]
    config.optimizer = {
        "imagenet": {"base_lr": base_lr, "warmup": {"epochs": 20}},
        "tiny_imagenet": {"base_lr": 1e-3, "warmup": {"epochs": 0.1}},
        "quickstart": {"base_lr": 4e-3, "warmup": {"epochs": 2}},
        "smoke": {"base_lr": 4e-3, "warmup": {"steps": 2}},
    }[variant]
    return config
