"""Channel equalization folded into the weights around a tensor: nothing new stands before its quantizer.

Dividing each channel of a tensor by a factor d of its own is exact where the layers that write it divide
their rows by d and those that read it multiply their columns (Nagel et al., "Data-Free Quantization through
Weight Equalization and Bias Correction", 2019). Between the two stands only what commutes with a positive
factor per channel: ReLU and its leaky kin, pooling, resizing, an Add whose branches share d, a depthwise
convolution's own rows and columns, and a squeeze-and-excite gate, whose first layer takes d in its columns
and whose product passes it on. A ReLU6, or another Clip, does so with bounds of each channel's own, as Min
and Max: a convolution takes these in as it does a Clip (TensorRT's Layer Fusion Catalog). A kernel that
computes point by point anyway (HardSwish, a product of two activations) may be followed by a Mul of its own,
where the target fuses that into the kernel.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.quantization import qdq

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from se_deploy.protocols import Array, FloatArray

_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"})
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"})
_SHAPES = frozenset({"Flatten", "Reshape", "Squeeze"})  # where nothing but the channels is left to arrange
_SMOOTH = frozenset({"HardSwish", "Mish", "Swish"})
"""Not Gelu: a convolution takes it in and would write INT8 itself (TensorRT's Layer Fusion Catalog)."""
_SPATIAL = 2  # the first axis behind batch and channels


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are divided by the same factors, (C,) along `axis` of each."""

    tensors: tuple[str, ...]
    axis: int
    channels: int


def groups(model: ir.Model, wanted: Collection[str], *, pointwise: bool) -> tuple[Group, ...]:
    """Return the groups that hold one of the `wanted` tensors and can be divided exactly, in graph order.

    `pointwise`: a kernel that computes point by point may get a Mul behind it.
    """
    network = _Network(model, pointwise=pointwise)
    found: dict[ir.Value, list[ir.Value]] = defaultdict(list)
    for value in network.values:
        found[network.root(value)].append(value)
    return tuple(
        Group(tuple(str(v.name) for v in members), *network.channels(members[0]))
        for members in found.values()
        if any(v.name in wanted for v in members) and network.can_divide(members)
    )


def fold(model: ir.Model, factors: Mapping[Group, Array]) -> graph.Rewrite:
    """Return a copy of `model` in which each group's tensors are divided by its factors (C,), all positive.

    Before: Conv(Relu(Conv(x, w1, b1)), w2, b2)
    After:  Conv(Relu(Conv(x, w1 / d, b1 / d)), w2 * d, b2), d along w1's rows and w2's columns; equal up to
    the rounding of the weights.
    """

    def fold_equalization(copy: ir.Model) -> int:
        _Folder(copy, factors).fold()
        return len(factors)

    return graph.rewrite(model, fold_equalization)


def in_pointwise_kernel(value: ir.Value | None) -> bool:
    """Whether a tensor is computed point by point by a kernel that is no convolution's own epilogue.

    A convolution takes a ReLU or a residual Add behind it into its kernel and can write INT8 itself; a
    HardSwish, a gate's product or an Add of other things is a kernel of its own, which may do a little more.
    """
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in _SMOOTH or node.op_type in {"Mul", "Div"}:
        return True
    if node.op_type in {"Relu", "LeakyRelu"}:
        return in_pointwise_kernel(node.inputs[0])
    return node.op_type == "Add" and not any(_fuses_add(v) for v in node.inputs)


def _fuses_add(value: ir.Value | None) -> bool:
    """Whether a convolution writes this branch of an Add for nobody else: its kernel takes the Add."""
    producer = None if value is None else value.producer()
    if value is None or producer is None or producer.op_type not in qdq.LAYERS:
        return False
    return graph.sole_consumer(value) is not None


def _is_layer(node: ir.Node) -> bool:
    """Whether rows and columns of a layer's weights are constants that can be multiplied."""
    if node.op_type not in qdq.LAYERS or node.domain:
        return False
    weight = graph.constant(node.inputs[1])
    bias = node.inputs[qdq.BIAS_INPUT] if len(node.inputs) > qdq.BIAS_INPUT else None
    if weight is None or (bias is not None and graph.constant(bias) is None):
        return False
    return weight.dtype == np.float32 and (node.op_type != "MatMul" or weight.ndim == 2)  # noqa: PLR2004 - a matrix


def _constant_slot(node: ir.Node) -> int | None:
    """Return which of two inputs is constant; None where none or both are."""
    constant = [graph.constant(v) is not None for v in node.inputs]
    return constant.index(True) if len(constant) == 2 and sum(constant) == 1 else None  # noqa: PLR2004 - a pair


class _Network:
    """Which tensors must share their factors, and which must keep theirs at 1."""

    def __init__(self, model: ir.Model, *, pointwise: bool) -> None:
        self.pointwise = pointwise
        self.values = [v for node in model.graph for v in node.outputs]
        self._parent: dict[ir.Value, ir.Value] = {}
        self._axes: dict[ir.Value, set[int]] = defaultdict(set)
        self._pinned: set[ir.Value] = set()
        gates = []
        for value in (*model.graph.inputs, *model.graph.outputs):
            self.pin(value)
        for value in self.values:
            if any(use.node.graph is not model.graph for use in value.uses()):  # a branch or a loop's body
                self.pin(value)
        for node in model.graph:
            if (gate := _gate_slot(node)) is None:
                self._visit(node)
            else:
                gates.append((node, gate))
        for node, gate in gates:
            data, y = graph.input_of(node, 1 - gate), node.outputs[0]
            self.pin(graph.input_of(node, gate))
            if self.is_pinned(data):
                self._source(y)
            else:
                self.join(data, y)

    def root(self, value: ir.Value) -> ir.Value:
        """Return the one that stands for all tensors with the same factors."""
        while (parent := self._parent.get(value, value)) is not value:
            value = parent
        return value

    def join(self, *values: ir.Value) -> None:
        """Let these share their factors."""
        first, *others = (self.root(v) for v in values)
        for other in others:
            if other is first:
                continue
            self._parent[other] = first
            self._axes[first] |= self._axes.pop(other, set())
            if other in self._pinned:
                self._pinned.add(first)

    def pin(self, value: ir.Value) -> None:
        """Keep a tensor's factors at 1."""
        self._pinned.add(self.root(value))

    def is_pinned(self, value: ir.Value) -> bool:
        """Whether a tensor's factors stay 1."""
        return self.root(value) in self._pinned

    def axis(self, value: ir.Value) -> int | None:
        """Return the axis of a tensor's channels; None where they cannot be divided."""
        axes = self._axes.get(self.root(value), set())
        shape = graph.dims(value)
        if self.is_pinned(value) or len(axes) != 1 or shape is None:
            return None
        (axis,) = axes
        return axis if axis < len(shape) and shape[axis] else None

    def can_divide(self, members: Sequence[ir.Value]) -> bool:
        """Whether all tensors of a group are known to have the same channels along the same axis."""
        if any(self.axis(value) is None for value in members):
            return False
        return len({self.channels(value) for value in members}) == 1

    def channels(self, value: ir.Value) -> tuple[int, int]:
        """Return the axis of a tensor's channels and how many there are."""
        axis, shape = self.axis(value), graph.dims(value)
        size = None if axis is None or shape is None else shape[axis]
        if axis is None or size is None:
            raise ValueError(f"'{value.name}' has no channels that can be divided")
        return axis, size

    def _visit(self, node: ir.Node) -> None:
        """Say what a node asks of its inputs and outputs."""
        x = node.inputs[0] if node.inputs else None
        y = node.outputs[0]
        if _is_layer(node) and x is not None:
            self._layer(node, x, y)
        elif x is not None and _passes(node):
            self.join(x, y)
            if node.op_type in _POOLS or node.op_type == "ReduceMean":
                self._axes[self.root(y)].add(1)
            for other in node.inputs[1:]:  # a slope that is computed
                if other is not None and graph.constant(other) is None:
                    self.pin(other)
        elif node.op_type in {"Mul", "Div", "Add"} and (slot := _constant_slot(node)) is not None:
            if (node.op_type == "Div" and slot == 0) or not _keeps_shape(node, slot):
                self._opaque(node)
            elif node.op_type == "Add":
                self.join(graph.input_of(node, 1 - slot), y)
            # Of the others the constant takes the factors of what is read and of what is written.
        elif node.op_type == "Add" and _same_channels(node):
            self.join(*(v for v in node.inputs if v is not None), y)
        else:
            self._opaque(node)

    def _layer(self, node: ir.Node, x: ir.Value, y: ir.Value) -> None:
        rank = len(graph.dims(x) or ())
        if not rank:
            self._opaque(node)
            return
        self._axes[self.root(x)].add(qdq.channel_axis(node) % rank)
        self._axes[self.root(y)].add(qdq.channel_axis(node) % rank)
        if node.op_type == "Gemm" and any(
            graph.attribute(node, name, default) != default
            for name, default in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
        ):
            self._opaque(node)

    def _opaque(self, node: ir.Node) -> None:
        """Pin what a node reads and writes, but for what a pointwise kernel writes."""
        for value in node.inputs:
            if value is not None and graph.constant(value) is None:
                self.pin(value)
        for value in node.outputs:
            if node.op_type in _SMOOTH or node.op_type == "Mul":
                self._source(value)
            else:
                self.pin(value)

    def _source(self, value: ir.Value) -> None:
        """Say of what a pointwise kernel writes that it may be multiplied there, or that it must stay."""
        if not self.pointwise:
            self.pin(value)


def _gate_slot(node: ir.Node) -> int | None:
    """Return which input of a Mul is a gate: one number for each channel or position; None where none is."""
    if node.op_type != "Mul" or _constant_slot(node) is not None:
        return None
    shapes = [graph.dims(v) for v in node.inputs]
    a, b = shapes
    if a is None or b is None or len(a) != len(b) or len(a) <= _SPATIAL:
        return None
    gates = [
        all(d == 1 for d in shape[_SPATIAL:]) and shape[1] == other[1] and other != shape
        for shape, other in ((a, b), (b, a))
    ]
    return gates.index(True) if sum(gates) == 1 else None


def _keeps_shape(node: ir.Node, slot: int) -> bool:
    """Whether the constant in `slot` of two inputs broadcasts to the other, and not the other to it."""
    constant, shape = graph.constant(node.inputs[slot]), graph.dims(node.inputs[1 - slot])
    if constant is None or shape is None or constant.ndim > len(shape):
        return False
    behind = shape[len(shape) - constant.ndim :]
    return all(d != 1 or size == 1 for d, size in zip(behind, constant.shape, strict=True))


def _same_channels(node: ir.Node) -> bool:
    """Whether the branches of an Add have the same rank and channels."""
    shapes = [graph.dims(v) for v in (*node.inputs, *node.outputs)]
    first = shapes[0]
    return first is not None and len(first) > 1 and all(
        s is not None and len(s) == len(first) and s[1] == first[1] and s[-1] == first[-1] for s in shapes
    )  # fmt: skip


def _passes(node: ir.Node) -> bool:
    """Whether y(x / d) = y(x) / d for positive d along the channels, whose axis stays."""
    if node.op_type in _HOMOGENEOUS:
        return len(node.outputs) == 1
    before, after = graph.dims(node.inputs[0]), graph.dims(node.outputs[0])
    if before is None or after is None or len(node.outputs) != 1:
        return False
    if node.op_type == "Resize" and graph.attribute(node, "extrapolation_value", 0.0):
        return False  # a number of its own, where it reads beyond the map
    if node.op_type in _POOLS:
        return len(before) == len(after) and before[1] is not None and before[1] == after[1]
    if node.op_type == "ReduceMean":
        return len(before) == len(after) and before[1] is not None and before[:_SPATIAL] == after[:_SPATIAL]
    if node.op_type in _SHAPES:
        channels_left = len(before) > _SPATIAL and all(d == 1 for d in before[_SPATIAL:])
        return channels_left and len(after) == _SPATIAL and before[1] is not None and before[1] == after[1]
    return node.op_type == "Clip" and _bounds(node) is not None


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return a Clip's bounds, infinite where it has none; None where one is computed or no bound at all."""
    if node.attributes:  # of before operator set 11
        return None
    low, high = (node.inputs[i] if len(node.inputs) > i else None for i in (1, 2))
    least = -math.inf if low is None else graph.scalar(low)
    most = math.inf if high is None else graph.scalar(high)
    if least is None or most is None or not (least < math.inf and most > -math.inf):
        return None
    return least, most


@dataclass(frozen=True, slots=True)
class _Factors:
    """A tensor's factors (C,), float64, along one of its axes."""

    values: FloatArray
    axis: int

    def along(self, rank: int) -> FloatArray:
        """Return them to be multiplied with a tensor of this rank."""
        return self.values.reshape([-1 if i == self.axis else 1 for i in range(rank)])


class _Folder:
    """Writes factors into the weights of one graph."""

    def __init__(self, model: ir.Model, factors: Mapping[Group, Array]) -> None:
        self.model = model
        self.names = graph.value_names(model)
        self.factors = {
            name: _Factors(d.astype(np.float64), group.axis)
            for group, d in factors.items()
            for name in group.tensors
        }

    def fold(self) -> None:
        """Rewrite what writes or reads a tensor that is divided."""
        for node in list(self.model.graph):
            before, after = self._of(node.inputs[0] if node.inputs else None), self._of(node.outputs[0])
            if _is_layer(node):
                self._weights(node, before, after)
            elif node.op_type in {"Mul", "Div", "Add"} and (slot := _constant_slot(node)) is not None:
                self._constant(node, slot)
            elif node.op_type == "Clip" and after is not None:
                self._bound(node, after)
            elif after is not None and not any(self._of(v) is not None for v in node.inputs):
                self._divide(node.outputs[0], after)

    def _of(self, value: ir.Value | None) -> _Factors | None:
        """Return a tensor's factors; None where they are 1."""
        return None if value is None else self.factors.get(str(value.name))

    def _replaced(self, node: ir.Node, slot: int, array: FloatArray) -> None:
        """Let a node read a constant of its own, float32."""
        name = f"{graph.input_of(node, slot).name}_equalized"
        node.replace_input_with(
            slot, graph.initializer(self.model, name, array.astype(np.float32), self.names)
        )

    def _weights(self, node: ir.Node, before: _Factors | None, after: _Factors | None) -> None:
        """Multiply a layer's columns by `before` and divide its rows, and its bias, by `after`."""
        weight = graph.constant(node.inputs[1])
        if weight is None or (before is None and after is None):
            return
        w = weight.astype(np.float64)
        transposed = _is_transposed(node)
        if before is not None:
            w = w * _spread(before.values, w.shape, first=transposed)
        if after is not None:
            w = w / _spread(after.values, w.shape, first=not transposed)
        self._replaced(node, 1, w)
        bias = graph.constant(node.inputs[qdq.BIAS_INPUT]) if len(node.inputs) > qdq.BIAS_INPUT else None
        if bias is not None and after is not None:
            # A Gemm's may have any shape that broadcasts.
            self._replaced(node, qdq.BIAS_INPUT, bias.astype(np.float64) / after.values)

    def _constant(self, node: ir.Node, slot: int) -> None:
        """Let the constant of a Mul, Div or Add take the factors of what is read and what is written."""
        before, after = self._of(node.inputs[1 - slot]), self._of(node.outputs[0])
        constant = graph.constant(node.inputs[slot])
        if constant is None or (before is None and after is None):
            return
        rank = len(graph.dims(node.outputs[0]) or ())
        c = constant.astype(np.float64)
        read = 1.0 if before is None else before.along(rank)
        written = 1.0 if after is None else after.along(rank)
        if node.op_type == "Add":
            self._replaced(node, slot, c / written)
        else:
            self._replaced(node, slot, c * read / written if node.op_type == "Mul" else c * written / read)

    def _bound(self, node: ir.Node, factors: _Factors) -> None:
        """Give a Clip bounds for each channel: as Min and Relu where it is a ReLU6, else as Max and Min."""
        low, high = _bounds(node) or (-math.inf, math.inf)
        ends = [("Min", high), ("Relu", low)] if low == 0 < high else [("Max", low), ("Min", high)]
        if all(math.isinf(bound) for op, bound in ends if op != "Relu"):
            return  # a ReLU, or nothing at all
        value, y = graph.input_of(node, 0), node.outputs[0]
        rank, made = len(graph.dims(y) or ()), []
        for op, bound in ends:
            if math.isinf(bound):
                continue
            inputs = [value]
            if op != "Relu":
                with np.errstate(over="ignore"):  # the largest number of all becomes no bound
                    limit = (bound / factors.along(rank)).astype(np.float32)
                inputs.append(graph.initializer(self.model, f"{y.name}_{op.lower()}", limit, self.names))
            made.append(ir.node(op, inputs))
            (value,) = made[-1].outputs
            value.type, value.shape = y.type, y.shape
        graph.insert_after(y, made)
        graph.replace(y, value)

    def _divide(self, y: ir.Value, factors: _Factors) -> None:
        """Put a Mul behind what a pointwise kernel writes; it takes the tensor's name."""
        inverse = (1 / factors.along(len(graph.dims(y) or ()))).astype(np.float32)
        mul = ir.node("Mul", [y, graph.initializer(self.model, f"{y.name}_inverse", inverse, self.names)])
        mul.outputs[0].type, mul.outputs[0].shape = y.type, y.shape
        graph.insert_after(y, [mul])
        graph.replace(y, mul.outputs[0])
        mul.replace_input_with(0, y)


def _is_transposed(node: ir.Node) -> bool:
    """Whether the weights are stored as (C, O, ...)."""
    return node.op_type in {"MatMul", "ConvTranspose"} or (
        node.op_type == "Gemm" and not graph.attribute(node, "transB", 0)
    )


def _spread(values: FloatArray, shape: tuple[int, ...], *, first: bool) -> FloatArray:
    """Return a number for each channel in the shape of a layer's weights.

    Weights have all channels of one side along their first axis, and those of one group of the other side
    along their second.
    """
    ones = (1,) * (len(shape) - 2)
    if first:
        return values.reshape(-1, 1, *ones)
    groups = values.size // shape[1]
    spread: FloatArray = np.repeat(values.reshape(groups, shape[1]), shape[0] // groups, axis=0)
    return spread.reshape(*shape[:2], *ones)
