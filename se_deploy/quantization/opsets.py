"""Lift a graph to the operator set that its precision needs."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from se_deploy import graph
from se_deploy.errors import UnsupportedGraph

PER_CHANNEL = 13
"""From here DequantizeLinear has an axis."""

FP16_SCALES = 19
"""From here QuantizeLinear takes FP16 tensors and FP16 scales."""


def at_least(model: ir.Model, version: int) -> ir.Model:
    """Convert to operator set `version` where the graph has an older one; the model itself otherwise.

    Raises: UnsupportedGraph with onnx's reason where an operator cannot be converted.
    """
    if graph.opset(model) >= version:
        return model
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), version)
    except (RuntimeError, onnx.onnx_cpp2py_export.version_converter.ConvertError) as e:
        raise UnsupportedGraph(
            f"the graph has operator set {graph.opset(model)} and cannot be lifted to {version}: {e}",
            hint=f"export the network with --opset {version} or newer",
        ) from e
    lifted = graph.tidy(graph.inline(ir.from_proto(proto)))
    lifted.metadata_props.update(model.metadata_props)
    return lifted
