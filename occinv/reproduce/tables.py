"""The paper's tables: which rows, what is measured, what the paper has, what is claimed."""

from __future__ import annotations

import itertools
from typing import Any

from occinv.reproduce.definition import SCALES, Claim, Row, Table
from occinv.reproduce.grid import grid_table
from occinv.reproduce.methods import (
    BEIT,
    CAE,
    CMAE,
    CMAE_400,
    CMAE_BOTH,
    CMAE_BYOL,
    CMAE_CLASS,
    CMAE_DROPPED,
    CMAE_DROPPED_BYOL,
    CMAE_MEAN,
    CMAE_ONE_WAY,
    DINO,
    MAE,
    MAE_400,
    MAE_COLOR_IMAGE,
    MAE_COLOR_INPUT,
    MOCOV3,
    RANDOM,
    RANDOM_200,
    RANDOM_300,
    RMAE,
    RMAE_IDENTITY,
    RMAE_INDEPENDENT,
    STRONGER,
    Method,
    augmented,
    on_few_images,
)
from occinv.schema import UserError, nearest

TABLES = ("quickstart", *(f"table{n}" for n in range(1, 9)), "figure1", "grid")

CMAE_NOTE = (
    "C-MAE is its variant of Tables 3 and 4 that drops patches and compares their mean, one way "
    "only, to save time."
)
PROBE_NOTE = (
    "Linear probes take the class token, as the official MAE does, but the mean patch token of "
    "C-MAE and of supervised encoders, whose objectives do not train the class token."
)


def make_table(key: str, scale: str, images: int | None = None) -> Table:
    """A table of the paper, or `quickstart`.

    Args:
      images: that Tables 7 and 8 pretrain on; None: those of the scale.

    Raises UserError for an unknown name, and `images` for another table.
    """
    if key not in TABLES:
        raise UserError(f"no table {key!r}{nearest(key, TABLES)}")
    if scale not in SCALES:
        raise UserError(f"--scale {scale!r}{nearest(scale, SCALES)}")
    if images is not None and key not in ("table7", "table8"):
        raise UserError(f"--images {images}: only table7 and table8 pretrain on a number of images")
    number = SCALES[scale][1] if images is None else images
    if key == "table7":
        return _table7(number)
    if key == "table8":
        return _table8(number)
    if key == "table5":
        return _table5(scale)
    if key == "grid":
        return grid_table()
    return {
        "quickstart": QUICKSTART,
        "table1": TABLE1,
        "table2": TABLE2,
        "table3": TABLE3,
        "table4": TABLE4,
        "table6": TABLE6,
        "figure1": FIGURE1,
    }[key]


def _ft(accuracy: float, psnr: float | None = None) -> dict[str, float]:
    return {"finetune": accuracy} if psnr is None else {"finetune": accuracy, "psnr": psnr}


def _three(linear: float, finetune: float, tenth: float) -> dict[str, float]:
    return {"linear": linear, "finetune": finetune, "tenth": tenth}


RMAE_ROWS = (
    Row("R-MAE", RMAE, _ft(82.7, 23.7)),
    Row("R-MAE†", RMAE_INDEPENDENT, _ft(82.8, 23.0)),
    Row("R-MAE‡", RMAE_IDENTITY, _ft(82.7, 22.9)),
)
LEVEL = tuple(
    Claim(f"{row.name} is level with MAE", row.key, "mae", relation="level") for row in RMAE_ROWS
)

QUICKSTART = Table(
    key="quickstart",
    subject="Which invariance makes a good initialization?",
    rows=(
        Row("Random init", RANDOM, _ft(80.9)),
        Row("MAE", MAE, _ft(83.1, 22.2)),
        *RMAE_ROWS,
        Row("C-MAE", CMAE_ONE_WAY, _ft(82.9), own_key="cmae"),
        Row("MoCo v3", MOCOV3, _ft(83.2), 300, by_default=False),
        Row("DINO", DINO, _ft(82.8), 800, by_default=False),
    ),
    columns=("finetune", "psnr"),
    has_cka=True,
    notes=(CMAE_NOTE,),
)

