"""Pad a shortcut with fewer channels than its block (ReXNet) instead of cutting the block in two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.editing import put_before
from se_deploy.passes.parts import MAP_RANK
from se_deploy.passes.registry import Refused, Tried, every, rewrite
from se_deploy.se_blocks.values import same, value_dims

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class _Partial:
    """concat(whole[:, :k] + shortcut, whole[:, k:]), k the shortcut's channels; `more` are the others."""

    site: str
    node: ir.Node
    whole: ir.Value
    shortcut: ir.Value
    more: int

    @property
    def shape(self) -> tuple[object, ...]:
        """Both shapes."""
        return (graph.dims(self.whole), graph.dims(self.shortcut))


def _match(model: ir.Model, node: ir.Node) -> _Partial | Refused:  # noqa: ARG001 - one signature
    added, *rest = node.inputs
    add = added.producer() if added is not None else None
    if graph.attribute(node, "axis") != 1 or len(rest) != 1 or rest[0] is None:
        return Refused("it does not join two parts along the channels")
    if add is None or add.op_type != "Add":
        return Refused("its first part is no sum")
    tail = _channels(rest[0])
    for first, shortcut in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        head = _channels(first) if first is not None else None
        if head is None or tail is None or shortcut is None or head.x is not tail.x:
            continue
        whole, shape = value_dims(head.x), value_dims(shortcut)
        if whole is None or shape is None or not len(whole) == len(shape) == MAP_RANK:
            continue
        if not isinstance(whole[1], int) or not isinstance(shape[1], int):
            continue
        of_maps = zip(whole[2:], shape[2:], strict=True)
        if not same(whole[0], shape[0], batch=True) or not all(same(a, b) for a, b in of_maps):
            return Refused("its parts are not known to be of one height and width: one may be broadcast")
        if (head.start, head.end, tail.start) == (0, shape[1], shape[1]) and tail.end >= whole[1]:
            return _Partial(str(node.outputs[0].name), node, head.x, shortcut, whole[1] - shape[1])
    return Refused("its parts are not the whole of one map, cut at the shortcut's number of channels")


@dataclass(frozen=True, slots=True)
class _Channels:
    """x[:, start:end]."""

    x: ir.Value
    start: int
    end: int


def _channels(value: ir.Value) -> _Channels | None:
    """A Slice of channels with step 1; None for anything else."""
    node = value.producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) < 4:  # noqa: PLR2004 - X, starts, ends, axes
        return None
    start, end, axis = (graph.scalar(v) for v in tuple(node.inputs)[1:4])
    step = graph.scalar(node.inputs[4]) if len(node.inputs) > 4 else 1  # noqa: PLR2004 - the optional steps
    if start is None or end is None or axis != 1 or step != 1 or start < 0 or end < 0:
        return None
    return _Channels(graph.input_of(node, 0), int(start), int(end))


@rewrite(
    name="partial-add-as-pad",
    idea="add a padded shortcut",
    where=every("Concat"),
    match=_match,
    tried=Tried(turn=3),
)
def partial_add_as_pad(model: ir.Model, found: _Partial) -> None:
    """Add a shortcut with fewer channels as one padded with zero channels.

    Before: y = concat(c[:, :k] + x, c[:, k:]),  x: (N, k, H, W), c: (N, C, H, W), k < C
    After:  y = c + Pad(x with C - k zero channels)
    Proof:  the first k channels are c + x in both, the others c and c + 0.
    Needs:  the cut is at x's number of channels, both parts are the whole of c, channels known;
            heights and widths of one number or one name, else the sum may be a broadcast.
    """
    pads = np.array([0, 0, 0, 0, 0, found.more, 0, 0], np.int64)
    given = graph.initializer(model, f"{found.site}/pads", pads)
    wide = put_before(found.node, "Pad", [found.shortcut, given])
    graph.replace(found.node.outputs[0], put_before(found.node, "Add", [found.whole, wide]))
