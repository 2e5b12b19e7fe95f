"""What every rewrite has in common: its name, where it may be applied, and the parts of a block.

A rewrite is exact: it changes no answer beyond floating-point rounding. It finds its own sites again in the
graph as it stands, so that rewrites compose in any order and a saved choice can be replayed.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx_ir as ir

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock

SPATIAL_RANK = 4  # (N, C, H, W)


@dataclass(frozen=True, slots=True)
class Site:
    """One place where a rewrite may be applied; (rewrite, at) is how a saved choice names it."""

    rewrite: str
    at: str  # output name of the block, or the tensor that the rewrite is about
    shape: tuple[object, ...] = ()  # sites of equal shape are expected to gain alike
    block: SEBlock | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Rewriter:
    """One exact idea: `sites` reads a graph, `apply` edits a private copy and says how often it fired."""

    name: str
    idea: str  # one line for a table
    sites: Callable[[ir.Model, Sequence[SEBlock]], tuple[Site, ...]]
    apply: Callable[[ir.Model, Site], int]
    run_time_weights: bool = False  # it makes a convolution's weights something computed per image


@dataclass(frozen=True, slots=True)
class Parts:
    """A canonical block as it stands now: gate = f(squeeze(read)), y = data * gate.

    Shapes: read (N, C', H', W'); squeezed (N, C', 1, 1), larger only where a k x k convolution was hoisted
    over; gate (N, C, 1, 1); data, y (N, C, H, W).
    """

    read: ir.Value  # what the squeeze reads
    squeezed: ir.Value
    layers: tuple[ir.Node, ...]  # the learned layers, in order
    gate: ir.Value
    scale: ir.Node | None  # the Mul; None where a rewrite has moved the gate into weights

    @property
    def data(self) -> ir.Value | None:
        """What the gate is multiplied with; None where the Mul is gone."""
        if self.scale is None:
            return None
        first, second = self.scale.inputs
        return second if first is self.gate else first


def parts(model: ir.Model, block: SEBlock) -> Parts | None:
    """Find the parts of `block` in `model` as rewritten so far; None where it is in no canonical form."""
    gate = values(model).get(block.gate_output)
    if gate is None:
        return None
    inside = tuple(_ancestors_to_squeeze(gate))
    squeeze = [node for node in inside if is_squeeze(node)]
    layers = tuple(node for node in reversed(inside) if node.op_type == "Conv")
    if len(squeeze) != 1 or not layers:
        return None
    read, squeezed = squeeze_ends(squeeze[0])
    scale = next((u.node for u in gate.uses() if u.node.name == block.scale_node), None)
    if scale is not None and not _scales_channels(scale, gate):
        return None
    return Parts(read, squeezed, _in_order(layers, squeezed), gate, scale)


def _scales_channels(scale: ir.Node, gate: ir.Value) -> bool:
    """Whether a Mul multiplies (N, C, H, W) with a gate (N, C, 1, 1)."""
    column, y = graph.dims(gate), graph.dims(scale.outputs[0])
    return (
        scale.op_type == "Mul"
        and scale.inputs[0] is not scale.inputs[1]
        and y is not None
        and column is not None
        and len(y) == SPATIAL_RANK
        and column[1:] == (y[1], 1, 1)
    )


def _in_order(layers: tuple[ir.Node, ...], squeezed: ir.Value) -> tuple[ir.Node, ...]:
    ordered, seen, front = [], set(), [squeezed]
    while front:
        value = front.pop(0)
        for use in value.uses():
            if use.node in seen:
                continue
            seen.add(use.node)
            if use.node in layers:
                ordered.append(use.node)
            front += [out for out in use.node.outputs if _is_vector(out)]
    return tuple(ordered)


def _ancestors_to_squeeze(gate: ir.Value) -> Iterator[ir.Node]:
    """Walk from the gate up to, and with, the node that reads a map."""
    seen: set[ir.Node] = set()
    front = [gate]
    while front:
        value = front.pop()
        node = value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if not is_squeeze(node):
            front += [v for v in node.inputs if v is not None]


def is_squeeze(node: ir.Node) -> bool:
    """Whether `node` is the mean over a map: one pooling node, or the mean inside its NHWC spelling."""
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "AveragePool":
        shape, window = graph.dims(node.inputs[0]), ints(node, "kernel_shape")
        return shape is not None and len(shape) == SPATIAL_RANK and shape[2:] == window
    return node.op_type == "ReduceMean" and _is_nhwc_mean(node)


def _is_nhwc_mean(node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    after = graph.sole_consumer(node.outputs[0])
    axes = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(ints(node, "axes"))
    return (
        before is not None
        and after is not None
        and axes is not None
        and before.op_type == after.op_type == "Transpose"
        and ints(before, "perm") == (0, 2, 3, 1)
        and ints(after, "perm") == (0, 3, 1, 2)
        and sorted(axes.tolist()) == [1, 2]
    )


def squeeze_ends(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Give what a squeeze reads and what it writes, (N, C, H, W) and (N, C, 1, 1), whatever its spelling."""
    if node.op_type != "ReduceMean":
        return input_of(node, 0), node.outputs[0]
    before, after = input_of(node, 0).producer(), graph.sole_consumer(node.outputs[0])
    if before is None or after is None:
        raise ValueError(f"'{node.name}' is no squeeze")
    return input_of(before, 0), after.outputs[0]


