"""Tensors that residual Adds read: their rounding error goes past the block into all that lies behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.quantization import qdq

if TYPE_CHECKING:
    from collections.abc import Collection

    import onnx_ir as ir

_LETS_THROUGH = frozenset({"Relu", "LeakyRelu", "Identity"})


def read_by_adds(model: ir.Model, tensors: Collection[str]) -> set[str]:
    """Return those of the tensors that an Add of two activations reads."""
    values = graph.values(model)
    return {name for name in tensors if name in values and qdq.adds(values[name])}


def behind_adds(model: ir.Model, tensors: Collection[str]) -> dict[str, frozenset[str]]:
    """Return, for each tensor that a residual Add reads, those of `tensors` that its error reaches unchanged.

    That is along Adds and what lets most of it through; not through a layer, whose own input it is not.
    """
    values = graph.values(model)
    return {
        name: frozenset(_reached(values[name], frozenset(tensors))) for name in read_by_adds(model, tensors)
    }


def _reached(start: ir.Value, tensors: frozenset[str]) -> set[str]:
    reached: set[str] = set()
    waiting, seen = [start], {start}
    while waiting:
        value = waiting.pop()
        through = [use.node for use in value.uses() if use.node.op_type in _LETS_THROUGH]
        if value is start:
            through = []  # its own Relu is read by others, not added
        for node in (*qdq.adds(value), *through):
            y = node.outputs[0]
            if y in seen:
                continue
            seen.add(y)
            waiting.append(y)
            if y.name in tensors:
                reached.add(str(y.name))
    return reached
