"""The study of the paper's conclusions on two cores: its rows and claims (docs/study.md)."""

from __future__ import annotations

import dataclasses

from occinv.report.results import Claim
from occinv.reproduce import methods
from occinv.reproduce.specs import BOTH, RowSpec, TableSpec

FEW = 100  # images
DATA = "data.source=folder:runs/study/images"
# The number of training images, and their pixels a side: the noise images are as many and as large.
SIZES = {"smoke": "1442x16", "quickstart": "1442x16", "small": "8000x64", "paper": "1281167x224"}
# A ViT of 4 blocks × 96 with 36 patches, for every stage.
SMALL = (
    "data.image_size=48",
    "encoder.name=micro",
    "encoder.width=96",
    "encoder.depth=4",
    "encoder.heads=3",
    "encoder.patch_size=8",
)
MARGIN = 1.0  # points

MAE_FEW = methods.on_few_images(methods.MAE, FEW, "random")


def augmented(name: str, method: methods.Method) -> tuple[RowSpec, ...]:
    """The rows of an objective without patch masking: by color, by CutMix, and by neither."""
    rows = []
    for words in ("color only", "CutMix only", "nothing"):
        changed = methods.augmented(method, False, words == "CutMix only", words == "color only")
        rows.append(RowSpec(f"{name}, {words}", changed, epochs=None))
    return tuple(rows)


def concluding(conclusion: str, *claims: Claim) -> tuple[Claim, ...]:
    """The claims of one conclusion."""
    return tuple(dataclasses.replace(claim, conclusion=conclusion) for claim in claims)


def study_table(scale: str) -> TableSpec:
    """The table of the study. Its own encoder and data are those of scale `small`."""
    is_small = scale == "small"
    source = f"data.source=occinv.data.noise:Noise:{SIZES[scale]}"
    noise = MAE_FEW.variant("mae_noise", fixed=(source,))
    claims = [
        *concluding(
            "Pretraining is better than random initialization",
            Claim("MAE is better than random initialization", "mae", "random"),
            Claim("R-MAE is better than random initialization", "rmae", "random"),
            Claim("C-MAE is better than random initialization", "cmae", "random"),
            Claim("MAE is better than random initialization, 3 × as long", "mae", "random_300"),
        ),
        *concluding(
            "R-MAE and C-MAE are level with MAE",
            Claim("R-MAE matches MAE", "rmae", "mae", relation="equal", within=MARGIN),
            Claim("C-MAE matches MAE", "cmae", "mae", relation="equal", within=MARGIN),
        ),
        *concluding(
            "Each patch token is the better choice for C-MAE",
            Claim("Each patch token is better than the class token", "cmae", "cmae_class"),
            Claim("Each patch token is better than their mean", "cmae", "cmae_mean"),
        ),
        *concluding(
            "Patch masking matters more than color and CutMix",
            *(
                Claim(
                    f"{name} is better with patch masking than with {words}", key, f"{key}_{other}"
                )
                for name, key in (("MAE", "mae"), ("C-MAE", "cmae"))
                for words, other in (("color", "color"), ("CutMix", "cutmix"), ("nothing", "none"))
            ),
        ),
        *concluding(
            "A few images are enough",
            Claim(
                f"MAE on {FEW} images is better than random initialization", MAE_FEW.key, "random"
            ),
            Claim(f"MAE on {FEW} images is better than on noise", MAE_FEW.key, "mae_noise"),
        ),
    ]
    return TableSpec(
        key="study",
        subject="The paper's conclusions on small images",
        rows=(
            RowSpec("Random init", methods.RANDOM, epochs=None),
            RowSpec("Random init, 3 × as long", methods.RANDOM_300, epochs=None),
            RowSpec("MAE", methods.MAE, epochs=None),
            RowSpec("R-MAE", methods.RMAE, epochs=None),
            RowSpec("C-MAE", methods.CMAE, epochs=None),
            RowSpec("C-MAE, class token", methods.CMAE_CLASS, epochs=None),
            RowSpec("C-MAE, mean token", methods.CMAE_MEAN, epochs=None),
            *augmented("MAE", methods.MAE),
            *augmented("C-MAE", methods.CMAE),
            RowSpec(f"MAE, {FEW} images", MAE_FEW, epochs=None),
            RowSpec(f"MAE, {FEW} noise images", noise, epochs=None),
        ),
        columns=("finetune", "retrieval", "occlusion"),
        cka=BOTH,
        claims=tuple(claims),
        overrides=(DATA, *SMALL) if is_small else (),
        subfolder="study" if is_small else "",
    )
