"""ONNX graphs as `onnx_ir` models: read, write, edit and query; knows nothing of SE.

Every node has a unique name and every value a type and, where it can be inferred, a shape: `load` and
`rewrite` see to it, so that a pass can rely on both and a compiler's plan can be mapped back to nodes.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from se_deploy import files, onnx_files, shape_inference
from se_deploy.errors import BadModel, UnsupportedGraph, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from se_deploy.protocols import Array

    Pass = Callable[[ir.Model], int]

IR_VERSION = 10
"""Written to files: ONNX Runtime 1.18+ and TensorRT 10.3's parser (JetPack 6.1) read it."""

MOST_CONSTANT = 2**26
"""Elements that nodes may make out of constants, 512 MB of int64; tables of positions have 2**20."""

_TRAINING = "training_mode"  # of BatchNormalization from operator set 14 on

_MAX_PROTO_BYTES = 2**31 - 2**20  # protobuf's own limit is 2 GiB


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewritten copy and how often each pass fired: (name, count) in the order they ran."""

    model: ir.Model
    counts: tuple[tuple[str, int], ...]


def rewrite(model: ir.Model, *passes: Pass) -> Rewrite:
    """The copy that `passes` made of `model`, run in order.

    After each that fired, what it orphaned is dropped and the graph is checked. Raises: ValueError where a
    pass left a broken graph: a defect of that pass.
    """
    copy = model.clone()
    _own_types(copy)
    counts = []
    for apply in passes:
        counts.append((apply.__name__, count := apply(copy)))
        if count:
            tidy(copy)
            check_structure(copy, after=apply.__name__)
    return Rewrite(copy, tuple(counts))


def _own_types(copy: ir.Model) -> None:
    """Copy the type of every value of a clone: clones share them, and `value.dtype = ...` writes there."""
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.type = _copied(value.type)
    for value in (*copy.graph.inputs, *copy.graph.initializers.values()):
        value.type = _copied(value.type)


def _copied(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    """Return a type of its own; nearly all are of tensors, of which a deep copy costs ten times as much."""
    if type(kind) is ir.TensorType:
        return ir.TensorType(kind.dtype, denotation=kind.denotation)
    return deepcopy(kind)


def load(path: Path) -> ir.Model:
    """Read an ONNX file; weights beside it are found there, and only there.

    Raises: BadModel where it is no whole ONNX file, its external data lies outside its folder, or its
    constants ask for more memory than a network has use for; UnsupportedGraph where it is in training mode.
    """
    proto = onnx_files.read(path)
    hint = "if the exporter wrote it so, report it; else export or copy it again"
    with files.parsing(path, "cannot be read as ONNX", error=BadModel, hint=hint):
        model = ir.from_proto(proto)
        inline(model)
        _free_negative(model)
    onnx_files.check_attributes(model, path)
    _print_names(model)
    refuse_training(model)  # before tidy, which drops the unread outputs that BatchNormalization trains by
    with files.parsing(path, "cannot be read as ONNX", error=BadModel, hint=hint):
        tidy(model, from_file=True)
    _refuse_huge_constants(model, path)
    onnx_files.check_ranks(model, path)
    return model


def _print_names(model: ir.Model) -> None:
    """Escape control characters in the names of nodes and inner tensors: logs, lists and pages hold them.

    Inputs and outputs keep their names, which are what others call them by.
    """
    taken = value_names(model)
    outside = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph.all_nodes():
        if node.name:
            node.name = one_line(node.name)
        for value in node.outputs:
            if value not in outside and value.name and one_line(value.name) != value.name:
                value.name = fresh_name(one_line(value.name), taken)
                taken.add(value.name)


def _refuse_huge_constants(model: ir.Model, path: Path) -> None:
    """Raise BadModel where nodes make tensors out of constants that nobody should have to hold.

    A Range of 2^31 fits in 200 bytes of file; every later step, and every runtime, would compute it.
    """
    constant = {v for g in model.graphs() for v in g.initializers.values()}
    total = 0
    for node in model.graph.all_nodes():
        if not node.inputs or not all(value is None or value in constant for value in node.inputs):
            continue
        constant.update(node.outputs)
        given = sum(count(value) or 0 for value in node.inputs if value is not None)
        made = sum(count(value) or 0 for value in node.outputs)
        total += made if made > given else 0
        if total > MOST_CONSTANT:
            raise BadModel(
                f"'{path}': node '{node.name}' ({node.op_type}) would make {made:,} numbers out of constants",
                hint="no runtime can hold them: correct what computes that size, export again",
            )


def count(value: ir.Value) -> int | None:
    """Return the number of elements of a value; None where a dimension is free."""
    known = dims(value)
    return None if known is None or None in known else math.prod(d for d in known if d is not None)


def refuse_training(model: ir.Model) -> None:
    """Raise UnsupportedGraph for a BatchNormalization or Dropout that was exported in training mode.

    Its answers depend on the batch or on chance, so that no inference graph equals it.
    """
    version = opset(model)
    for node in model.graph.all_nodes():
        if node.op_type in {"BatchNormalization", "Dropout"} and _trains(node, version):
            raise UnsupportedGraph(
                f"{node.op_type} '{node.name or node.outputs[0].name}' is in training mode: "
                + (
                    "it normalizes by each batch's own statistics"
                    if node.op_type == "BatchNormalization"
                    else "it drops values by chance"
                ),
                hint="call network.eval() before torch.onnx.export and leave its `training` argument alone",
            )


def _trains(node: ir.Node, version: int) -> bool:
    """Whether a BatchNormalization or Dropout is, or at run time may be, in training mode."""
    if version < _NO_IS_TEST:
        return not attribute(node, "is_test", 0)
    if node.op_type == "Dropout":
        given = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004 - data, ratio, training_mode
        if given is None or scalar(given) == 0:
            return False
        return len(node.inputs) < 2 or node.inputs[1] is None or scalar(node.inputs[1]) != 0  # noqa: PLR2004
    if version < _TRAINING_MODE:
        return sum(bool(value.name) for value in node.outputs) > 1
    return bool(attribute(node, _TRAINING, 0))


_NO_IS_TEST = 7  # the opset that took `is_test` away: from then on the outputs, later an attribute, say it
_TRAINING_MODE = 14  # the opset that gave BatchNormalization its `training_mode`


def _free_negative(model: ir.Model) -> None:
    """Read a negative size as a free one: Paddle2ONNX writes -1, which shape inference takes for a number."""
    values = [v for node in model.graph.all_nodes() for v in node.outputs]
    given = [v for owner in model.graphs() for v in owner.inputs]
    for value in (*given, *values):
        if value.shape is not None and any(isinstance(d, int) and d < 0 for d in value.shape):
            value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in value.shape])


def save(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`, whole or not at all, with its weights inside.

    Raises: CannotWrite; BadModel where it is larger than one protobuf can be (2 GiB).
    """
    files.write_bytes(path, file_bytes(model))


