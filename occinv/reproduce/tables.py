"""The paper's tables: their rows, measurements, numbers and claims."""

from __future__ import annotations

import itertools
from dataclasses import replace

from occinv.report.results import Claim
from occinv.reproduce import methods
from occinv.reproduce.batch import batch_table
from occinv.reproduce.grid import grid_table
from occinv.reproduce.specs import BOTH, LINEAR, SCALES, RowSpec, TableSpec
from occinv.reproduce.study import study_table
from occinv.schema import UserError, nearest

TABLES = ("quickstart", *(f"table{n}" for n in range(1, 9)), "figure1", "grid", "batch", "study")

PROBE_NOTE = (
    "C-MAE and supervised encoders do not train the class token, so their “Linear %” is of the "
    "mean patch token. The best rate is chosen on the evaluation images, which is optimistic."
)
DROPPED_NOTE = (
    "Without a mask token, the complementary views of Eq. (6) share no patch, and the paper does "
    "not say what it compares. Here T2 is the whole image, so that each token of T1 has its "
    "partner. The other candidates run by their names: cmae_dropped_queries (a predictor fills in "
    "the missing tokens), cmae_dropped_mean and cmae_dropped_class."
)
DINO_NOTE = (
    "The paper lists DINO with 800 epochs. configs/dino.py trains the 400 epochs that its authors "
    "published for ViT-B/16."
)


def make_table(key: str, scale: str, images: int | None = None) -> TableSpec:
    """Return a table of the paper, `quickstart`, `grid`, `batch` or `study`.

    Args:
      key: A name in `TABLES`.
      scale: A key of `SCALES`.
      images: The number of images for pretraining in Tables 7 and 8; None: that of the scale.

    Raises:
      UserError: An unknown name, or `images` for another table.
    """
    if key not in TABLES:
        raise UserError(f"no table {key!r}{nearest(key, TABLES)}")
    if scale not in SCALES:
        raise UserError(f"--scale {scale!r}{nearest(scale, SCALES)}")
    if images is not None and key not in ("table7", "table8"):
        raise UserError(f"--images {images}: only table7 and table8 pretrain on a number of images")
    number = SCALES[scale].num_images if images is None else images
    match key:
        case "table5":
            return _table5(scale)
        case "table7":
            return _table7(number)
        case "table8":
            return _table8(number, scale)
        case "grid":
            return grid_table()
        case "batch":
            return batch_table(scale)
        case "study":
            return study_table(scale)
    fixed = (QUICKSTART, TABLE1, TABLE2, TABLE3, TABLE4, TABLE6, FIGURE1)
    return next(table for table in fixed if table.key == key)


def choose(table: TableSpec, rows: str | None) -> tuple[RowSpec, ...]:
    """Return the chosen rows in the order of the table, then rows that are made by name.

    Args:
      table: The table.
      rows: Keys separated by commas, or `all`; None: the rows that run by default.

    Raises:
      UserError: An unknown key, or a row that cannot be trained.
    """
    known = {row.key: row for row in table.rows}
    if rows is None:
        return tuple(row for row in table.rows if row.by_default)
    keys = list(known) if rows == "all" else rows.split(",")
    for key in keys:
        if key not in known and table.row_by_name is not None:
            known[key] = table.row_by_name(key)
        if key not in known:
            raise UserError(f"--rows has {key!r}{nearest(key, [*known, 'all'])}")
    return tuple(row for key, row in known.items() if key in keys)


def _ft(accuracy: float, psnr: float | None = None) -> dict[str, float]:
    return {"finetune": accuracy} if psnr is None else {"finetune": accuracy, "psnr": psnr}


def _three(linear: float, finetune: float, tenth: float) -> dict[str, float]:
    return {"linear": linear, "finetune": finetune, "tenth": tenth}


def _equal(text: str, row: str, than: str) -> Claim:
    return Claim(text, row, than, relation="equal")


