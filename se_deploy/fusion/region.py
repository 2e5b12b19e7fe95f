"""Which nodes of a graph are an SE block, and what each is in it; reads, never writes.

The census names a block's nodes in the graph that it was found in. In the graph that a compiler was given
there may be more (casts, Q/DQ between them) and others (a rewrite moved the squeeze or the gate), so what
lies between is added, and what is gone is found again from the gate, which keeps its name as the block's
output does.
"""

from __future__ import annotations

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


_MATRIX_RANK = 2
_MAP_EXTENT = 3  # channels, height and width


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes of one block in one graph, by name and by what they do."""

    nodes: frozenset[str]
    squeeze: tuple[str, ...]  # the reductions
    layers: tuple[str, ...]  # the learned layers, in order
    inner: frozenset[str]  # what computes between the first and the last layer: bias, norm, activation
    gate: frozenset[str]  # what computes between the last layer and the scale
    scale: frozenset[
        str
    ]  # what applies the gate: a Mul (and its Add), or products with weights and their Conv
    end: str  # the node that gives the block's output, or the last that applies the gate
    after: tuple[str, ...]  # the residual Add behind it and its activation, where they are


class Graph:
    """A model with its nodes by name and by place, so that many blocks are looked up fast."""

    def __init__(self, model: ir.Model) -> None:
        """Index `model`, which must not change while this lives."""
        self.model = model
        self.order = {node: i for i, node in enumerate(model.graph)}
        self.nodes: dict[str, ir.Node] = {node.name: node for node in model.graph if node.name}
        self.values: dict[str, ir.Value] = {v.name: v for n in model.graph for v in n.outputs if v.name}

    def region(self, block: SEBlock) -> Region | None:
        """Find `block`; None where neither its output nor its gate is a tensor of this graph."""
        output, gate = self.values.get(block.output), self.values.get(block.gate_output)
        members = {self.nodes[name] for name in block.nodes if name in self.nodes}
        whole = output is not None and len(members) == len(block.nodes)
        applying = set() if whole or gate is None else _downstream(gate)
        end = None if output is None else output.producer()
        if end is None:
            end = max(applying, key=self.order.__getitem__, default=None)
        if end is None or end.name is None:
            return None
        if not whole:
            known = None if gate is None else gate.producer()
            members |= applying | ({known} | _upstream(known) if known is not None else _upstream(end))
        members.add(end)
        members |= self._between(members)
        members |= _prelude(members)
        ordered = sorted(members, key=self.order.__getitem__)
        if not applying:
            applying = {n for n in (self.nodes.get(block.scale_node), end) if n in members}
        layers = [n for n in ordered if n.name in block.layers]
        if len(layers) < len(block.layers):
            learned = [n for n in ordered if n.op_type in LAYERS or _is_product(n)]
            layers = [n for n in learned if n not in applying | {end}]
        return self._roles(ordered, layers, applying, end, output)

    def _between(self, members: set[ir.Node]) -> set[ir.Node]:
        """Everything on a path from one member to another."""
        first, last = min(map(self.order.__getitem__, members)), max(map(self.order.__getitem__, members))
        below = _reach(members, lambda n: n.successors(), lambda n: self.order.get(n, -1) <= last)
        above = _reach(members, lambda n: n.predecessors(), lambda n: self.order[n] >= first)
        return below & above

    def _roles(
        self,
        ordered: list[ir.Node],
        layers: list[ir.Node],
        applying: set[ir.Node],
        end: ir.Node,
        output: ir.Value | None,
    ) -> Region:
        first = self.order[layers[0]] if layers else len(self.order)
        last = self.order[layers[-1]] if layers else -1
        squeeze = [n for n in ordered if n.op_type in REDUCTIONS and self.order[n] < first]
        other = SHAPES | MOVES | QUANTIZERS | LAYERS
        pointwise = [n for n in ordered if n.op_type not in other and n not in squeeze]
        behind = [] if output is None else _after(output)
        return Region(
            nodes=_names(ordered),
            squeeze=tuple(str(n.name) for n in squeeze),
            layers=tuple(str(n.name) for n in layers),
            inner=_names(n for n in pointwise if first < self.order[n] < last),
            gate=_names(n for n in pointwise if self.order[n] > last and n not in applying | {end}),
            scale=_names(applying),
            end=str(end.name),
            after=tuple(str(n.name) for n in behind),
        )


def is_map(value: ir.Value | None) -> bool:
    """Whether `value` has more than one place in space: (N, C, H, W) with H * W > 1, or free."""
    dims = graph.dims(value)
    return dims is None or any(d is None or d > 1 for d in dims[2:])


def _upstream(end: ir.Node) -> set[ir.Node]:
    """Walk back from `end` to the squeeze, through which alone a gate depends on the map, and to shapes."""
    found: set[ir.Node] = set()
    wanted = [end]
    while wanted:
        for value in wanted.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is None or producer in found:
                continue
            stop = _is_squeeze(producer) or producer.op_type in {"Shape", "Size"}
            if stop or _extent(value) < _MAP_EXTENT:
                found.add(producer)
                if not stop:
                    wanted.append(producer)
    return found


def _downstream(gate: ir.Value) -> set[ir.Node]:
    """Walk from the gate to what applies it: a Mul with a tensor, or the product with weights, then a Conv.

    A bias scaled by the gate ends in the Add that gives it to the convolution's result.
    """
    found: set[ir.Node] = set()
    wanted = [gate]
    while wanted:
        for use in wanted.pop().uses():
            node = use.node
            if node in found:
                continue
            found.add(node)
            onward = node.op_type in SHAPES | MOVES | QUANTIZERS
            if onward or (node.op_type == "Mul" and _reads_constant(node)):
                wanted += node.outputs
    return found


def _prelude(members: set[ir.Node]) -> set[ir.Node]:
    """Transposes, casts, reshapes and partial reductions that feed the squeeze and nothing else."""
    found: set[ir.Node] = set()
    wanted = [n for n in members if _is_squeeze(n)]
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
    """Return the residual Add that alone reads `output`, and the activation that alone reads the Add."""
    add = graph.sole_consumer(output)
    if add is None or add.op_type != "Add" or not all(is_map(v) for v in add.inputs):
        return []
    act = graph.sole_consumer(add.outputs[0])
    return [add] if act is None or act.op_type not in ACTIVATIONS else [add, act]


def _is_squeeze(node: ir.Node) -> bool:
    return node.op_type in REDUCTIONS and not _is_product(node)


def _is_product(node: ir.Node) -> bool:
    """Whether `node` is a fully connected layer spelled as the sum of a product with its weights.

    The sum of a map times a mask is a squeeze.
    """
    factor = node.inputs[0].producer() if node.op_type == "ReduceSum" and node.inputs[0] is not None else None
    if factor is None or factor.op_type != "Mul" or any(_extent(v) >= _MAP_EXTENT for v in factor.inputs):
        return False
    arrays = [array for value in factor.inputs if (array := graph.constant(value)) is not None]
    return any(sum(d > 1 for d in array.shape) >= _MATRIX_RANK for array in arrays)


def _extent(value: ir.Value | None) -> int:
    """Count the dimensions behind the first that are larger than 1, or free."""
    return sum(d is None or d > 1 for d in (graph.dims(value) or ())[1:])


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