def file_bytes(model: ir.Model) -> bytes:
    """Return what `save` writes: the IR version is set, which a hash of the graph leaves as it is."""
    model.ir_version = IR_VERSION
    return to_bytes(model)


def to_bytes(model: ir.Model) -> bytes:
    """`model` as the bytes of an ONNX file; BadModel above 2 GiB."""
    weights = weight_bytes(model)
    if weights > _MAX_PROTO_BYTES:
        raise BadModel(
            f"the graph holds {weights / 2**30:.1f} GiB of weights, one ONNX file at most 2 GiB",
            hint="use --fp16, which halves them",
        )
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def weight_bytes(model: ir.Model) -> int:
    """Count the bytes of all initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)


def inline(model: ir.Model) -> ir.Model:
    """Inline functions and make every constant an initializer and no input, so that a pass sees one form."""
    if model.functions:
        common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)  # PyTorch before 1.3 listed weights as inputs too, as
    model.ir_version = max(model.ir_version, 4)  # every file had to before this version
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _read_through_identity(model)
    return model


def _read_through_identity(model: ir.Model) -> None:
    """Let nodes read a constant and no Identity of it, through which inference sees no sizes (Paddle's)."""
    for node in model.graph.all_nodes():
        value = node.inputs[0] if node.op_type == "Identity" and not node.domain else None
        if value is not None and value.is_initializer() and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], value)


