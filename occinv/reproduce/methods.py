"""How each encoder of the paper's tables is pretrained. Tables share these, and so their runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to an encoder.

    Attributes:
      key: of its folder; what it stands for never changes within a workdir.
      config: the file in configs/ that pretrains it; None: random initialization.
      overrides: `section.field=value` for that config.
      length: times the config's duration and warm-up. Without pretraining it is that of the
        supervised training.
      cost: of pretraining, in units of a fine-tuning; only the time left depends on it.
      transformation: in a word, what makes T1 and T2.
      reconstructs: whether it has a decoder, and so a PSNR.
      pooling: of the linear probe: the class token, as in the official MAE, or the mean patch token
        where nothing has trained the class token.
      start: the workdir of an encoder that is there already, in place of pretraining.
    """

    key: str
    config: str | None
    overrides: tuple[str, ...] = ()
    length: float = 1.0
    cost: float = 0.0
    transformation: str = "patch masking"
    reconstructs: bool = False
    pooling: Literal["class", "mean"] = "class"
    start: Path | None = None

    def but(self, key: str, *overrides: str, **changes: object) -> Method:
        """The same with another key, further overrides and other attributes."""
        changed = {"key": key, "overrides": (*self.overrides, *overrides), **changes}
        return dataclasses.replace(self, **changed)  # type: ignore[arg-type]


CROPS = "crop, color, blur"

RANDOM = Method("random", None, transformation="none")
RANDOM_200 = RANDOM.but("random_200", length=2.0)
RANDOM_300 = RANDOM.but("random_300", length=3.0)
MOCOV3 = Method("mocov3", "mocov3", cost=4.2, transformation=CROPS)
DINO = Method("dino", "dino", cost=5.5, transformation=CROPS)
MAE = Method("mae", "mae", cost=1.5, reconstructs=True)
MAE_400 = MAE.but("mae_400", length=4.0)
MAE_COLOR_IMAGE = MAE.but(
    "mae_color_image", "objective.color={}", "objective.augmented=image", cost=1.8
)
MAE_COLOR_INPUT = MAE.but(
    "mae_color_input", "objective.color={}", "objective.augmented=input", cost=1.8
)
BEIT = Method("beit", "beit", cost=2.6, transformation="masking of blocks", pooling="mean")
CAE = BEIT.but("cae", config="cae", cost=3.0)
RMAE = Method("rmae", "rmae", cost=4.2, reconstructs=True)
RMAE_INDEPENDENT = RMAE.but("rmae_independent", "objective.t2=independent")
RMAE_IDENTITY = RMAE.but("rmae_identity", "objective.t2=identity", cost=4.8)
CMAE = Method("cmae", "cmae", cost=8.0, pooling="mean")
CMAE_400 = CMAE.but("cmae_400", length=4.0)
CMAE_CLASS = CMAE.but("cmae_class", "objective.tokens=class", pooling="class")
CMAE_MEAN = CMAE.but("cmae_mean", "objective.tokens=mean")
CMAE_BOTH = CMAE.but("cmae_both", "objective.tokens=patch+class", pooling="class")
CMAE_DROPPED = CMAE.but(
    "cmae_dropped", "objective.tokens=mean", "objective.mask_token=False", cost=6.0
)
# What `quickstart` has time for.
CMAE_ONE_WAY = CMAE_DROPPED.but("cmae_one_way", "objective.symmetric=False", cost=4.4)
CMAE_BYOL = CMAE.but("cmae_byol", "objective.similarity=byol")
CMAE_DROPPED_BYOL = CMAE_DROPPED.but("cmae_dropped_byol", "objective.similarity=byol")

# Table 6: crops from 8 % of the image on, RandAugment, and a color jitter of the whole image.
STRONGER = (
    "data.crop_scale=(0.08, 1.0)",
    "data.rand_augment=True",
    "objective.color={}",
    "objective.augmented=image",
)


def on_few_images(
    method: Method, num_images: int, choose: str, *overrides: str, length: float = 1.0
) -> Method:
    """The method pretrained on so few images (Tables 6 to 8), which its key names."""
    words = [method.key, str(num_images), choose]
    if overrides:
        words.append("stronger")
    if length != 1:
        words.append(f"{100 * length:g}")
    few = (f"data.num_images={num_images}", f"data.choose={choose}")
    return method.but("_".join(words), *few, *overrides, length=length)


def augmented(method: Method, masking: bool, cutmix: bool, color: bool) -> Method:
    """The method with each of Table 5's transformations on or off."""
    words = [
        name for name, is_on in (("patch", masking), ("cutmix", cutmix), ("color", color)) if is_on
    ]
    return method.but(
        "_".join([method.key, *(words or ["none"])]),
        f"objective.mask_ratio={0.75 if masking else 0.0}",
        f"objective.cutmix={1.0 if cutmix else 0.0}",
        f"objective.color={'{}' if color else None}",
        transformation="patch masking" if masking else " and ".join(words) or "none",
        reconstructs=False,
    )
