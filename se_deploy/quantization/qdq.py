"""Explicit INT8: QuantizeLinear and DequantizeLinear around each quantized layer, zero points all 0.

Two exact transformations go before the quantizer. Offset folding subtracts an offset o from a tensor whose
range does not lie around 0; channel equalization divides each channel by a factor d of its own. The layer's
weights and bias take both back, so the float network is the same:

    W x + b = (W diag(d)) ((x - o) / d) + (b + W o)

A layer that pads its input pads with the offset 0 instead, in a Pad of its own in front of the quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.protocols import Array

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose input and constant weights are quantized."""

BIAS_INPUT = 2  # x, W, B: a layer's third input
LOWEST_LEVEL, HIGHEST_LEVEL = -128, 127
"""What INT8 holds."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A tensor that operators other than layers read quantized too, so that a chain of INT8 is whole."""

    tensor: str
    scale: float
    readers: tuple[str, ...]  # names of nodes


@dataclass(frozen=True, slots=True)
class QuantParams:
    """How an activation is quantized: q = clip(round(((x - offset) / equalization) / scale), -128, 127)."""

    scale: float
    offset: Array | None = None  # (C,) float32 over the channel axis; None: 0
    equalization: Array | None = None  # (C,) float32, positive; None: 1
    residual: bool = False  # Adds read the tensor quantized too; needs neither offset nor equalization
    reason: str | None = None  # why the scale does not come from the data
    beside: tuple[Beside, ...] = ()  # what is quantized for the sake of this tensor's readers

    @property
    def low(self) -> float:
        """The smallest value of any channel that is not clipped."""
        return float(np.min(self._dequantized(LOWEST_LEVEL)))

    @property
    def high(self) -> float:
        """The largest value of any channel that is not clipped."""
        return float(np.max(self._dequantized(HIGHEST_LEVEL)))

    def _dequantized(self, level: int) -> Array:
        equalization = 1.0 if self.equalization is None else self.equalization.astype(np.float64)
        offset = 0.0 if self.offset is None else self.offset.astype(np.float64)
        return np.asarray(level * self.scale * equalization + offset)


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """One layer in INT8. Offset and equalization of the input are folded into the weights and the bias."""

    node: str
    params: QuantParams
    weight: Array  # int8, the shape of the node's own weights
    weight_scale: Array  # float32, () per tensor or (O,) along `axis`
    axis: int  # of the output channels in `weight`
    bias: Array | None  # float32 (O,): None where the layer had none and needs none
    raised_for_bias: bool = False  # the weight scale, so that the bias in steps of the product fits int32


def to_qdq(model: ir.Model, layers: Sequence[QuantizedLayer]) -> graph.Rewrite:
    """Return a copy of `model` (operator set 13 or newer) with the layers' Q/DQ nodes.

    Layers that read the same tensor with the same parameters, and pad it alike, share one Q/DQ pair.
    """

    def quantize_layers(copy: ir.Model) -> int:
        return write(copy, layers)

    return graph.rewrite(model, quantize_layers)


def trial(model: ir.Model, layers: Sequence[QuantizedLayer]) -> ir.Model:
    """Return the same graph as `to_qdq`, to run and throw away: without names and shapes for what is new."""
    copy = model.clone()
    write(copy, layers)
    return copy


def write(model: ir.Model, layers: Sequence[QuantizedLayer]) -> int:
    """Write the layers' Q/DQ nodes into `model` itself and return how many layers it was."""
    by_node = {layer.node: layer for layer in layers}
    nodes = [node for node in model.graph if node.name in by_node]
    writer = _Writer(model)
    for node in nodes:
        writer.quantize(node, by_node[node.name or ""])
    writer.quantize_beside([one for layer in layers for one in layer.params.beside])
    return len(nodes)


def channel_axis(node: ir.Node) -> int:
    """Return the axis of a layer's input that its weights contract: 1 for images, the last for MatMul."""
    return -1 if node.op_type == "MatMul" else 1


