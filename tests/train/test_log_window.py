"""The logged means of a run that was interrupted are those of one that was not."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from occinv.train.log_window import LogWindow

LOSSES = [0.1, 1e-7, 3e5, math.nan, math.inf, 0.3]


def filled(window: LogWindow, losses: list[float]) -> LogWindow:
    for loss in losses:
        window.add({"loss": jnp.float32(loss), "norm": jnp.float32(loss / 3)})
    return window


@pytest.mark.parametrize("saved", range(4))
def test_means_after_a_restart_cover_the_same_steps(saved: int) -> None:
    whole = filled(LogWindow(), LOSSES[:3])
    text = json.dumps(filled(LogWindow(), LOSSES[:saved]).to_json(), allow_nan=False)
    restarted = filled(LogWindow(json.loads(text)), LOSSES[saved:3])
    assert restarted.means() == whole.means()
    assert whole.means()["loss"] == np.mean([float(np.float32(x)) for x in LOSSES[:3]])


def test_every_number_survives() -> None:
    saved = filled(LogWindow(), LOSSES).to_json()
    assert LogWindow(saved).to_json() == saved
    assert [float.fromhex(x) for x in saved["loss"][3:5]][1] == math.inf
    assert LogWindow({}).to_json() == {}
