"""The run that every test of the report starts from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from example_run import example


@pytest.fixture
def results() -> dict[str, Any]:
    """A copy of the example that the test may change."""
    return copy.deepcopy(example())
