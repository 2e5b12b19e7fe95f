"""ONNX files of strangers: what one says is held against what it holds, before anything is computed from it.

What the ONNX specification forbids is left to its own checker. Here stands what that lets pass and what a
later step would pay for: in memory, in time, or with a traceback.
"""

from __future__ import annotations

import functools
import math
import mmap
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from se_deploy import files, torch_files
from se_deploy.errors import BadModel, counted, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import onnx_ir as ir

MOST_NODES = 200_000
"""Nodes of a graph with its functions and bodies written out; networks have up to some 20,000."""

MOST_ELEMENTS = 2**40
"""Elements of one tensor, whatever a file says: more than any memory holds."""

MOST_ATTRIBUTE = 2**20
"""The largest kernel, stride, padding, group, axis or number of parts: more than any side of an image."""

MOST_DIMENSIONS = 1024
"""Sizes that an Expand may be given, many more than the 64 dimensions of NumPy."""

_SMALL_BYTES = 2**12  # of a weight that is cheap to copy
_HINT = "name an ONNX file; if this is one, it was damaged: export or copy it again"
_BOUNDED = (
    "kernel_shape", "strides", "dilations", "pads", "group", "output_padding", "output_shape",
    "num_outputs", "axis",  # onnx's inference counts up to them: 2^31 takes longer than 10 s
)  # fmt: skip
_TYPED: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT64: "int64_data",
    onnx.TensorProto.UINT64: "uint64_data",
    onnx.TensorProto.UINT32: "uint64_data",
    onnx.TensorProto.STRING: "string_data",
    onnx.TensorProto.COMPLEX64: "float_data",
    onnx.TensorProto.COMPLEX128: "double_data",
}
"""Where a tensor's numbers are if not in raw_data; all other types are in int32_data."""
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def read(path: Path) -> onnx.ModelProto:
    """Return the file's content, its external weights included, as far as it can be trusted to be used.

    Raises: BadModel, which names the file and the place in it.
    """
    files.check_regular(path, error=BadModel)
    if (other := torch_files.described(path)) is not None:
        raise BadModel(f"'{path}' is no ONNX file but {other.what}", hint=other.hint)
    with _parsing(path):
        proto = _load(path)
    if not proto.graph.node and not proto.graph.input:
        raise BadModel(f"'{path}' holds no ONNX graph", hint="export it again")
    for problem in _problems(proto, path):
        raise BadModel(f"'{path}' cannot be used: {printable(problem)}", hint=_HINT)
    outside = [found for found in _tensors(proto) if uses_external_data(found[0])]
    with _parsing(path):
        onnx.load_external_data_for_model(proto, str(path.parent))
    for tensor, where in outside:
        if wrong := _wrong_size(tensor):
            raise BadModel(f"'{path}' cannot be used: {printable(where)} {printable(wrong)}", hint=_HINT)
    with _parsing(path):
        onnx.checker.check_model(_without_weights(proto))
    return proto


