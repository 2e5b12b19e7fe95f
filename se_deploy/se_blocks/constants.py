"""Compute what a graph computes from constants alone, by ONNX's own reference implementation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.protocols import Array

_NOT_COMPUTED = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant", "If", "Loop", "Scan"})
"""Integer weights stay integers, control flow stays as it is."""


def is_computable(node: ir.Node) -> bool:
    """Whether a node gives the same for the same inputs and may be replaced by what it gives."""
    by_chance = node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
    return node.domain in {"", "ai.onnx"} and not by_chance and node.op_type not in _NOT_COMPUTED


def compute(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> tuple[Array, ...] | None:
    """Run one node on arrays, None for an input left out.

    None where the reference does not know it, or where it would make more than graph.MOST_CONSTANT elements.
    """
    if _made(node, inputs) > graph.MOST_CONSTANT:
        return None
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - every operator: most graphs need none

    names = [None if array is None else f"i{k}" for k, array in enumerate(inputs)]
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if name and array is not None}
    try:
        made = ReferenceEvaluator(_alone(node, names, feeds, opset)).run(None, feeds)
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
        return None  # the reference raises any of these for a form that it does not know; the node then stays
    return tuple(np.asarray(array) for array in made)


def _made(node: ir.Node, inputs: Sequence[Array | None]) -> float:
    """Count the elements that a node will make: by its shapes, else by the sizes that it is given."""
    known = [graph.count(output) for output in node.outputs]
    if None not in known:
        return sum(n for n in known if n is not None)
    given = [np.asarray(0) if array is None else array for array in inputs]
    sizes = [array.astype(np.float64) for array in given if array.dtype.kind in "iuf"]
    if node.op_type in {"ConstantOfShape", "Expand", "Tile"} and not sizes:
        return math.inf
    if node.op_type == "Range":
        if len(sizes) != 3 or any(array.size != 1 for array in sizes):  # noqa: PLR2004 - start, limit, delta
            return math.inf
        start, limit, delta = (array.item() for array in sizes)
        return max(0.0, (limit - start) / delta) if delta else math.inf
    if node.op_type == "ConstantOfShape":
        return float(np.prod(sizes[0]))
    if node.op_type in {"Expand", "Tile"}:
        return given[0].size * max(1.0, float(np.prod(sizes[-1])))
    # An output of unknown shape is no larger than its inputs broadcast, repeated as often as a number says.
    whole = [a.astype(np.float64) for a in given if a.dtype.kind in "iu" and a.size]
    repeats = max((float(np.abs(a).max()) for a in whole), default=1.0)
    try:
        size = math.prod(np.broadcast_shapes(*(array.shape for array in given)))
    except ValueError:
        size = max(array.size for array in given)
    return size * max(1.0, repeats)


def _alone(
    node: ir.Node, names: Sequence[str | None], feeds: Mapping[str, Array], opset: int
) -> onnx.ModelProto:
    """A model of one node."""
    proto = ir.to_proto(node)
    proto.input[:] = [name or "" for name in names]
    proto.output[:] = [f"o{k}" for k in range(len(node.outputs))]
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    wanted = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output]
    return onnx.helper.make_model(
        onnx.helper.make_graph([proto], "constant", infos, wanted),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )


class Constants:
    """The arrays behind a graph's constant values, computed when they are first asked for."""

    def __init__(self, opset: int) -> None:
        """`opset`: of the graph that the values belong to."""
        self._opset = opset
        self._known: dict[ir.Value, Array | None] = {}

    def array(self, value: ir.Value | None) -> Array | None:
        """A constant's array; None for what depends on the graph's inputs."""
        if value is None or (array := graph.constant(value)) is not None:
            return None if value is None else array
        waiting = [value]  # no recursion: a network is deeper than Python's stack
        while waiting:
            first = self._unsettled_input(waiting[-1])
            if first is not None:
                waiting.append(first)
            else:
                last = waiting.pop()
                self._known[last] = self._computed(last)
        return self._known[value]

    def _unsettled_input(self, value: ir.Value) -> ir.Value | None:
        """Return the first input that `value` must wait for; None where it can be settled now."""
        node = value.producer()
        if value in self._known or node is None or not is_computable(node):
            return None
        for one in node.inputs:
            if one is None or ir.convenience.get_const_tensor(one) is not None:
                continue
            if one not in self._known:
                return one
            if self._known[one] is None:
                return None
        return None

    def scalar(self, value: ir.Value | None) -> float | None:
        """The number of a constant of one element, else None."""
        shape = graph.dims(value)
        if shape is not None and any(d != 1 for d in shape):
            return None
        array = self.array(value)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def _computed(self, value: ir.Value) -> Array | None:
        node = value.producer()
        if value in self._known or node is None or not is_computable(node):
            return self._known.get(value)
        arrays = [graph.constant(v) if v not in self._known else self._known[v] for v in node.inputs]
        if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
            return None
        made = compute(node, arrays, self._opset)
        return None if made is None else made[node.outputs.index(value)]