RANDOM_ROW = RowSpec("Random init", methods.RANDOM, _ft(80.9))
RANDOM_300_ROW = RowSpec("Random init, 3 × as long", methods.RANDOM_300, _ft(82.1), 300)
MOCOV3_ROW = RowSpec("MoCo v3", methods.MOCOV3, _ft(83.2), 300)
DINO_ROW = RowSpec("DINO", methods.DINO, _ft(82.8), 800)
BEIT_ROW = RowSpec("BEiT", methods.BEIT, _ft(82.9), 300)
CAE_ROW = RowSpec("CAE", methods.CAE, _ft(83.3), 300)
RMAE_ROWS = (
    RowSpec("R-MAE", methods.RMAE, _ft(82.7, 23.7)),
    RowSpec("R-MAE†", methods.RMAE_INDEPENDENT, _ft(82.8, 23.0)),
    RowSpec("R-MAE‡", methods.RMAE_IDENTITY, _ft(82.7, 22.9)),
)
OTHER_ROWS = (
    MOCOV3_ROW,
    DINO_ROW,
    BEIT_ROW,
    CAE_ROW,
    RowSpec("data2vec", methods.DATA2VEC, epochs=None),
    RowSpec("MaskFeat", methods.MASKFEAT, epochs=None),
    RowSpec("SimMIM", methods.SIMMIM, epochs=None),
    RowSpec("I-JEPA", methods.IJEPA, epochs=None),
    RowSpec("iBOT", methods.IBOT, epochs=None),
    RowSpec("MSN", methods.MSN, epochs=None),
)

QUICKSTART = TableSpec(
    key="quickstart",
    subject="Which invariance makes a good initialization?",
    rows=(
        RANDOM_ROW,
        RowSpec("MAE", methods.MAE, _ft(83.1, 22.2)),
        RMAE_ROWS[0],
        RowSpec("C-MAE", methods.CMAE, _ft(82.9)),
        *(replace(row, by_default=False) for row in (*RMAE_ROWS[1:], *OTHER_ROWS)),
    ),
    columns=("finetune", "psnr", "occlusion"),
    cka=BOTH,
)

TABLE1 = TableSpec(
    key="table1",
    subject="R-MAE compared with MAE and other objectives",
    rows=(
        RANDOM_ROW,
        RANDOM_300_ROW,
        MOCOV3_ROW,
        DINO_ROW,
        BEIT_ROW,
        RowSpec("MAE (published)", None, _ft(83.6, 19.3), 1600, row_key="mae_published"),
        CAE_ROW,
        RowSpec("MAE", methods.MAE, _ft(83.1, 22.2)),
        *RMAE_ROWS,
    ),
    columns=("finetune", "psnr"),
    claims=(
        Claim("MAE is better than random initialization", "mae", "random"),
        Claim("R-MAE is better than random initialization", "rmae", "random"),
        *(_equal(f"{row.name} matches MAE", row.key, "mae") for row in RMAE_ROWS),
        Claim("R-MAE reconstructs better than MAE", "rmae", "mae", "psnr"),
    ),
    notes=(DINO_NOTE,),
)

TABLE2 = TableSpec(
    key="table2",
    subject="C-MAE compared with MAE and other objectives",
    rows=(
        RANDOM_ROW,
        MOCOV3_ROW,
        DINO_ROW,
        RowSpec("MAE (published)", None, _ft(83.6), 1600, row_key="mae_published"),
        RowSpec("MAE", methods.MAE, _ft(83.1)),
        RowSpec("C-MAE", methods.CMAE, _ft(82.9)),
        RowSpec("MAE, 4 × as long", methods.MAE_400, _ft(83.2), 400),
        RowSpec("C-MAE, 4 × as long", methods.CMAE_400, _ft(83.1), 400),
    ),
    columns=("finetune",),
    claims=(
        _equal("C-MAE matches MAE", "cmae", "mae"),
        _equal("C-MAE matches MAE after longer pretraining", "cmae_400", "mae_400"),
        Claim("C-MAE is better than random initialization", "cmae", "random"),
    ),
    notes=(DINO_NOTE,),
)

TABLE3 = TableSpec(
    key="table3",
    subject="The tokens in the loss of C-MAE",
    rows=(
        RowSpec("class token", methods.CMAE_CLASS, _ft(82.5)),
        RowSpec("mean of patch tokens", methods.CMAE_MEAN, _ft(82.6)),
        RowSpec("each patch token", methods.CMAE, _ft(82.9)),
        RowSpec("patch and class tokens", methods.CMAE_BOTH, _ft(82.9)),
    ),
    columns=("finetune",),
    claims=(
        Claim("Each patch token is better than the class token", "cmae", "cmae_class"),
        Claim("Each patch token is better than their mean", "cmae", "cmae_mean"),
        _equal("The class token does not improve C-MAE", "cmae_both", "cmae"),
    ),
)

