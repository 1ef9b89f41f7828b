"""Tests of the bytes that a program moves, against counts by hand of a short TPU program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from occinv import parallel
from occinv.plan.collectives import Collective, find_collectives
from occinv.plan.hlo import Program

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
    assert find_collectives(program, 4, 4) == [
        Collective("all-gather", 1, gathered, 3 * gathered),
        Collective("all-reduce", 6, reduced, 6 * reduced // 4),
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


LAYER = 16 * 128 * 4  # bytes
FUSED = """
%update (stack: f32[6,16,128], i: s32[], layer: f32[16,128]) -> f32[6,16,128] {
  %stack = f32[6,16,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %layer = f32[16,128]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %cast = f32[1,16,128]{2,1,0} bitcast(%layer)
  ROOT %u = f32[6,16,128]{2,1,0} dynamic-update-slice(%stack, %cast, %i, %zero, %zero)
}

%add (sums: f32[6,16,128], i: s32[3,1], rows: f32[3,16,128]) -> f32[6,16,128] {
  %sums = f32[6,16,128]{2,1,0} parameter(0)
  %i = s32[3,1]{1,0} parameter(1)
  %rows = f32[3,16,128]{2,1,0} parameter(2)
  ROOT %s = f32[6,16,128]{2,1,0} scatter(%sums, %i, %rows), update_window_dims={1,2}, to_apply=%plus
}

%two (stack: f32[6,16,128], i: s32[], layer: f32[16,128]) -> (f32[128], f32[16,128]) {
  %stack = f32[6,16,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %layer = f32[16,128]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %part = f32[1,16,128]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero)
  %cast = f32[16,128]{1,0} bitcast(%part)
  %product = f32[16,128]{1,0} multiply(%cast, %layer)
  %sum = f32[128]{0} reduce(%product, %zero), dimensions={0}, to_apply=%plus
  ROOT %t = (f32[128]{0}, f32[16,128]{1,0}) tuple(%sum, %product)
}

%matmul (layer: f32[16,128], w: f32[128,128]) -> (f32[16,128], s8[4194304]) {
  %layer = f32[16,128]{1,0} parameter(0)
  %w = f32[128,128]{1,0} parameter(1)
  %call = (f32[16,128]{1,0}, s8[4194304]{0}) custom-call(%layer, %w), custom_call_target="__cublas$gemm"
  %out = f32[16,128]{1,0} get-tuple-element(%call), index=0
  %space = s8[4194304]{0} get-tuple-element(%call), index=1
  ROOT %t = (f32[16,128]{1,0}, s8[4194304]{0}) tuple(%out, %space)
}

%wrapped (stack: f32[6,16,128], i: s32[], layer: f32[16,128]) -> f32[6,16,128] {
  %stack = f32[6,16,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %layer = f32[16,128]{1,0} parameter(2)
  ROOT %f = f32[6,16,128]{2,1,0} fusion(%stack, %i, %layer), kind=kLoop, calls=%update
}

ENTRY %main (stack: f32[6,16,128]) -> f32[6,16,128] {
  %stack = f32[6,16,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %layer = f32[16,128]{1,0} parameter(2)
  %rows = f32[3,16,128]{2,1,0} parameter(3)
  %at = s32[3,1]{1,0} parameter(4)
  %w = f32[128,128]{1,0} parameter(5)
  %out = <instruction>
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("instruction", "moved"),
    [
        # An update in place writes a layer. Asynchronously it moves the same bytes.
        (
            "f32[6,16,128]{2,1,0} fusion(%stack, %i, %layer), kind=kLoop, calls=%update",
            4 + 2 * LAYER,
        ),
        (
            "((f32[6,16,128]{2,1,0}, s32[], f32[16,128]{1,0}), f32[6,16,128]{2,1,0}, u32[]) "
            "fusion-start(%stack, %i, %layer), kind=kLoop, calls=%update",
            4 + 2 * LAYER,
        ),
        (
            "((f32[6,16,128]{2,1,0}, s32[], f32[16,128]{1,0}), f32[6,16,128]{2,1,0}, u32[]) "
            "async-start(%stack, %i, %layer), calls=%wrapped",
            4 + 2 * LAYER,
        ),
        ("f32[6,16,128]{2,1,0} fusion-done(%stack)", 0),
        # A fused scatter reads and writes 3 rows of the 6, and reads their 3 numbers.
        (
            "f32[6,16,128]{2,1,0} fusion(%stack, %at, %rows), kind=kInput, calls=%add",
            12 + 6 * LAYER,
        ),
        # Two results: the sum and the product of two layers, one of them in the stack.
        (
            "(f32[128]{0}, f32[16,128]{1,0}) fusion(%stack, %i, %layer), kind=kInput, calls=%two",
            4 + 3 * LAYER + 128 * 4,
        ),
        # A matrix product of cuBLAS, alone and fused. Its workspace does not count.
        (
            "(f32[16,128]{1,0}, s8[4194304]{0}) custom-call(%layer, %w), "
            'custom_call_target="__cublas$lt$matmul"',
            2 * LAYER + 128 * 128 * 4,
        ),
        (
            "(f32[16,128]{1,0}, s8[4194304]{0}) fusion(%layer, %w), kind=kCustom, calls=%matmul",
            2 * LAYER + 128 * 128 * 4,
        ),
        # cuDNN's attention: the output, the logsumexp, and a workspace.
        (
            "(f32[16,128]{1,0}, f32[16]{0}, u8[4096]{0}) custom-call(%layer, %layer, %layer), "
            'custom_call_target="__cudnn$fmhaSoftmax"',
            4 * LAYER + 16 * 4,
        ),
        # A Pallas kernel on a TPU reads its operands and writes all its results, but not those in
        # faster memory.
        (
            "(f32[16,128]{1,0}, f32[16,128]{1,0:S(1)}) custom-call(%layer, %w), "
            'custom_call_target="tpu_custom_call"',
            2 * LAYER + 128 * 128 * 4,
        ),
        # Attention's kernel is given q, k and v as parts of one array.
        (
            "f32[16,128]{1,0} custom-call(%layer, %layer, %layer), "
            'custom_call_target="tpu_custom_call"',
            2 * LAYER,
        ),
        # Collectives read their operand and write their result, once.
        ("f32[16,128]{1,0} all-reduce-start(%layer), channel_id=1, to_apply=%plus", 2 * LAYER),
        ("f32[16,128]{1,0} all-reduce-done(%layer)", 0),
        ("(f32[16,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%layer), channel_id=1", 3 * LAYER),
    ],
)  # fmt: skip
def test_traffic_of_an_instruction_of_a_gpu(instruction: str, moved: int) -> None:
    assert Program(FUSED.replace("<instruction>", instruction)).traffic() == moved


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
    (reduced,) = find_collectives(program, mesh.size, mesh.size)
    assert reduced.operation == "all-reduce"
    assert reduced.bytes == 6 * 16 * 16 * 4
    assert program.traffic() > 3 * 6 * 16 * 16 * 4  # both loops read the weights, one writes
