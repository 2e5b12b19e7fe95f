"""Which outputs of a graph are as long as what an operator finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable

_FINDERS = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})
"""Operators whose output is as long as what they find."""


def found_by(model: ir.Model) -> frozenset[str]:
    """Return the graph's outputs whose rows an operator found: as many as there are, in any order."""
    reached: set[str] = set()
    for node in model.graph:
        inner = {one.op_type for graph in _subgraphs(node) for one in graph.all_nodes()}
        taken = {value.name for value in node.inputs if value is not None}
        if ({node.op_type} | inner) & _FINDERS or taken & reached:
            reached |= {value.name for value in node.outputs if value.name}
    return frozenset(str(value.name) for value in model.graph.outputs if value.name in reached)


def _subgraphs(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
