"""Linear probing: a linear layer on the frozen features of an encoder.

    occinv train --config linear --workdir runs/mae-probed --config.init_from=runs/mae

The settings of the official MAE (`main_linprobe.py`), which the paper shares. Table 4 has 54.5 %
for MAE and 41.1 % for C-MAE after 100 epochs of pretraining. Table 8 is of encoders pretrained on
1000 images, while the probe is trained on all of ImageNet: random features (no `init_from`) 6.1 %,
MAE 13.8 %, R-MAE 25.9 %, C-MAE 20.1 %.

An image costs one forward pass, a third of its cost in fine-tuning. A batch is 16384 images, which
a few devices cannot hold; with `--config.train.batch_size=4096` the learning rate is scaled, too.

Each of `lr_factors` has its own head, trained at factor · learning rate; heads cost little beside
the encoder. The factors 0.1, 0.3, 1 and 3 lie around the official rate, which was tuned for one
encoder. LARS scales each step by the weight norm and there is no weight decay, so large rates can
overflow: at ten times the official rate, weights can overflow float32 in 7000 steps. `top1` is that
of the best head, chosen on the evaluation images.

With `objective.pooling=attentive` each head has a query that attends to the patch tokens, as the
attentive probe of CAE.

Variants: configs/scales.py. The small ones have few steps, so they take larger ones (the trust
coefficient). On quickstart: 61 % for random features, 81 % after configs/mae.py:quickstart.
"""

from ml_collections import ConfigDict

from occinv.configs.scales import VARIANTS, scale_of_labels

__all__ = ["VARIANTS", "get_config"]


def get_config(variant: str = "imagenet") -> ConfigDict:
    config = scale_of_labels(variant)
    config.objective = {
        "name": "linear_probe",
        "pooling": "class",
        "lr_factors": (0.1, 0.3, 1.0, 3.0),
    }
    if variant == "imagenet":
        config.data.crop_scale = (0.08, 1.0)
    config.train = {
        "imagenet": {
            "batch_size": 16384,
            "duration": {"epochs": 90},
            "evaluate_every": {"epochs": 10},
        },
        "tiny_imagenet": {"batch_size": 256, "duration": {"epochs": 10}},
        "quickstart": {
            "batch_size": 64,
            "duration": {"epochs": 16},
            "log_every": {"steps": 20},
            "checkpoint_every": {"epochs": 8},
        },
        "smoke": {"batch_size": 16, "duration": {"steps": 8}, "log_every": {"steps": 2}},
    }[variant]
    config.optimizer = {
        "imagenet": {"base_lr": 0.1, "warmup": {"epochs": 10}},
        "tiny_imagenet": {"base_lr": 4.0, "warmup": {"share": 0.1}, "trust_coefficient": 0.02},
        "quickstart": {"base_lr": 8.0, "warmup": {"share": 0.125}, "trust_coefficient": 0.02},
        "smoke": {"base_lr": 8.0, "warmup": {"share": 0.25}, "trust_coefficient": 0.02},
    }[variant]
    config.optimizer.update({"name": "lars", "weight_decay": 0.0})
    return config
