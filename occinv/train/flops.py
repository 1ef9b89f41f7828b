"""The arithmetic of a program, counted before it runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from math import prod
from typing import Any

import jax

from occinv.models.blocks import Layout
from occinv.train.step import Assembly, batch_shapes, make_step


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Count the floating-point operations of all matrix products in `function(*arguments)`.

    A product [m, k] · [k, n] counts 2·m·k·n. A scanned body counts once for each iteration, which
    the compiler's own estimate does not do, and a `shard_map`ped body once for each device.
    Arguments may be arrays or shapes.
    """
    return traced_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def traced_flops(jaxpr: Any) -> int:
    """Count as `matmul_flops` for a program that is already traced."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * prod(equation.outvars[0].aval.shape) * prod(shape[i] for i in contracted)
        turns = 1
        if equation.primitive.name == "scan":
            turns = equation.params["length"]
        elif equation.primitive.name == "shard_map":  # its shapes are those of one device
            turns = equation.params["mesh"].size
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += turns * traced_flops(inner)
    return total


def model_flops(run: Assembly, state: Any) -> float:
    """Count FLOPs an image in the matrix products of a step, forward and backward, each once.

    Recomputation to save memory does not count; it does in `traced_flops` of the step.
    """
    setting = run.objective.setting
    encoder = setting.encoder.clone(layout=Layout(unroll=sys.maxsize))
    setting = dataclasses.replace(setting, encoder=encoder)
    step = make_step(dataclasses.replace(run.objective, setting=setting), run.optimizer)
    return matmul_flops(step, state, batch_shapes(run)) / run.experiment.train.batch_size