TABLE1 = Table(
    key="table1",
    subject="R-MAE against MAE and other objectives",
    rows=(
        Row("Random init", RANDOM, _ft(80.9)),
        Row("Random init, 3 × as long", RANDOM_300, _ft(82.1), 300),
        Row("MoCo v3", MOCOV3, _ft(83.2), 300),
        Row("DINO", DINO, _ft(82.8), 800),
        Row("BEiT", BEIT, _ft(82.9), 300),
        Row("MAE (published)", None, _ft(83.6, 19.3), 1600, own_key="mae_published"),
        Row("CAE", CAE, _ft(83.3), 300),
        Row("MAE", MAE, _ft(83.1, 22.2)),
        *RMAE_ROWS,
    ),
    columns=("finetune", "psnr"),
    claims=(
        Claim("MAE lies above a random start", "mae", "random"),
        Claim("R-MAE lies above a random start", "rmae", "random"),
        *LEVEL,
        Claim("R-MAE reconstructs better than MAE", "rmae", "mae", "psnr"),
    ),
)

TABLE2 = Table(
    key="table2",
    subject="C-MAE against MAE and other objectives",
    rows=(
        Row("Random init", RANDOM, _ft(80.9)),
        Row("MoCo v3", MOCOV3, _ft(83.2), 300),
        Row("DINO", DINO, _ft(82.8), 800),
        Row("MAE (published)", None, _ft(83.6), 1600, own_key="mae_published"),
        Row("MAE", MAE, _ft(83.1)),
        Row("C-MAE", CMAE, _ft(82.9)),
        Row("MAE, 4 × as long", MAE_400, _ft(83.2), 400),
        Row("C-MAE, 4 × as long", CMAE_400, _ft(83.1), 400),
    ),
    columns=("finetune",),
    claims=(
        Claim("C-MAE is level with MAE", "cmae", "mae", relation="level"),
        Claim(
            "C-MAE is level with MAE after training longer",
            "cmae_400",
            "mae_400",
            relation="level",
        ),
        Claim("C-MAE lies above a random start", "cmae", "random"),
    ),
)

TABLE3 = Table(
    key="table3",
    subject="The tokens that C-MAE's loss is taken on",
    rows=(
        Row("class token", CMAE_CLASS, _ft(82.5)),
        Row("mean of patch tokens", CMAE_MEAN, _ft(82.6)),
        Row("each patch token", CMAE, _ft(82.9)),
        Row("patch and class tokens", CMAE_BOTH, _ft(82.9)),
    ),
    columns=("finetune",),
    claims=(
        Claim("Each patch token lies above the class token", "cmae", "cmae_class"),
        Claim("Each patch token lies above their mean", "cmae", "cmae_mean"),
        Claim("The class token adds nothing", "cmae_both", "cmae", relation="level"),
    ),
)

TABLE4 = Table(
    key="table4",
    subject="The parts of C-MAE, and MAE with its color jitter",
    rows=(
        Row("MAE", MAE, _three(54.5, 83.1, 67.5)),
        Row("MAE, color of the whole image", MAE_COLOR_IMAGE, _three(53.4, 83.1, 67.3)),
        Row("MAE, color of the unmasked only", MAE_COLOR_INPUT, _three(54.0, 83.0, 67.3)),
        Row("C-MAE", CMAE, _three(41.1, 82.9, 66.4)),
        Row("C-MAE w/o mask token", CMAE_DROPPED, _three(56.2, 82.6, 67.5)),
        Row("C-MAE, BYOL", CMAE_BYOL, _three(26.9, 82.8, 65.2)),
        Row("C-MAE w/o mask token, BYOL", CMAE_DROPPED_BYOL, _three(55.2, 82.5, 66.1)),
    ),
    columns=("linear", "finetune", "tenth"),
    claims=(
        Claim("Color jitter does not change MAE", "mae_color_image", "mae", relation="level"),
        Claim("Nor that of the unmasked part", "mae_color_input", "mae", relation="level"),
        Claim("C-MAE is level with MAE after fine-tuning", "cmae", "mae", relation="level"),
        Claim("MAE's features are more linear than C-MAE's", "mae", "cmae", "linear"),
        Claim("C-MAE's are more so without its mask token", "cmae_dropped", "cmae", "linear"),
        Claim("InfoNCE is level with BYOL", "cmae", "cmae_byol", relation="level"),
    ),
    notes=(PROBE_NOTE,),
)

