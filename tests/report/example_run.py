"""A small run to report on: rows that are done, running and failed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from occinv.report.results import CkaCurves, Column, Results, Row, StageRecord

RATIOS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9]
BLOCKS = [1, 2, 3, 4]


def curves(last: float) -> CkaCurves:
    """CKA falling with ratio and block; `last` is its value at the last block, 75 % dropped."""
    slope = (1 - last) / 0.75
    values = [[1 - slope * ratio * block / 4 for block in BLOCKS] for ratio in RATIOS]
    return CkaCurves(RATIOS, BLOCKS, values)


def stage(name: str, scale: float, accuracy: float | None = None) -> StageRecord:
    """One training: its command and a loss that falls with a little ripple."""
    curve = [] if accuracy is None else [(200 * i, accuracy * (1 - 0.6**i)) for i in range(1, 6)]
    return StageRecord(
        duration="20 epochs",
        command=f"occinv train --config configs/{name}.py --workdir runs/{name}",
        config=f"objective: {name}\nseed: 0\nmodel:\n  width: 64\n",
        seconds=31.0,
        parameters=312345,
        loss=[
            (10 * i, scale * (0.3 + math.exp(-i / 25) + 0.05 * math.sin(17 * i)))
            for i in range(100)
        ],
        accuracy=curve,
    )


COLUMNS = [
    Column("finetune", "FT %", "%", "top-1 after fine-tuning"),
    Column("psnr", "PSNR", "dB", "of reconstructions"),
]


def row(name: str, *accuracies: float, **changes: Any) -> Row:
    """A finished row, fine-tuned to an accuracy per seed; `changes` replace its fields."""
    finished = Row(
        name=name,
        key=name.lower(),
        framework="siamese",
        transformation="patch masking",
        t1="75 % removed",
        t2="complement",
        target="same encoder",
        measure="decoder distance",
        pretrain=stage("mae", 1.0),
        finetune=stage("finetune", 2.5, *accuracies[:1]),
        values={"finetune": list(accuracies), "psnr": [21.3], "psnr_removed": [18.1]},
        cka={"pretrained": curves(0.91), "finetuned": curves(0.82)},
        paper={"finetune": 83.1, "psnr": 22.2},
        paper_epochs=100,
    )
    return dataclasses.replace(finished, **changes)


def example() -> Results:
    """Random init, two finished rows (one worse than random), one running, one failed."""
    return Results(
        title="quickstart",
        subject="Occlusion and random initialization",
        command="occinv reproduce quickstart",
        created="2026-01-02T03:04:05",
        machine="2 CPU cores, JAX 0.10.2, Python 3.11",
        seconds=271.3,
        settings={"data": "photos", "encoder": "ViT 4 x 64", "seeds": [0], "num_test": 760},
        columns=list(COLUMNS),
        rows=[
            row(
                "Random init",
                0.800,
                pretrain=None,
                t1="–",
                t2="–",
                target="–",
                measure="–",
                values={"finetune": [0.8]},
                cka={"pretrained": None, "finetuned": curves(0.64)},
                paper={"finetune": 80.9},
            ),
            row("MAE", 0.857),
            row(
                "R-MAE†",
                0.787,
                t2="25 % removed, independent",
                values={"finetune": [0.787], "psnr": [23.5]},
                cka={"pretrained": curves(0.95), "finetuned": curves(0.52)},
            ),
            row(
                "R-MAE‡",
                values={},
                status="running",
                finetune=None,
                cka={"pretrained": None, "finetuned": None},
                paper={},
            ),
            row(
                "C-MAE",
                values={},
                status="failed",
                error="loss is <script>alert('nan')</script> at step 7",
                pretrain=None,
                finetune=None,
                cka={},
                measure="InfoNCE",
            ),
        ],
    )


def large() -> Results:
    """A table of the size of Table 5 and the columns of Table 4: 16 rows, over three seeds."""
    texts = {"finetune": "fine-tuning", "linear": "a linear probe", "tenth": "10 % of the labels"}
    headings = {"finetune": "FT %", "linear": "Linear %", "tenth": "10 % FT %"}
    columns = [Column(key, headings[key], "%", f"top-1 after {texts[key]}") for key in headings]
    rows = []
    for i in range(16):
        mean = 0.7 + 0.015 * (i * 7 % 16)
        seeds = [mean, mean + 0.02, mean - 0.004 * i]
        t1 = ["none", "cutmix", "color", "cutmix + color"][i % 4]
        t1 += ", 75 % removed" * (i % 8 > 3)
        rows.append(
            row(
                f"{'C-MAE' if i > 7 else 'MAE'}, {t1}",
                *seeds,
                key=f"row{i}",
                t1=t1,
                linear=stage("linear", 2.0, mean - 0.2),
                values={
                    "finetune": seeds,
                    "linear": [value - 0.2 for value in seeds],
                    "tenth": [value - 0.12 for value in seeds],
                    "psnr": [20.0 + i / 4],
                },
                paper={"finetune": 80.0 + i / 3, "linear": 40.0 + i, "tenth": 65.0 + i / 5},
                paper_epochs=None,
            )
        )
    return dataclasses.replace(example(), title="table4", columns=[*columns, COLUMNS[1]], rows=rows)
