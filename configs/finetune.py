"""Fine-tuning an encoder on labels, end to end.

    occinv train --config finetune --workdir runs/mae-finetuned \\
        --config.init_from=runs/mae

The paper's settings, which are those of the official MAE. Table 1 has 83.1 % for MAE after 100
epochs of each.

The run takes the encoder and the image size from `init_from`; `--config.data.image_size=384` sets
another size. `--config.data.fraction=0.1` fine-tunes on 10 % of the labels. Variants:
configs/scales.py.
"""

from ml_collections import ConfigDict

from occinv.configs.scales import VARIANTS, scale_of_labels

__all__ = ["VARIANTS", "get_config"]

ADAMW = {"betas": (0.9, 0.999), "min_lr": 1e-6, "decay": "kernels"}


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = scale_of_labels(variant)
    config.objective = {"name": "classification", "pooling": "mean", "label_smoothing": 0.1}
    config.encoder.train_position = True
    config.encoder.drop_path = 0.0 if variant == "quickstart" else 0.1
    if variant == "imagenet":
        config.data.crop_scale = (0.08, 1.0)
        config.data.rand_augment = True
        config.objective.update({"mixup": 0.8, "cutmix": 1.0, "erase": 0.25})
    config.train = {
        "imagenet": {
            "batch_size": 1024,
            "duration": {"epochs": 100},
            "evaluate_every": {"epochs": 1},
        },
        "tiny_imagenet": {"batch_size": 64, "duration": {"epochs": 10}},
        "quickstart": {
            "batch_size": 64,
            "duration": {"epochs": 8},
            "log_every": {"steps": 20},
            "checkpoint_every": {"epochs": 4},
            "evaluate_every": {"epochs": 2},
        },
        "smoke": {"batch_size": 16, "duration": {"steps": 8}, "log_every": {"steps": 2}},
    }[variant]
    config.optimizer = {
        "imagenet": {"base_lr": 1e-3, "warmup": {"epochs": 5}, "layer_decay": 0.65, **ADAMW},
        "tiny_imagenet": {"base_lr": 8e-3, "warmup": {"share": 0.1}, "layer_decay": 0.75, **ADAMW},
        "quickstart": {"base_lr": 1.6e-2, "warmup": {"share": 0.125}, "layer_decay": 0.75, **ADAMW},
        "smoke": {"base_lr": 8e-3, "warmup": {"share": 0.25}, "layer_decay": 0.75, **ADAMW},
    }[variant]
    return config
