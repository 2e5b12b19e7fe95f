"""The parts of a canonical SE block as rewrites have left it: squeeze, layers, gate and scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.errors import counted
from se_deploy.passes.registry import Refused

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

MAP_RANK = 4  # (N, C, H, W)
SQUEEZED_RANKS = (3, 4, 5)  # of signals (N, C, T), maps, clips (N, C, T, H, W)


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


@dataclass(frozen=True, slots=True)
class Scaled:
    """A block whose gate still multiplies a map: y = Mul(data, gate)."""

    parts: Parts
    scale: ir.Node
    data: ir.Value  # (N, C, H, W)

    @property
    def gate(self) -> ir.Value:
        """The gate, (N, C, 1, 1)."""
        return self.parts.gate

    @property
    def y(self) -> ir.Value:
        """What the Mul writes, (N, C, H, W)."""
        return self.scale.outputs[0]


def parts(model: ir.Model, block: SEBlock, ranks: Collection[int] = (MAP_RANK,)) -> Parts | Refused:
    """The parts of `block` in `model` as rewritten so far; what it scales has one of `ranks` dimensions."""
    gate = graph.values(model).get(block.gate_output)
    if gate is None:
        return Refused("its gate is no longer a tensor of the graph")
    inside = tuple(_ancestors_to_squeeze(gate))
    squeezes = [node for node in inside if is_squeeze(node)]
    layers = tuple(node for node in reversed(inside) if node.op_type == "Conv")
    if len(squeezes) != 1:
        feeding = counted(len(squeezes), "pooling node", ("feeds", "feed"))
        return Refused(f"it is not in canonical form: {feeding} its gate")
    if not layers:
        return Refused("it is not in canonical form: no convolution lies between its squeeze and its gate")
    read, squeezed = squeeze_ends(squeezes[0])
    scale = next((u.node for u in gate.uses() if u.node.name == block.scale_node), None)
    if scale is not None and not _scales_channels(scale, gate, ranks):
        what = "a map (N, C, H, W)" if len(ranks) == 1 else "a signal, a map or a clip"
        return Refused(f"its gate does not multiply {what} by one factor per channel")
    return Parts(read, squeezed, _in_order(layers, squeezed), gate, scale)


def scaled(model: ir.Model, block: SEBlock) -> Scaled | Refused:
    """The parts of a block with a Mul."""
    found = parts(model, block)
    if isinstance(found, Refused):
        return found
    if found.scale is None:
        return Refused("its gate was moved into weights already", taken=True)
    first, second = found.scale.inputs
    data = second if first is found.gate else first
    if data is None:
        raise ValueError(f"Mul '{found.scale.name}' lacks an input")
    return Scaled(found, found.scale, data)


def _scales_channels(scale: ir.Node, gate: ir.Value, ranks: Collection[int]) -> bool:
    """Whether a Mul multiplies (N, C, H, W) with a gate (N, C, 1, 1), or the like of other `ranks`."""
    column, y = graph.dims(gate), graph.dims(scale.outputs[0])
    return (
        scale.op_type == "Mul"
        and scale.inputs[0] is not scale.inputs[1]
        and y is not None
        and column is not None
        and len(y) in ranks
        and y[1] is not None
        and column[1:] == (y[1], *[1] * (len(y) - 2))
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
        shape, window = graph.dims(node.inputs[0]), graph.ints(node, "kernel_shape")
        return shape is not None and len(shape) in SQUEEZED_RANKS and shape[2:] == window
    return node.op_type == "ReduceMean" and _is_nhwc_mean(node)


def channels_last(rank: int) -> tuple[int, ...]:
    """Return the permutation that puts the channels last: (N, C, H, W) -> (N, H, W, C)."""
    return (0, *range(2, rank), 1)


def channels_second(rank: int) -> tuple[int, ...]:
    """Return the permutation that puts the last dimension second: (N, H, W, C) -> (N, C, H, W)."""
    return (0, rank - 1, *range(1, rank - 1))


def _is_nhwc_mean(node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    after = graph.sole_consumer(node.outputs[0])
    axes = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(graph.ints(node, "axes"))
    if before is None or after is None or axes is None or not before.op_type == after.op_type == "Transpose":
        return False
    there = graph.ints(before, "perm")
    rank = len(there)
    return (
        rank in SQUEEZED_RANKS
        and there == channels_last(rank)
        and graph.ints(after, "perm") == channels_second(rank)
        and sorted(axes.tolist()) == [*range(1, rank - 1)]
    )


def squeeze_ends(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What a squeeze reads and what it writes, (N, C, H, W) and (N, C, 1, 1), whatever its spelling."""
    if node.op_type != "ReduceMean":
        return graph.input_of(node, 0), node.outputs[0]
    before, after = graph.input_of(node, 0).producer(), graph.sole_consumer(node.outputs[0])
    if before is None or after is None:
        raise ValueError(f"'{node.name}' is no squeeze")
    return graph.input_of(before, 0), after.outputs[0]


def _is_vector(value: ir.Value) -> bool:
    shape = graph.dims(value)
    return shape is not None and all(d == 1 for d in shape[2:])


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
        first, second = graph.input_of(node, 0), graph.input_of(node, 1)
        for inner, gain in ((first, second), (second, first)):
            array = graph.constant(gain)
            if array is not None and (array > 0).all() and (node.op_type == "Mul" or gain is second):
                return is_nonnegative(inner)
    return node.op_type == "Reshape" and is_nonnegative(graph.input_of(node, 0))