# By patch masking, CutMix, color: the order of the paper's columns, whose marks the PDF has lost.
TABLE5_PAPER = {
    (False, False, False): (71.9, 80.0),
    (True, False, False): (87.1, 86.5),
    (False, True, False): (83.3, 83.5),
    (False, False, True): (81.6, 82.8),
    (True, True, False): (86.1, 86.9),
    (True, False, True): (85.5, 86.8),
    (False, True, True): (83.8, 83.1),
    (True, True, True): (86.4, 87.1),
}


def _table5(scale: str) -> Table:
    rows = [Row("Supervised, 2 × as long", RANDOM_200, _ft(81.6), 200)]
    for place, (name, method) in enumerate((("MAE", MAE), ("C-MAE", CMAE))):
        for axes, accuracies in TABLE5_PAPER.items():
            words = [w for w, on in zip(("patch", "cutmix", "color"), axes, strict=True) if on]
            label = f"{name}: {' + '.join(words) or 'none'}"
            rows.append(Row(label, augmented(method, *axes), _ft(accuracies[place])))
    beside = {
        "": "",
        "_cutmix": ", beside CutMix",
        "_color": ", beside color",
        "_cutmix_color": ", beside both",
    }
    with_and_without = [
        Claim(
            f"{name} loses without patch masking{words}",
            f"{key}_patch{rest}",
            f"{key}{rest or '_none'}",
        )
        for (name, key), (rest, words) in itertools.product(
            (("MAE", "mae"), ("C-MAE", "cmae")), beside.items()
        )
    ]
    # ViT-S on 100 of ImageNet's classes; which ones the paper does not say.
    at_paper = ("encoder.name=small", "data.source=folder:imagenet100")
    return Table(
        key="table5",
        subject="Patch masking, CutMix and color jitter, each on or off",
        rows=tuple(rows),
        columns=("finetune",),
        claims=tuple(with_and_without),
        overrides=at_paper if scale == "paper" else (),
        group="table5" if scale == "paper" else "",
        paper_setting="ViT-S, ImageNet-100",
        notes=(
            "CutMix and color change what MAE's encoder sees; its target stays the pixels that "
            "were there. The paper leaves this open.",
        ),
    )


def _table6_rows() -> tuple[Row, ...]:
    rows = [
        Row("Random init", RANDOM, _ft(80.9)),
        Row("Random init, 3 × as long", RANDOM_300, _ft(82.1), 300),
        Row(
            "1 image, stronger",
            on_few_images(MAE, 1, "random", *STRONGER, length=0.05),
            _ft(82.3),
            5,
        ),
    ]
    # Which of a pair has the stronger augmentation is lost in the PDF: only equal figures stand.
    for count, (plain, stronger), paper in (
        (10, (2, 5), None),
        (100, (10, 10), None),
        (1000, (100, 100), 82.2),
    ):
        for epochs, name, overrides in ((plain, "", ()), (stronger, ", stronger", STRONGER)):
            method = on_few_images(MAE, count, "random", *overrides, length=epochs / 100)
            figures = {} if paper is None else _ft(paper)
            rows.append(Row(f"{count} images{name}", method, figures, epochs))
    return tuple(rows)