def _is_vector(value: ir.Value) -> bool:
    shape = graph.dims(value)
    return shape is not None and all(d == 1 for d in shape[2:])


def values(model: ir.Model) -> dict[str, ir.Value]:
    """Give every node's outputs and the graph's inputs by name."""
    found = {value.name: value for value in model.graph.inputs}
    for node in model.graph:
        found.update({value.name: value for value in node.outputs})
    return cast("dict[str, ir.Value]", found)


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Give an input that the operator's specification says is there."""
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.op_type} '{node.name}' lacks input {index}")
    return value


def ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """Give an attribute that is a list of integers."""
    return tuple(cast("Sequence[int]", graph.attribute(node, name, default)))


@dataclass(frozen=True, slots=True)
class Conv:
    """A 2-D convolution with constant weights (O, I / groups, kh, kw), and its attributes filled in."""

    node: ir.Node
    weights: Array
    bias: Array | None
    groups: int
    strides: tuple[int, ...]
    pads: tuple[int, ...]  # top, left, bottom, right
    dilations: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return (int(self.weights.shape[2]), int(self.weights.shape[3]))

    @property
    def is_pointwise(self) -> bool:
        """Whether it is 1 x 1 with stride 1 and no padding."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.pads == (0, 0, 0, 0)

    @property
    def x(self) -> ir.Value:
        """What it reads."""
        return input_of(self.node, 0)

    @property
    def y(self) -> ir.Value:
        """What it writes."""
        return self.node.outputs[0]


def conv(node: ir.Node | None) -> Conv | None:
    """Read a 2-D convolution; None for anything else, for computed (or quantized) weights and auto_pad."""
    if node is None or node.op_type != "Conv" or node.domain:
        return None
    weights = graph.constant(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None  # noqa: PLR2004 - Conv(X, W, B)
    bias = graph.constant(node.inputs[2]) if has_bias else None
    if weights is None or weights.ndim != SPATIAL_RANK or (has_bias and bias is None):
        return None
    if graph.attribute(node, "auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return None
    groups = cast("int", graph.attribute(node, "group", 1))
    return Conv(
        node,
        weights,
        bias,
        groups,
        ints(node, "strides", (1, 1)),
        ints(node, "pads", (0, 0, 0, 0)),
        ints(node, "dilations", (1, 1)),
    )


def bottleneck(found: Parts | None) -> tuple[Conv, Conv] | None:
    """Give the two 1x1 layers of squeeze and excite, of one group each; None for a block with others."""
    if found is None or len(found.layers) != 2:  # noqa: PLR2004 - squeeze and excite
        return None
    fc1, fc2 = (conv(layer) for layer in found.layers)
    if fc1 is None or fc2 is None or not all(c.is_pointwise and c.groups == 1 for c in (fc1, fc2)):
        return None
    return fc1, fc2


def put_before(anchor: ir.Node, op: str, inputs: Sequence[ir.Value], **attributes: object) -> ir.Value:
    """Add a node in front of `anchor` and give its output, named after the anchor's."""
    node = ir.node(op, inputs, attributes)  # type: ignore[arg-type]  # ir checks the attributes' types
    owner = anchor.graph
    if owner is None:
        raise ValueError(f"'{anchor.name}' is in no graph")
    owner.insert_before(anchor, node)
    node.outputs[0].name = _fresh(owner, f"{anchor.outputs[0].name}/{op}")
    node.name = f"{op}:{node.outputs[0].name}"
    return node.outputs[0]


