"""What each activation is stored as between kernels: INT8 where its quantizer moves to where it is made.

TensorRT moves quantizers backward and dequantizers forward past operators that commute with them: those that
move numbers or choose among them, as MaxPool does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.quantization.chain import spelling

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.quantization.chain.spelling import Quantizer

FREE = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""They move nothing in memory."""
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Gather", "MaxPool", "Slice", "SpaceToDepth", "Split", "Tile",
    "Transpose",
})  # fmt: skip
"""They move numbers or choose among them: Q(op(x)) = op(Q(x)) with one scale for the tensor."""
_SHAPES = frozenset({"Shape", "Size"})


@dataclass(frozen=True, slots=True)
class Use:
    """What reads a value, behind operators that commute with quantizers."""

    node: ir.Node | None  # None: it is an output of the graph
    read: ir.Value  # what the node reads
    joins: tuple[tuple[ir.Node, ir.Value], ...]  # Concats on the way, and what each was given


def commutes(node: ir.Node) -> bool:
    """Whether a per-tensor quantizer may change places with `node`."""
    if node.domain:
        return False
    if node.op_type == "Resize":
        return graph.attribute(node, "mode", "nearest") == "nearest"
    return node.op_type in FREE or node.op_type in MOVES


def uses(value: ir.Value) -> list[Use]:
    """Return what reads `value`: quantizers, layers and operators behind those that commute.

    Each once, however many ways lead there: a chain of Slices and Concats would have twice as many for each.
    """
    found: dict[tuple[ir.Node | None, ir.Value], None] = {}
    reached: dict[ir.Value, None] = {}  # the last first: what is behind a value stands before it
    _reach(value, found, reached, set())
    joins: dict[ir.Value, dict[tuple[ir.Node, ir.Value], None]] = {one: {} for one in reached}
    for one in reversed(reached):
        for node in _passing(one):
            for output in node.outputs:
                joins[output] |= joins[one] | ({(node, one): None} if node.op_type == "Concat" else {})
    return [Use(node, read, tuple(joins[read])) for node, read in found]


def _reach(
    value: ir.Value,
    found: dict[tuple[ir.Node | None, ir.Value], None],
    reached: dict[ir.Value, None],
    begun: set[ir.Value],
) -> None:
    """Collect what reads `value`, and the values on the way, `value` last."""
    if value in begun:
        return
    begun.add(value)
    if value.is_graph_output():
        found[None, value] = None
    passing = _passing(value)
    for node in dict.fromkeys(use.node for use in value.uses()):
        if node in passing:
            for output in node.outputs:
                _reach(output, found, reached, begun)
        elif node.op_type not in _SHAPES:
            found[node, value] = None
    reached[value] = None


def _passing(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that pass `value` on as it is, or parts of it."""
    nodes = dict.fromkeys(use.node for use in value.uses())
    return [n for n in nodes if n.op_type not in _SHAPES and commutes(n) and _is_data(n, value)]


def _is_data(node: ir.Node, value: ir.Value) -> bool:
    """Whether `value` is among what a commuting node moves, not what says how."""
    return value in (node.inputs if node.op_type == "Concat" else node.inputs[:1])


def moved(node: ir.Node) -> list[ir.Value]:
    """Return the values that a commuting node moves; nothing for other nodes."""
    if not commutes(node):
        return []
    given = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in given if value is not None]


class Storage:
    """What the values of one graph are stored as; answers are kept."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._dequantized: dict[ir.Value, Quantizer | None] = {}
        self._written: dict[ir.Value, Quantizer | None] = {}

    def of(self, value: ir.Value) -> Quantizer | None:
        """Return how `value` is quantized in memory; None where it is stored as a float."""
        return self.dequantized(value) or self.written(value)

    def dequantized(self, value: ir.Value) -> Quantizer | None:
        """Return the quantizer that `value` comes from, operators between that commute; None for others."""
        if value not in self._dequantized:
            self._dequantized[value] = self._find_dequantized(value)
        return self._dequantized[value]

    def _find_dequantized(self, value: ir.Value) -> Quantizer | None:
        node = value.producer()
        if node is None:
            return None
        if spelling.is_dequantize(node):
            return spelling.quantizer(node) if not spelling.is_fixed(node.inputs[0]) else None
        if not commutes(node):
            return None
        found = [self.dequantized(v) for v in moved(node)]
        first = found[0] if found else None
        return first if first is not None and all(same(first, other) for other in found) else None

    def written(self, value: ir.Value) -> Quantizer | None:
        """Return the quantizer that the kernel which makes `value` can take in: all readers ask for it."""
        if value not in self._written:
            self._written[value] = None  # a graph without circles never asks again meanwhile
            self._written[value] = self._find_written(value)
        return self._written[value]

    def _find_written(self, value: ir.Value) -> Quantizer | None:
        found = uses(value)
        asked = [spelling.quantizer(u.node) for u in found if u.node and spelling.is_quantize(u.node)]
        if not asked or len(asked) < len(found):
            return None
        first = asked[0]
        if not (first.symmetric_int8 and first.per_tensor and all(same(first, other) for other in asked)):
            return None
        joined = [v for u in found for join, own in u.joins for v in moved(join) if v is not own]
        others = [self.dequantized(v) for v in joined]
        return first if all(other is None or same(first, other) for other in others) else None


def same(one: Quantizer | None, other: Quantizer | None) -> bool:
    """Whether two quantizers map numbers alike."""
    if one is None or other is None or one.scale is None or other.scale is None:
        return False
    alike = len(one.scale) == len(other.scale) and bool(np.allclose(one.scale, other.scale, rtol=0, atol=0))
    return alike and one.zero == other.zero and one.dtype == other.dtype
