"""Q/DQ as different tools write it, read as one: constants of any spelling, weights stored or quantized.

ONNX Runtime stores INT8 weights behind a DequantizeLinear and quantizes biases; PyTorch's and NVIDIA's
toolkits quantize float weights in the graph, some behind a Transpose or Cast, with scales that a node makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_DOMAINS = frozenset({"", "com.microsoft"})  # ONNX Runtime's own spelling has the same inputs
_MADE_OF_CONSTANTS = frozenset({
    "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather", "Identity", "Mul",
    "Reshape", "Squeeze", "Transpose", "Unsqueeze", DEQUANTIZE, QUANTIZE,
})  # fmt: skip
_SAME_VALUES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
INT8 = "INT8"
"""As ONNX names the type of signed 8-bit integers."""
_INTEGER_OPERATORS = frozenset({
    "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "QAttention", "QEmbedLayerNormalization", "QGemm",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How a QuantizeLinear or DequantizeLinear maps numbers: integer = number / scale + zero point."""

    node: str
    scale: tuple[float, ...] | None  # None: computed
    zero: tuple[int, ...] | None  # all that occur; None: computed
    dtype: str  # of the integers, as ONNX names it
    axis: int = 1  # along which several scales lie
    block: int = 0  # numbers that share a scale along it; 0: all

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves all."""
        return self.scale is not None and len(self.scale) == 1

    @property
    def symmetric_int8(self) -> bool:
        """Whether it is INT8 with zero points 0 and usable scales, per tensor or per channel."""
        scales = self.scale is not None and all(0 < s < np.inf for s in self.scale)
        return scales and self.zero == (0,) and self.dtype == INT8


@dataclass(frozen=True, slots=True)
class Weighted:
    """A layer with constant weights: what it reads, and what its weights are stored as."""

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    stored: Quantizer | None  # None: float
    bias: Quantizer | None = None  # None: float, or there is none
    along_outputs: bool = True  # whether several scales of the weights are those of the output channels

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)


def is_quantize(node: ir.Node | None) -> bool:
    """Whether `node` turns numbers into integers."""
    return node is not None and node.op_type == QUANTIZE and node.domain in _DOMAINS


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether `node` turns integers into numbers."""
    return node is not None and node.op_type == DEQUANTIZE and node.domain in _DOMAINS


def is_integer_operator(node: ir.Node) -> bool:
    """Whether `node` computes with integers by itself: what ONNX has beside Q/DQ around float operators."""
    known = node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear")
    return known and node.domain in _DOMAINS


def is_fixed(value: ir.Value | None) -> bool:
    """Whether a value is the same for every input: a constant, or made of constants only."""
    if value is None or graph.constant(value) is not None:
        return True
    node = value.producer()
    return node is not None and node.op_type in _MADE_OF_CONSTANTS and all(map(is_fixed, node.inputs))


def array(value: ir.Value | None) -> np.ndarray | None:
    """Return a constant behind nodes that leave its numbers as they are, flat; None where it is computed."""
    while value is not None:
        constant = graph.constant(value)
        if constant is not None:
            return np.asarray(constant).reshape(-1)
        node = value.producer()
        if node is None or node.op_type not in _SAME_VALUES:
            return None
        value = node.inputs[0]
    return None


def quantizer(node: ir.Node) -> Quantizer:
    """Return how a QuantizeLinear or DequantizeLinear maps numbers."""
    scale = array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004 - the optional zero point
    zero: tuple[int, ...] | None = (0,)
    if given is not None:
        points = array(given)
        zero = None if points is None else tuple(int(p) for p in np.unique(points.astype(np.int64)))
    scales = None if scale is None else tuple(float(s) for s in scale.astype(np.float64))
    if scales is not None and len(set(scales)) == 1:
        scales = scales[:1]
    axis, block = (int(graph.attribute(node, *known)) for known in (("axis", 1), ("block_size", 0)))  # type: ignore[call-overload]  # ONNX makes them ints
    return Quantizer(str(node.name), scales, zero, _integers(node, given), axis, block)


def _integers(node: ir.Node, zero: ir.Value | None) -> str:
    """Return the integers' type: that of the integers, of the zero point, or what ONNX takes without one."""
    stored = node.outputs[0] if is_quantize(node) else node.inputs[0]
    for value in (stored, zero):
        if value is not None and value.dtype is not None:
            return value.dtype.name
        if value is not None and value.const_value is not None:
            return value.const_value.dtype.name
    return "UINT8"


def weighted(node: ir.Node) -> Weighted | None:
    """Return the layer with constant weights that `node` is, operands in either order; None for others."""
    if node.op_type not in LAYERS or node.domain:
        return None
    first, second = node.inputs[0], node.inputs[1]
    if is_fixed(first) == is_fixed(second):
        return None  # two activations, or a constant
    data, weight = (first, second) if is_fixed(second) else (second, first)
    if data is None or weight is None:
        return None
    stored, passed = _dequantized(weight)
    given = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None  # noqa: PLR2004 - the bias
    bias = None if given is None else _dequantized(given)[0]
    along = stored is None or _is_along_outputs(node, weight, stored, passed)
    return Weighted(node, data, weight, stored, bias, along)


def _dequantized(value: ir.Value) -> tuple[Quantizer | None, list[ir.Node]]:
    """Return how a constant is dequantized, if at all, and the nodes that pass it on, last first."""
    maker, passed = value.producer(), []
    while maker is not None and maker.op_type in _SAME_VALUES and maker.inputs[0] is not None:
        passed.append(maker)
        maker = maker.inputs[0].producer()
    return (quantizer(maker) if maker is not None and is_dequantize(maker) else None), passed


def _is_along_outputs(node: ir.Node, weight: ir.Value, stored: Quantizer, passed: Sequence[ir.Node]) -> bool:
    """Whether the scales of weights lie along the layer's output channels; taken for so where nobody can say.

    What is said of ConvTranspose contradicts itself: either axis is taken.
    """
    rank = len(graph.dims(weight) or ())
    if stored.per_tensor or not rank or node.op_type == "ConvTranspose":
        return True
    if stored.block:
        return False
    axis = stored.axis % rank
    for moved in reversed(passed):
        if moved.op_type == "Transpose":
            axis = graph.ints(moved, "perm", tuple(reversed(range(rank)))).index(axis)
        elif moved.op_type not in {"Cast", "Identity"}:
            return True
    is_second = node.inputs[1] is weight
    if node.op_type == "MatMul":
        return axis == (rank - 1 if is_second else rank - 2)
    if node.op_type == "Gemm":
        turned = bool(graph.attribute(node, "transB" if is_second else "transA", 0))
        return axis == int(turned != is_second)
    return axis == 0


def elements(value: ir.Value) -> int:
    """Count the elements of a value per image: a free size, and a free batch, count as 1."""
    return int(np.prod([d or 1 for d in graph.dims(value) or ()], dtype=np.int64))