def tidy(model: ir.Model, *, from_file: bool = False) -> ir.Model:
    """Drop unused nodes and initializers, sort, name every node uniquely, and infer shapes, in place.

    `from_file`: the graph is a stranger's, and inference looks ahead at what it will cost.
    """
    training = [node for node in model.graph.all_nodes() if _TRAINING in node.attributes]
    modes = [node.attributes[_TRAINING] for node in training]
    common.RemoveUnusedNodesPass()(model)
    for node, mode in zip(training, modes, strict=True):  # onnx_ir drops it with outputs that nothing reads,
        node.attributes[_TRAINING] = mode  # and the node would then compute with other statistics
    common.TopologicalSortPass()(model)
    common.NameFixPass()(model)
    for node in model.graph.all_nodes():
        if not node.name:
            node.name = f"{node.op_type}:{node.outputs[0].name}"
    common.NameFixPass()(model)
    _name_in_bodies(model)
    shape_inference.infer(model, from_file=from_file)
    return model


def _name_in_bodies(model: ir.Model) -> None:
    """Give a node in a body a name that no other graph has: ONNX, and NameFixPass, look at each by itself."""
    taken = {str(node.name) for node in model.graph}
    for node in model.graph.all_nodes():
        if node.graph is not model.graph:
            node.name = fresh_name(str(node.name), taken)
            taken.add(node.name)


def check_structure(model: ir.Model, *, after: str) -> None:
    """Check what any graph must hold, without reading a weight: milliseconds for thousands of nodes.

    Every input is a graph input, an initializer or the output of a node before it; names are unique; the
    graph's outputs exist. Raises: ValueError naming `after`, the pass that left it otherwise.
    """
    _check_graph(model.graph, frozenset(), after)


def _check_graph(owner: ir.Graph, outer: frozenset[ir.Value], after: str) -> None:
    known = {*outer, *owner.inputs, *owner.initializers.values()}
    names: set[str] = {str(value.name) for value in known if value not in outer}
    nodes: set[str] = set()
    for node in owner:
        for value in node.inputs:
            if value is not None and value not in known:
                raise ValueError(
                    f"{after}: '{node.name}' reads '{value.name}', which nothing before it gives"
                )
        for body in (a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH):
            _check_graph(body, frozenset(known), after)
        for value in node.outputs:
            if value.name and value.name in names:
                raise ValueError(f"{after}: two tensors are called '{value.name}'")
            names.add(str(value.name))
            known.add(value)
        if not node.name or node.name in nodes:
            raise ValueError(f"{after}: two nodes are called '{node.name}', or one has no name")
        nodes.add(node.name)
    for value in owner.outputs:
        if value not in known:
            raise ValueError(f"{after}: nothing gives the output '{value.name}'")


def check(model: ir.Model) -> None:
    """Check `model` against the ONNX specification; a failure is a defect of the pass that wrote it."""
    onnx.checker.check_model(ir.to_proto(model))


def constant(value: ir.Value | None) -> Array | None:
    """The array of a constant (an initializer or a Constant node's output), else None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape of a value with None for each free dimension; None where the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def attribute(node: ir.Node, name: str, default: object = None) -> object:
    """An attribute's Python value, or `default` where the node does not have it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """An attribute that is a list of integers, or `default`."""
    return tuple(cast("Sequence[int]", attribute(node, name, default)))


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator's specification says is there."""
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.op_type} '{node.name}' lacks input {index}")
    return value


def values(model: ir.Model) -> dict[str, ir.Value]:
    """Every node's outputs and the graph's inputs, by name."""
    named = {str(value.name): value for value in model.graph.inputs}
    for node in model.graph:
        named.update({str(value.name): value for value in node.outputs})
    return named


