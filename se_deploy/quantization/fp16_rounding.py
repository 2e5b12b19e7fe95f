"""The numbers of an FP16 graph, as an FP32 graph that rounds where a device rounds.

ONNX Runtime's CPU provider computes FP16 graphs in FP32 between the nodes that have no FP16 kernel, even with
optimizations off: a tensor declared FLOAT16 reaches the next node unrounded, and a sum beyond 65,504 stays
finite. A device computes in FP32 inside a kernel and rounds what the kernel writes. Here the graph's FLOAT16
tensors become FLOAT ones, with `Cast(FLOAT16) -> Cast(FLOAT)` behind each that is written; ONNX Runtime keeps
that pair with optimizations off.

What a plan does not show stays unseen: in which order and width a kernel sums, and what the kernels that one
ONNX node was split into hand to each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from se_deploy import graph, shape_inference
from se_deploy.errors import BadArtifact, UnsupportedGraph

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from se_deploy.plan import Plan

SINGLE = ir.DataType.FLOAT
NARROW = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
"""Types that are rounded to, and how plans name them. What follows says FP16 of both."""

AT_BOUNDARIES = "rounded at the plan's kernel boundaries"
AT_EVERY_TENSOR = "rounded at every FP16 tensor"

_MOVES = frozenset({
    "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that compute no value: where a plan names no kernel for one, it costs none and writes nothing."""

_ROUNDS = frozenset({"Cast", "CastLike"})
"""A Cast to FLOAT16 is a rounding that the graph asks for, within a kernel too."""

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "precision", "stash_type", "softmax_precision")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to run, unoptimized, for the numbers of a graph."""

    model: ir.Model
    rounding: str | None  # where it rounds to FP16, in words; None where the graph has no FP16 tensor


def evaluation(model: ir.Model, plan: Plan | None = None) -> Evaluation:
    """Return `rounded` of a graph with FP16 tensors, and the graph itself where there is none.

    A plan that names no node, as that of an engine without detailed layers, cannot say where it rounds.
    Raises: UnsupportedGraph for sequences of FP16 tensors.
    """
    if not has_fp16(model):
        return Evaluation(model, None)
    if plan is None:
        return Evaluation(rounded(model), _at_every_tensor(model))
    try:
        return Evaluation(rounded(model, plan), AT_BOUNDARIES)
    except BadArtifact:
        return Evaluation(
            rounded(model), f"{_at_every_tensor(model)}, since the plan names no node of the graph"
        )


def _at_every_tensor(model: ir.Model) -> str:
    narrow = {value.dtype for g in model.graphs() for value in _values(g)}
    return AT_EVERY_TENSOR if ir.DataType.FLOAT16 in narrow else AT_EVERY_TENSOR.replace("FP16", "BF16")


def has_fp16(model: ir.Model) -> bool:
    """Whether any tensor of the graph, an initializer or an input included, is FLOAT16 or BFLOAT16."""
    return any(value.dtype in NARROW for g in model.graphs() for value in _values(g))


def rounded(model: ir.Model, plan: Plan | None = None) -> ir.Model:
    """Return an FP32 copy of an FP16 graph that rounds to FP16 what `plan` writes; to be run unoptimized.

    Without a plan every FLOAT16 tensor is rounded; a FLOAT one never is. Constants keep their stored FP16
    values. Inputs and outputs keep names and types, and so do all tensors their names: a name means the
    rounded tensor where there is one. Nodes of If and Loop bodies are in no plan: theirs are all rounded.

    Raises: UnsupportedGraph for sequences of FP16 tensors; BadArtifact where `plan` is not of this graph.
    """
    copy = model.clone()
    if copy.functions:
        common.InlinePass()(copy)
        shape_inference.infer(copy)  # what stood in a function has no type yet
    graphs = tuple(copy.graphs())
    _refuse_sequences(copy)
    written = [(value, value.dtype or SINGLE) for value in _written(copy, plan)]  # before they are widened
    names = _Names({value.name for g in graphs for value in _values(g)})
    for g in graphs:
        _widen(g, names, main=g is copy.graph)
    for value, dtype in written:
        _round(value, dtype, names, copy.graph)
    return copy


class _Names:
    """Names that the graph does not have."""

    def __init__(self, taken: set[str | None]) -> None:
        self._taken = taken

    def fresh(self, name: str) -> str:
        unique, n = name, 0
        while unique in self._taken:
            n += 1
            unique = f"{name}_{n}"
        self._taken.add(unique)
        return unique


def _values(g: ir.Graph) -> Iterator[ir.Value]:
    yield from g.inputs
    yield from g.initializers.values()
    for node in g:
        yield from node.outputs


def _refuse_sequences(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        # Not by the values' types: shape inference takes a sequence for a tensor.
        listed = "Sequence" in node.op_type or "Optional" in node.op_type
        if listed and any(value.dtype in NARROW for value in values):
            raise UnsupportedGraph(
                f"{node.op_type} '{node.name}' makes or reads a sequence of FP16 tensors, which are not "
                "rounded one by one here",
                hint="export the network without sequences, or compare its FP32 file",
            )


def _written(model: ir.Model, plan: Plan | None) -> list[ir.Value]:
    """Return the FLOAT16 results that are rounded: all of them, or what crosses from kernel to kernel."""
    halves = [v for node in model.graph.all_nodes() for v in node.outputs if v.dtype in NARROW]
    if plan is None or not halves:
        return halves
    homes = _homes(model, plan)
    return [value for value in halves if _leaves(value, homes)]


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a node is computed."""

    kernels: frozenset[int]  # by place in the plan
    dtypes: frozenset[str]  # of all that those kernels write