TABLE4 = TableSpec(
    key="table4",
    subject="The parts of C-MAE, and MAE with the color jitter of C-MAE",
    rows=(
        RowSpec("MAE", methods.MAE, _three(54.5, 83.1, 67.5)),
        RowSpec("MAE, color of the whole image", methods.MAE_COLOR_IMAGE, _three(53.4, 83.1, 67.3)),
        RowSpec(
            "MAE, color of the unmasked only", methods.MAE_COLOR_INPUT, _three(54.0, 83.0, 67.3)
        ),
        RowSpec("C-MAE", methods.CMAE, _three(41.1, 82.9, 66.4)),
        RowSpec("C-MAE, mean token", methods.CMAE_MEAN),
        RowSpec("C-MAE w/o mask token (T2 = x)", methods.CMAE_DROPPED, _three(56.2, 82.6, 67.5)),
        RowSpec("C-MAE, BYOL", methods.CMAE_BYOL, _three(26.9, 82.8, 65.2)),
        RowSpec(
            "C-MAE w/o mask token (T2 = x), BYOL",
            methods.CMAE_DROPPED_BYOL,
            _three(55.2, 82.5, 66.1),
        ),
        RowSpec("C-MAE w/o mask token, queries", methods.CMAE_DROPPED_QUERIES, by_default=False),
        RowSpec("C-MAE w/o mask token, mean", methods.CMAE_DROPPED_MEAN, by_default=False),
        RowSpec("C-MAE w/o mask token, class", methods.CMAE_DROPPED_CLASS, by_default=False),
    ),
    columns=(*LINEAR, "finetune", "tenth"),
    claims=(
        _equal("Color jitter of the image does not change MAE", "mae_color_image", "mae"),
        _equal("Color jitter of the visible part does not change MAE", "mae_color_input", "mae"),
        _equal("C-MAE matches MAE after fine-tuning", "cmae", "mae"),
        Claim("MAE is better than C-MAE in linear probing", "mae", "cmae", "linear"),
        Claim(
            "C-MAE is better in linear probing without its mask token",
            "cmae_dropped",
            "cmae",
            "linear",
        ),
        _equal("InfoNCE matches BYOL", "cmae", "cmae_byol"),
    ),
    notes=(PROBE_NOTE, DROPPED_NOTE),
)

# MAE and C-MAE by (patch masking, CutMix, color), in the order of the paper's columns. Their marks
# are missing in the PDF.
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


def _table5(scale: str) -> TableSpec:
    rows = [RowSpec("Supervised, 2 × as long", methods.RANDOM_200, _ft(81.6), 200)]
    for place, (name, method) in enumerate((("MAE", methods.MAE), ("C-MAE", methods.CMAE))):
        for switches, numbers in TABLE5_PAPER.items():
            words = [w for w, on in zip(("patch", "cutmix", "color"), switches, strict=True) if on]
            label = f"{name}: {' + '.join(words) or 'none'}"
            rows.append(RowSpec(label, methods.augmented(method, *switches), _ft(numbers[place])))
    others = {
        "": "",
        "_cutmix": ", with CutMix",
        "_color": ", with color",
        "_cutmix_color": ", with CutMix and color",
    }
    is_paper = scale == "paper"
    return TableSpec(
        key="table5",
        subject="Patch masking, CutMix and color jitter, each on or off",
        rows=tuple(rows),
        columns=("finetune",),
        claims=tuple(
            Claim(
                f"Patch masking improves {name}{words}",
                f"{key}_patch{other}",
                f"{key}{other or '_none'}",
            )
            for (name, key), (other, words) in itertools.product(
                (("MAE", "mae"), ("C-MAE", "cmae")), others.items()
            )
        ),
        overrides=("encoder.name=small", "data.classes=imagenet100") if is_paper else (),
        subfolder="table5" if is_paper else "",
        paper_setting="ViT-S, ImageNet-100",
        notes=(
            "CutMix and color change the input of MAE's encoder. Its target is the original image. "
            "The paper does not specify this.",
            "The paper does not say which 100 classes of ImageNet it uses. At scale `paper`, they "
            "are those of CMC (data.classes=imagenet100).",
        ),
    )


