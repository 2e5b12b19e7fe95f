"""Preprocessing goes into the graph, so that a camera's or a decoder's frames are fed as they come.

A frame of bytes is also a quarter of what its floats are: that much less is copied to the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.errors import BadInput
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from se_deploy.protocols import Array
    from se_deploy.schema.input_spec import InputSpec

_WHITE = 255
_TO_CHANNELS_FIRST = (0, 3, 1, 2)


def bake_preprocessing(model: ir.Model) -> ir.Model:
    """Return a copy that takes uint8 frames (N, H, W, C) and prepares them as its input spec says, in FP32.

    Before: x: float (N, C, H, W).  After: x: uint8 (N, H, W, C), x' = (x / 255 - mean) / std, the steps of
    `data.preprocessing` in their order, so that results are the same to the last bit.
    Raises: BadInput where the graph does not take one float image, or nothing says how it is prepared.
    """
    spec = input_spec.read(model.metadata_props)
    if len(model.graph.inputs) != 1:
        raise BadInput(
            f"preprocessing cannot be put into a graph of {len(model.graph.inputs)} inputs",
            hint="leave --bake-preprocessing out",
        )
    name = model.graph.inputs[0].name
    if spec is None:
        raise BadInput(
            f"nothing says how an image becomes the input '{name}', so it cannot be put into the graph",
            hint="pass --input-size, --mean and --std",
        )
    if model.graph.inputs[0].dtype != ir.DataType.FLOAT or len(graph.dims(model.graph.inputs[0]) or ()) != 4:  # noqa: PLR2004 - an image
        raise BadInput(
            f"the input '{name}' is no float image: its preprocessing cannot be put into the graph",
            hint="leave --bake-preprocessing out; files that take frames take them already",
        )

    def bake(copy: ir.Model) -> int:
        return _bake(copy, spec)

    made = graph.rewrite(model, bake).model
    input_spec.write(made.metadata_props, input_spec.frames(spec, "NHWC"))
    return made


def _bake(model: ir.Model, spec: InputSpec) -> int:
    old = model.graph.inputs[0]
    assert old.shape is not None  # noqa: S101 - its rank was looked at
    dims = list(old.shape)
    shape = [dims[0], *dims[2:], dims[1]] if spec.layout == "NCHW" else dims
    frames = ir.Value(name=old.name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.UINT8))
    taken = graph.value_names(model)
    last, nodes = frames, []

    def then(op: str, *operands: ir.Value, **attributes: int | tuple[int, ...]) -> None:
        nonlocal last
        node = ir.node(op, [last, *operands], attributes)
        last = node.outputs[0]
        last.name = graph.fresh_name(f"{frames.name}_{op.lower()}", taken)
        last.type, last.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        taken.add(last.name)
        nodes.append(node)

    def constant(what: str, array: Array) -> ir.Value:
        return graph.initializer(model, f"{frames.name}_{what}", np.asarray(array, np.float32), taken)

    then("Cast", to=ir.DataType.FLOAT)
    then("Div", constant("white", np.float32(_WHITE)))
    if any(spec.mean):
        then("Sub", constant("mean", np.array(spec.mean)))
    if set(spec.std) != {1.0}:
        then("Div", constant("std", np.array(spec.std)))
    if spec.layout == "NCHW":
        then("Transpose", perm=_TO_CHANNELS_FIRST)
        last.shape = old.shape
    old.replace_all_uses_with(last, replace_graph_outputs=True)
    model.graph.inputs[0] = frames
    first = next(iter(model.graph), None)
    if first is None:
        model.graph.extend(nodes)
    else:
        model.graph.insert_before(first, nodes)
    return 1
