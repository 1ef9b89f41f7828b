"""Tests of the estimated time of a TPU's step, against sums by hand."""

from __future__ import annotations

import pytest

from occinv.plan.chips import CHIPS
from occinv.plan.estimate import estimate_step
from occinv.plan.hlo import Program

TEXT = """
%add (q: f32[1024]) -> f32[1024] {
  %q = f32[1024]{0} parameter(0)
  ROOT %s = f32[1024]{0} add(%q, %q)
}

%offloaded (q: f32[1024]) -> f32[1024] {
  %q = f32[1024]{0} parameter(0)
  %f = f32[1024]{0} copy(%q), backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %r = f32[1024]{0} all-reduce(%q), channel_id=3, replica_groups=[1,4]<=[4]
}

%body (q: f32[1024]) -> f32[1024] {
  %q = f32[1024]{0} parameter(0)
  %f = f32[1024]{0} fusion(%q), kind=kLoop, calls=%add, backend_config={"window_config":{"estimated_cycles":"100"}}
  %k = f32[1024]{0} custom-call(%f), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzv"}}
  %r = f32[1024]{0} all-reduce(%k), channel_id=1, replica_groups=[1,4]<=[4]
  %s = f32[1024]{0} all-reduce-start(%k), channel_id=2, replica_groups=[1,4]<=[4]
  %d = f32[1024]{0} all-reduce-done(%s)
  %o = ((f32[1024]{0}), f32[1024]{0}) call-start(%d), async_execution_thread="sparsecore", to_apply=%offloaded
  ROOT %e = f32[1024]{0} call-done(%o)
}

%condition (q: f32[1024]) -> pred[] {
  %q = f32[1024]{0} parameter(0)
  ROOT %c = pred[] custom-call(%q), custom_call_target="more"
}

ENTRY %main (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  %c = f32[1024]{0} copy(%p), backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %w = f32[1024]{0} while(%c), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501


@pytest.mark.parametrize("flops", [0, 5e12])
def test_an_estimate_by_hand(flops: float) -> None:
    chip = CHIPS["v5e"]
    found = estimate_step(Program(TEXT), chip, 4, flops)
    assert found
    assert found.instructions == pytest.approx((3 * 100 + 7) / 1.5e9)
    assert found.kernels == pytest.approx(max(3 * 2 * 4096 / 819e9, flops / 197e12))
    assert found.collectives == pytest.approx(3 * 4096 * 1.5 / 200e9)  # only the synchronous one
    assert found.step == found.instructions + found.kernels + found.collectives


def test_without_cycles_there_is_no_estimate() -> None:
    text = TEXT.replace("estimated_cycles", "cycles")
    assert estimate_step(Program(text), CHIPS["v5e"], 4, 0) is None
    assert estimate_step(Program(TEXT), CHIPS["h100"], 4, 0) is None
