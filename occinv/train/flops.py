"""The arithmetic of a program, counted before it runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from math import prod
from typing import Any

from occinv.models.blocks import Layout
from occinv.train.step import Assembly, is_split, recomputes, trace_step


def traced_flops(jaxpr: Any) -> int:
    """Count the floating-point operations of all matrix products in a traced program.

    A product [m, k] · [k, n] counts 2·m·k·n. A scanned body counts once for each iteration, which
    the compiler's own estimate does not do, and a `shard_map`ped body once for each device. A
    Pallas kernel counts what it declares (`cost_estimate`), else its body once for each cell of its
    grid.
    """
    return sum(flops for _, flops in _products(jaxpr, is_kernel=False))


def kernel_flops(jaxpr: Any) -> int:
    """Count the part of `traced_flops` in Pallas kernels."""
    return sum(flops for is_kernel, flops in _products(jaxpr, is_kernel=False) if is_kernel)


def _products(jaxpr: Any, is_kernel: bool) -> Iterator[tuple[bool, int]]:
    """Yield whether it is in a Pallas kernel, and FLOPs, for each matrix product."""
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            size = prod(equation.outvars[0].aval.shape)
            yield is_kernel, 2 * size * prod(shape[i] for i in contracted)
        elif name.startswith("dot_product_attention_"):
            yield is_kernel, _cudnn_flops(equation)
        turns = 1
        if name == "scan":
            turns = parameters["length"]
        elif name == "shard_map":  # its shapes are those of one device
            turns = parameters["mesh"].size
        elif name == "pallas_call":
            if (declared := parameters["cost_estimate"]) is not None:
                yield True, declared.flops
                continue
            turns = prod(parameters["grid_mapping"].grid)
        for value in parameters.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    for kind, flops in _products(inner, is_kernel or name == "pallas_call"):
                        yield kind, turns * flops


def _cudnn_flops(equation: Any) -> int:
    """Count the matrix products of cuDNN's attention: two forward, and five backward.

    Its backward pass computes the logits again.
    """
    query, key = (value.aval.shape for value in equation.invars[:2])
    is_heads_first = equation.params.get("layout") == 1  # [B, heads, n, D], else [B, n, heads, D]
    products = 5 if "_bwd" in equation.primitive.name else 2
    return products * 2 * prod(query) * key[2 if is_heads_first else 1]


def model_flops(run: Assembly, state: Any, traced: Any = None) -> float:
    """Count FLOPs an image in the matrix products of a step, forward and backward, each once.

    Recomputation to save memory does not count; it does in `traced_flops` of the step. `traced` is
    the step by `trace_step`, if it is known. It is counted if it recomputes nothing. Otherwise the
    step is traced once more, for `state` (arrays or shapes), without recomputation.
    """
    train = run.experiment.train
    is_plain = not (recomputes(train, run.mesh) or train.accumulate > 1 or train.monitors)
    if traced is not None and is_split(run) and is_plain:  # a loop of blocks would recompute
        return traced_flops(traced.jaxpr.jaxpr) / train.batch_size
    setting = run.objective.setting
    encoder = setting.encoder.clone(layout=Layout(unroll=sys.maxsize))
    setting = dataclasses.replace(setting, encoder=encoder)
    plain = dataclasses.replace(
        run,
        objective=dataclasses.replace(run.objective, setting=setting),
        experiment=dataclasses.replace(
            run.experiment, train=dataclasses.replace(train, accumulate=1, monitors=())
        ),
    )
    return traced_flops(trace_step(plain, state).jaxpr.jaxpr) / train.batch_size