def _load(path: Path) -> onnx.ModelProto:
    """Return what a file holds, parsed where the system has it: `onnx.load` copies all weights once more."""
    if path.suffix != ".onnx" or not path.stat().st_size:  # as text, by its ending; no map is of no bytes
        return onnx.load(path, load_external_data=False)
    proto = onnx.ModelProto()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        proto.ParseFromString(content)
    return proto


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large weights are inputs: the checker would serialize them to read them.

    What the checker says of a weight, that its numbers are as many as its shape has, is `_wrong_size`'s.
    """
    light = onnx.ModelProto(ir_version=proto.ir_version)
    for field in ("opset_import", "functions", "metadata_props"):
        getattr(light, field).extend(getattr(proto, field))
    light.graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(proto.graph, field))
    known = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) <= _SMALL_BYTES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in known:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def weight_files(path: Path) -> tuple[str, ...]:
    """Return the files that hold an ONNX file's weights, by their names from its folder; mostly none.

    Raises: BadModel where it cannot be read.
    """
    files.check_regular(path, error=BadModel)
    with _parsing(path):
        outside = [tensor for tensor, _ in _tensors(_load(path)) if uses_external_data(tensor)]
        return tuple(sorted({ExternalDataInfo(tensor).location for tensor in outside}))


def _parsing(path: Path) -> AbstractContextManager[None]:
    own = (DecodeError, onnx.checker.ValidationError)
    return files.parsing(path, "cannot be read as ONNX", error=BadModel, hint=_HINT, also=own)


def _problems(proto: onnx.ModelProto, path: Path) -> Iterator[str]:
    """Yield what is wrong with the graph, the first of which is told."""
    yield from _wrong_names(proto)
    yield from _too_many_nodes(proto)
    for body in _graphs(proto.graph):
        if body.sparse_initializer:
            yield f"initializer '{body.sparse_initializer[0].values.name}' is sparse, which is not supported"
        for value in (*body.input, *body.output, *body.value_info):
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
            if math.prod(max(1, d) for d in dims) > MOST_ELEMENTS:
                yield f"tensor '{value.name}' has the shape {dims}"
    for node in _nodes(proto):
        yield from _wrong_attributes(node)
    for tensor, where in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                yield from (*_no_text(entry.key), *_no_text(entry.value))
            location = next((e.value for e in tensor.external_data if e.key == "location"), "")
            files.check_regular(path.parent / location, error=BadModel, what=f"the weights of '{path}'")
        elif wrong := _wrong_size(tensor):
            yield f"{where} {wrong}"


def _wrong_names(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield what is no text: protobuf gives bytes for what is no UTF-8."""
    for text in (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string):
        yield from _no_text(text)
    for imported in (*proto.opset_import, *(one for f in proto.functions for one in f.opset_import)):
        yield from _no_text(imported.domain)
    for body in _graphs(proto.graph):
        for value in (*body.input, *body.output, *body.value_info):
            for size in value.type.tensor_type.shape.dim:
                yield from _no_text(size.dim_param)
        for named in (body, *body.input, *body.output, *body.value_info, *body.initializer):
            yield from (*_no_text(named.name), *_no_text(named.doc_string))
        for value in (*body.input, *body.output):
            if "\n" in value.name or "\r" in value.name:
                yield f"the name of '{value.name}' has a line break: logs and lists hold one name a line"
    for node in _nodes(proto):
        for text in (node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output):
            yield from _no_text(text)
        for attribute in node.attribute:
            for text in (attribute.name, attribute.ref_attr_name, attribute.doc_string):
                yield from _no_text(text)
    for function in proto.functions:
        own = (function.name, function.domain, function.doc_string)
        for text in (*own, *function.input, *function.output, *function.attribute):
            yield from _no_text(text)
    held = (proto, *_graphs(proto.graph), *_nodes(proto), *proto.functions)
    for entry in (entry for one in held for entry in one.metadata_props):
        yield from (*_no_text(entry.key), *_no_text(entry.value))


def _no_text(text: str | bytes) -> tuple[str, ...]:
    return () if isinstance(text, str) else (f"the name {text!r} is no UTF-8",)


