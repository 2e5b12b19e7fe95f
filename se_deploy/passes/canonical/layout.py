"""Bring blocks that an exporter wrote channels-last back to (N, C, *), where their convolutions are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from se_deploy import graph, se_blocks
from se_deploy.passes.canonical.blocks import nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from se_deploy.se_blocks import SEBlock


def blocks_to_channels_first(model: ir.Model) -> int:
    """Scale before the Transpose to channels-last, not behind it.

    Before: x: (N, C, *) -> Transpose -> Mul(gate: (N, 1*, C)) -> y: (N, *, C) [-> Transpose back]
    After:  x -> Mul(Transpose(gate)) -> y: (N, C, *) -> Transpose, which goes where one back follows.
    Bit for bit the same. The Mul's output keeps its name and takes the other layout, so that it must be no
    output of the graph; the gate needs the rank of x.
    """
    moved = 0
    blocks = se_blocks.detect(model).se
    muls = nodes_of(model, blocks)
    for block in blocks:
        found = _scaled_behind_transpose(muls, block)
        if found is None:
            continue
        mul, gate, transposed, x = found
        rank = len(x.shape or ())
        last = (0, *range(2, rank), 1)
        first = (0, rank - 1, *range(1, rank - 1))
        turned = ir.node("Transpose", [gate], {"perm": list(first)})
        y = mul.outputs[0]
        back = ir.node("Transpose", [y], {"perm": list(last)})
        back.outputs[0].type, back.outputs[0].shape = y.type, y.shape
        y.shape = x.shape
        owner = mul.graph
        if owner is None:
            raise ValueError("the Mul is in no graph")
        for use in tuple(y.uses()):
            if use.node is not back:
                use.node.replace_input_with(use.idx, back.outputs[0])
        owner.insert_before(mul, turned)
        owner.insert_after(mul, back)
        mul.replace_input_with(mul.inputs.index(gate), turned.outputs[0])
        mul.replace_input_with(mul.inputs.index(transposed), x)
        for undone in _transposes(back.outputs[0], first):
            undone.replace_all_uses_with(y)
        moved += 1
    return moved


def _scaled_behind_transpose(
    muls: Mapping[str, ir.Node], block: SEBlock
) -> tuple[ir.Node, ir.Value, ir.Value, ir.Value] | None:
    """Mul, gate, the transposed tensor and the one before; None where a precondition fails."""
    mul = muls.get(block.scale_node)
    if mul is None or mul.outputs[0].is_graph_output():
        return None
    gate = next((v for v in mul.inputs if v is not None and v.name == block.gate_output), None)
    transposed = next((v for v in mul.inputs if v is not gate), None)
    producer = None if transposed is None else transposed.producer()
    if gate is None or transposed is None or producer is None or producer.op_type != "Transpose":
        return None
    x = producer.inputs[0]
    rank = len(transposed.shape or ())
    perm = graph.attribute(producer, "perm")
    if x is None or len(gate.shape or ()) != rank or block.channel_axis != rank - 1:
        return None
    ordered = isinstance(perm, (list, tuple)) and tuple(perm) == (0, *range(2, rank), 1)
    return (mul, gate, transposed, x) if ordered else None


def _transposes(value: ir.Value, perm: tuple[int, ...]) -> Iterator[ir.Value]:
    """What Transposes by `perm` make of a value, where it is no output of the graph."""
    for use in tuple(value.uses()):
        node, output = use.node, use.node.outputs[0]
        given = graph.attribute(node, "perm")
        same = isinstance(given, (list, tuple)) and tuple(given) == perm
        if node.op_type == "Transpose" and same and not output.is_graph_output():
            yield output
