"""The pretraining methods of the paper's tables. Tables share methods and their runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to pretrain an encoder.

    Attributes:
      key: The name of its folder. In one workdir, a key always means the same method.
      config: The file in configs/ that pretrains it; None for random initialization.
      overrides: `section.field=value` for that config.
      fixed: The same, but neither the table nor an option changes them.
      length: The factor of the config's duration; below 1 also of its warm-up. Without
        pretraining, it is that of the supervised training.
      warmup: The factor of its warm-up; None: `length`, but at most 1.
      cost: The time of pretraining in units of one fine-tuning, for the progress bar.
      transformation: One word for T1 and T2.
      reconstructs: Whether it has a decoder, and so a PSNR.
      pooling: The input of the linear probe: the class token, as in the official MAE code, or the
        mean patch token, for objectives that do not train the class token.
      workdir: The folder of an existing encoder, which replaces pretraining.
    """

    key: str
    config: str | None
    overrides: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    length: float = 1.0
    warmup: float | None = None
    cost: float = 0.0
    transformation: str = "patch masking"
    reconstructs: bool = False
    pooling: Literal["class", "mean"] = "class"
    workdir: Path | None = None

    def variant(self, key: str, *overrides: str, **changes: Any) -> Method:
        """The same method with another key, more overrides, and changed attributes."""
        overrides = (*self.overrides, *overrides)
        return dataclasses.replace(self, key=key, overrides=overrides, **changes)


CROPS = "crop, color, blur"

RANDOM = Method("random", None, transformation="none")
RANDOM_200 = RANDOM.variant("random_200", length=2.0)
RANDOM_300 = RANDOM.variant("random_300", length=3.0)
SUPERVISED = Method("supervised", "supervised", cost=1.0, transformation="none", pooling="mean")
MOCOV3 = Method("mocov3", "mocov3", cost=4.2, transformation=CROPS)
DINO = Method("dino", "dino", cost=5.5, transformation=CROPS)
BEIT = Method("beit", "beit", cost=2.6, transformation="rectangle masking", pooling="mean")
CAE = BEIT.variant("cae", config="cae", cost=3.0)
DATA2VEC = BEIT.variant("data2vec", config="data2vec", cost=3.0)
MASKFEAT = BEIT.variant("maskfeat", config="maskfeat", cost=2.3)
SIMMIM = Method("simmim", "simmim", cost=2.3, pooling="mean")
IJEPA = Method("ijepa", "ijepa", cost=2.4, transformation="rectangle masking", pooling="mean")
IBOT = Method("ibot", "ibot", cost=7.2, transformation=f"{CROPS}, masking")
MSN = Method("msn", "msn", cost=4.3, transformation=f"{CROPS}, masking")
MAE = Method("mae", "mae", cost=1.5, reconstructs=True)
MAE_400 = MAE.variant("mae_400", length=4.0)
MAE_COLOR = MAE.variant("mae_color", "objective.color={}", cost=1.8)
MAE_COLOR_IMAGE = MAE_COLOR.variant("mae_color_image", "objective.augmented=image")
MAE_COLOR_INPUT = MAE_COLOR.variant("mae_color_input", "objective.augmented=input")
RMAE = Method("rmae", "rmae", cost=4.2, reconstructs=True)
RMAE_INDEPENDENT = RMAE.variant("rmae_independent", "objective.t2=independent")
RMAE_IDENTITY = RMAE.variant("rmae_identity", "objective.t2=identity", cost=4.8)
CMAE = Method("cmae", "cmae", cost=8.0, pooling="mean")
CMAE_400 = CMAE.variant("cmae_400", length=4.0)
CMAE_CLASS = CMAE.variant("cmae_class", "objective.tokens=class", pooling="class")
CMAE_MEAN = CMAE.variant("cmae_mean", "objective.tokens=mean")
CMAE_BOTH = CMAE.variant("cmae_both", "objective.tokens=patch+class", pooling="class")
CMAE_BYOL = CMAE.variant("cmae_byol", "objective.similarity=byol")
# Without a mask token, complementary views share no patch. The paper does not say what it compares.
DROPPED = "objective.mask_token=False"
CMAE_DROPPED = CMAE.variant("cmae_dropped", DROPPED, "objective.t2=identity")
CMAE_DROPPED_BYOL = CMAE_DROPPED.variant("cmae_dropped_byol", "objective.similarity=byol")
CMAE_DROPPED_QUERIES = CMAE.variant(
    "cmae_dropped_queries", DROPPED, "objective.predictor=queries", cost=6.0
)
CMAE_DROPPED_MEAN = CMAE_MEAN.variant("cmae_dropped_mean", DROPPED, cost=6.0)
CMAE_DROPPED_CLASS = CMAE_CLASS.variant("cmae_dropped_class", DROPPED, cost=6.0)

# Table 6: crops of at least 8 % of the image, RandAugment, and color jitter of the whole image.
STRONGER = (
    "data.crop_scale=(0.08, 1.0)",
    "data.rand_augment=True",
    "objective.color={}",
    "objective.augmented=image",
)


# Table 8 pretrains every objective for 100 epochs. The official MoCo v3 trains 300 at batch 4096.
AS_LONG_AS_MAE = (
    "train.batch_size=1024",
    "train.duration.epochs=100",
    "optimizer.warmup.epochs=20",
)


def on_few_images(
    method: Method, num_images: int, choose: str, *overrides: str, length: float = 1.0
) -> Method:
    """The method pretrained on `num_images` images (Tables 6 to 8), with a key that says so."""
    words = [method.key, str(num_images), choose]
    if overrides:
        words.append("stronger")
    if length != 1:
        words.append(f"{100 * length:g}")
    few = (f"data.num_images={num_images}", f"data.choose={choose}")
    return method.variant("_".join(words), *few, *overrides, length=length)


def augmented(method: Method, masking: bool, cutmix: bool, color: bool) -> Method:
    """The method with each transformation of Table 5 on or off."""
    switches = {"patch": masking, "cutmix": cutmix, "color": color}
    words = [name for name, is_on in switches.items() if is_on]
    return method.variant(
        "_".join([method.key, *(words or ["none"])]),
        f"objective.mask_ratio={0.75 if masking else 0.0}",
        f"objective.cutmix={1.0 if cutmix else 0.0}",
        f"objective.color={'{}' if color else None}",
        transformation="patch masking" if masking else " and ".join(words) or "none",
        reconstructs=False,
    )