def opset(model: ir.Model) -> int:
    """The version of the default operator set."""
    return model.graph.opset_imports.get("", model.opset_imports.get("", 1))


def value_names(model: ir.Model) -> set[str]:
    """Return the names of all tensors, those inside of subgraphs included."""
    names = {str(v.name) for v in model.graph.inputs} | set(model.graph.initializers)
    for node in model.graph.all_nodes():
        names.update(str(v.name) for v in node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                names.update({str(v.name) for v in body.inputs} | set(body.initializers))
    return names


def in_body(model: ir.Model, names: Collection[str]) -> str | None:
    """Return "it lies in a body of the If 'n'" of nodes with these names; None where none lies in one."""
    for node in model.graph:
        for body in (a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH):
            inside = {inner.name for inner in body.all_nodes()}.intersection(names)
            if inside:
                part = "it lies" if inside.issuperset(names) else "a part of it lies"
                return f"{part} in a body of the {node.op_type} '{node.name}'"
    return None


def fresh_name(name: str, taken: AbstractSet[str]) -> str:
    """Return `name`, with a number behind it where it is taken."""
    fresh, n = name, 0
    while fresh in taken:
        n += 1
        fresh = f"{name}_{n}"
    return fresh


def initializer(model: ir.Model, name: str, array: Array, taken: set[str] | None = None) -> ir.Value:
    """Return the value of a new constant, named `name` or, where that is taken, with a number behind it.

    `taken` are the names of all tensors, where the caller has them for many constants; the new one is added.
    """
    taken = value_names(model) if taken is None else taken
    fresh = fresh_name(name, taken)
    taken.add(fresh)
    # Not ir.tensor: it asks first what else an array may be, which takes longer than all the rest here.
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=fresh)  # it makes 0-d 1-d
    value = ir.Value(
        name=fresh, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, the graph's outputs included, read `new`, which takes its name."""
    name, graph_output = old.name, old.is_graph_output()
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = deepcopy(old.type)
    old.replace_all_uses_with(new, replace_graph_outputs=graph_output)
    # The names are exchanged: that of a node's output is unique in its graph, one made up might be taken.
    old.name = new.name or f"{name}_replaced"
    new.name = name


def macs(node: ir.Node) -> int:
    """Count the multiply-accumulates of a Conv, ConvTranspose, Gemm or MatMul per image; 0 for others.

    A free dimension counts as 1, and so does the batch.
    """
    if node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        return 0
    x, w, y = dims(node.inputs[0]), dims(node.inputs[1]), dims(node.outputs[0])
    if w is None or y is None or x is None:
        return 0
    if node.op_type == "Conv":
        return math.prod(d or 1 for d in y[1:]) * math.prod(d or 1 for d in w[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(d or 1 for d in x[1:]) * math.prod(d or 1 for d in w[1:])
    inner = w[1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else -2] if len(w) > 1 else w[0]
    return math.prod(d or 1 for d in (y[1:] if len(y) > 1 else y)) * (inner or 1)


def elements(node: ir.Node) -> int:
    """Count the elements that a node reads and writes; a free dimension counts as 1."""
    shapes = (dims(value) or () for value in (*node.inputs, *node.outputs) if value is not None)
    return sum(math.prod(d or 1 for d in shape) for shape in shapes)


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, once; None where there are several or it is an output."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def ops(model: ir.Model) -> list[str]:
    """List the operator types in order."""
    return [node.op_type for node in model.graph]


def insert_after(value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put `nodes` right behind the producer of `value`, or first where it is an input."""
    producer = value.producer()
    if producer is not None and producer.graph is not None:
        producer.graph.insert_after(producer, nodes)
        return
    graph = nodes[0].inputs[0].graph if nodes[0].inputs[0] is not None else None
    if graph is None:
        raise ValueError("the nodes read no value of a graph")
    graph.insert_before(graph[0], nodes)
