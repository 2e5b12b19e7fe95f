"""Recognize HardSigmoid and HardSwish in whatever arithmetic they are spelled, and use the operator.

onnxscript's own rules (fuse_hardswish_rules, 0.7.2) were tried: they know three of the spellings, write
HardSwish into opsets that lack it, and take a divisor of 6.0005 for 6, which moves answers by 8e-5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.se_blocks import functions

if TYPE_CHECKING:
    from se_deploy.se_blocks.functions import Samples

_DEPTH = 5  # nodes that x * clip(x + 3, 0, 6) / 6 is spelled with, and one more
_STARTS = frozenset({"Add", "Sub", "Mul", "Div", "Clip", "HardSigmoid", "Relu", "Max", "Min"})
_HARD_SWISH_OPSET = 14
_EXACT = 1e-6  # relative: constants such as 0.1667 are another function than 1/6
_SIXTH = 1 / 6
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
"""What runtimes compute both operators in: integers have neither, float64 has no kernel."""


@dataclass(frozen=True, slots=True)
class _Operator:
    """One operator on `base`; no node yet, since even an unused node counts as a reader."""

    base: ir.Value
    op_type: str
    slope: tuple[tuple[str, float], ...] = ()

    @property
    def rank(self) -> int:
        """How well it is understood; of equals the one whose base comes first, which leaves the fewest nodes.

        A bias of a single channel looks like a part of the function; the usual offset tells them apart.
        """
        usual = math.isclose(dict(self.slope).get("beta", 0.5), 0.5, rel_tol=_EXACT)
        return 3 if self.op_type == "HardSwish" else 2 if usual else 1


def recompose_hard(model: ir.Model) -> int:
    """Spell HardSwish and HardSigmoid as the operators that they are.

    Before: Add(x, 3) -> Clip(0, 6) -> Div(6) [-> Mul(x)], in any order and with any constants that agree
    After:  HardSigmoid(x, alpha, beta), or HardSwish(x) from opset 14; equal up to rounding.
    Needs: numbers in float32 or float16, every constant a scalar, and the function equal to the operator's
    to 1e-6.
    """
    found: dict[ir.Value, _Operator] = {}
    with_swish = graph.opset(model) >= _HARD_SWISH_OPSET
    for base in _bases(model):
        for value, samples in _functions_of(base).items():
            made = _operator(samples, base, with_swish=with_swish)
            if made is not None and made.rank > (found[value].rank if value in found else 0):
                found[value] = made
    found = {v: made for v, made in found.items() if not _is_already(v, made)}
    for value, made in found.items():
        producer = value.producer()
        if producer is None or producer.graph is None:
            continue
        node = ir.node(made.op_type, [made.base], dict(made.slope))
        producer.graph.insert_after(producer, node)
        graph.replace(value, node.outputs[0])
    return len(found)


def _is_already(value: ir.Value, made: _Operator) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == made.op_type


def _bases(model: ir.Model) -> list[ir.Value]:
    """Every value that such a spelling may start from."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type in _STARTS]
    values = dict.fromkeys(v for node in nodes for v in node.inputs if v is not None)
    return [v for v in values if v.dtype in _TYPES and graph.constant(v) is None]


def _functions_of(base: ir.Value) -> dict[ir.Value, Samples]:
    """The values that are functions of `base` spelled with two nodes or more."""
    known: dict[ir.Value, Samples] = {base: functions.identity()}
    direct: set[ir.Value] = set()
    frontier = [base]
    for _ in range(_DEPTH):
        following = []
        for node in dict.fromkeys(use.node for value in frontier for use in value.uses()):
            samples = _sampled(node, known)
            if samples is None or node.outputs[0] in known:
                continue
            known[node.outputs[0]] = samples
            following.append(node.outputs[0])
            if all(v is base or graph.constant(v) is not None for v in node.inputs):
                direct.add(node.outputs[0])
        frontier = following
    return {v: f for v, f in known.items() if v is not base and v not in direct}


def _sampled(node: ir.Node, known: dict[ir.Value, Samples]) -> Samples | None:
    if node.op_type in {"HardSigmoid", "Relu", "Clip"}:
        first = node.inputs[0]
        return None if first is None or first not in known else functions.unary(node, known[first])
    if node.op_type not in functions.BINARY_OPS or len(node.inputs) != 2:  # noqa: PLR2004
        return None
    operands = []
    for value in node.inputs:
        if value is None:
            return None
        number = graph.scalar(value)
        if value in known:
            operands.append(known[value])
        elif number is not None:
            operands.append(functions.identity() * 0 + number)
        else:
            return None
    return functions.binary(node.op_type, operands[0], operands[1])


def _operator(samples: Samples, base: ir.Value, *, with_swish: bool) -> _Operator | None:
    """The one operator that computes a function of `base`; None where there is none."""
    x = functions.GRID
    if with_swish and _equal(samples, x * np.clip(x / 6 + 0.5, 0, 1)):
        return _Operator(base, "HardSwish")
    inside = (samples > _EXACT) & (samples < 1 - _EXACT)
    if inside.sum() < 2:  # noqa: PLR2004  (a line needs two points)
        return None
    alpha, beta = np.polyfit(x[inside], samples[inside], 1)
    if alpha <= 0 or not _equal(samples, np.clip(alpha * x + beta, 0, 1)):
        return None
    slope = _SIXTH if abs(alpha - _SIXTH) < _EXACT else round(float(alpha), 7)
    return _Operator(base, "HardSigmoid", (("alpha", slope), ("beta", round(float(beta), 7))))


def _equal(a: Samples, b: Samples) -> bool:
    return bool(np.isfinite(a).all() and np.allclose(a, b, rtol=_EXACT, atol=_EXACT))
