"""Write the files of runs that reports read."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

CURVES = {"ratios": [0.75], "blocks": [1, 2]}
LINES = (
    {"step": 0, "time": 1.0, "parameters": 1234},
    {"step": 10, "time": 2.0, "loss": 0.5, "learning_rate": 0.1},
    {"step": 20, "time": 3.0, "eval/loss": 0.4, "eval/top1": 0.75},
)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(content) if is_dataclass(content) else content))


def run(
    workdir: Path, objective: dict[str, Any], metrics: dict[str, float] | None, **fields: Any
) -> Path:
    """Write the files of a run that reports read. Without `metrics` it is not finished."""
    experiment = {
        "objective": objective,
        "data": {"source": "digits", "image_size": 16},
        "encoder": {"name": "micro", "patch_size": 8},
        "train": {"duration": {"epochs": 3.0}},
        **fields,
    }
    write(workdir / "config.json", {"experiment": experiment, "classes": ["a", "b"]})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    if metrics is not None:
        images = {"name": "digits (test)", "count": 3, "digest": "d", "split": "validation"}
        result = {"step": 20, "metrics": metrics, "images": images}
        write(workdir / "result.json", result)
    return workdir


def record(evaluator: str, values: dict[str, float], **changes: Any) -> dict[str, Any]:
    """A record as `occinv evaluate` writes it."""
    images = {"name": "digits (test)", "count": 3, "digest": "d", "split": "validation"}
    return {
        "evaluator": evaluator,
        "workdir": "w",
        "objective": "mae",
        "step": 20,
        "images": images | changes.pop("images", {}),
        "protocol": changes.pop("protocol", {}),
        "code": "0",
        "values": values,
        "details": changes.pop("details", {}),
    }


def invariance(
    last: float, floor: float = 0.1, token: str = "class", **changes: Any
) -> dict[str, Any]:
    """A record of CKA `last` at the last block, and `floor` of an untrained encoder."""

    def curves(value: float) -> dict[str, Any]:
        found = {measure: {token: [[1.0, value]]} for measure in ("cka", "retrieval", "cosine")}
        return {**CURVES, **found}

    floors = {"untrained 0": curves(floor), "blind": curves(0.0)}
    details = curves(last) | {"token": token, "floor": floors}
    return record("invariance", {"retrieval": last}, details=details, **changes)