_NOWHERE = _Home(frozenset(), frozenset())


def _homes(model: ir.Model, plan: Plan) -> dict[ir.Node, _Home]:
    """Return where each node of the graph is computed, as the plan names them."""
    nodes = {node.name: node for node in model.graph if node.name}
    found: dict[ir.Node, set[int]] = {}
    for place, kernel in enumerate(plan.layers):
        for name in kernel.onnx_nodes:
            node = _named(name, nodes)
            if node is not None:
                found.setdefault(node, set()).add(place)
    if not found:
        raise BadArtifact(
            f"the plan names no node of the graph: it has {plan.kernels} kernels, none with a node that is "
            "here",
            hint="build the engine again, so that its plan and its ONNX file belong together",
        )
    writes = [frozenset(tensor.dtype for tensor in kernel.outputs) for kernel in plan.layers]
    return {
        node: _Home(frozenset(places), frozenset().union(*(writes[place] for place in places)))
        for node, places in found.items()
    }


def _named(name: str, nodes: Mapping[str, ir.Node]) -> ir.Node | None:
    """Find a node; the compiler writes "A]__gemm_from_conv1x1" for what it made of node A."""
    while name not in nodes:
        name, bracket, _ = name.rpartition("]")
        if not bracket:
            return None
    return nodes[name]


def _leaves(value: ir.Value, homes: Mapping[ir.Node, _Home]) -> bool:
    """Whether a kernel writes `value` as float16: a reader shares no kernel with its producer."""
    node = value.producer()
    if node is None or node.op_type in _ROUNDS:
        return True
    home = homes.get(node)
    if home is None:  # a move without a kernel hands on what is rounded already, or is within a kernel
        return node.op_type not in _MOVES
    if home.dtypes and NARROW[value.dtype or SINGLE] not in home.dtypes:
        return False
    readers = (_NOWHERE if n is None else homes.get(n, _NOWHERE) for n in _readers(value, homes))
    return any(not home.kernels & reader.kernels for reader in readers)


def _readers(value: ir.Value, homes: Mapping[ir.Node, _Home]) -> Iterator[ir.Node | None]:
    """Yield what reads `value`, through moves that have no kernel; None stands for the graph's outputs."""
    if value.is_graph_output():
        yield None
    for use in value.uses():
        if use.node.op_type in _MOVES and use.node not in homes:
            for out in use.node.outputs:
                yield from _readers(out, homes)
        else:
            yield use.node


def _widen(g: ir.Graph, names: _Names, *, main: bool) -> None:
    """Make every FLOAT16 value a FLOAT one, but for inputs and outputs of the whole graph."""
    for value in [*g.inputs, *g.initializers.values()]:
        if value.dtype not in NARROW:
            continue
        if main and (value.is_graph_input() or value.is_graph_output()):
            _cast_for_readers(value, names)
            continue
        value.type = ir.TensorType(SINGLE)  # copies share types: never write into one
        if value.const_value is not None:
            value.const_value = _single(value.const_value)
    for node in g:
        for value in node.outputs:
            if value.dtype in NARROW:
                value.type = ir.TensorType(SINGLE)
        for name in _TYPE_ATTRIBUTES:
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.value in NARROW:
                node.attributes[name] = ir.AttrInt64(name, SINGLE)
        tensor = node.attributes.get("value")
        if (
            tensor is not None
            and tensor.type == ir.AttributeType.TENSOR
            and tensor.as_tensor().dtype in NARROW
        ):
            node.attributes["value"] = ir.AttrTensor("value", _single(tensor.as_tensor()))


def _single(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a constant's 16-bit values in FP32: every one of them is exact there."""
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _cast_for_readers(value: ir.Value, names: _Names) -> None:
    """Let the readers of an FP16 input read it in FP32."""
    if not tuple(value.uses()):
        return
    wide = _cast(value, SINGLE, names.fresh(f"{value.name}_fp32"))
    for use in tuple(value.uses()):
        if use.node is not wide.producer():
            use.node.replace_input_with(use.idx, wide)
    graph.insert_after(value, [node for node in (wide.producer(),) if node is not None])


def _round(value: ir.Value, dtype: ir.DataType, names: _Names, whole: ir.Graph) -> None:
    """Put the pair of Casts behind `value`; an output of the whole graph ends between them, in `dtype`."""
    name, in_whole = str(value.name), value.graph is whole
    uses, output = tuple(value.uses()), value.is_graph_output()
    between = output and in_whole
    value.name = names.fresh(f"{name}_unrounded")
    half = _cast(value, dtype, name if between else names.fresh(f"{name}_fp16"))
    wide = _cast(half, SINGLE, names.fresh(f"{name}_fp32") if between else name)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)
    if output and value.graph is not None:
        outputs = value.graph.outputs
        outputs[outputs.index(value)] = half if between else wide
    graph.insert_after(value, [node for v in (half, wide) if (node := v.producer()) is not None])


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    node = ir.node("Cast", [value], {"to": to})
    out = node.outputs[0]
    out.name, out.type, out.shape = name, ir.TensorType(to), value.shape
    return out