def _too_many_nodes(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield where functions call each other in a circle, or are more nodes written out than any network."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_: set[tuple[str, str]] = set()

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(
            1
            + (called((node.domain, node.op_type)) if (node.domain, node.op_type) in functions else 0)
            + sum(size(body.node) for body in _bodies(node))
            for node in nodes
        )

    def called(key: tuple[str, str]) -> int:
        if key not in sizes:
            if key in open_ or len(open_) > len(functions):
                raise RecursionError
            open_.add(key)
            sizes[key] = size(functions[key].node)
            open_.remove(key)
        return sizes[key]

    try:
        total = size(proto.graph.node)
    except RecursionError:
        yield "its functions call each other in a circle, or too deeply"
        return
    if total > MOST_NODES:
        yield f"it has {total:,} nodes with its functions written out, at most {MOST_NODES:,} are read"


_BESIDE_OUTPUTS = {"If": 0, "Loop": 1, "Scan": 0}
"""How many outputs a body has beyond those of its node: a Loop's says whether it goes on."""


def _wrong_attributes(node: onnx.NodeProto) -> Iterator[str]:
    """Yield what a node cannot have: a Constant of no or two values, a body of other outputs than its own."""
    named = f"{node.op_type} '{node.name or (node.output[0] if node.output else '')}'"
    if node.op_type == "Constant" and node.domain in _OWN_DOMAINS and len(node.attribute) != 1:
        yield f"{named} has {len(node.attribute)} values, not one"
    if node.op_type in _BESIDE_OUTPUTS and node.domain in _OWN_DOMAINS:
        wanted = len(node.output) + _BESIDE_OUTPUTS[node.op_type]
        for body in _bodies(node):
            if len(body.output) != wanted:
                yield f"{named}: a body of it gives {counted(len(body.output), 'value')}, not {wanted}"


def _wrong_size(tensor: onnx.TensorProto) -> str | None:
    """Return what is wrong with the size of a tensor; None where its content is as its dims say."""
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > MOST_ELEMENTS:
        return f"has the shape {list(tensor.dims)}"
    if tensor.data_type not in _known_types():
        return f"has an element type {tensor.data_type} that ONNX does not know"
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        held, wanted, unit = len(tensor.raw_data), _bytes(tensor.data_type, elements), "bytes"
    else:
        held = len(getattr(tensor, _TYPED.get(tensor.data_type, "int32_data")))
        wanted, unit = _entries(tensor.data_type, elements), "numbers"
    return (
        None if held == wanted else f"has the shape {list(tensor.dims)} and {held:,} {unit}, not {wanted:,}"
    )


def _known_types() -> frozenset[int]:
    return frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def _bits(kind: int) -> int:
    """Return the bits of one element: some types share a byte."""
    name = onnx.TensorProto.DataType.Name(kind)
    if name in _PACKED:
        return _PACKED[name]
    return int(8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _bytes(kind: int, elements: int) -> int:
    return -(-elements * _bits(kind) // 8)


def _entries(kind: int, elements: int) -> int:
    """Return how many entries the typed field has: packed types share one, complex ones take two."""
    if kind in {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}:
        return 2 * elements
    return -(-elements * _bits(kind) // 8) if _bits(kind) < 8 else elements  # noqa: PLR2004 - a byte


def _tensors(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, str]]:
    """Yield every tensor and what it is called in a message."""
    for body in _graphs(proto.graph):
        for tensor in body.initializer:
            yield tensor, f"initializer '{tensor.name}'"
    for node in _nodes(proto):
        for attribute in node.attribute:
            for tensor in (*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors):
                yield tensor, f"attribute '{attribute.name}' of {node.op_type} '{node.name}'"


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all in it."""
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node: of the graph, of bodies in it, of functions and of bodies in those."""
    left = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while left:
        node = left.pop()
        yield node
        for body in _bodies(node):
            left.extend(body.node)


_SAME_RANK = frozenset({
    "Conv", "ConvTranspose", "BatchNormalization", "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool",
    "GlobalMaxPool", "GlobalLpPool", "Transpose", "Relu", "Sigmoid", "Clip", "HardSigmoid", "HardSwish",
})  # fmt: skip
"""Operators whose output has the rank of their input."""
_WEIGHT_RANKS = {"Conv": None, "ConvTranspose": None, "Gemm": 2, "BatchNormalization": 1}
"""The rank of their second input; None: that of the first."""
_MAPS = frozenset({
    "Conv", "ConvTranspose", "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool",
})  # fmt: skip
_PER_SIDE = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 1, "pads": 2}
"""How many numbers of a map's window there are for each of its sides."""
_AXES_SECOND = {"Squeeze": (0, 1), "Unsqueeze": (0, 1)}
"""The ranks of their axes, which are the second input; those of all that begin with Reduce have 1."""
_OWN_DOMAINS = frozenset({"", "ai.onnx"})
_MAP_RANK = 3  # of a map, at least: (N, C, L)
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft"})
"""Those whose operators mean what ONNX's of the same name do: the last is ONNX Runtime's."""


def check_attributes(model: ir.Model, path: Path) -> None:
    """Raise BadModel where an attribute has a value that no operator can have.

    For a graph without functions, whose calls give attributes their values, and before shapes are inferred:
    there onnx's inference, which is C++, takes some of them for granted and ends this process.
    """
    for node in model.graph.all_nodes():
        if wrong := _wrong_values(node):
            raise BadModel(
                f"'{path}' cannot be used: {node.op_type} '{node.name or _given(node)}': {printable(wrong)}",
                hint=_HINT,
            )


def _given(node: ir.Node) -> str:
    return str(node.outputs[0].name) if node.outputs else ""


def _wrong_values(node: ir.Node) -> str | None:
    for one in node.attributes.values():
        if one.type.name not in {"INT", "INTS"} or one.is_ref():
            continue
        values = [int(one.value)] if one.type.name == "INT" else [int(value) for value in one.value]
        if one.name == "perm" and sorted(values) != list(range(len(values))):
            return f"its perm {values} is no permutation"
        if one.name in _BOUNDED and any(abs(value) > MOST_ATTRIBUTE for value in values):
            return f"its {one.name} is {values}"
        if one.name == "batch_dims" and min(values, default=0) < 0:
            return f"its batch_dims is {values}"
        parts = min(values, default=0) if node.op_type == "Split" and one.name == "num_outputs" else None
        if parts is not None and parts < len(node.outputs):
            return f"its num_outputs is {values}, and it has {counted(len(node.outputs), 'output')}"
    return None


def check_ranks(model: ir.Model, path: Path) -> None:
    """Raise BadModel where a node contradicts what its operator is: neither checker nor inference insists."""
    version = model.graph.opset_imports.get("", model.opset_imports.get("", 1))
    for node in model.graph.all_nodes():
        if wrong := _wrong_node(node, version):
            raise BadModel(
                f"'{path}' cannot be used: {node.op_type} '{node.name}': {wrong}", hint="export it again"
            )


@functools.cache
def _least_inputs(operator: str, version: int) -> int:
    """Return how many inputs an operator of ONNX has at least; 0 where this version knows none."""
    try:
        return int(onnx.defs.get_schema(operator, version).min_input)
    except onnx.defs.SchemaError:
        return 0


def _wrong_node(node: ir.Node, version: int) -> str | None:
    if node.domain not in _DOMAINS and onnx.defs.has(node.op_type):
        return f"it is of '{node.domain}', and would be taken for ONNX's operator of that name"
    least = _least_inputs(node.op_type, version) if node.domain in _OWN_DOMAINS else 0
    if len(node.inputs) < least or (least and node.inputs[0] is None):  # a function may be called with fewer
        return f"it has {counted(len(node.inputs), 'input')}, at least {least} are needed"
    if refers := next((a for a in node.attributes.values() if a.is_ref()), None):
        return f"its '{refers.name}' is an attribute of a function, and it stands in none"
    ranks = [None if value is None or value.shape is None else len(value.shape) for value in node.inputs]
    given = ranks[0] if ranks else None
    made = node.outputs[0].shape if node.outputs else None
    if node.op_type in _SAME_RANK and made is not None and given not in (None, len(made)):
        return f"its input has {given} dimensions, its output {len(made)}"
    if node.op_type in _MAPS and given is not None and given < _MAP_RANK:
        return f"its input has {given} dimensions"
    if node.op_type in _WEIGHT_RANKS and len(ranks) > 1 and ranks[1] is not None:
        wanted = _WEIGHT_RANKS[node.op_type] or given
        if wanted not in (None, ranks[1]) or (node.op_type in _MAPS and ranks[1] < _MAP_RANK):
            return f"its weights have {ranks[1]} dimensions"
    if wrong := _wrong_lengths(node, ranks):
        return wrong
    perm = node.attributes.get("perm") if node.op_type == "Transpose" else None
    if perm is not None and given not in (None, len(perm.value)):
        return f"its perm is {list(perm.value)}, its input has {given} dimensions"
    return None


def _wrong_lengths(node: ir.Node, ranks: Sequence[int | None]) -> str | None:
    """Return which numbers of a window are not one for each side of the map, which axes or sizes no list."""
    given = ranks[0] if ranks else None
    if node.op_type in _MAPS and given is not None:
        for name, each in _PER_SIDE.items():
            one = node.attributes.get(name)
            if one is not None and one.type.name == "INTS" and len(one.value) != each * (given - 2):
                return f"its {name} is {list(one.value)}, its input has {given} dimensions"
    sizes = node.inputs[1] if node.op_type == "Expand" and len(node.inputs) > 1 else None
    if sizes is not None and sizes.shape is not None:
        number = [size for size in sizes.shape if isinstance(size, int)]
        if math.prod(number) > MOST_DIMENSIONS:
            return f"its sizes have the shape {number}"
    reduces = node.op_type.startswith("Reduce")
    if (reduces or node.op_type in _AXES_SECOND) and len(ranks) > 1 and ranks[1] is not None:
        allowed = (1,) if reduces else _AXES_SECOND[node.op_type]
        if ranks[1] not in allowed:
            return f"its axes have {ranks[1]} dimensions"
    return None