def _table6_rows() -> tuple[RowSpec, ...]:
    # In the PDF it is lost which row of a pair has the stronger augmentation, so a pair only has
    # numbers here if they are equal.
    settings = (
        (1, ", stronger", 5, 82.3),
        (10, "", 2, None),
        (10, ", stronger", 5, None),
        (100, "", 10, None),
        (100, ", stronger", 10, None),
        (1000, "", 100, 82.2),
        (1000, ", stronger", 100, 82.2),
    )
    rows = [RANDOM_ROW, RANDOM_300_ROW]
    for count, suffix, epochs, accuracy in settings:
        overrides = methods.STRONGER if suffix else ()
        method = methods.on_few_images(
            methods.MAE, count, "random", *overrides, length=epochs / 100
        )
        name = f"{count} image{'s' if count > 1 else ''}{suffix}"
        rows.append(RowSpec(name, method, {} if accuracy is None else _ft(accuracy), epochs))
    return tuple(rows)


ONE_IMAGE = "mae_1_random_stronger_5"
TABLE6 = TableSpec(
    key="table6",
    subject="MAE pretrained on 1 to 1000 images",
    rows=_table6_rows(),
    columns=("finetune",),
    claims=(
        Claim("One image is better than random initialization", ONE_IMAGE, "random"),
        _equal("One image matches 3 × as long supervised training", ONE_IMAGE, "random_300"),
        _equal("1000 images match one image", "mae_1000_random_stronger", ONE_IMAGE),
    ),
    notes=(
        "An epoch on few images has as many steps as an epoch on all images. Stronger augmentation "
        "is crops of at least 8 % of the image, RandAugment and color jitter. The paper does not "
        "specify these.",
        "Early stopping here is a whole schedule of the given length. A longer schedule that is "
        "stopped is `--pretrain.train.stop_after.epochs=5 --pretrain.train.duration.epochs=100`; "
        "its warm-up of 20 epochs would not be over.",
    ),
)


def _table7(count: int) -> TableSpec:
    choices = {
        "one_class": f"{count} images of one class",
        "random": f"{count} images at random",
        "one_per_class": f"{count} images, one per class",
    }
    rows = tuple(
        RowSpec(name, methods.on_few_images(methods.MAE, count, choice), _ft(82.2))
        for choice, name in choices.items()
    )
    return TableSpec(
        key="table7",
        subject="The choice of few images for pretraining MAE",
        rows=rows,
        columns=("finetune",),
        claims=(_equal("One class matches one image per class", rows[0].key, rows[2].key),),
    )


def _table8(count: int, scale: str) -> TableSpec:
    moco = methods.MOCOV3
    if scale == "paper":
        moco = moco.variant(moco.key, *methods.AS_LONG_AS_MAE)
    pretrained = (
        ("Supervised", methods.SUPERVISED, _three(33.1, 81.0, 52.6)),
        ("MoCo v3", moco, _three(37.3, 79.2, 45.8)),
        ("MAE", methods.MAE, _three(13.8, 82.2, 57.6)),
        ("R-MAE", methods.RMAE, _three(25.9, 82.1, 58.8)),
        ("C-MAE", methods.CMAE, _three(20.1, 82.1, 61.9)),
    )
    rows = (
        RowSpec("Random init", methods.RANDOM, _three(6.1, 80.9, 34.9), None),
        *(
            RowSpec(name, methods.on_few_images(method, count, "one_per_class"), numbers)
            for name, method, numbers in pretrained
        ),
    )
    random, supervised, mocov3, mae, rmae, cmae = (row.key for row in rows)
    return TableSpec(
        key="table8",
        subject=f"Every objective pretrained on {count} images, one per class",
        rows=rows,
        columns=(*LINEAR, "finetune", "tenth"),
        claims=(
            Claim("MAE is better than random initialization", mae, random),
            Claim("R-MAE is better than random initialization", rmae, random),
            Claim("C-MAE is better than random initialization", cmae, random),
            Claim("MAE is better than supervised pretraining", mae, supervised),
            Claim("MAE is better than MoCo v3", mae, mocov3),
            Claim("MoCo v3 is better than MAE in linear probing", mocov3, mae, "linear"),
        ),
        notes=(
            PROBE_NOTE,
            "The paper says that all methods pretrain for 100 epochs. At scale `paper`, MoCo v3 "
            "has the batch and the warm-up of MAE, too.",
        ),
    )


FIGURE1 = TableSpec(
    key="figure1",
    subject="Does occlusion change the features of an image?",
    rows=(
        RowSpec("Supervised", methods.RANDOM),
        RowSpec("MoCo v3", methods.MOCOV3, epochs=300),
        RowSpec("MAE", methods.MAE),
        RowSpec("R-MAE", methods.RMAE),
        RowSpec("C-MAE", methods.CMAE),
    ),
    columns=("finetune", "retrieval", "occlusion"),
    cka=BOTH,
)
