"""The run that every test of the report starts from."""

from __future__ import annotations

import copy

import pytest
from example_run import example

from occinv.report.results import Results


@pytest.fixture
def results() -> Results:
    """A copy of the example that the test may change."""
    return copy.deepcopy(example())
