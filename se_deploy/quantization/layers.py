"""The layers that INT8 is for: what each reads, its weights as matrices, and why others stay in float."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.quantization import qdq, scales
from se_deploy.quantization.im2col import ConvWindow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from se_deploy.protocols import Array
    from se_deploy.quantization.policies import Policy
    from se_deploy.se_blocks import Census

_MOST_COLUMNS = (2**31 - 1) // (-qdq.LOWEST_LEVEL * scales.WEIGHT_LEVELS)
"""Products of two INT8 numbers that an int32 accumulator holds at their largest."""


@dataclass(frozen=True, slots=True)
class FloatLayer:
    """A layer that stays in the graph's own precision."""

    node: str
    reason: str
    macs: int
    has_weights: bool = True  # constant ones: shares are counted over the layers that have them


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer to quantize: y = sum over taps and channels of W x, plus b."""

    node: str
    op: str
    tensor: str  # what it reads
    channel_axis: int  # of that tensor
    matrix: Array  # float32 (G, O/G, C/G, taps), C the channels it reads
    bias: Array | None  # float32 (O,)
    macs: int
    elements: int  # of input, weights and output
    padded: bool
    can_fold_offset: bool
    shape: tuple[int, ...]  # of the weights as the node has them
    transposed: bool  # Gemm with transB = 0 and MatMul: (C, O)
    window: ConvWindow | None  # None for ConvTranspose, whose outputs do not all see the same taps
    column_power: Array = field(init=False)  # float64 (C,): squared weights that each channel meets
    largest: Array = field(init=False)  # float32 (G, O/G, C/G): of the taps' magnitudes

    def __post_init__(self) -> None:
        """Sum up the weights once: many scales are tried on them."""
        power = np.einsum("goct,goct->gc", self.matrix, self.matrix, dtype=np.float64).reshape(-1)
        object.__setattr__(self, "column_power", power)
        object.__setattr__(self, "largest", np.abs(self.matrix).max(axis=3))

    @property
    def groups(self) -> int:
        """How many groups of channels do not mix."""
        return int(self.matrix.shape[0])

    @property
    def outputs(self) -> int:
        """O."""
        return int(self.matrix.shape[0] * self.matrix.shape[1])

    @property
    def channels(self) -> int:
        """C."""
        return int(self.matrix.shape[0] * self.matrix.shape[2])

    @property
    def depthwise(self) -> bool:
        """Whether each channel is a group of its own."""
        return self.matrix.shape[2] == 1 and self.groups > 1

    @property
    def output_axis(self) -> int:
        """The axis of the output channels in the weights as the node has them."""
        return 1 if self.transposed or self.op == "ConvTranspose" else 0

    @property
    def scales_per_channel(self) -> bool:
        """Whether weights may have a scale for each output channel.

        Not those of a ConvTranspose: TensorRT's own engineers say that its kernels take one for each input
        channel (NVIDIA/TensorRT#2380), and of another the answers were wrong (#1694). One for all is right
        everywhere.
        """
        return self.op != "ConvTranspose"

    def as_stored(self, matrix: Array) -> Array:
        """Return a (G, O/G, C/G, taps) array in the node's own layout."""
        g, o, c, _ = matrix.shape
        if self.op == "ConvTranspose":
            return np.ascontiguousarray(matrix.transpose(0, 2, 1, 3)).reshape(self.shape)
        flat = matrix.reshape(g * o, c, -1)
        return np.ascontiguousarray(flat[:, :, 0].T if self.transposed else flat).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a graph that have constant weights, in graph order."""

    quantizable: tuple[Layer, ...]
    in_float: tuple[FloatLayer, ...]
    gates: tuple[Layer, ...] = ()  # those of `in_float` that are in SE gates, and could be quantized


class NoLayer(ValueError):
    """A layer that could be quantized no longer can with the weights that its graph has now."""


def reread(model: ir.Model, known: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return the same layers with the weights that `model` has now. Raises: NoLayer."""
    nodes = {node.name: node for node in model.graph}
    made = []
    for layer in known:
        fresh = _layer(nodes[layer.node])
        if isinstance(fresh, str):
            raise NoLayer(f"'{layer.node}' is no longer a layer: {fresh}")
        made.append(dataclasses.replace(layer, matrix=fresh.matrix, bias=fresh.bias))
    return tuple(made)


def collect(model: ir.Model, census: Census, policy: Policy) -> Layers:
    """Return the layers with constant weights, those that `policy` quantizes apart from the others."""
    gates = {name: block.output for block in census.blocks for name in block.layers}
    layers: list[Layer] = []
    in_float: list[FloatLayer] = []
    inside: list[Layer] = []
    for node in model.graph:
        if node.op_type not in qdq.LAYERS or node.domain:
            continue
        name, macs = node.name or "", graph.macs(node)
        constant = graph.constant(node.inputs[1]) is not None
        if node.op_type == "MatMul" and not constant:
            if (
                graph.constant(node.inputs[0]) is not None
            ):  # else it is a product of two activations: no layer
                in_float.append(FloatLayer(name, "its weights are the left operand", macs))
            continue
        layer = _layer(node)
        if isinstance(layer, str):
            in_float.append(FloatLayer(name, layer, macs, has_weights=constant))
        elif name in gates:
            inside.append(layer)
            in_float.append(FloatLayer(name, f"gate of SE block '{gates[name]}'", macs))
        elif layer.depthwise and not policy.quantize_depthwise:
            in_float.append(FloatLayer(name, f"depthwise: {policy.depthwise_reason}", macs))
        else:
            layers.append(layer)
    return Layers(tuple(layers), (*in_float, *_in_bodies(model)), tuple(inside))


def _in_bodies(model: ir.Model) -> Iterator[FloatLayer]:
    """Yield the layers inside of If, Loop and Scan nodes: no pass enters those."""
    for outer in model.graph:
        bodies = [a.as_graph() for a in outer.attributes.values() if a.type == ir.AttributeType.GRAPH]
        for node in itertools.chain.from_iterable(body.all_nodes() for body in bodies):
            weight = node.inputs[1] if node.op_type in qdq.LAYERS and not node.domain else None
            if weight is not None and graph.constant(weight) is not None:
                reason = f"inside of {outer.op_type} '{outer.name}', which is left as it is"
                yield FloatLayer(node.name or "", reason, graph.macs(node))


def _layer(node: ir.Node) -> Layer | str:
    """Return the layer, or why it cannot be quantized."""
    x, weight = node.inputs[0], graph.constant(node.inputs[1])
    rank = len(graph.dims(x) or ())
    if x is None or weight is None:
        return "its weights are not constant"
    if not rank:
        return "the rank of its input is unknown"
    if rank == 1:
        return "its input is a single vector"  # no rows, which channels would stand beside
    matrix = _matrix(node, weight)
    if isinstance(matrix, str):
        return matrix
    bias = _bias(node, matrix.shape[0] * matrix.shape[1])
    if isinstance(bias, str):
        return bias
    window = _window(node, weight.shape[2:])
    free = window is not None and window.auto_pad != "NOTSET"
    return Layer(
        node=node.name or "",
        op=node.op_type,
        tensor=x.name or "",
        channel_axis=qdq.channel_axis(node) % rank,
        matrix=np.ascontiguousarray(matrix, np.float32),
        bias=bias,
        macs=graph.macs(node),
        elements=graph.elements(node),
        padded=free or (window is not None and any(window.pads)),
        can_fold_offset=node.op_type != "ConvTranspose" and not free,
        shape=weight.shape,
        transposed=_is_transposed(node),
        window=window,
    )


def _matrix(node: ir.Node, weight: Array) -> Array | str:
    """Return the weights as (G, O/G, C/G, taps), or why they cannot be quantized."""
    if not np.isfinite(weight).all():
        return "its weights are not finite"
    if node.op_type in {"Conv", "ConvTranspose"}:
        groups = int(graph.attribute(node, "group", 1))  # type: ignore[call-overload]  # ONNX makes it an int
        matrix = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        if node.op_type == "ConvTranspose":
            matrix = matrix.transpose(0, 2, 1, 3)
    else:
        if len(weight.shape) != 2:  # noqa: PLR2004 - a matrix
            return "its weights are a stack of matrices"
        if node.op_type == "Gemm" and not _is_plain(node):
            return "Gemm with alpha, beta or transA"
        matrix = (weight.T if _is_transposed(node) else weight)[None, :, :, None]
    columns = matrix.shape[2] * matrix.shape[3]
    if columns > _MOST_COLUMNS:
        return f"it sums {columns:,} products, more than int32 holds of INT8"
    largest = float(np.abs(matrix).max(initial=0))
    reason = scales.out_of_range(-largest, largest, scales.WEIGHT_LEVELS)
    return matrix if reason is None else f"the magnitude of its weights {reason}"


def _bias(node: ir.Node, outputs: int) -> Array | str | None:
    """Return the bias, float32 (O,), or why the layer cannot be quantized with it; None where it has none."""
    if len(node.inputs) <= qdq.BIAS_INPUT or node.inputs[qdq.BIAS_INPUT] is None:
        return None
    bias = graph.constant(node.inputs[qdq.BIAS_INPUT])
    if bias is None:
        return "its bias is not constant"
    if not np.isfinite(bias).all():
        return "its bias is not finite"
    if bias.size not in {1, outputs}:
        return "its bias is not one value for each output"
    return np.broadcast_to(bias.reshape(-1), (outputs,)).astype(np.float32)


def _is_plain(node: ir.Node) -> bool:
    defaults = (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    return all(graph.attribute(node, name, default) == default for name, default in defaults)


def _is_transposed(node: ir.Node) -> bool:
    """Whether the weights are stored as (C, O)."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not graph.attribute(node, "transB", 0))


def _window(node: ir.Node, kernel: tuple[int, ...]) -> ConvWindow | None:
    if node.op_type == "ConvTranspose":
        return None
    if node.op_type != "Conv":
        return ConvWindow((), (), (), (), axis=qdq.channel_axis(node) % len(graph.dims(node.inputs[0]) or ()))
    ones = (1,) * len(kernel)
    try:
        pads, auto_pad = qdq.pads(node) or (0,) * 2 * len(kernel), "NOTSET"
    except ValueError:  # the size that auto_pad needs is known of each array only
        pads, auto_pad = (), str(graph.attribute(node, "auto_pad"))
    return ConvWindow(
        tuple(kernel),
        tuple(graph.attribute(node, "strides", ones)),  # type: ignore[arg-type]  # ONNX makes it a list of ints
        tuple(graph.attribute(node, "dilations", ones)),  # type: ignore[arg-type]  # as above
        pads,
        auto_pad,
    )
