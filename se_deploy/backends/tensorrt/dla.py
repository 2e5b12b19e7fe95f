"""What of a network the deep learning accelerators (DLA) of a Jetson Orin take, by SE block.

From NVIDIA's "Supported ONNX Operators on Orin DLA" (github.com/NVIDIA/Deep-Learning-Accelerator-SW,
operators/README.md), the column of what TensorRT passes on. Each operator has limits of its own besides
("DLA Supported Layers and Restrictions" in TensorRT's documentation): the engine's plan has the last word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.errors import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

NATIVE = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "Conv", "ConvTranspose",
    "Cos", "Equal", "Gemm", "LRN", "LeakyRelu", "MatMul", "Max", "MaxPool", "Mul", "PRelu", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Softmax", "Sub", "Sum", "Tanh", "Transpose", "Upsample",
})  # fmt: skip
"""Operators that TensorRT gives to the DLA as they are."""

_FREE = frozenset({"Cast", "Constant", "ConstantOfShape", "Identity", "Shape"})
"""Operators that are gone once shapes and types are settled."""

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators whose second input has to be a constant there."""


def on_gpu(model: ir.Model, block: SEBlock) -> tuple[str, ...]:
    """Return the operators of a block that the DLA does not take, in the block's order."""
    nodes = {node.name: node for node in model.graph}
    inside = [nodes[name] for name in block.nodes if name in nodes]
    return tuple(dict.fromkeys(_refused(node) for node in inside if _refused(node)))


def notes(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[str, ...]:
    """Return what to tell of a network that is built for the DLA: which parts of its blocks leave it."""
    left: dict[tuple[str, ...], list[str]] = {}
    for block in blocks:
        left.setdefault(on_gpu(model, block), []).append(block.output)
    said = [
        f"DLA: {counted(len(outputs), 'SE block', ('goes', 'go'))} to the GPU and back, '{outputs[0]}' first"
        f": it does not take {', '.join(ops)}"
        for ops, outputs in left.items()
        if ops
    ]
    if any(graph.dims(value) is None or None in (graph.dims(value) or ()) for value in model.graph.inputs):
        said.append("DLA: the network has free sizes, which it does not take: use --batch 1 and fixed shapes")
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        said.append("DLA: INT8 by Q/DQ nodes may stay on the GPU; look at the plan")
    return tuple(said)


def _refused(node: ir.Node) -> str:
    """Return what of a node the DLA does not take; "" where it takes it."""
    if node.op_type in _FREE:
        return ""
    if node.op_type not in NATIVE:
        return node.op_type
    if node.op_type in _WEIGHTED and graph.constant(graph.input_of(node, 1)) is None:
        return f"{node.op_type} with computed weights"
    return ""
