"""Counting the multiplications of a traced function.

(1) dot_general      2 * size of the output * length of what is contracted
(2) convolution      2 * size of the output * kernel height * width * input channels per group

Only these count, as in every published MFU. A scanned body counts as often as it runs, which XLA's own analysis does
not do; of the branches of a `cond` the largest counts; of code that depends on the platform, the accelerator's.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import jax
from jax.extend import core
from jaxtyping import PyTree


def count_flops(function: Callable, *arguments: PyTree) -> float:
    """Count the FLOPs of `function(*arguments)`, arrays or shapes, over all devices together."""
    return flops_of(jax.make_jaxpr(function)(*arguments))


def flops_of(traced: core.ClosedJaxpr) -> float:
    """Count the FLOPs of a traced function, over all devices together."""
    return _of_jaxpr(traced.jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> float:
    return sum((_of_equation(equation) for equation in jaxpr.eqns), 0.0)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) / features
    if name == "cond":
        branches = parameters["branches"]
        # `lax.platform_dependent` is a cond too, on the platform; its default comes last.
        if _chooses_platform(equation):
            return _of_jaxpr(branches[-1].jaxpr)
        return max(_of_jaxpr(branch.jaxpr) for branch in branches)
    times = parameters["length"] if name == "scan" else 1
    if name == "shard_map":  # what stands there is one share
        axes = parameters.get("newly_manual_axes") or parameters["manual_axes"]
        times = math.prod(parameters["mesh"].shape[axis] for axis in axes)
    return times * sum((_of_jaxpr(inner) for inner in _inner(parameters)), 0.0)


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def _chooses_platform(equation: core.JaxprEqn) -> bool:
    return equation.params.get("branches_platforms") is not None


def _inner(parameters: Mapping[str, object]) -> Iterator[core.Jaxpr]:
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
