"""Whether weights are 2:4 sparse: of each four neighbours along the input channels two at least are 0.

NVIDIA's sparse matrix units take such weights alone ("Structured Sparsity" in TensorRT's documentation), so a
build with --sparsity of a network without them is a build without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array

_GROUP, _ZEROS = 4, 2
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})


def sparse_layers(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the layers whose weights are 2:4 sparse."""
    return tuple(
        str(node.name)
        for node in model.graph
        if node.op_type in _LAYERS
        and (weights := graph.constant(node.inputs[1])) is not None
        and _is_sparse(_by_output(node, weights))
    )


def _by_output(node: ir.Node, weights: Array) -> Array:
    """Return weights as (outputs, inputs, ...)."""
    columns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not graph.attribute(node, "transB", 0))
    return np.moveaxis(weights, -1, 0) if columns else weights


def _is_sparse(weights: Array) -> bool:
    channels = weights.shape[1] if weights.ndim > 1 else 0
    if channels < _GROUP or channels % _GROUP:
        return False
    along = np.moveaxis(weights, 1, -1).reshape(-1, channels // _GROUP, _GROUP)
    return bool(((along == 0).sum(axis=-1) >= _ZEROS).all())