def declare(value: ir.Value, shape: Sequence[int], *, like: ir.Value) -> None:
    """Say what a new value is, where a rewrite must know before shapes are inferred again."""
    value.shape = ir.Shape(shape)
    value.type = deepcopy(like.type)


def _fresh(owner: ir.Graph | ir.Function, name: str) -> str:
    taken = {value.name for node in owner for value in node.outputs}
    fresh, n = name, 0
    while fresh in taken:
        n += 1
        fresh = f"{name}_{n}"
    return fresh


def depends_on(value: ir.Value, node: ir.Node) -> bool:
    """Whether `value` is computed from what `node` writes."""
    seen: set[ir.Node] = set()
    front = [value]
    while front:
        producer = front.pop().producer()
        if producer is node:
            return True
        if producer is not None and producer not in seen:
            seen.add(producer)
            front += [v for v in producer.inputs if v is not None]
    return False


def static_batch_1(value: ir.Value) -> bool:
    """Whether the batch is known to be 1 for every call."""
    shape = graph.dims(value)
    return shape is not None and len(shape) > 0 and shape[0] == 1


def is_nonnegative(gate: ir.Value) -> bool:
    """Whether a gate can never be below 0, by the operator that bounds it."""
    node = gate.producer()
    if node is None:
        return False
    if node.op_type in {"Sigmoid", "HardSigmoid", "Softmax", "Relu"}:
        return True
    if node.op_type == "Clip":
        low = graph.scalar(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and low >= 0
    if node.op_type in {"Mul", "Div"}:  # a positive constant gain behind the gate
        first, second = input_of(node, 0), input_of(node, 1)
        for inner, gain in ((first, second), (second, first)):
            array = graph.constant(gain)
            if array is not None and (array > 0).all() and (node.op_type == "Mul" or gain is second):
                return is_nonnegative(inner)
    return node.op_type == "Reshape" and is_nonnegative(input_of(node, 0))


def reduce_before(
    model: ir.Model, anchor: ir.Node, op: str, value: ir.Value, axes: Sequence[int]
) -> ir.Value:
    """Add a ReduceMean or ReduceSum with kept dimensions; its axes are an input where the opset says so."""
    from_opset = 13 if op == "ReduceSum" else 18
    if graph.opset(model) < from_opset:
        return put_before(anchor, op, [value], axes=list(axes), keepdims=1)
    given = graph.initializer(model, f"{anchor.outputs[0].name}/axes", np.array(axes, np.int64))
    return put_before(anchor, op, [value, given], keepdims=1)


def reshape_before(model: ir.Model, anchor: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Add a Reshape; 0 in `shape` keeps the dimension."""
    given = graph.initializer(model, f"{anchor.outputs[0].name}/shape", np.array(shape, np.int64))
    return put_before(anchor, "Reshape", [value, given])


def producer(model: ir.Model, name: str) -> ir.Node | None:
    """Give the node that writes the tensor `name`, None where there is none any more."""
    value = values(model).get(name)
    return None if value is None else value.producer()
