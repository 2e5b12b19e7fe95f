"""The config.pbtxt of Triton Inference Server, from a graph's inputs and outputs.

Its rules: the batch stands in no `dims` where `max_batch_size` is above 0, which needs every input and output
to have a free first dimension, the same for all; else `max_batch_size: 0` and all dims are there. A server
that batches puts inputs of several requests together along that dimension, and cuts the outputs apart again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
from msgspec.structs import replace

from se_deploy import graph, shape_inference
from se_deploy.backends.engine import MAX_BATCH
from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.schema import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from se_deploy.backends.backend import Triton
    from se_deploy.schema.files import Manifest
    from se_deploy.schema.input_spec import InputSpec

LABELS = "labels.txt"
PARAMETER = "se_deploy.input"
"""The key under which clients find how an image becomes the input, as JSON."""

_BATCH = "N"  # what this tool calls the batch
_SEVEN = 7  # samples, which no free dimension has by chance

_TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32", ir.DataType.FLOAT16: "TYPE_FP16", ir.DataType.DOUBLE: "TYPE_FP64",
    ir.DataType.BFLOAT16: "TYPE_BF16", ir.DataType.INT64: "TYPE_INT64", ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.INT16: "TYPE_INT16", ir.DataType.INT8: "TYPE_INT8", ir.DataType.UINT8: "TYPE_UINT8",
    ir.DataType.UINT16: "TYPE_UINT16", ir.DataType.UINT32: "TYPE_UINT32", ir.DataType.UINT64: "TYPE_UINT64",
    ir.DataType.BOOL: "TYPE_BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One input or output; None in `dims` where a dimension is free."""

    name: str
    data_type: str
    dims: tuple[int | None, ...]


def model_name(stem: str, wanted: str | None) -> str:
    """Return the model's name: `wanted`, else the file's with what is no letter or digit made `_`.

    Raises: BadInput for a name that is no plain folder name.
    """
    if wanted is None:
        return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_") or "model"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", wanted):
        raise BadInput(f"'{wanted}' is no name for a model", hint="use letters, digits, '_', '-' and '.'")
    return wanted


def config(
    name: str,
    model: ir.Model,
    *,
    platform: Triton,
    spec: InputSpec | None,
    manifest: Manifest | None,
    apart: bool,
    comments: Sequence[str] = (),
) -> str:
    """Write the config.pbtxt; `manifest` says what batches an engine takes.

    `apart`: whether each row along the first dimensions is answered by itself, as `batches` cannot know.
    Raises: UnsupportedGraph where an input or output has no type or shape that Triton knows.
    """
    taken, given = _tensors(model.graph.inputs), _tensors(model.graph.outputs)
    batch = _max_batch(manifest) if apart and batches(model) else 0
    for tensor in (*taken, *given):
        if 0 in tensor.dims or not tensor.dims:
            dims = "x".join("?" if d is None else str(d) for d in tensor.dims) or "a scalar"
            raise UnsupportedGraph(
                f"'{tensor.name}' is {dims}: Triton serves no tensor without dimensions, and none of size 0",
                hint="give it one dimension of size 1 in the network, or make it a constant of the graph",
            )
    lines = [f"# {comment}" for comment in comments]
    lines += [
        f"name: {_quoted(name)}",
        f'platform: "{platform.platform}"',
        f'backend: "{platform.backend}"',
        f"max_batch_size: {batch}",
    ]
    lines += [_entry("input", tensor, batch) for tensor in taken]
    for position, tensor in enumerate(given):
        labels = LABELS if position == labelled(model, spec) else None
        lines.append(_entry("output", tensor, batch, labels))
    if batch > 1:
        lines.append("dynamic_batching { }")
    if spec is not None:
        value = _quoted(encode(replace(spec, labels=()), indent=None))
        lines.append(f'parameters {{\n  key: "{PARAMETER}"\n  value {{\n    string_value: {value}\n  }}\n}}')
    return "\n".join(lines) + "\n"


def labelled(model: ir.Model, spec: InputSpec | None) -> int | None:
    """Return the position of the first output that is (N, classes) with a label for each class, or None."""
    if spec is None or not spec.labels:
        return None
    shapes = [graph.dims(value) or () for value in model.graph.outputs]
    return next((i for i, dims in enumerate(shapes) if dims[1:] == (len(spec.labels),)), None)


def _tensors(values: Iterable[ir.Value]) -> tuple[_Tensor, ...]:
    found = []
    for value in values:
        dims, data_type = graph.dims(value), _TYPES.get(value.dtype) if value.dtype else None
        if dims is None or data_type is None or value.name is None:
            raise UnsupportedGraph(
                f"'{value.name}' has no type and rank that Triton knows ({value.dtype}, {value.shape})",
                hint="export the network again with `se-deploy export`",
            )
        found.append(_Tensor(value.name, data_type, dims))
    return tuple(found)


def batches(model: ir.Model) -> bool:
    """Whether the first dimension of every input and output is free and may count samples, by the shapes.

    It is none where inputs name it differently, where a name of it, or the batch's, stands in another place
    too, and where an output has another number of rows than there are samples.
    """
    tensors = (*model.graph.inputs, *model.graph.outputs)
    if not all(dims and dims[0] is None for dims in map(graph.dims, tensors)):
        return False
    inputs = {name for value in model.graph.inputs if (name := _dimension(value, 0))}
    later = {_dimension(value, i) for value in tensors for i in range(1, len(graph.dims(value) or ()))}
    if len(inputs) > 1 or later & {*inputs, _BATCH}:
        return False
    copy = model.clone()
    for value in graph.values(copy).values():
        if value.producer() is not None and value.shape is not None:
            value.shape = ir.Shape([None] * len(value.shape)) if value.is_graph_output() else None
    for value in copy.graph.inputs:
        value.shape = ir.Shape([_SEVEN, *(value.shape or ())[1:]])
    shape_inference.infer(copy)
    made = [(graph.dims(value) or (None,))[0] for value in copy.graph.outputs]
    names = [_dimension(value, 0) for value in model.graph.outputs]
    # What cannot be inferred is what the names say: a free size of its own, as of boxes found, has its own.
    return all(
        rows == _SEVEN if rows is not None else not (inputs and name) or name in inputs
        for rows, name in zip(made, names, strict=True)
    )


def _dimension(value: ir.Value, axis: int) -> str | None:
    """Return the name of a free dimension; None for a fixed or unnamed one."""
    size = None if value.shape is None else value.shape[axis]
    return size.value if isinstance(size, ir.SymbolicDim) else None


def _max_batch(manifest: Manifest | None) -> int:
    """Return the largest batch of a network that has one; 0 where Triton may not batch."""
    if manifest is None:
        return MAX_BATCH
    if any(profile.min[0] != 1 for profile in manifest.shapes.values()):
        return 0  # Triton also sends single requests, which this engine does not take
    return min(profile.max[0] for profile in manifest.shapes.values())


def _entry(kind: str, tensor: _Tensor, batch: int, labels: str | None = None) -> str:
    dims = tensor.dims[1:] if batch else tensor.dims
    lines = [
        f"  name: {_quoted(tensor.name)}",
        f"  data_type: {tensor.data_type}",
        f"  dims: [ {', '.join(str(-1 if d is None else d) for d in dims) or 1} ]",
    ]
    if not dims:  # one number for each sample: Triton knows no empty shape
        lines.append("  reshape { shape: [ ] }")
    if labels:
        lines.append(f'  label_filename: "{labels}"')
    return "\n".join([f"{kind} {{", *lines, "}"])


def _quoted(text: str) -> str:
    """Write a string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
