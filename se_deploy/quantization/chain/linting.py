"""Where a chain of INT8 layers breaks by TensorRT's published rules, and where the network itself ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.quantization.chain import kernels as fusing
from se_deploy.quantization.chain import modelled, pairs, rules, spelling
from se_deploy.quantization.chain.findings import Break, Chain, End, merged_breaks, merged_ends
from se_deploy.quantization.chain.reading import reading_breaks
from se_deploy.quantization.chain.writing import Writing

if TYPE_CHECKING:
    import onnx_ir as ir


def lint_breaks(model: ir.Model) -> tuple[Break, ...]:
    """Return only what breaks the chain of a graph."""
    return _judged(model, fusing.of(model))[0]


def lint(model: ir.Model) -> Chain | None:
    """Return the chain of a graph (shapes inferred, nodes in order); None where nothing is quantized.

    Any tool's Q/DQ is read. What is said is what NVIDIA documents of TensorRT; nothing is built.
    """
    if not any(map(_is_quantized, model.graph)):
        return None
    found = fusing.of(model)
    breaks, ends = _judged(model, found)
    integer = [str(node.name) for node in model.graph if _is_integer_layer(node)]
    layers = [kernel.layer for kernel in found.all if kernel.layer is not None]
    asked = [layer for layer in layers if fusing.is_asked(layer, found.storage)]
    int8 = {layer.name for layer in asked if fusing.is_int8(layer, found.storage)}
    macs = {layer.name: graph.macs(layer.node) for layer in layers}
    names = {layer.name for layer in asked}
    # A free size would count as 1: a map would weigh no more than the vectors of an SE gate.
    is_sized = not any(None in (graph.dims(layer.node.outputs[0]) or ())[1:] for layer in layers)
    share = sum(n for name, n in macs.items() if name in int8) / max(1, sum(macs.values()))
    return Chain(
        int8=(*(layer.name for layer in asked), *integer),
        in_float=tuple(layer.name for layer in layers if layer.name not in names),
        breaks=breaks,
        ends=ends,
        int8_macs_fraction=share if is_sized else None,
        int8_bytes_fraction=modelled.int8_bytes_fraction(modelled.planned(found)) if is_sized else None,
    )


def _is_quantized(node: ir.Node) -> bool:
    """Whether a node says that something is to be integers."""
    return spelling.is_quantize(node) or spelling.is_dequantize(node) or spelling.is_integer_operator(node)


def _is_integer_layer(node: ir.Node) -> bool:
    """Whether a node is a layer that computes with integers by itself."""
    return spelling.is_integer_operator(node) and any(
        one in node.op_type for one in ("Conv", "MatMul", "Gemm")
    )


def _judged(model: ir.Model, found: fusing.Kernels) -> tuple[tuple[Break, ...], tuple[End, ...]]:
    layers = [kernel.layer for kernel in found.all if kernel.layer is not None]
    writing = Writing(found)
    for layer in layers:
        if fusing.is_asked(layer, found.storage):
            writing.follow(layer)
    writing.pads()
    breaks = [b for layer in layers for b in reading_breaks(layer, found.storage)]
    breaks += [
        Break(
            str(node.name), f"{node.op_type} is no float operator", rules.INTEGER_OPERATOR, (str(node.name),)
        )
        for node in model.graph
        if spelling.is_integer_operator(node)
    ]
    return (
        merged_breaks([*breaks, *writing.breaks, *pairs.misplaced(found), *pairs.joined(found)]),
        merged_ends(writing.ends),
    )
