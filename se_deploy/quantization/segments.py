"""Run a graph piece by piece, so that what one piece gives can be changed before the next one reads it.

The whole graph is run once, whatever the number of pieces: each starts from the tensors that the pieces
before it left, and what no later piece reads is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.protocols import Array


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes that follow each other, in order, and the names of what they read and leave."""

    nodes: tuple[ir.Node, ...]
    reads: tuple[str, ...]  # of earlier segments and of the graph's inputs
    leaves: tuple[str, ...]  # read by later segments, and its last tensor
    last_read: tuple[str, ...]  # what no later segment reads


def cut(model: ir.Model, behind: Sequence[str]) -> list[Segment]:
    """Return the graph's nodes up to the last of the tensors `behind`, cut behind each of them in turn."""
    ends = set(behind)
    pieces: list[list[ir.Node]] = [[]]
    for node in model.graph:
        pieces[-1].append(node)
        if ends.intersection(str(v.name) for v in node.outputs):
            pieces.append([])
    pieces.pop()  # what is behind the last of them
    constants = set(model.graph.initializers)
    reads = [dict.fromkeys(name for node in piece for name in _read_by(node)) for piece in pieces]
    segments = []
    for i, piece in enumerate(pieces):
        made = {str(v.name): None for node in piece for v in node.outputs if v.name}
        later = {name for names in reads[i + 1 :] for name in names}
        outside = [name for name in reads[i] if name not in made and name not in constants]
        leaves = [name for name in made if name in later or name in ends]
        over = [name for name in (*outside, *leaves) if name not in later]
        segments.append(Segment(tuple(piece), tuple(outside), tuple(leaves), tuple(over)))
    return segments


def _read_by(node: ir.Node) -> Iterator[str]:
    """Yield the names of what a node reads, its bodies included, and theirs."""
    yield from (str(v.name) for v in node.inputs if v is not None and v.name)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _read_inside(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield from _read_inside(body)


def _read_inside(body: ir.Graph) -> Iterator[str]:
    """Yield the names of what a body reads and does not make."""
    made = {str(v.name) for v in body.inputs} | set(body.initializers)
    made.update(str(v.name) for node in body for v in node.outputs)
    read = (name for node in body for name in _read_by(node))
    yield from (name for name in (*read, *(str(v.name) for v in body.outputs)) if name not in made)


def as_model(model: ir.Model, segment: Segment, arrays: Mapping[str, Array]) -> ir.Model:
    """Return a graph of one segment alone; `arrays` has what it reads, whose types these are.

    The nodes are taken out of `model`, which is not to be used any more but for the segments behind.
    """
    model.graph.outputs.clear()
    model.graph.remove(segment.nodes)
    inputs = [
        ir.Value(
            name=name,
            shape=ir.Shape([None] * arrays[name].ndim),
            type=ir.TensorType(ir.DataType.from_numpy(arrays[name].dtype)),
        )
        for name in segment.reads
    ]
    constants = dict.fromkeys(
        name for node in segment.nodes for name in _read_by(node) if name in model.graph.initializers
    )
    known = [model.graph.initializers[name] for name in constants]
    initializers = [
        ir.Value(name=v.name, shape=v.shape, type=v.type, const_value=v.const_value) for v in known
    ]
    made = {str(v.name): v for node in segment.nodes for v in node.outputs}
    for value in made.values():
        value.shape = None  # the first axis may be another one here
    return ir.Model(
        ir.Graph(
            inputs,
            [made[name] for name in segment.leaves],
            nodes=segment.nodes,
            initializers=initializers,
            opset_imports=dict(model.graph.opset_imports),
            name="segment",
        ),
        ir_version=model.ir_version,
    )
