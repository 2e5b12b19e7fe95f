"""Scalar functions by their values, so that an activation is known in whatever operators it is spelled.

Between two learned layers an SE block applies one scalar function to each channel. Exporters write it as
one operator or as six; sampled on a fixed grid, HardSigmoid and Add-Clip-Div are the same array.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

Samples = npt.NDArray[np.float64]

_TINY = 1e-6  # of the whole range: no difference
_FAR = 1e4  # beyond it a bounded function has settled, and no activation overflows double precision
GRID: Samples = np.concatenate([np.linspace(-12.0, 12.0, 97), [-_FAR, _FAR]])
"""Where a function is sampled: every 0.25 in -12..12, and far out on either side."""

_ERF = np.vectorize(math.erf)
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # ONNX's defaults


def _sigmoid(x: Samples) -> Samples:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _softplus(x: Samples) -> Samples:
    return np.asarray(np.logaddexp(0, x))


def _elu(x: Samples, alpha: float = 1.0) -> Samples:
    return np.asarray(np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _hard_sigmoid(x: Samples, alpha: float = 0.2, beta: float = 0.5) -> Samples:
    return np.asarray(np.clip(alpha * x + beta, 0, 1))


def _number(node: ir.Node, name: str, default: float) -> float:
    value = graph.attribute(node, name, default)
    return float(value) if isinstance(value, (int, float)) else default


_UNARY: dict[str, Callable[[ir.Node, Samples], Samples]] = {
    "Relu": lambda _, x: np.maximum(x, 0),
    "Sigmoid": lambda _, x: _sigmoid(x),
    "Tanh": lambda _, x: np.tanh(x),
    "HardSigmoid": lambda n, x: _hard_sigmoid(x, _number(n, "alpha", 0.2), _number(n, "beta", 0.5)),
    "HardSwish": lambda _, x: x * _hard_sigmoid(x, 1 / 6),
    "Swish": lambda n, x: x * _sigmoid(_number(n, "alpha", 1.0) * x),
    "LeakyRelu": lambda n, x: np.where(x > 0, x, _number(n, "alpha", 0.01) * x),
    "ThresholdedRelu": lambda n, x: np.where(x > _number(n, "alpha", 1.0), x, 0),
    "Elu": lambda n, x: _elu(x, _number(n, "alpha", 1.0)),
    "Celu": lambda n, x: _elu(x / _number(n, "alpha", 1.0)) * _number(n, "alpha", 1.0),
    "Selu": lambda n, x: _number(n, "gamma", _SELU_GAMMA) * _elu(x, _number(n, "alpha", _SELU_ALPHA)),
    "Gelu": lambda _, x: 0.5 * x * (1 + _ERF(x / math.sqrt(2))),
    "Mish": lambda _, x: x * np.tanh(_softplus(x)),
    "Softplus": lambda _, x: _softplus(x),
    "Softsign": lambda _, x: x / (1 + np.abs(x)),
    "Erf": lambda _, x: _ERF(x),
    "Exp": lambda _, x: np.exp(x),
    "Log": lambda _, x: np.log(x),
    "Sqrt": lambda _, x: np.sqrt(x),
    "Neg": lambda _, x: -x,
    "Abs": lambda _, x: np.abs(x),
    "Reciprocal": lambda _, x: 1 / x,
}

_BINARY: dict[str, Callable[[Samples, Samples], Samples]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Pow": lambda a, b: a**b,
    "Min": np.minimum,
    "Max": np.maximum,
}

UNARY_OPS = frozenset(_UNARY) | {"Clip"}
BINARY_OPS = frozenset(_BINARY)


def unary(
    node: ir.Node, x: Samples, scalar: Callable[[ir.Value | None], float | None] = graph.scalar
) -> Samples | None:
    """Apply a one-input operator to samples; None where it is none or `scalar` does not know its limits."""
    with np.errstate(all="ignore"):
        if node.op_type == "Clip":
            limits = _clip_limits(node, scalar)
            return None if limits is None else np.clip(x, *limits)
        apply = _UNARY.get(node.op_type)
        return None if apply is None else np.asarray(apply(node, x), dtype=np.float64)


def _clip_limits(
    node: ir.Node, scalar: Callable[[ir.Value | None], float | None]
) -> tuple[float, float] | None:
    limits = []
    for index, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            limits.append(_number(node, name, default))  # opset 6: attributes
        elif (number := scalar(value)) is not None:
            limits.append(number)
        else:
            return None
    return limits[0], limits[1]


def binary(op_type: str, a: Samples, b: Samples) -> Samples:
    """Apply a two-input operator of BINARY_OPS to samples."""
    with np.errstate(all="ignore"):
        return np.asarray(_BINARY[op_type](a, b), dtype=np.float64)


_ACTIVATIONS: tuple[tuple[str, Samples], ...] = (
    ("none", GRID),
    ("relu", np.maximum(GRID, 0)),
    ("silu", GRID * _sigmoid(GRID)),
    ("hardswish", GRID * _hard_sigmoid(GRID, 1 / 6)),
    ("gelu", 0.5 * GRID * (1 + _ERF(GRID / math.sqrt(2)))),
    ("gelu", 0.5 * GRID * (1 + np.tanh(math.sqrt(2 / math.pi) * (GRID + 0.044715 * GRID**3)))),
    ("gelu", GRID * _sigmoid(1.702 * GRID)),
    ("relu6", np.clip(GRID, 0, 6)),
    ("sigmoid", _sigmoid(GRID)),
    ("tanh", np.tanh(GRID)),
    ("elu", _elu(GRID)),
    ("selu", _SELU_GAMMA * _elu(GRID, _SELU_ALPHA)),
    ("mish", GRID * np.tanh(_softplus(GRID))),
    ("softplus", _softplus(GRID)),
)
_GATES: tuple[tuple[str, Samples], ...] = (
    ("sigmoid", _sigmoid(GRID)),
    ("tanh1", 1 + np.tanh(GRID)),
    ("tanh", np.tanh(GRID)),
)


def identity() -> Samples:
    """The samples of x -> x."""
    return GRID


def is_identity(samples: Samples) -> bool:
    """Whether this is x -> x."""
    return bool(np.array_equal(samples, GRID))


def _is(samples: Samples, known: Samples) -> bool:
    return bool(np.allclose(samples, known, rtol=2e-3, atol=2e-3))  # constants are written to 4 digits


def activation_name(samples: Samples) -> str:
    """Name an inner activation, up to a positive gain: "relu", "silu", …, "none", or "other"."""
    if not np.isfinite(samples[:-2]).all():
        return "other"
    at = np.searchsorted(GRID[:-2], 12.0)
    for name, known in _ACTIVATIONS:
        gain = samples[at] / known[at]
        if gain > 0 and _is(samples[:-2], gain * known[:-2]):
            return name
    positive, negative = samples[:-2][GRID[:-2] > 0], samples[:-2][GRID[:-2] < 0]
    x = GRID[:-2]
    if _is(positive, x[x > 0]) and _is(negative, negative[0] / x[0] * x[x < 0]):
        return "leakyrelu"
    return "other"


def is_bounded(samples: Samples) -> bool:
    """Whether the function stays finite, settles far out on both sides, and is no constant."""
    if not np.isfinite(samples).all():
        return False
    return bool(np.abs(samples).max() < _FAR / 10 and np.ptp(samples) > _TINY)


def gate_name(samples: Samples) -> tuple[str, float] | None:
    """Name a gate and its constant gain: ("sigmoid", 2.0); None where the function is not bounded.

    A clipped straight line from 0 to its gain is a "hardsigmoid" whatever its slope and offset, since a
    simplifier may have folded both into the layer before; any other bounded function is "other".
    """
    if not is_bounded(samples):
        return None
    far = float(samples[-1])
    for name, known in _GATES:
        gain = far / float(known[-1])
        if gain > 0 and _is(samples, gain * known):
            return name, round(gain, 6)
    low = float(samples[-2])
    if 0 < low < far and (shifted := gate_name(samples - low)) and shifted[0] != "other":
        return f"{shifted[0]}{low:g}", shifted[1]  # 1 + sigmoid(x): a residual inside the gate
    inner = samples[24:73] / far if far > 0 else samples[24:73]  # -6..6
    if ((inner > 0) & (inner < 1)).all() and abs(low) < _TINY * far:
        logit = np.diff(np.log(inner / (1 - inner)))
        if np.ptp(logit) < _TINY * float(np.abs(logit).max()):
            return "sigmoid", round(far, 6)  # of another slope
    rising = np.diff(samples[:-2])
    if far > 0 and abs(samples[-2]) < _TINY * far and (rising >= -_TINY * far).all():
        inside = (samples[:-2] > _TINY * far) & (samples[:-2] < (1 - _TINY) * far)
        steps = rising[inside[:-1] & inside[1:]]
        if steps.size == 0 or np.ptp(steps) < 1e-3 * float(np.abs(steps).max()):
            return "hardsigmoid", round(far, 6)
    return "other", 1.0


def leaky(samples: Samples, slope: float) -> Samples:
    """Apply a leaky ReLU (a PRelu of one slope) to samples."""
    return np.asarray(np.where(samples > 0, samples, slope * samples))
