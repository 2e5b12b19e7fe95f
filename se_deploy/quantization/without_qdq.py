"""A Q/DQ graph without its quantizers: what INT8 is compared with where only that file is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from se_deploy import graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array


def without_qdq(model: ir.Model) -> ir.Model:
    """Return a copy of `model` that computes in float what was quantized.

    Before: DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(constant int8 weights)
    After:  x, the weights as float constants
    Quantizers in blocks (`block_size`), those of computed scales and those that write a graph output stay.
    """

    def remove_quantizers(copy: ir.Model) -> int:
        removed = 0
        for node in [node for node in copy.graph if node.op_type == "DequantizeLinear"]:
            value = node.inputs[0]
            if value is None or graph.attribute(node, "block_size", 0) or node.outputs[0].is_graph_output():
                continue
            source = value.producer()
            if source is not None and source.op_type == "QuantizeLinear" and source.inputs[0] is not None:
                node.outputs[0].replace_all_uses_with(source.inputs[0])
                removed += 1
            elif (weights := _dequantized(node)) is not None:
                float_weights = graph.initializer(copy, f"{value.name}/float", weights)
                node.outputs[0].replace_all_uses_with(float_weights)
                removed += 1
        return removed

    return graph.rewrite(model, remove_quantizers).model


def _dequantized(node: ir.Node) -> Array | None:
    """Return (q - zero point) * scale of a constant, in the scale's type; None where one is computed."""
    stored, scale = graph.constant(node.inputs[0]), graph.constant(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004 - the optional zero point
    zero = np.zeros((), np.int32) if given is None else graph.constant(given)
    if stored is None or scale is None or zero is None:
        return None
    wide, offset = stored.astype(np.int32), zero.astype(np.int32)
    along, shift = scale, offset
    if scale.ndim == 1 and scale.size > 1:
        shape = [1] * stored.ndim
        shape[cast("int", graph.attribute(node, "axis", 1))] = scale.size
        along, shift = scale.reshape(shape), offset.reshape(shape) if offset.ndim else offset
    return ((wide - shift).astype(scale.dtype) * along).astype(scale.dtype)