def pads(node: ir.Node) -> tuple[int, ...] | None:
    """Return a convolution's pads as ONNX orders them, resolved from auto_pad; None where it pads nothing.

    Raises: ValueError for auto_pad with a size that is not known.
    """
    if node.op_type != "Conv":
        return None
    weight = graph.dims(node.inputs[1])
    size = graph.dims(node.inputs[0])
    if weight is None or size is None:
        raise ValueError(f"Conv '{node.name}' has no known shape")
    spatial = len(weight) - 2
    mode = graph.attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        return None
    if mode == "NOTSET":
        given_pads = tuple(int(p) for p in graph.attribute(node, "pads", (0,) * 2 * spatial))  # type: ignore[attr-defined]  # ONNX makes it a list of ints
        return given_pads if any(given_pads) else None
    sizes, kernel = size[2:], weight[2:]
    if None in sizes or None in kernel:
        raise ValueError(f"Conv '{node.name}' pads by auto_pad and its input size is free")
    resolved = same_pads(
        tuple(d for d in sizes if d is not None),
        tuple(d for d in kernel if d is not None),
        tuple(graph.attribute(node, "strides", (1,) * spatial)),  # type: ignore[arg-type]  # as above
        tuple(graph.attribute(node, "dilations", (1,) * spatial)),  # type: ignore[arg-type]  # as above
        upper=mode == "SAME_UPPER",
    )
    return resolved if any(resolved) else None


