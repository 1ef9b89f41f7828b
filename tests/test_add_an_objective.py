"""The objective and the config of docs/add-an-objective.md work as they stand on the page."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from occinv import schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.train.optimizer import learning_rate, make_optimizer
from occinv.train.step import init_state, make_step


@pytest.fixture
def experiment(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> schema.Experiment:
    """What the page's config says, with the page's files on the path."""
    page = (repository / "docs" / "add-an-objective.md").read_text()
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, flags=re.DOTALL)
    assert [name for name, _ in files] == ["my_objective.py", "my_config.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return schema.resolve(importlib.import_module("my_config").get_config())


def test_the_objective_of_the_page_trains(experiment: schema.Experiment) -> None:
    size, images = experiment.data.image_size, 8
    setting = Setting(vit.make_vit(experiment.encoder, size), num_classes=10, total_steps=100)
    objective = make_objective(experiment.objective, setting)
    assert isinstance(objective, Objective) and objective.mask_ratio == 0.5
    rng = np.random.default_rng(0)
    batch = Batch(
        image=rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8),
        label=np.zeros(images, np.int32),
        index=np.arange(images, dtype=np.int32),
        weight=np.ones(images, np.float32),
    )

    def run() -> tuple[Any, list[dict[str, Any]]]:
        config = experiment.optimizer
        optimizer = make_optimizer(config, learning_rate(config, images, 1, 100))
        start = jax.jit(lambda: init_state(objective, optimizer, seed=0))
        step = jax.jit(make_step(objective, optimizer))
        state, rows = start(), []
        for _ in range(2):
            state, metrics = step(state, batch)
            rows.append(jax.device_get(metrics))
        return state, rows

    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic promotes
        state, rows = run()
    assert int(state.step) == 2 and int(state.nonfinite) == 0
    assert set(rows[0]) == {"loss", "gradient_norm", "spread"}
    assert all(np.isfinite(value) and value > 0 for row in rows for value in row.values())
    assert rows[0]["loss"] != rows[1]["loss"]


def test_a_misspelled_field_of_the_page_s_objective_is_found(experiment: schema.Experiment) -> None:
    setting = Setting(vit.make_vit(experiment.encoder, 32), num_classes=10, total_steps=100)
    section = {**experiment.objective, "mask_ration": 0.5}
    with pytest.raises(schema.UserError, match="did you mean 'mask_ratio'"):
        make_objective(section, setting)
