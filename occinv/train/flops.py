"""The arithmetic of a program, counted before it runs."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of all matrix products in `function(*arguments)`.

    A product [m, k] · [k, n] counts 2·m·k·n; a scanned body counts once for each turn, which the
    compiler's own estimate does not do, and a `shard_map`ped one once for each device. Arguments
    may be arrays or shapes.
    """
    return traced_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def traced_flops(jaxpr: Any) -> int:
    """`matmul_flops` of a program that has been traced already."""
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