TABLE6 = Table(
    key="table6",
    subject="MAE pretrained on 1 to 1000 images",
    rows=_table6_rows(),
    columns=("finetune",),
    claims=(
        Claim("One image lies above a random start", "mae_1_random_stronger_5", "random"),
        Claim(
            "One image is level with training three times as long",
            "mae_1_random_stronger_5",
            "random_300",
            relation="level",
        ),
        Claim(
            "A thousand images are level with one",
            "mae_1000_random_stronger",
            "mae_1_random_stronger_5",
            relation="level",
        ),
    ),
    notes=(
        "An epoch on few images is as long as one on all. Stronger augmentation: crops from 8 % of "
        "the image on, RandAugment, color jitter. Both the paper leaves open.",
    ),
)


def _table7(count: int) -> Table:
    rows = tuple(
        Row(name, on_few_images(MAE, count, choose), _ft(82.2))
        for name, choose in (
            (f"{count} images of one class", "one_class"),
            (f"{count} images at random", "random"),
            (f"{count} images, one per class", "one_per_class"),
        )
    )
    one, _, each = (row.key for row in rows)
    return Table(
        key="table7",
        subject="Which images MAE is pretrained on, where they are few",
        rows=rows,
        columns=("finetune",),
        claims=(Claim("One class is level with all", one, each, relation="level"),),
    )


def _table8(count: int) -> Table:
    def few(method: Method) -> Method:
        return on_few_images(method, count, "one_per_class")

    supervised = Method("supervised", "supervised", cost=1.0, transformation="none", pooling="mean")
    rows = (
        Row("Random init", RANDOM, _three(6.1, 80.9, 34.9), None),
        Row("Supervised", few(supervised), _three(33.1, 81.0, 52.6)),
        Row("MoCo v3", few(MOCOV3), _three(37.3, 79.2, 45.8)),
        Row("MAE", few(MAE), _three(13.8, 82.2, 57.6)),
        Row("R-MAE", few(RMAE), _three(25.9, 82.1, 58.8)),
        Row("C-MAE", few(CMAE), _three(20.1, 82.1, 61.9)),
    )
    random, supervised_key, moco, mae, rmae, cmae = (row.key for row in rows)
    return Table(
        key="table8",
        subject=f"Every objective pretrained on {count} images, one per class",
        rows=rows,
        columns=("linear", "finetune", "tenth"),
        claims=(
            Claim("MAE lies above a random start", mae, random),
            Claim("R-MAE lies above a random start", rmae, random),
            Claim("C-MAE lies above a random start", cmae, random),
            Claim("MAE lies above supervised pretraining", mae, supervised_key),
            Claim("MAE lies above MoCo v3", mae, moco),
            Claim("MoCo v3's features are more linear than MAE's", moco, mae, "linear"),
        ),
        notes=(PROBE_NOTE,),
    )


FIGURE1 = Table(
    key="figure1",
    subject="Do features of an occluded image stay those of the whole one?",
    rows=(
        Row("Supervised", RANDOM, {}),
        Row("MoCo v3", MOCOV3, {}, 300),
        Row("MAE", MAE, {}),
        Row("R-MAE", RMAE, {}),
        Row("C-MAE", CMAE, {}),
    ),
    columns=("finetune",),
    has_cka=True,
)


def choose(table: Table, rows: str | None) -> tuple[Row, ...]:
    """The rows with these keys, in the table's order, and then those that it makes by name.

    Args:
      rows: keys separated by commas, `all`, or None for those that run by default.

    Raises UserError for an unknown key, and for one that cannot be.
    """
    known: dict[str, Any] = {row.key: row for row in table.rows}
    if rows is None:
        return tuple(row for row in table.rows if row.by_default)
    keys = list(known) if rows == "all" else rows.split(",")
    for key in keys:
        if key not in known and table.other is not None:
            known[key] = table.other(key)
        if key not in known:
            raise UserError(f"--rows has {key!r}{nearest(key, [*known, 'all'])}")
    return tuple(row for key, row in known.items() if key in keys)
