"""Tests of the bytes that a program moves, against counts by hand of a short TPU program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from occinv import parallel
from occinv.plan.hlo import Collective, Program

# A loop of 6 iterations: each reads a layer [16, 128] of a stack, adds 1, writes the result into a
# slice of another stack in place, and sums a vector over the chips. Before the loop, two arrays are
# added, and one is prefetched into faster memory, S(1).
TEXT = """\
HloModule jit_step, is_scheduled=true

%fused (param_0: f32[6,16,128], param_1: s32[], param_2: f32[6,16,128]) -> f32[6,16,128] {
  %param_0 = f32[6,16,128]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)S(6)} parameter(1)
  %param_2 = f32[6,16,128]{2,1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %cast = f32[6,16,128]{2,1,0:T(8,128)} bitcast(%param_0)
  %layer = f32[1,16,128]{2,1,0:T(8,128)} dynamic-slice(%cast, %param_1, %zero, %zero)
  %one = f32[1,16,128]{2,1,0:T(8,128)} broadcast(%zero), dimensions={}
  %more = f32[1,16,128]{2,1,0:T(8,128)} add(%layer, %one)
  ROOT %into = f32[6,16,128]{2,1,0:T(8,128)} dynamic-update-slice(%param_2, %more, %param_1)
}

%body (state: (s32[], f32[6,16,128], f32[6,16,128], f32[128])) -> (s32[], f32[6,16,128]) {
  %state = (s32[]{:T(128)}, f32[6,16,128]{2,1,0:T(8,128)}, /*index=2*/f32[128]{0:T(128)}) parameter(0)
  %turn = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %from = f32[6,16,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %to = f32[6,16,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %sum = f32[128]{0:T(128)} get-tuple-element(%state), index=3
  %new = f32[6,16,128]{2,1,0:T(8,128)} fusion(%from, %turn, %to), kind=kLoop, calls=%fused, metadata={op_name="f(x) y"}
  %all = f32[128]{0:T(128)} all-reduce(%sum), channel_id=1, replica_groups=mesh['axis_0'=4] {'axis_0'}, to_apply=%add
  ROOT %tuple = (s32[]{:T(128)}, f32[6,16,128]{2,1,0:T(8,128)}) tuple(%turn, %new)
}

%condition (state.1: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %state.1 = (s32[]{:T(128)}) parameter(0)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn.1, %limit), direction=LT
}

ENTRY %main (a: f32[5,100], b: f32[5,100]) -> f32[5,100] {
  %a = f32[5,100]{1,0:T(8,128)} parameter(0)
  %b = f32[5,100]{1,0:T(8,128)} parameter(1)
  %plus = f32[5,100]{1,0:T(8,128)} add(%a, %b)
  %copy-start = (f32[5,100]{1,0:T(8,128)S(1)}, f32[5,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%plus)
  %copy-done = f32[5,100]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %loop = (s32[]{:T(128)}, f32[6,16,128]{2,1,0:T(8,128)}) while(%a), condition=%condition, body=%body
  %gather = bf16[32]{0:T(256)(128)(2,1)S(1)} all-gather(%quarter), channel_id=2, dimensions={0}
  %quarter = bf16[8]{0:T(256)(128)(2,1)S(1)} convert(%copy-done)
  ROOT %out = f32[5,100]{1,0:T(8,128)} add(%copy-done, %copy-done)
}
"""  # noqa: E501
PADDED = 8 * 128 * 4  # bytes of f32[5,100] in tiles of (8, 128)


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(TEXT)


def test_a_loop_runs_as_often_as_its_condition_says(program: Program) -> None:
    assert program.executed == {"%main": 1, "%body": 6, "%condition": 6}
    assert program.fused == {"%fused": 6}


def test_known_trip_count_has_precedence() -> None:
    noted = ', backend_config={"known_trip_count":{"n":"9"}}'
    text = TEXT.replace("body=%body", "body=%body" + noted)
    assert Program(text).executed["%body"] == 9


def test_collectives_in_a_loop_count_in_every_iteration(program: Program) -> None:
    reduced, gathered = 6 * 128 * 4, 256 * 2  # the eighth of bf16[8] is padded to a tile of 256
    assert program.collectives(4) == [
        Collective("all-gather", 1, gathered, 3 * gathered),
        Collective("all-reduce", 6, reduced, 6 * reduced // 4),
    ]


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['axis_0'=2,'axis_1'=4,'axis_2'=8], device_ids=([4,4]T(1,0)) {'axis_1'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("{}", 64),
    ],
)
def test_collectives_of_groups(groups: str, members: int) -> None:
    said = f"""
ENTRY %main (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  ROOT %r = f32[1024]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    sent = round(2 * 4096 * (members - 1) / members)
    assert Program(said).collectives(64) == [Collective("all-reduce", 1, 4096, sent)]


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
    assert Program(said).collectives(8) == [
        Collective("all-gather", 1, 1024, 3 * 1024),
        Collective("reduce-scatter", 1, 4096, 3 * 1024),
    ]


def test_traffic_counts_slices(program: Program) -> None:
    layer, vector = 16 * 128 * 4, 128 * 4
    turns = 6 * (2 * layer + 2 * vector)  # the counter is not in memory
    compare = 6 * (512 + 2 * 512)  # bool and two int32, each padded to its tile
    once = 3 * PADDED + PADDED + PADDED  # plus, the prefetch, the last sum
    assert program.traffic() == turns + compare + once


@pytest.mark.parametrize(
    "branches",
    ["true_computation=%one, false_computation=%two", "branch_computations={%one, %two}"],
)
def test_a_conditional_counts_as_its_first_branch(branches: str) -> None:
    text = f"""
%one (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  ROOT %r = f32[1024]{{0}} add(%p, %p)
}}

%two (p: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  ROOT %r = f32[1024]{{0}} copy(%p)
}}

ENTRY %main (i: s32[], p: f32[1024]) -> f32[1024] {{
  %i = s32[] parameter(0)
  %p = f32[1024]{{0}} parameter(1)
  ROOT %c = f32[1024]{{0}} conditional(%i, %p, %p), {branches}
}}
"""
    assert Program(text).executed == {"%main": 1, "%one": 1}
    assert Program(text).traffic() == 3 * 4096


@pytest.mark.parametrize(
    ("instruction", "moved"),
    [
        # A quarter of a stack, read into faster memory, synchronously or asynchronously.
        ("f32[4,16,128]{2,1,0:S(1)} slice(%p), slice={[0:4], [0:16], [0:128]}", 1),
        ("((f32[16,16,128]{2,1,0}), f32[4,16,128]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%p)", 1),
        ("f32[4,16,128]{2,1,0} dynamic-slice(%p, %i, %i, %i)", 2),
        # A quarter of it, written in place, from HBM and from faster memory.
        ("f32[16,16,128]{2,1,0} dynamic-update-slice(%p, %q, %i, %i, %i)", 2),
        ("f32[16,16,128]{2,1,0} dynamic-update-slice(%p, %fast, %i, %i, %i)", 1),
        # Written from faster memory as a whole. The source is the second result.
        ("(f32[4,16,128]{2,1,0}, f32[4,16,128]{2,1,0:S(1)}, u32[]{:S(2)}) copy-start(%fast)", 1),
    ],
)
def test_only_the_slice_of_an_array_moves(instruction: str, moved: int) -> None:
    said = f"""
ENTRY %main (p: f32[16,16,128], q: f32[4,16,128]) -> f32[16,16,128] {{
  %p = f32[16,16,128]{{2,1,0}} parameter(0)
  %q = f32[4,16,128]{{2,1,0}} parameter(1)
  %fast = f32[4,16,128]{{2,1,0:S(1)}} parameter(2)
  %i = s32[]{{:S(6)}} parameter(3)
  ROOT %r = {instruction}
}}
"""
    assert Program(said).traffic() == moved * 4 * 16 * 128 * 4


def test_a_program_compiled_for_the_cpu() -> None:
    """A sum over 8 devices of products, in a scan of 6 iterations."""
    mesh = parallel.make_mesh()

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, w)[0].mean()

    shapes = jax.ShapeDtypeStruct((6, 16, 16), "float32"), jax.ShapeDtypeStruct((64, 16), "float32")
    given = parallel.replicated(mesh), parallel.by_image(mesh)
    compiled = (
        jax.jit(jax.grad(loss), in_shardings=given, out_shardings=given[0]).lower(*shapes).compile()
    )
    program = Program(compiled.as_text())
    (reduced,) = program.collectives(mesh.size)
    assert reduced.operation == "all-reduce"
    assert reduced.bytes == 6 * 16 * 16 * 4
    assert program.traffic() > 3 * 6 * 16 * 16 * 4  # both loops read the weights, one writes
