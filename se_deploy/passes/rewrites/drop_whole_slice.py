"""Drop what copies a map and changes nothing: simplifiers leave it, and it hides the map from others.

onnxscript's own rules (collapse_slices, 0.7.2) were tried: they need the optional steps to be there, leave an
Identity, and run over a whole graph, where the search applies a rewrite site by site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.registry import Refused, Scope, Tried, every, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir


_TO_THE_END = np.iinfo(np.int64).max  # by the specification, whatever the size


@dataclass(frozen=True, slots=True)
class _Slice:
    site: str
    shape: tuple[object, ...]
    x: ir.Value
    y: ir.Value


def _match(model: ir.Model, node: ir.Node) -> _Slice | Refused:  # noqa: ARG001 - one signature
    if len(node.inputs) < 4:  # noqa: PLR2004 - with axes
        return Refused("its axes are not given")
    if node.outputs[0].is_graph_output():
        return Refused("what it writes is an output of the graph")
    starts, ends, axes = (graph.constant(v) for v in tuple(node.inputs)[1:4])
    steps = graph.constant(node.inputs[4]) if len(node.inputs) > 4 else None  # noqa: PLR2004 - the optional steps
    shape = graph.dims(node.inputs[0])
    if starts is None or ends is None or axes is None or shape is None:
        return Refused("its bounds or what it cuts are computed")
    whole = (steps is None and len(node.inputs) == 4) or (steps is not None and bool((steps == 1).all()))  # noqa: PLR2004
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        size = shape[axis]
        whole = whole and start == 0 and (end == _TO_THE_END or (size is not None and end >= size))
    if not whole:
        return Refused("it takes a part")
    return _Slice(str(node.outputs[0].name), (shape,), graph.input_of(node, 0), node.outputs[0])


@rewrite(
    name="drop-whole-slice",
    idea="drop a slice that takes everything",
    where=every("Slice"),
    match=_match,
    scope=Scope.PORTABLE,
    tried=Tried(first=True),
)
def drop_whole_slice(model: ir.Model, found: _Slice) -> None:  # noqa: ARG001 - one signature
    """Read the input of a Slice that takes all of it.

    Before: y = x[:, 0:C],  x: (N, C, H, W)
    After:  x
    Proof:  elements 0 to C of C are all.
    Needs:  constant bounds, start 0, step 1, an end at or beyond a known size, or the largest number of all;
            y no graph output.
    """
    found.y.replace_all_uses_with(found.x)
