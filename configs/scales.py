"""A helper for the other configs, not a config itself: the data and the encoder of each variant.

They are the same for pretraining and for training on labels.

imagenet        the paper's: ViT-B/16 on ImageNet at 224²
tiny_imagenet   ViT-tiny with patch 8 on a folder of 64² images
quickstart      four small blocks on scikit-learn's digits at 16², for two CPU cores
smoke           the same for a few steps
"""

from ml_collections import ConfigDict

DIGITS = {
    "source": "digits",
    "image_size": 16,
    "resize_ratio": 1.0,
    # A mirrored or severely cropped digit is another digit, or none.
    "crop_scale": (0.5, 1.0),
    "flip": False,
}
DATA = {
    "imagenet": {"source": "tfds:imagenet2012", "image_size": 224},
    "tiny_imagenet": {"source": "folder:tiny_imagenet_20", "image_size": 64, "resize_ratio": 1.0},
    "quickstart": DIGITS,
    "smoke": DIGITS,
}
ENCODER = {
    "imagenet": {"name": "base", "patch_size": 16},
    "tiny_imagenet": {"name": "tiny", "patch_size": 8},
    "quickstart": {"name": "micro", "patch_size": 4},
    "smoke": {"name": "micro", "patch_size": 4},
}
VARIANTS = tuple(DATA)


def scale(variant: str) -> ConfigDict:
    """Return the sections `data` and `encoder`, and a seed."""
    return ConfigDict({"seed": 0, "data": DATA[variant], "encoder": ENCODER[variant]})


def scale_of_labels(variant: str) -> ConfigDict:
    """Return the same for a run that may start from another.

    It takes the encoder and the image size from the run of `init_from`. Without that run, they are
    those of `from_scratch`.
    """
    data = dict(DATA[variant])
    from_scratch = {"data": {"image_size": data.pop("image_size")}, "encoder": ENCODER[variant]}
    config = {"data": data, "encoder": {}, "from_scratch": from_scratch}
    return ConfigDict({"seed": 0, "init_from": None, **config})
