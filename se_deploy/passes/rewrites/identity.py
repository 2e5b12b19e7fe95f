"""Drop what copies a map and changes nothing: simplifiers leave it, and it hides the map from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.passes.rewrites import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

NAME = "drop-whole-slice"


def sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001 - one signature
    """List the Slice nodes that take the whole of their input."""
    return tuple(
        base.Site(NAME, str(node.outputs[0].name), (graph.dims(node.inputs[0]),))
        for node in model.graph
        if _takes_all(node)
    )


def _takes_all(node: ir.Node) -> bool:
    if node.op_type != "Slice" or len(node.inputs) < 4 or node.outputs[0].is_graph_output():  # noqa: PLR2004 - with axes
        return False
    starts, ends, axes = (graph.constant(v) for v in tuple(node.inputs)[1:4])
    steps = graph.constant(node.inputs[4]) if len(node.inputs) > 4 else None  # noqa: PLR2004 - the optional steps
    shape = graph.dims(node.inputs[0])
    if starts is None or ends is None or axes is None or shape is None:
        return False
    whole = (steps is None and len(node.inputs) == 4) or (steps is not None and bool((steps == 1).all()))  # noqa: PLR2004
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        size = shape[axis]
        whole = whole and start == 0 and size is not None and end >= size
    return whole


def apply(model: ir.Model, site: base.Site) -> int:
    """Read the input of a Slice that takes all of it.

    Before: y = x[:, 0:C],  x: (N, C, H, W)
    After:  x
    Proof:  elements 0 to C of C are all.
    Needs:  constant bounds, start 0, step 1, an end at or beyond a known size; y no graph output.
    """
    node = base.producer(model, site.at)
    if node is None or not _takes_all(node):
        return 0
    node.outputs[0].replace_all_uses_with(base.input_of(node, 0))
    return 1
