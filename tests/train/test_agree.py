"""The processes of a run must agree. Runs on several processes are in test_processes.py."""

from __future__ import annotations

import types

import pytest

from occinv.schema import UserError
from occinv.train.agree import check_equal, data_facts, gather_texts, on_first_process


def test_equal_facts_pass_and_others_are_named() -> None:
    facts = {"config": {"seed": 0, "data": {"flip": True}}, "jax": "0.10.2"}
    check_equal([facts, dict(facts)])
    other = {"config": {"seed": 1, "data": {"flip": True}}, "jax": "0.12"}
    with pytest.raises(UserError) as caught:
        check_equal([facts, facts, other])
    assert str(caught.value).startswith(
        "process 2 differs from process 0: config.seed=1 (process 0 has 0), "
        "jax='0.12' (process 0 has '0.10.2'). Start every process with the same"
    )
    with pytest.raises(UserError, match=r"4=1 .* and 2 more\. Start") as caught:
        check_equal([dict.fromkeys("45678", 0), dict.fromkeys("45678", 1)])


def test_other_files_and_other_classes_are_other_data() -> None:
    class Source(types.SimpleNamespace):
        def __len__(self) -> int:
            return 2

    facts = data_facts(Source(fingerprint=lambda: "a", classes=("x", "y")))
    for other in (
        Source(fingerprint=lambda: "b", classes=("x", "y")),
        Source(fingerprint=lambda: "a", classes=("x", "z")),
    ):
        assert data_facts(other) != facts
    assert data_facts(None) is None


def test_one_process_needs_no_agreement() -> None:
    assert gather_texts("tëxt\udc80") == ["tëxt\udc80"]

    def fail() -> None:
        raise UserError("wrong")

    with pytest.raises(UserError, match="wrong"):
        on_first_process(fail)
