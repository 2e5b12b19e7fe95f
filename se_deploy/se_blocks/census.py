"""Decide of every Mul whether it applies a gate pooled from what it scales, and describe the block."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.errors import counted
from se_deploy.se_blocks import einsum, functions
from se_deploy.se_blocks.dataflow import Dataflow
from se_deploy.se_blocks.types import WITHOUT_BATCH, Census, NotSE, SEBlock
from se_deploy.se_blocks.values import POOL, REDUCE, same, value_dims

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.values import Dim, Vector, View

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PASSING = frozenset({"Identity", "Cast", "Transpose", "Dropout", "Reshape"})
_ACTIVATIONS = functions.UNARY_OPS | {"PRelu"}
_GATES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Clip"})
_OTHERWISE = frozenset({"Div", "MatMul"})
"""What may scale by a gate too; no pass can read it there, so it is told and not found."""
_CANDIDATES = _OTHERWISE | {"Mul", "Add"}
_INVERSE = np.array(-1.0)
_FAR_BACK = 64  # nodes of a gate, layers and activations as exporters write them
_FAR = 8  # nodes to walk: GELU by tanh, the longest spelling of an activation that exporters write, has 8


@dataclass(frozen=True, slots=True)
class _Match:
    """A Mul that scales `source` by a vector pooled from it."""

    mul: ir.Node
    gate: ir.Value
    scaled: ir.Value
    vector: Vector


def detect(model: ir.Model) -> Census:
    """The census of a graph: its SE blocks, other pooled channel attention, and each Mul that is neither.

    `model` is as `graph.load` gives it: named nodes, known shapes, constants as initializers.
    """
    if not einsum.is_in(model):
        return _detect(model)
    spelled = graph.rewrite(model, einsum.spell_out_einsum).model
    found = _detect(spelled)
    named = _Named(model, spelled)
    return Census(tuple(map(named.block, found.blocks)), found.rejected)


class _Named:
    """Names of a graph for what was found in its copy without Einsum, which has nodes of its own."""

    def __init__(self, model: ir.Model, spelled: ir.Model) -> None:
        self._ops = {node.name or "": node.op_type for node in model.graph.all_nodes()}
        self._values, self._spelled = graph.value_names(model), graph.values(spelled)

    def block(self, block: SEBlock) -> SEBlock:
        nodes = tuple(name for name in block.nodes if name in self._ops)
        return replace(
            block,
            nodes=nodes,
            spelling=tuple(self._ops[name] for name in nodes),
            squeeze_input=self._value(block.squeeze_input),
            squeeze_output=self._value(block.squeeze_output),
            gate_output=self._value(block.gate_output),
        )

    def _value(self, name: str) -> str:
        """Return what a value of the copy was made from by changes of layout alone."""
        while name not in self._values:
            producer = self._spelled[name].producer()
            source = None if producer is None else producer.inputs[0]
            if source is None:
                break
            name = source.name or ""
        return name


def _detect(model: ir.Model) -> Census:
    flow = Dataflow(model)
    order = {node: i for i, node in enumerate(model.graph.all_nodes())}
    blocks, rejected = [], []
    for node in order:
        if node.op_type not in _CANDIDATES or any(v is None for v in node.inputs):
            continue
        if any(flow.of(v).constant or flow.of(v).of_shapes for v in node.inputs if v is not None):
            continue
        match = _otherwise_scaled(flow, node) if node.op_type in _OTHERWISE else _matched(flow, node)
        if isinstance(match, _Match):
            blocks.append(_describe(flow, match, order))
        elif match:
            rejected.append(NotSE(node.outputs[0].name or "", match))
    return Census(tuple(blocks), tuple(rejected))


def _matched(flow: Dataflow, node: ir.Node) -> _Match | str:
    """The match of a Mul, the reason against a candidate, or "" for what is no candidate."""
    a, b = node.inputs
    if a is None or b is None:
        return ""
    reasons: list[tuple[int, str]] = []
    for gate, scaled in ((b, a), (a, b)):
        view = flow.of(scaled).view
        for vector in flow.of(gate).vectors:
            match = _Match(node, gate, scaled, vector)
            if node.op_type == "Add":
                if vector.layers and _is_source(vector, view):
                    reasons.append((1, "the pooled vector is added to its source, not multiplied with it"))
                continue
            rank, reason = _against(flow, match, view)
            if not reason:
                return match
            reasons.append((rank, reason))
    if node.op_type == "Add":
        return reasons[0][1] if reasons else ""
    if any(_without_batch(flow, gate, scaled) for gate, scaled in ((b, a), (a, b))):
        return WITHOUT_BATCH
    if _of_one_vector(flow, a, b):
        return ""
    ungated = _without_pool(flow, a, b)
    return max(reasons)[1] if reasons else ungated


def _without_batch(flow: Dataflow, gate: ir.Value, scaled: ir.Value) -> bool:
    """Whether a gate (C, 1, ...) comes, through learned layers, from the pooled map (C, ...) that it scales.

    With a batch axis in front of both that is a block; without one the first axis is read as the batch.
    """
    shape, factors = flow.dims(scaled) or (), flow.dims(gate) or ()
    channels = shape[0] if len(shape) > 1 else None
    if not isinstance(channels, int) or channels == 1 or factors != (channels, *(1 for _ in shape[1:])):
        return False
    waiting, layers = [gate.producer()], 0
    seen: set[ir.Node] = set()
    while waiting and len(seen) < _FAR_BACK:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        learned = [v for v in node.inputs if v is not None and flow.of(v).constant]
        if node.op_type in _LINEAR and any(channels in (value_dims(v) or ()) for v in learned):
            layers += 1
        made, view = flow.dims(node.outputs[0]) or (), flow.of(node.outputs[0]).view
        pooled = node.op_type in {*REDUCE, *POOL} and made == (channels, *(1 for _ in made[1:]))
        if layers and pooled and view.root is flow.of(scaled).view.root:
            return True
        waiting += [v.producer() for v in node.inputs if v is not None and not flow.of(v).constant]
    return False


def _otherwise_scaled(flow: Dataflow, node: ir.Node) -> str:
    """The reason against a gate that a Div or a MatMul applies, "" where none does."""
    a, b = node.inputs
    if a is None or b is None:
        return ""
    if node.op_type == "Div":
        for vector in flow.of(b).vectors:
            gate = None if vector.function is None else functions.binary("Pow", vector.function, _INVERSE)
            bounded = gate is None or functions.is_bounded(gate)
            if vector.layers and bounded and _is_source(vector, flow.of(a).view):
                return (
                    "a Div applies the gate, as in x / (1 + exp(-z)): x * sigmoid(z) is the same as a block"
                )
        return ""
    for gates, scaled in ((a, b), (b, a)):
        for vector in _on_a_diagonal(flow, gates):
            if vector.layers and _is_source(vector, flow.of(scaled).view):
                return "a MatMul applies the gates, as a diagonal matrix: x * gate is the same as a block"
    return ""


def _on_a_diagonal(flow: Dataflow, matrix: ir.Value) -> Sequence[Vector]:
    """The pooled vectors of which a value holds the numbers on a diagonal and zeros elsewhere."""
    producer = _through(matrix).producer()
    if producer is None or producer.op_type not in {"Mul", "Where"}:
        return ()
    given = [v for v in producer.inputs if v is not None]
    vectors = [vector for value in given for vector in flow.of(value).vectors]
    masks = [value for value in given if flow.of(value).constant] if vectors else []
    for mask in masks:
        array = flow.constants.array(mask)
        if array is not None and array.ndim > 1 and array.size > 1 and _is_diagonal(array):
            return vectors
    return ()


def _is_diagonal(array: Array) -> bool:
    square = array.shape[-1] == array.shape[-2] and array.size == array.shape[-1] ** 2
    return square and bool((array.reshape(array.shape[-2:]) == np.eye(array.shape[-1])).all())


def _is_source(vector: Vector, view: View) -> bool:
    return view.root is vector.source.root and view.reduced == vector.source.reduced


def _against(flow: Dataflow, match: _Match, view: View) -> tuple[int, str]:
    """What speaks against a match, "" for nothing, and how far it came before it failed."""
    vector = match.vector
    gate = _gate(vector)
    if not _is_source(vector, view):
        if flow.of(match.scaled).vectors:
            return 0, "both factors are pooled vectors"
        if (size := _group_size(flow, match)) is not None:
            return 5, f"one gate for each group of {size} channels, not one for each channel"
        pooled, scaled = vector.source.root.name, match.scaled.name
        return 2, f"the gate is pooled from '{pooled}', but scales '{scaled}'"
    if not vector.layers:
        return 3, "no learned layer lies between the squeeze and the scale"
    if gate is None:
        return 4, "the factor pooled from its source is not bounded, so it is no gate"
    at = next((i for i, axis in enumerate(view.axes) if axis == vector.source.axes[0]), None)
    shape, gate_shape = flow.dims(match.scaled), value_dims(match.gate)
    if at is None or shape is None:
        return 5, "the gate's channels do not lie along one axis of what it scales"
    placed = None if vector.axis is None or gate_shape is None else len(gate_shape) - vector.axis
    if placed is not None and placed != len(shape) - at:
        return 5, "the gate lies along another axis than the channels that it was pooled over"
    channels, split = shape[at], "softmax" in vector.traits and "part" not in vector.traits
    branches = math.prod(d for d in shape[1:at] if isinstance(d, int)) if split else 1
    if (
        isinstance(channels, int)
        and vector.size is not None
        and vector.size not in {channels, channels * branches}
    ):
        return 5, f"the gate has {counted(vector.size, 'channel')}, what it scales has {channels}"
    return 9, ""


def _group_size(flow: Dataflow, match: _Match) -> int | None:
    """How many channels of its source share a gate, where what is scaled is the source in groups."""
    producer, vector = match.scaled.producer(), match.vector
    source = None if producer is None or producer.op_type != "Reshape" else producer.inputs[0]
    if source is None or not vector.size or not _is_source(vector, flow.of(source).view):
        return None
    view, shape = flow.of(source).view, flow.dims(source) or ()
    sizes = [d for axis, d in zip(view.axes, shape, strict=True) if axis == vector.source.axes[0]]
    channels, groups = sizes[0] if sizes else None, (flow.dims(match.scaled) or (None, None))[1]
    if not isinstance(channels, int) or groups != vector.size or channels == groups or channels % vector.size:
        return None
    return channels // vector.size


def _gate(vector: Vector) -> tuple[str, float] | None:
    """Name the bounded function that makes the gate, and its gain."""
    if "softmax" in vector.traits:
        return ("softmax2" if "softmax2" in vector.traits else "softmax"), 1.0
    if vector.function is None:
        return "other", 1.0
    last = vector.function
    behind = vector.functions[vector.settled :]
    if functions.is_identity(last) and behind and behind[-1] is not None and "merged" not in vector.traits:
        last = behind[-1]  # what follows it scales or shifts each channel
    return functions.gate_name(last)


def _kind(flow: Dataflow, match: _Match) -> str:
    vector = match.vector
    if "attention" in vector.pools:
        return "gc"
    if "eca" in vector.traits:
        return "eca"
    if "max" in vector.pools:
        return "cbam-channel"
    if vector.pools != {"mean"}:
        return "pooled-attention"
    if "softmax" in vector.traits and not {"softmax2", "part"} <= vector.traits:
        if same(vector.size, _channels(flow, match)):
            return "channel-softmax"
        root = vector.source.root.producer()
        return "sk" if root is not None and root.op_type == "Concat" else "split-attention"
    if "part" in vector.traits and "softmax2" not in vector.traits:
        return _kind_with_shift(flow, match)
    if vector.traits & {"joined", "grouped", "shuffled"}:
        return "pooled-attention"
    if _residual(flow, match) is not None:
        return "residual-se"
    for node, other in _joins(match.mul.outputs[0]):
        spatial = other.producer()
        joins = node.op_type in {"Add", "Max", "Concat"} and spatial is not None and spatial.op_type == "Mul"
        if joins and spatial is not None and _is_spatial(flow, spatial, match.scaled):
            return "scse"
    return "ese" if len(vector.layers) == 1 else "se"


def _kind_with_shift(flow: Dataflow, match: _Match) -> str:
    """What a gate is that is a part of what its last layer gives.

    With another part added to what it scales, it is dynamic ReLU where all parts are bounded alike, as its
    coefficients are, or where the larger of several sums is taken; else a block with a shift, as in lc0.
    """
    for node, other in _joins(match.mul.outputs[0]):
        shifts = [v for v in flow.of(other).vectors if v.source == match.vector.source and "part" in v.traits]
        if node.op_type == "Add" and shifts:
            bounded = any(v.function is None or functions.is_bounded(v.function) for v in shifts)
            larger = any(use.op_type == "Max" for use in _uses(node.outputs))
            return "dynamic-relu" if bounded or larger else "se-shift"
    return "pooled-attention"


def _channels(flow: Dataflow, match: _Match) -> Dim:
    """The channels of what a match scales."""
    at = flow.of(match.scaled).view.axes.index(match.vector.source.axes[0])
    return (flow.dims(match.scaled) or ())[at]


def _same_tensor(flow: Dataflow, a: ir.Value, b: ir.Value) -> bool:
    x, y = flow.of(a).view, flow.of(b).view
    return (x.root, x.axes, x.reduced) == (y.root, y.axes, y.reduced)


def _is_spatial(flow: Dataflow, mul: ir.Node, scaled: ir.Value) -> bool:
    """Whether a Mul scales the same tensor by one bounded factor per position."""
    for gate, other in ((mul.inputs[0], mul.inputs[1]), (mul.inputs[1], mul.inputs[0])):
        if gate is None or other is None or not _same_tensor(flow, other, scaled):
            continue
        producer, shape = _through(gate).producer(), value_dims(gate)
        bounded = producer is not None and producer.op_type in _GATES and not flow.of(gate).vectors
        if bounded and shape is not None and _one_per_position(shape):
            return True
    return False


def _one_per_position(shape: Sequence[Dim]) -> bool:
    """Whether a factor differs between positions and not between channels; one number for all is neither."""
    behind_batch = shape[1:]
    return len(behind_batch) > 1 and 1 in {behind_batch[0], behind_batch[-1]} and set(behind_batch) != {1}


def _joins(value: ir.Value) -> Iterable[tuple[ir.Node, ir.Value]]:
    """Each node that joins `value`, in this layout or another, with one other value, and that value."""
    frontier = [value]
    while frontier:
        value = frontier.pop()
        for use in value.uses():
            if use.node.op_type in {"Identity", "Cast", "Transpose"}:
                frontier.append(use.node.outputs[0])
            elif len(use.node.inputs) == 2:  # noqa: PLR2004
                other = use.node.inputs[1 - use.idx]
                if other is not None:
                    yield use.node, other


def _of_one_vector(flow: Dataflow, a: ir.Value, b: ir.Value) -> bool:
    """Whether both factors come from one squeeze: an activation or a gated layer inside a block."""
    sources = {vector.source for vector in flow.of(a).vectors}
    return any(vector.source in sources for vector in flow.of(b).vectors)


def _through(value: ir.Value) -> ir.Value:
    """Walk back through changes of layout and type."""
    while (producer := value.producer()) is not None and producer.op_type in _PASSING | {
        "Expand",
        "Unsqueeze",
    }:
        first = producer.inputs[0]
        if first is None:
            break
        value = first
    return value


def _elementwise_of(flow: Dataflow, value: ir.Value, target: ir.Value) -> bool:
    """Whether `value` is a scalar function of `target`."""
    for _ in range(_FAR):
        if flow.of(value).view.root is flow.of(target).view.root:
            return True
        producer = value.producer()
        if producer is None or producer.op_type not in _ACTIVATIONS | functions.BINARY_OPS:
            return False
        computed = [v for v in producer.inputs if v is not None and not flow.of(v).constant]
        if not computed or (len(set(computed)) > 1 and target not in computed):
            return False
        value = computed[0]
    return False


def _without_pool(flow: Dataflow, a: ir.Value, b: ir.Value) -> str:
    """What a product of a bounded factor with no pooled vector is; "" where no factor is bounded."""
    for gate, scaled in ((b, a), (a, b)):
        if _elementwise_of(flow, gate, scaled):
            return "x * f(x) of every element: an activation such as SiLU or HardSwish"
    for gate, scaled in ((b, a), (a, b)):
        producer = _through(gate).producer()
        if producer is None or producer.op_type not in _GATES | {"Div", "Add", "Resize"}:
            continue
        if producer.op_type in {"Div", "Add"} and not _is_clipped(producer):
            continue
        if producer.op_type == "Resize":
            return "the gate is resized from a coarser map: it varies with the position"
        shape = value_dims(gate)
        origin = _first_source(gate)
        if origin is _first_source(scaled) and origin is not _through(scaled):
            return "both factors are parts of one tensor: a gated linear unit"
        if shape is not None and len(shape) > 1 and set(shape[1:]) == {1}:
            return "one factor for the whole map: a gate of one channel is not told from a scalar"
        if shape is not None and len(shape) > 2 and shape[1] == 1:  # noqa: PLR2004
            return "one factor per position, not per channel: spatial attention"
        return "the gate is not pooled over the whole map"
    return ""


def _is_clipped(node: ir.Node) -> bool:
    first = node.inputs[0]
    producer = None if first is None else first.producer()
    return producer is not None and producer.op_type == "Clip"


def _first_source(value: ir.Value) -> ir.Value | None:
    """Walk back through activations and parts to the tensor that a factor was cut from."""
    for _ in range(_FAR):
        producer = value.producer()
        if producer is None or producer.op_type not in _ACTIVATIONS | _PASSING | {"Slice", "Split", "Gather"}:
            return value
        first = producer.inputs[0]
        if first is None:
            return value
        value = first
    return value


# ---- the description of a block


def _describe(flow: Dataflow, match: _Match, order: dict[ir.Node, int]) -> SEBlock:
    vector, view = match.vector, flow.of(match.scaled).view
    kind = _kind(flow, match)
    path = vector.nodes - frozenset(view.nodes)
    end = _residual(flow, match) if kind == "residual-se" else None
    nodes = _with_shapes(flow, {*path, match.mul, *([end] if end else [])}, match.mul)
    squeeze = min(path, key=order.__getitem__)
    name, gain = _gate(vector) or ("other", 1.0)
    at, channels = view.axes.index(vector.source.axes[0]), _channels(flow, match)
    widths = [layer.outputs for layer in vector.layers[:-1] if layer.outputs]
    ordered = sorted(nodes - {match.mul, end}, key=order.__getitem__) + [match.mul] + ([end] if end else [])
    return SEBlock(
        output=match.mul.outputs[0].name or "",
        kind=kind,
        channels=channels if isinstance(channels, int) else vector.size or 0,
        reduced=min(widths) if widths else None,
        activation=_activation(vector),
        gate=name,
        form=vector.layers[0].form,
        spelling=tuple(node.op_type for node in ordered),
        squeeze_input=(squeeze.inputs[0].name if squeeze.inputs[0] is not None else None) or "",
        squeeze_output=vector.squeeze_output.name or "",
        gate_output=match.gate.name or "",
        scale_node=match.mul.name or "",
        nodes=tuple(node.name or "" for node in ordered),
        layers=tuple(layer.node.name or "" for layer in vector.layers),
        params=sum(
            math.prod(int(d) for d in weight.shape or () if isinstance(d, int)) for weight in vector.weights
        ),
        placement=_placement(flow, match.scaled),
        followed_by=_followed_by(flow, end or match.mul),
        channel_axis=at,
        gain=gain,
        traits=tuple(sorted(vector.traits)),
    )


def _activation(vector: Vector) -> str:
    """Name the first function between learned layers that is not the identity."""
    inner = vector.functions[: vector.settled]
    names = ["other" if f is None else functions.activation_name(f) for f in inner]
    return next((name for name in names if name != "none"), "none")


def _residual(flow: Dataflow, match: _Match) -> ir.Node | None:
    """The Add of x + x * gate."""
    x = flow.of(match.scaled).view
    for node, other in _joins(match.mul.outputs[0]):
        view = flow.of(other).view
        if node.op_type == "Add" and (view.root, view.reduced) == (x.root, x.reduced):
            return node
    return None


def _with_shapes(flow: Dataflow, nodes: set[ir.Node], mul: ir.Node) -> frozenset[ir.Node]:
    """Add the nodes that compute shapes for the block and nothing else."""
    found = set(nodes)
    frontier = list(nodes)
    while frontier:
        node = frontier.pop()
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is None or producer in found or value is None or not flow.of(value).of_shapes:
                continue
            if all(use.node in found for output in producer.outputs for use in output.uses()):
                found.add(producer)
                frontier.extend((producer, node))
    return frozenset(found | {mul})


def _placement(flow: Dataflow, value: ir.Value) -> str:
    """What x comes from: "linear-conv", "activation" or "other"."""
    producer = flow.of(value).view.root.producer()
    for _ in range(_FAR):
        if producer is None:
            return "other"
        if producer.op_type in _LINEAR:
            return "linear-conv"
        if producer.op_type in _ACTIVATIONS:
            return "activation"
        computed = [v for v in producer.inputs if v is not None and not flow.of(v).constant]
        if producer.op_type == "Mul" and len(computed) == 2:  # noqa: PLR2004
            a, b = computed
            spelled = _elementwise_of(flow, a, b) or _elementwise_of(flow, b, a)
            return "activation" if spelled else "other"
        affine = producer.op_type in {"BatchNormalization", "Add", "Mul", "Sub", "Div"}
        if not (affine or producer.op_type in _PASSING) or len(computed) != 1:
            return "other"
        producer = computed[0].producer()
    return "other"


def _followed_by(flow: Dataflow, node: ir.Node) -> str:
    """What reads y, seen through scalar gains and changes of layout: "residual-add", "conv", "other"."""
    found: set[str] = set()
    frontier = [node.outputs[0]]
    for _ in range(_FAR):
        following: list[ir.Value] = []
        for use in _uses(frontier):
            computed = [v for v in use.inputs if v is not None and not flow.of(v).constant]
            if use.op_type == "Add" and len(computed) == 2:  # noqa: PLR2004
                found.add("residual-add")
            elif use.op_type in _LINEAR:
                found.add("conv")
            elif use.op_type in _PASSING or (use.op_type in {"Mul", "Div"} and len(computed) == 1):
                following.append(use.outputs[0])
        frontier = following
    return next((name for name in ("residual-add", "conv") if name in found), "other")


def _uses(values: Iterable[ir.Value]) -> Iterable[ir.Node]:
    for value in values:
        for use in value.uses():
            yield use.node
