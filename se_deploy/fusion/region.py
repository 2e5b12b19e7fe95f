"""Which nodes of a graph are an SE block, and what each is in it; reads, never writes.

The census names a block's nodes in the graph that it was found in. In the graph that a compiler was given
there may be more (casts, Q/DQ between them) and others (a rewrite moved the squeeze or the gate), so what
lies between is added, and what is gone is found again from the block's output, which keeps its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

LAYERS = frozenset({"Conv", "Gemm", "MatMul", "Einsum", "ConvInteger", "MatMulInteger"})
REDUCTIONS = frozenset(
    {"GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum", "MaxPool", "GlobalMaxPool", "ReduceMax"}
)
SHAPES = frozenset(
    {"Shape", "Gather", "Slice", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Size"}
)
MOVES = frozenset({"Transpose", "Cast", "Identity"})
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
ACTIVATIONS = frozenset(
    {
        "Relu",
        "Clip",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Gelu",
        "Mish",
    }
)


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes of one block in one graph, by name and by what they do."""

    nodes: frozenset[str]
    squeeze: tuple[str, ...]  # the reductions
    layers: tuple[str, ...]  # the learned layers, in order
    inner: frozenset[str]  # what computes between the first and the last layer: bias, norm, activation
    gate: frozenset[str]  # what computes between the last layer and the scale
    scale: frozenset[str]  # what applies the gate: a Mul (and its Add), or the product with weights
    end: str  # the node that gives the block's output: the scale, or a convolution with run-time weights
    after: tuple[str, ...]  # the residual Add behind it and its activation, where they are


class Graph:
    """A model with its nodes by name and by place, so that many blocks are looked up fast."""

    def __init__(self, model: ir.Model) -> None:
        """Index `model`, which must not change while this lives."""
        self.order = {node: i for i, node in enumerate(model.graph)}
        self.nodes: dict[str, ir.Node] = {node.name: node for node in model.graph if node.name}
        self.values: dict[str, ir.Value] = {v.name: v for n in model.graph for v in n.outputs if v.name}

    def region(self, block: SEBlock) -> Region | None:
        """Find `block`; None where its output is no tensor of this graph."""
        output = self.values.get(block.output)
        end = None if output is None else output.producer()
        if output is None or end is None or end.name is None:
            return None
        members = {self.nodes[name] for name in block.nodes if name in self.nodes}
        if len(members) < len(block.nodes):
            members |= _gate_path(end)
        members.add(end)
        members |= self._between(members)
        members |= _prelude(members)
        ordered = sorted(members, key=self.order.__getitem__)
        layers = [n for n in ordered if n.name in block.layers] or [
            n for n in ordered if n.op_type in LAYERS and n is not end
        ]
        return self._roles(ordered, layers, end, output, self.nodes.get(block.scale_node))

    def _between(self, members: set[ir.Node]) -> set[ir.Node]:
        """Everything on a path from one member to another."""
        first, last = min(map(self.order.__getitem__, members)), max(map(self.order.__getitem__, members))
        below = _reach(members, lambda n: n.successors(), lambda n: self.order.get(n, -1) <= last)
        above = _reach(members, lambda n: n.predecessors(), lambda n: self.order.get(n, -1) >= first)
        return below & above

    def _roles(
        self,
        ordered: list[ir.Node],
        layers: list[ir.Node],
        end: ir.Node,
        output: ir.Value,
        mul: ir.Node | None,
    ) -> Region:
        first = self.order[layers[0]] if layers else len(self.order)
        last = self.order[layers[-1]] if layers else -1
        scale = {n for n in (mul, end) if n is not None and n in ordered}
        if end.op_type in LAYERS:  # the gate went into its weights: what prepares them scales
            scale = {n for n in ordered if n.op_type == "Mul" and _reads_constant(n) and self.order[n] > last}
        pointwise = [n for n in ordered if n.op_type not in SHAPES | MOVES | QUANTIZERS | LAYERS]
        behind = _after(output)
        return Region(
            nodes=_names(ordered),
            squeeze=tuple(str(n.name) for n in ordered if n.op_type in REDUCTIONS and self.order[n] <= first),
            layers=tuple(str(n.name) for n in layers),
            inner=_names(n for n in pointwise if first < self.order[n] < last),
            gate=_names(n for n in pointwise if self.order[n] > last and n not in scale and n is not end),
            scale=_names(scale),
            end=str(end.name),
            after=tuple(str(n.name) for n in behind),
        )


def is_map(value: ir.Value | None) -> bool:
    """Whether `value` has more than one place in space: (N, C, H, W) with H * W > 1, or free."""
    dims = graph.dims(value)
    if dims is None or len(dims) < 3:  # noqa: PLR2004  (batch and channels have no place)
        return dims is None
    return any(d is None for d in dims[2:]) or math.prod(d or 1 for d in dims[2:]) > 1


def _gate_path(end: ir.Node) -> set[ir.Node]:
    """Walk back from `end` along the gate: tensors without space, and weights that the gate multiplies."""
    found: set[ir.Node] = set()
    wanted = [end]
    while wanted:
        node = wanted.pop()
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is None or producer in found:
                continue
            weights = producer.op_type == "Mul" and _reads_constant(producer)
            pooled = node is not end and producer.op_type in REDUCTIONS  # a hoisted squeeze keeps 3x3 means
            if not is_map(value) or weights or pooled:
                found.add(producer)
                if not pooled and producer.op_type not in REDUCTIONS:
                    wanted.append(producer)
    return found


def _prelude(members: set[ir.Node]) -> set[ir.Node]:
    """Transposes, casts, reshapes and partial reductions that feed the squeeze and nothing else."""
    found: set[ir.Node] = set()
    wanted = [n for n in members if n.op_type in REDUCTIONS]
    while wanted:
        for producer in wanted.pop().predecessors():
            helper = producer.op_type in MOVES | QUANTIZERS | REDUCTIONS | {"Reshape"}
            if (
                helper
                and producer not in members | found
                and all(use.node in members | found for out in producer.outputs for use in out.uses())
            ):
                found.add(producer)
                wanted.append(producer)
    return found


def _after(output: ir.Value) -> list[ir.Node]:
    """Give the residual Add that alone reads `output`, and the activation that alone reads the Add."""
    add = graph.sole_consumer(output)
    if add is None or add.op_type != "Add" or not all(is_map(v) for v in add.inputs):
        return []
    act = graph.sole_consumer(add.outputs[0])
    return [add] if act is None or act.op_type not in ACTIVATIONS else [add, act]


def _reads_constant(node: ir.Node) -> bool:
    return any(graph.constant(value) is not None for value in node.inputs)


def _names(nodes: Iterable[ir.Node]) -> frozenset[str]:
    return frozenset(node.name for node in nodes if node.name)


def _reach(
    start: set[ir.Node], step: Callable[[ir.Node], Iterable[ir.Node]], keep: Callable[[ir.Node], bool]
) -> set[ir.Node]:
    found: set[ir.Node] = set()
    wanted = list(start)
    while wanted:
        for node in step(wanted.pop()):
            if node not in found and keep(node):
                found.add(node)
                wanted.append(node)
    return found