def same_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    upper: bool,
) -> tuple[int, ...]:
    """Return the pads that auto_pad SAME_UPPER or SAME_LOWER means for an input of these sizes."""
    before, after = [], []
    for length, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        outputs = -(-length // stride)
        total = max(0, (outputs - 1) * stride + (taps - 1) * dilation + 1 - length)
        before.append(total // 2 if upper else total - total // 2)
        after.append(total - before[-1])
    return (*before, *after)


def given(node: ir.Node, slot: int) -> ir.Value:
    """Return a node's input that must be there; a missing one is a defect of the caller."""
    value = node.inputs[slot]
    if value is None:
        raise ValueError(f"'{node.name}' has no input {slot}")
    return value


class _Writer:
    """Writes Q/DQ nodes into one graph, under names that the graph does not use."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.names = graph.value_names(model)
        self.zero = self.constant("int8_zero", np.zeros((), np.int8))
        self.quantized: dict[tuple[object, ...], ir.Value] = {}  # what layers may share

    def constant(self, name: str, array: Array) -> ir.Value:
        """Return a new constant; the graph's own names win."""
        return graph.initializer(self.model, name, array, self.names)

    def quantize(self, node: ir.Node, layer: QuantizedLayer) -> None:
        """Let a layer read quantized input and quantized weights."""
        params = layer.params
        padding = pads(node) if params.offset is not None else None
        key = (
            given(node, 0),
            params.scale,
            padding,
            None if params.offset is None else params.offset.tobytes(),
            None if params.equalization is None else params.equalization.tobytes(),
            params.residual,
        )
        if key not in self.quantized:
            self.quantized[key] = self._quantized_input(node, params, padding)
        if padding is not None:
            for name in ("auto_pad", "pads"):
                node.attributes.pop(name, None)
        node.replace_input_with(0, self.quantized[key])
        self._quantize_weights(node, layer)

    def _quantized_input(
        self, node: ir.Node, params: QuantParams, padding: tuple[int, ...] | None
    ) -> ir.Value:
        """Return the dequantized input, behind Pad, Mul and Sub where they are needed."""
        x = given(node, 0)
        name, rank = x.name, len(graph.dims(x) or ())
        axis = channel_axis(node) % rank
        along = tuple(-1 if i == axis else 1 for i in range(rank))
        nodes: list[ir.Node] = []
        value: ir.Value = x

        def then(op: str, *others: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
            nonlocal value
            made = ir.node(op, [value, *others])
            made.outputs[0].type = ir.TensorType(dtype)
            made.outputs[0].shape = None if padding is not None else x.shape
            value = made.outputs[0]
            nodes.append(made)

        if padding is not None:
            half = len(padding) // 2
            edges = np.array([0, 0, *padding[:half], 0, 0, *padding[half:]], np.int64)
            then("Pad", self.constant(f"{name}_pads", edges))
        if params.equalization is not None:
            inverse = (1 / params.equalization.astype(np.float64)).astype(np.float32)
            then("Mul", self.constant(f"{name}_inverse", inverse.reshape(along)))
        if params.offset is not None:
            offset = params.offset.astype(np.float64)
            if params.equalization is not None:
                offset = offset / params.equalization
            then("Sub", self.constant(f"{name}_offset", offset.astype(np.float32).reshape(along)))
        scale = self.constant(f"{name}_scale", np.array(params.scale, np.float32))
        then("QuantizeLinear", scale, self.zero, dtype=ir.DataType.INT8)
        then("DequantizeLinear", scale, self.zero)
        self.model.graph.insert_before(node, nodes)
        if params.residual:
            _share_with_adds(self.model, x, value, nodes)
        return value

    def quantize_beside(self, tensors: Sequence[Beside]) -> None:
        """Let operators other than layers read quantized tensors; a layer's own pair serves them too."""
        values, nodes = graph.values(self.model), {node.name: node for node in self.model.graph}
        for tensor, scale in dict.fromkeys((one.tensor, one.scale) for one in tensors):
            x = values[tensor]
            made = self._pair(x, scale)
            for name in {n: None for one in tensors if one.tensor == tensor for n in one.readers}:
                for slot, value in enumerate(nodes[name].inputs):
                    if value is x:
                        nodes[name].replace_input_with(slot, made)

    def _pair(self, x: ir.Value, scale: float) -> ir.Value:
        """Return `x` dequantized, right behind what makes it: by the pair that is there, or a new one."""
        plain = (x, scale, None, None, None)
        key = next((key for key in self.quantized if key[:-1] == plain), None)
        if key is not None:
            dequantize = self.quantized[key].producer()
            quantize = None if dequantize is None else given(dequantize, 0).producer()
            if dequantize is None or quantize is None:
                raise ValueError(f"the pair on '{x.name}' is gone")
            pair = [quantize, dequantize]
            self.model.graph.remove(pair)
        else:
            by = self.constant(f"{x.name}_scale", np.array(scale, np.float32))
            quantize = ir.node("QuantizeLinear", [x, by, self.zero])
            quantize.outputs[0].type = ir.TensorType(ir.DataType.INT8)
            dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], by, self.zero])
            dequantize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            pair = [quantize, dequantize]
            quantize.outputs[0].shape = dequantize.outputs[0].shape = x.shape
            self.quantized[(x, scale, None, None, None, False)] = dequantize.outputs[0]
        graph.insert_after(x, pair)
        return dequantize.outputs[0]

    def _quantize_weights(self, node: ir.Node, layer: QuantizedLayer) -> None:
        weight = given(node, 1)
        per_channel = layer.weight_scale.ndim > 0
        dq = ir.node(
            "DequantizeLinear",
            [
                self.constant(f"{weight.name}_int8", layer.weight),
                self.constant(f"{weight.name}_scale", layer.weight_scale.astype(np.float32)),
                self.constant(f"{weight.name}_zero", np.zeros(layer.weight_scale.shape, np.int8)),
            ],
            {"axis": layer.axis} if per_channel else {},
        )
        dq.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.insert_before(node, dq)
        node.replace_input_with(1, dq.outputs[0])
        if layer.bias is None:
            return
        if node.op_type == "MatMul":
            self._add_bias(node, layer.bias)
            return
        has_bias = len(node.inputs) > BIAS_INPUT and node.inputs[BIAS_INPUT] is not None
        name = given(node, BIAS_INPUT).name if has_bias else f"{node.name}_bias"
        bias = self.constant(f"{name}_folded", layer.bias.astype(np.float32))
        if len(node.inputs) <= BIAS_INPUT:
            node.resize_inputs(BIAS_INPUT + 1)
        node.replace_input_with(BIAS_INPUT, bias)

    def _add_bias(self, node: ir.Node, bias: Array) -> None:
        """Put an Add behind a MatMul, which has no bias of its own."""
        y = node.outputs[0]
        add = ir.node("Add", [y, self.constant(f"{y.name}_bias", bias.astype(np.float32))])
        add.outputs[0].type, add.outputs[0].shape = y.type, y.shape
        graph.insert_after(y, [add])
        graph.replace(y, add.outputs[0])
        add.replace_input_with(0, y)


def adds(value: ir.Value) -> list[ir.Node]:
    """Return the Adds of two activations that read `value`: where a residual branch comes back."""
    return [
        use.node
        for use in value.uses()
        if use.node.op_type == "Add" and all(v is not None and v.const_value is None for v in use.node.inputs)
    ]


def _share_with_adds(model: ir.Model, x: ir.Value, quantized: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Let the residual Adds read the same quantized tensor: it then exists in INT8 only."""
    readers = adds(x)
    if not readers:
        return
    model.graph.remove(nodes)
    graph.insert_after(x, nodes)
    for add in readers:
        for slot, value in enumerate(add.inputs):
            if value is x:
                add.replace_input_with(slot, quantized)
