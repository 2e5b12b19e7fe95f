"""The kernels that TensorRT's published fusions make of a graph: a model of its plan, where none can be made.

A layer takes in a factor and a sum per channel, one sum of two maps, and one ReLU, Clip or GELU; adjacent
pointwise operators, factors and sums per channel among them, are one kernel; a quantizer joins the kernel
that writes what it reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from se_deploy import graph
from se_deploy.quantization.chain import spelling, storage
from se_deploy.quantization.chain.storage import Storage

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.quantization.chain.spelling import Quantizer, Weighted

Kind = Literal["layer", "pointwise", "pad", "pool", "move", "other"]

EPILOGUE = frozenset({"Relu", "Clip", "Gelu"})
"""Activations that a convolution's kernel takes in (Layer Fusion Catalog)."""
ACTIVATIONS = EPILOGUE | {
    "Celu", "Elu", "Erf", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Sigmoid",
    "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
POINTWISE = ACTIVATIONS | {
    "Abs", "Add", "Ceil", "Div", "Exp", "Floor", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal",
    "Round", "Sign", "Sqrt", "Sub", "Sum", "Where",
}  # fmt: skip
_BOUNDS = frozenset({"Max", "Min"})
_AFFINE = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})
_IMAGE_AXES = 2  # batch and channels come before
_COMPUTED_ON_HOST = frozenset({"INT64", "INT32", "BOOL"})  # of shapes: no kernel


@dataclass(eq=False, slots=True)
class Kernel:
    """Nodes that run as one; `layer` is set where one of them has constant weights."""

    kind: Kind
    nodes: list[ir.Node]
    layer: Weighted | None = None
    residual: ir.Value | None = None  # the summand that the layer's kernel takes in

    @property
    def name(self) -> str:
        """The first node's name."""
        return str(self.nodes[0].name)


@dataclass(frozen=True, slots=True)
class Kernels:
    """All kernels of a graph, and which one runs each node."""

    storage: Storage
    given: tuple[ir.Value, ...]  # the graph's inputs
    all: tuple[Kernel, ...]
    of: dict[ir.Node, Kernel] = field(repr=False)

    def maker(self, value: ir.Value) -> Kernel | None:
        """Return the kernel that computes `value`, free operators between left out; None for an input."""
        node = value.producer()
        while node is not None and node not in self.of:
            source = node.inputs[0] if node.inputs else None
            node = None if source is None else source.producer()
        return None if node is None else self.of[node]

    def outputs(self, kernel: Kernel) -> list[ir.Value]:
        """Return the values of a kernel that something else reads."""
        own = set(kernel.nodes)
        return [
            value
            for node in kernel.nodes
            for value in node.outputs
            if leaves_graph(value) or any(reader not in own for reader in readers(value))
        ]

    def inputs(self, kernel: Kernel) -> list[ir.Value]:
        """Return the values that a kernel reads, constants left out."""
        own = {value for node in kernel.nodes for value in node.outputs}
        read = [v for n in kernel.nodes for v in n.inputs if v is not None and not spelling.is_fixed(v)]
        return [v for v in dict.fromkeys(read) if _behind_free(v) not in own]

    def emits_int8(self, kernel: Kernel, value: ir.Value) -> bool:
        """Whether the kernel writes `value` as INT8: the quantizer behind it fuses."""
        stored = self.storage
        if stored.written(value) is None:
            return False
        if kernel.kind == "layer":
            return kernel.residual is None or stored.dequantized(kernel.residual) is not None
        if kernel.kind in {"pool", "move"}:
            return all(stored.of(v) is not None for v in self.inputs(kernel))
        return kernel.kind == "pointwise" or self._multiplies_int8(kernel)

    def _multiplies_int8(self, kernel: Kernel) -> bool:
        """Whether a kernel is a product of two activations that are both quantized."""
        if kernel.kind != "other" or not is_product(kernel.nodes[0]):
            return False
        read = [self.storage.dequantized(v) for v in activations(kernel.nodes[0])]
        return all(one is not None and one.symmetric_int8 and one.per_tensor for one in read)

    def reads_int8(self, kernel: Kernel) -> bool:
        """Whether dequantizers in front of the kernel fuse: a layer in INT8, or what emits INT8."""
        if kernel.kind == "layer":
            return kernel.layer is not None and is_int8(kernel.layer, self.storage)
        if self._multiplies_int8(kernel):
            return True
        written = self.outputs(kernel)
        return bool(written) and all(
            self.emits_int8(kernel, v) or (kernel.kind == "move" and self.storage.of(v) is not None)
            for v in written
        )


def is_product(node: ir.Node) -> bool:
    """Whether a node multiplies two matrices of activations, as attention does."""
    return node.op_type == "MatMul" and not node.domain and len(activations(node)) == 2  # noqa: PLR2004 - of two


def is_int8(layer: Weighted, stored: Storage) -> bool:
    """Whether a layer computes in INT8: input and weights are quantized as TensorRT wants it."""
    given = stored.dequantized(layer.data)
    return (
        given is not None
        and given.symmetric_int8
        and given.per_tensor
        and layer.stored is not None
        and layer.stored.symmetric_int8
        and layer.along_outputs
        and (layer.bias is None or layer.bias.dtype == spelling.INT8)
    )


def is_asked(layer: Weighted, stored: Storage) -> bool:
    """Whether a file asks for INT8 of a layer: input and weights are quantized, in whatever way."""
    return layer.stored is not None and stored.dequantized(layer.data) is not None


def readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read `value`, free operators between left out."""
    found: dict[ir.Node, None] = {}
    for node in dict.fromkeys(use.node for use in value.uses()):
        if node.op_type in storage.FREE and not node.domain:
            for output in node.outputs:
                found.update(dict.fromkeys(readers(output)))
        else:
            found[node] = None
    return list(found)


def leaves_graph(value: ir.Value) -> bool:
    """Whether `value`, or what a free operator makes of it, is an output of the graph."""
    free = [n for n in (use.node for use in value.uses()) if n.op_type in storage.FREE and not n.domain]
    return value.is_graph_output() or any(leaves_graph(output) for node in free for output in node.outputs)


def of(model: ir.Model) -> Kernels:
    """Return the kernels of a graph (shapes inferred, nodes in order), as published fusions make them."""
    nodes = [node for node in model.graph if _runs(node)]
    owner: dict[ir.Node, Kernel] = {}
    for node in nodes:
        layer = spelling.weighted(node)
        if layer is not None:
            kernel = _layer(layer)
            both = next((n for n in kernel.nodes if n in owner), None)
            if both is not None:  # a sum of two layers, which the later one takes in
                _leave(owner[both], both)
            owner.update(dict.fromkeys(kernel.nodes, kernel))
    for node in reversed(nodes):  # from behind, so that each kernel's nodes stay in the graph's order
        if node not in owner:
            kernel = _joined(node, owner)
            kernel.nodes.insert(0, node)
            owner[node] = kernel
    listed = dict.fromkeys(owner[node] for node in nodes)
    return Kernels(Storage(), tuple(model.graph.inputs), tuple(listed), owner)


def _runs(node: ir.Node) -> bool:
    """Whether a node is computed for each image by a kernel of its own or of its neighbours."""
    if spelling.is_quantize(node) or spelling.is_dequantize(node):
        return False
    if node.op_type in storage.FREE and not node.domain:
        return False
    types = {v.dtype.name for v in node.outputs if v.dtype is not None}
    return not all(map(spelling.is_fixed, node.inputs)) and not (types and types <= _COMPUTED_ON_HOST)


def _layer(layer: Weighted) -> Kernel:
    """Return a layer with what its kernel takes in, wherever the nodes stand in the graph's order.

    A sum's other summand never waits for the layer: nothing but the sum reads what the layer makes.
    """
    kernel = Kernel("layer", [layer.node], layer)
    value, linear, activated = layer.node.outputs[0], True, False
    while not leaves_graph(value):
        behind = readers(value)
        if len(behind) != 1 or activated:
            break
        node = behind[0]
        if linear and is_affine(node):
            pass
        elif is_clamp(node):
            linear, activated = False, node.op_type not in _BOUNDS
        elif kernel.residual is None and is_sum(node):
            kernel.residual = next(
                (v for v in node.inputs if v is not None and _behind_free(v) is not value), None
            )
            linear = False
        else:
            break
        kernel.nodes.append(node)
        value = node.outputs[0]
    return kernel


def _leave(kernel: Kernel, node: ir.Node) -> None:
    """Let a layer's kernel end in front of a sum."""
    del kernel.nodes[kernel.nodes.index(node) :]
    kernel.residual = None


def _joined(node: ir.Node, owner: dict[ir.Node, Kernel]) -> Kernel:
    """Return the kernel of what reads a pointwise operator, where that is one; else a new one."""
    kind = _kind(node)
    if kind != "pointwise" or any(map(leaves_graph, node.outputs)):
        return Kernel(kind, [])
    behind = {owner.get(reader) for value in node.outputs for reader in readers(value)}
    only = next(iter(behind)) if len(behind) == 1 else None
    return only if only is not None and only.kind == kind else Kernel(kind, [])


def _kind(node: ir.Node) -> Kind:
    if node.domain:
        return "other"
    if node.op_type in POINTWISE or is_affine(node):
        return "pointwise"
    if node.op_type == "Pad":
        return "pad"
    if node.op_type == "AveragePool":
        return "other" if is_pooled(node.outputs[0]) else "pool"
    return "move" if storage.commutes(node) else "other"


def is_affine(node: ir.Node) -> bool:
    """Whether a node multiplies one activation by constants, or adds constants."""
    return node.op_type in _AFFINE and not node.domain and len(activations(node)) == 1


def is_clamp(node: ir.Node) -> bool:
    """Whether a convolution's kernel takes the node in as its activation or a bound."""
    if node.domain or node.op_type not in EPILOGUE | _BOUNDS:
        return False
    return len(activations(node)) == 1


def is_sum(node: ir.Node) -> bool:
    """Whether a node adds two maps of one shape; one that is added to itself is doubled."""
    if node.op_type != "Add" or node.domain or len(set(map(_behind_free, activations(node)))) != 2:  # noqa: PLR2004 - of two
        return False
    one, other = (graph.dims(v) for v in node.inputs)
    return one == other


def is_pooled(value: ir.Value) -> bool:
    """Whether a tensor has one number per channel, as a squeeze or a gate."""
    known = graph.dims(value)
    return known is not None and len(known) > _IMAGE_AXES and all(d == 1 for d in known[_IMAGE_AXES:])


def activations(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that depend on the network's input."""
    return [v for v in node.inputs if v is not None and not spelling.is_fixed(v)]


def _behind_free(value: ir.Value) -> ir.Value:
    """Return what `value` is in memory: free operators in front of it left out."""
    node = value.producer()
    while (
        node is not None and node.op_type in storage.FREE and not node.domain and node.inputs[0] is not None
    ):
        value = node.inputs[0]
        node = value.producer()
    return value


def quantizers_of(value: ir.Value) -> list[tuple[ir.Node, Quantizer]]:
    """Return the QuantizeLinear nodes that read `value`, operators between that commute."""
    return [
        (use.node, spelling.quantizer(use.node))
        for use in storage.uses(value)
        if use.node is not None and spelling.is_quantize(use.node)
    ]
