"""The shapes of a graph's values: onnx's inference, and what it does not follow in older operator sets."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError
from onnx_ir.passes import common

from se_deploy.onnx_files import MOST_DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLLOWED = 14
"""From this operator set on onnx infers what a Reshape or an Expand makes of sizes that are computed."""

_NO_RANK_BY_NUMBER = 13
"""From this operator set on onnx makes no dimensions of an Expand's sizes by nothing but their number."""

_SLICE_INPUTS = 10
"""From this operator set on a Slice's bounds are inputs."""

_LARGEST_SHAPE = 64
"""Elements of a constant that may be a shape, axes or bounds; larger ones are weights."""

_LARGEST_KNOWN = 1000
"""Bytes of a constant whose numbers inference is given: 125 sizes or axes; larger ones are weights."""

_FAILURES: tuple[type[Exception], ...] = (
    onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, IndexError,
    OverflowError, MemoryError, EncodeError, onnx.onnx_cpp2py_export.version_converter.ConvertError,
)  # fmt: skip
"""What onnx's inference and conversion end with where a node asks for what they do not foresee.

The standard ones are those of C++: a Split into 2^31 parts has no memory, an STFT of no step no element.
EncodeError is what protobuf raises beyond 2 GB.
"""


def infer(model: ir.Model, *, from_file: bool = False) -> None:
    """Set the type and shape of every value that can be inferred, in place.

    `from_file`: the graph is a stranger's, whose lists may be longer than memory allows to follow.
    Before operator set 14 a Reshape to computed sizes, which is TorchScript's `x.view(x.size(0), -1)`, has no
    rank by onnx, an Expand no sizes, nor has what follows: there they are those of the graph in that version.
    """
    with _few_dimensions(model):
        _type_sequences(model)
        follow = _has_few_numbers(model, look_ahead=from_file)
        if model.functions or any(_bodies(node) for node in model.graph):
            common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=follow)(model)
        else:
            _infer_flat(model, follow=follow)
        if model.graph.opset_imports.get("", _FOLLOWED) < _FOLLOWED and any(_lost(model)):
            _take_from_newer(model, follow=follow and _has_few_numbers(model, look_ahead=False))


_FOLLOWS_NUMBERS = frozenset({
    "Add", "Cast", "Concat", "Gather", "Mul", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze",
})  # fmt: skip
"""Operators whose lists inference takes for sizes, of any type: it makes a dimension of each number read."""

_MOST_NUMBERS = 2**22
"""Numbers in all of them: 600 MB of dimensions and a second. A large transformer's biases are a million."""


def _has_few_numbers(model: ir.Model, *, look_ahead: bool) -> bool:
    """Whether inference may follow numbers from list to list; `look_ahead`: infer lengths that are not known.

    A Cast of a list of 10,000,000 numbers, which is a file of 100 bytes, takes 1.4 GB else. Where there are
    too many, what is made to sizes that the graph computes has none that are known.
    """
    count, is_whole = _numbers(model)
    if look_ahead and not is_whole and count <= _MOST_NUMBERS:
        try:
            with _weights_as_inputs(model):
                given = ir.to_proto(model)
            count, _ = _numbers(ir.from_proto(onnx.shape_inference.infer_shapes(given, strict_mode=False)))
        except _FAILURES:
            return False
    return count <= _MOST_NUMBERS


def _numbers(model: ir.Model) -> tuple[int, bool]:
    """Count the numbers in the lists that are followed; False where one of them may be longer."""
    count, is_whole = 0, True
    for node in model.graph.all_nodes():
        for value in node.inputs if node.op_type in _FOLLOWS_NUMBERS else ():
            array = None if value is None else value.const_value
            shape = None if value is None else value.shape if array is None else array.shape
            if shape is not None and len(shape) == 1 and isinstance(shape[0], int):
                count += shape[0]
            elif value is not None and (shape is None or len(shape) == 1):
                is_whole = False
    return count, is_whole


@contextlib.contextmanager
def _few_dimensions(model: ir.Model) -> Iterator[None]:
    """Let no Expand read more than the first MOST_DIMENSIONS of its sizes, however many are computed.

    Before operator set 13 inference makes a dimension of each: of two millions in 4 s. How many there are is
    known of the sizes themselves afterwards, and more are refused then (`onnx_files.check_ranks`).
    """
    version = model.graph.opset_imports.get("", _NO_RANK_BY_NUMBER)
    expands = [n for n in model.graph.all_nodes() if version < _NO_RANK_BY_NUMBER and _may_ask_for_many(n)]
    used = (v for n in (model.graph.all_nodes() if expands else ()) for v in (*n.inputs, *n.outputs))
    taken = {value.name for value in used if value is not None}
    names = (name for i in itertools.count() if (name := f"first-sizes:{i}") not in taken)
    with contextlib.ExitStack() as until:
        for node in expands:
            until.enter_context(_reads_first_sizes(node, version, names))
        yield


def _may_ask_for_many(node: ir.Node) -> bool:
    """Whether a node is an Expand to sizes that are no short constant, whose numbers inference reads."""
    sizes = node.inputs[1] if node.op_type == "Expand" and len(node.inputs) > 1 else None
    array = None if sizes is None else sizes.const_value
    return sizes is not None and (array is None or array.size > MOST_DIMENSIONS)


