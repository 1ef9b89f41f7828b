"""Any value in any field of a config is accepted, or refused in one line before data opens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from occinv import schema
from occinv.config import list_configs, load_config
from occinv.schema import UserError
from occinv.train.check import check_config

EXTREMES = [
    *(0, -1, 1, 2, 3, 5, 7, 2**16 + 1, 2**31, 2**63, 10**30),
    *(math.nan, math.inf, -math.inf, 0.0, -0.5, 0.001, 1.0, 1.5, 1e-320, 1e-300, 1e300),
    *(None, True, False, "", "x", "nan", "1", "a\nb", "\x00", "módulo:Clase", "os:system"),
    *((), [], {}, (1, 2), (0.9, 0.1), [math.nan, 1.0], {"steps": 1}, {"epochs": math.inf}),
]
VALUES = st.one_of(
    st.sampled_from(EXTREMES),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.sampled_from(["steps", "epochs", "name", "x"]), st.integers(), max_size=2),
)


def paths(section: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in section.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from paths(value, (*before, name))


def changed(config: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *below = path
    inner = changed(config[name], tuple(below), value) if below else value
    return {**config, name: inner}


def whole(name: str) -> dict[str, Any]:
    """The smallest variant of a config, with every field of every section."""
    experiment = schema.resolve(load_config(f"{name}:smoke"))
    objective = check_config(experiment)
    fields = [f.name for f in dataclasses.fields(objective) if f.init and f.name != "setting"]
    values = {field: getattr(objective, field) for field in fields}
    section = {
        field: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        for field, value in values.items()
    }
    given = dataclasses.asdict(experiment)
    return {**given, "objective": {**section, **given["objective"]}}


@pytest.mark.parametrize("name", list_configs())
def test_no_value_of_a_field_is_an_error_of_another_kind(name: str) -> None:
    config = whole(name)

    @settings(
        max_examples=60,
        deadline=20_000,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(list(paths(config))), VALUES)
    def check(path: tuple[str, ...], value: Any) -> None:
        try:
            check_config(schema.resolve(changed(config, path, value)))
        except UserError as error:
            assert "\n" not in str(error)

    check()
