"""How a rewrite writes: new nodes in front of an anchor, named after what the anchor writes."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Sequence

_AXES_ARE_AN_INPUT = {"ReduceSum": 13, "ReduceMean": 18}  # from this opset on


def put_before(anchor: ir.Node, op: str, inputs: Sequence[ir.Value], **attributes: object) -> ir.Value:
    """Add a node in front of `anchor`; its output, named after the anchor's."""
    node = ir.node(op, inputs, attributes)  # type: ignore[arg-type]  # ir checks the attributes' types
    owner = anchor.graph
    if owner is None:
        raise ValueError(f"'{anchor.name}' is in no graph")
    owner.insert_before(anchor, node)
    node.outputs[0].name = _fresh(owner, f"{anchor.outputs[0].name}/{op}")
    node.name = f"{op}:{node.outputs[0].name}"
    return node.outputs[0]


def declare(value: ir.Value, shape: Sequence[int], *, like: ir.Value) -> None:
    """Set shape and type of a new value, where a rewrite must know before shapes are inferred again."""
    value.shape = ir.Shape(shape)
    value.type = deepcopy(like.type)


def _fresh(owner: ir.Graph | ir.Function, name: str) -> str:
    taken = {value.name for node in owner for value in node.outputs}
    fresh, n = name, 0
    while fresh in taken:
        n += 1
        fresh = f"{name}_{n}"
    return fresh


def reduce_before(
    model: ir.Model, anchor: ir.Node, op: str, value: ir.Value, axes: Sequence[int]
) -> ir.Value:
    """Add a ReduceMean or ReduceSum with kept dimensions; its axes are an input where the opset says so."""
    if graph.opset(model) < _AXES_ARE_AN_INPUT[op]:
        return put_before(anchor, op, [value], axes=list(axes), keepdims=1)
    given = graph.initializer(model, f"{anchor.outputs[0].name}/axes", np.array(axes, np.int64))
    return put_before(anchor, op, [value, given], keepdims=1)


def reshape_before(model: ir.Model, anchor: ir.Node, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Add a Reshape; 0 in `shape` keeps the dimension."""
    given = graph.initializer(model, f"{anchor.outputs[0].name}/shape", np.array(shape, np.int64))
    return put_before(anchor, "Reshape", [value, given])