@contextlib.contextmanager
def _reads_first_sizes(node: ir.Node, version: int, names: Iterator[str]) -> Iterator[None]:
    """Let an Expand read a Slice of its sizes."""
    owner, sizes = node.graph, node.inputs[1]
    if owner is None:
        raise ValueError(f"'{node.name}' stands in no graph")
    ends = {"starts": [0], "ends": [MOST_DIMENSIONS]}
    if version < _SLICE_INPUTS:
        added = [ir.node("Slice", [sizes], ends)]
    else:
        bounds = [ir.node("Constant", [], {"value": ir.tensor(numbers)}) for numbers in ends.values()]
        added = [*bounds, ir.node("Slice", [sizes, *(bound.outputs[0] for bound in bounds)])]
    for one in added:
        one.outputs[0].name = next(names)
        owner.insert_before(node, one)
    node.replace_input_with(1, added[-1].outputs[0])
    try:
        yield
    finally:
        node.replace_input_with(1, sizes)
        owner.remove(added, safe=True)


_SEQUENCES = frozenset({
    "SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SplitToSequence",
    "SequenceMap", "Optional",
})  # fmt: skip


def _type_sequences(model: ir.Model) -> None:
    """Give sequences and optional values the type that they have.

    onnx_ir's pass that infers shapes sets element types only, which makes a tensor of what has no type yet.
    """
    makes = any(node.op_type in _SEQUENCES for node in model.graph.all_nodes())
    if not makes and all(v.type is None or isinstance(v.type, ir.TensorType) for v in model.graph.inputs):
        return
    try:
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(_light(model))))
    except _FAILURES:
        return  # what is unknown stays unknown
    for own, other in zip(model.graphs(), inferred.graphs(), strict=True):
        known = ir.convenience.create_value_mapping(other)
        for name, value in ir.convenience.create_value_mapping(own).items():
            found = known[name].type if name in known else None
            if value.type is None and found is not None and not isinstance(found, ir.TensorType):
                value.type = found


def _bodies(node: ir.Node) -> bool:
    return any(a.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for a in node.attributes.values())


def _infer_flat(model: ir.Model, *, follow: bool) -> None:
    """Infer a graph without bodies: only what inference changed is read back, where onnx_ir reads it all.

    A search for rewrites infers a hundred times, and mostly a few values are new.
    """
    try:
        with _weights_as_inputs(model):
            given = ir.to_proto(model)
        inferred = onnx.shape_inference.infer_shapes(given, strict_mode=False, data_prop=follow)
    except _FAILURES:
        return  # what is unknown stays unknown, as where a single node cannot be inferred
    told = {info.name: info.type.SerializeToString() for info in _infos(given)}
    values = ir.convenience.create_value_mapping(model.graph)
    for info in _infos(inferred):
        value = values.get(info.name)
        if value is None or told.get(info.name) == info.type.SerializeToString():
            continue
        shape = ir.serde.deserialize_type_proto_for_shape(info.type)
        kind = ir.serde.deserialize_type_proto_for_type(info.type)
        if shape is not None and value.shape != shape:
            value.shape = shape
        if kind is not None and value.dtype != kind.dtype:
            value.dtype = kind.dtype


def _infos(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    for infos in (proto.graph.input, proto.graph.output, proto.graph.value_info):
        yield from infos


@contextlib.contextmanager
def _weights_as_inputs(model: ir.Model) -> Iterator[None]:
    """Let every constant be an input, and the large ones nothing else, so that no weight is copied."""
    owner = model.graph
    constants, inputs = list(owner.initializers.values()), list(owner.inputs)
    tensors = [value.const_value for value in constants]
    for value, tensor in zip(constants, tensors, strict=True):
        if tensor is not None and value.shape is None:
            value.shape = ir.Shape([d if isinstance(d, int) else None for d in tensor.shape])
        if tensor is not None and value.dtype is None:
            value.dtype = tensor.dtype
        if value not in inputs:
            owner.inputs.append(value)
        if tensor is None or tensor.nbytes > _LARGEST_KNOWN:
            value.const_value = None
            del owner.initializers[str(value.name)]
    try:
        yield
    finally:
        for value, tensor in zip(constants, tensors, strict=True):
            value.const_value = tensor
            owner.initializers.add(value)
        owner.inputs[:] = inputs


def _lost(model: ir.Model) -> Iterator[ir.Value]:
    """Yield what a Reshape or an Expand writes that has no rank, or sizes that nobody named."""
    for node in model.graph.all_nodes():
        if node.op_type not in {"Reshape", "Expand"} or node.domain:
            continue
        shape = node.outputs[0].shape
        if shape is None or any(not isinstance(d, int) and _is_unnamed(d) for d in shape):
            yield node.outputs[0]


def _is_unnamed(size: ir.SymbolicDim) -> bool:
    """Whether a free size has no name, or one that inference made up."""
    return size.value is None or str(size.value).startswith("unk__")


def _take_from_newer(model: ir.Model, *, follow: bool) -> None:
    try:
        newer = onnx.version_converter.convert_version(ir.to_proto(_light(model)), _FOLLOWED)
        inferred = ir.from_proto(onnx.shape_inference.infer_shapes(newer, data_prop=follow))
    except _FAILURES:
        return  # an operator without an adapter: the shapes stay as unknown as they are
    for own, other in zip(model.graphs(), inferred.graphs(), strict=False):
        known = ir.convenience.create_value_mapping(other)
        for name, value in ir.convenience.create_value_mapping(own).items():
            found = known[name].shape if name in known else None
            if found is not None and _sizes(found) > _sizes(value.shape):
                value.shape = found.copy()


def _light(model: ir.Model) -> ir.Model:
    """Copy a graph with its weights as inputs: a conversion reads every byte; no shape depends on them."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > _LARGEST_SHAPE:
            del copy.graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                copy.graph.inputs.append(value)
    return copy


def _sizes(shape: ir.Shape | None) -> int:
    """Count what is known of a shape: nothing, its rank, and each size."""
    return 0 if shape is None else 1 + sum(isinstance(size, int) for size in shape)
