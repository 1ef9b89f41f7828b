"""Tests of the bytes that collectives send, against counts by hand."""

from __future__ import annotations

import pytest

from occinv.plan.collectives import Collective, find_collectives
from occinv.plan.hlo import Program


def program(instruction: str) -> Program:
    return Program(f"""
ENTRY %main (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  ROOT %r = {instruction}
}}
""")


@pytest.mark.parametrize(
    ("groups", "members", "nodes"),
    [
        ("{{0,1},{2,3}}", 2, 1),
        ("{{0,8,16,24},{1,9,17,25}}", 4, 4),
        ("[2,4]<=[8]", 4, 1),
        ("[4,2]<=[2,4]T(1,0)", 2, 1),
        ("[8,2]<=[2,8]T(1,0)", 2, 2),
        ("[4,8]<=[4,8]T(1,0)", 8, 4),
        ("mesh['axis_0'=2,'axis_1'=4,'axis_2'=8], device_ids=([4,16]T(1,0)) {'axis_1'}", 4, 1),
        ("mesh['a'=8,'b'=8], device_ids=([8,8]T(1,0)) {'b'}", 8, 8),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8, 1),
        ("mesh['a'=4,'b'=8] {'a'}", 4, 4),
        ("mesh['a'=32] {'a':(2)4}", 4, 2),
        ("{}", 64, 8),
    ],
)
def test_collectives_of_groups(groups: str, members: int, nodes: int) -> None:
    reduce = f"f32[1024]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add"
    sent = round(2 * 4096 * (members - 1) / members)
    assert find_collectives(program(reduce), 64, 64) == [Collective("all-reduce", 1, 4096, sent)]
    (found,) = find_collectives(program(reduce), 64, 8)
    own = members // nodes
    assert found.sent == round(2 * 4096 * (own - 1) / own)
    assert found.network == round(2 * 4096 * (nodes - 1) / nodes / own)


@pytest.mark.parametrize(
    ("kind", "attributes", "sent", "network"),
    [
        # 2 nodes of 2 devices. A ring of 4 that passes each node once sends 3 / 4 of the sum, twice
        # (all-reduce) or once. It crosses between nodes with half the array of each device.
        ("all-reduce", "", 4096, 2048),
        ("reduce-scatter", "", 2048, 1024),
        # A device gets the parts of 3 others: 1 over the network, 2 from the device beside it.
        ("all-gather", "", 2 * 4096, 4096),
        ("all-to-all", "", 1024, 2048),
        ("collective-permute", "source_target_pairs={{0,1},{2,3}}", 4096, 0),
        ("collective-permute", "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", 0, 4096),
    ],
)
def test_what_a_device_sends_to_other_nodes(
    kind: str, attributes: str, sent: int, network: int
) -> None:
    text = f"f32[1024]{{0}} {kind}(%p), channel_id=1, {attributes}"
    assert find_collectives(program(text), 4, 2) == [Collective(kind, 1, 4096, sent, network)]


def test_only_bytes_that_leave_a_chip_of_two_devices_count() -> None:
    reduce = "f32[1024]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}"
    found = find_collectives(program(reduce), 8, 8, per_chip=2)
    assert found == [Collective("all-reduce", 1, 4096, 2048)]  # 2 chips: half of the sum, each way
    reduce = "f32[1024]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}"
    assert find_collectives(program(reduce), 8, 8, per_chip=2) == [
        Collective("all-reduce", 1, 4096, 0)
    ]


def test_a_collective_of_another_core_counts() -> None:
    text = """
%offloaded (q: f32[1024], t: token[]) -> f32[1024] {
  %q = f32[1024]{0} parameter(0)
  ROOT %r = f32[1024]{0} all-reduce(%q), channel_id=3, replica_groups=[1,4]<=[4]
}

ENTRY %main (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  %s = ((f32[1024]{0}, token[]), (f32[1024]{0})) call-start(%p), to_apply=%offloaded
  ROOT %d = f32[1024]{0} call-done(%s)
}
"""
    assert find_collectives(Program(text), 4, 4) == [Collective("all-reduce", 1, 4096, 6144)]
    assert find_collectives(Program(text), 4, 4, only_waiting=True) == []
    assert Program(text).traffic() == 2 * 4096


def test_the_collectives_of_a_kind_are_summed() -> None:
    text = """
ENTRY %main (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  %a = f32[1024]{0} all-reduce-start(%p), channel_id=1, replica_groups=[1,4]<=[4]
  %b = f32[1024]{0} all-reduce-done(%a)
  ROOT %r = f32[1024]{0} all-reduce(%b), channel_id=2, replica_groups=[1,4]<=[4]
}
"""
    assert find_collectives(Program(text), 4, 2) == [Collective("all-reduce", 2, 8192, 8192, 4096)]
    waiting = find_collectives(Program(text), 4, 2, only_waiting=True)
    assert waiting == [Collective("all-reduce", 1, 4096, 4096, 2048)]


def test_a_collective_beside_several_fusions_counts_once() -> None:
    said = """
%some (q: f32[256]) -> f32[1024] {
  %q = f32[256]{0} parameter(0)
  ROOT %g = f32[1024]{0} all-gather(%q), channel_id=3, replica_groups=[2,4]<=[8]
}

%rest (q: f32[256]) -> f32[1024] {
  %q = f32[256]{0} parameter(0)
  ROOT %g = f32[1024]{0} all-gather(%q), channel_id=3, replica_groups=[2,4]<=[8]
}

%all-reduce-scatter.1 (q: f32[1024]) -> f32[256] {
  %q = f32[1024]{0} parameter(0)
  %g = f32[1024]{0} all-reduce(%q), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = f32[256]{0} slice(%g), slice={[0:256]}
}

ENTRY %main (p: f32[256]) -> f32[256] {
  %p = f32[256]{0} parameter(0)
  %a = f32[1024]{0} fusion(%p), kind=kCustom, calls=%some
  %b = f32[1024]{0} fusion(%p), kind=kCustom, calls=%rest
  ROOT %r = f32[256]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert find_collectives(Program(said), 8, 8) == [
        Collective("all-gather", 1, 1024, 3 * 1024),
        Collective("reduce-scatter", 1, 4096, 3 * 1024),
    ]
