"""Spell the addition at a block's end so that it happens inside a convolution.

A block's last convolution and the projection of its shortcut become one; a shortcut with fewer channels
than the block (ReXNet) is padded instead of cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.rewrites import base, gate

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock

NAME = "add-as-concat"
PADDED = "partial-add-as-pad"
GATED = "gated-add-as-concat"

_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class _Term:
    """W x + b over every `stride`-th pixel; b is (1, O, 1, 1) where it is computed, (O,) where constant."""

    x: ir.Value
    weights: ir.Value
    stride: int
    bias: Array | None
    computed_bias: ir.Value | None


def sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001 - one signature
    """List the additions of two 1x1 convolutions that nothing else reads."""
    found = []
    for node in model.graph:
        terms = _terms(node)
        if terms:
            shape = (graph.dims(node.outputs[0]), *((graph.dims(t.weights), t.stride) for t in terms))
            found.append(base.Site(NAME, str(node.outputs[0].name), shape))
    return tuple(found)


def _terms(node: ir.Node | None) -> tuple[_Term, ...]:
    if node is None or node.op_type != "Add" or node.inputs[0] is node.inputs[1]:
        return ()
    terms = [_term(value) for value in node.inputs]
    kept = tuple(term for term in terms if term is not None)
    shapes = [graph.dims(value) for value in node.inputs]
    return kept if len(kept) == len(terms) and shapes[0] == shapes[1] is not None else ()


def _term(value: ir.Value | None) -> _Term | None:
    node = value.producer() if value is not None else None
    if value is None or node is None or graph.sole_consumer(value) is None:
        return None
    if node.op_type == "Conv":
        return _convolved(node, None)
    if node.op_type == "Add":  # what the gate moved into a convolution leaves: conv(u, g W) + g b
        first, second = base.input_of(node, 0), base.input_of(node, 1)
        inner = first.producer()
        column = graph.dims(second)
        plain = inner is not None and inner.op_type == "Conv" and graph.sole_consumer(first) is node
        if inner is not None and plain and column is not None and column[2:] == (1, 1):
            return _convolved(inner, second)
    return None


def _convolved(node: ir.Node, computed_bias: ir.Value | None) -> _Term | None:
    weights = base.input_of(node, 1)
    shape = graph.dims(weights)
    strides = base.ints(node, "strides", (1, 1))
    if shape is None or None in shape or shape[2:] != (1, 1) or strides[0] != strides[1]:
        return None
    if graph.attribute(node, "group", 1) != 1 or any(base.ints(node, "pads", (0, 0, 0, 0))):
        return None
    if weights.producer() is not None and weights.producer().op_type == "DequantizeLinear":  # type: ignore[union-attr]  # just asked
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None  # noqa: PLR2004 - Conv(X, W, B)
    bias = graph.constant(given)
    if given is not None and bias is None:
        return None
    return _Term(base.input_of(node, 0), weights, strides[0], bias, computed_bias)


def apply(model: ir.Model, site: base.Site) -> int:
    """Convolve a concatenation instead of adding two convolutions.

    Before: y = (W1 x1 + b1) + (W2 x2 + b2),  1x1, stride s1 and s2
    After:  y = [W1 W2] concat(x1', x2') + (b1 + b2),  x' = every s-th pixel of x
    Proof:  a 1x1 convolution with stride s reads pixels 0, s, 2 s, ...; over channels stacked on each other
            the sum over inputs is the sum of both sums.
    Needs:  1x1, no padding, one group, each convolution read by the addition only, outputs of one shape.
            Any batch. The weights may be computed (the gate is in them), but not be quantized.
    """
    node = base.producer(model, site.at)
    terms = _terms(node)
    if node is None or not terms:
        return 0
    stacked = base.put_before(node, "Concat", [_pixels(model, node, t) for t in terms], axis=1)
    arrays = [graph.constant(term.weights) for term in terms]
    constant = [array for array in arrays if array is not None]
    if len(constant) == len(terms):
        weights = graph.initializer(model, f"{site.at}/weights", np.concatenate(constant, axis=1))
    else:
        weights = base.put_before(node, "Concat", [term.weights for term in terms], axis=1)
    inputs = [stacked, weights]
    known = [term.bias.astype(np.float64) for term in terms if term.bias is not None]
    computed = [term.computed_bias for term in terms if term.computed_bias is not None]
    bias = np.sum(known, axis=0).astype(np.float32) if known else None
    if bias is not None and not computed:
        inputs.append(graph.initializer(model, f"{site.at}/bias", bias))
    y = base.put_before(node, "Conv", inputs, kernel_shape=[1, 1])
    for value in computed:
        total = value
        if bias is not None:
            column = graph.initializer(model, f"{site.at}/bias", bias.reshape(1, -1, 1, 1))
            total, bias = base.put_before(node, "Add", [value, column]), None
        y = base.put_before(node, "Add", [y, total])
    graph.replace(node.outputs[0], y)
    return 1


def gated_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the additions of a gated 1x1 convolution and a plain one; static batch 1."""
    found = []
    for block in blocks:
        if (node := _gated(model, block)) is not None:
            shape = (graph.dims(node.outputs[0]),)
            found.append(base.Site(GATED, str(node.outputs[0].name), shape, block))
    return tuple(found)


def _gated(model: ir.Model, block: SEBlock) -> ir.Node | None:
    conv = gate.previous_convolution(model, block)
    scale = graph.sole_consumer(conv.y) if conv is not None else None
    node = graph.sole_consumer(scale.outputs[0]) if scale is not None else None
    if conv is None or scale is None or node is None or node.op_type != "Add":
        return None
    first, second = node.inputs
    shortcut = second if first is scale.outputs[0] else first
    shapes = [graph.dims(value) for value in node.inputs]
    alike = first is not second and shapes[0] == shapes[1] is not None
    return node if alike and _term(shortcut) is not None and _convolved(conv.node, None) is not None else None


def gated(model: ir.Model, site: base.Site) -> int:
    """Move the gate into its convolution's weights and the shortcut's projection beside them.

    Before: y = g (W1 x1 + b1) + (W2 x2 + b2),  g: (1, O, 1, 1)
    After:  y = [g W1, W2] concat(x1', x2') + g b1 + b2
    Proof:  `gate.previous`, then `apply`.
    Needs:  what these two need: batch 1 for ever, a gate that does not wait for the convolution.
    """
    if site.block is None or _gated(model, site.block) is None:
        return 0
    gate.previous(model, base.Site(gate.PREVIOUS, site.block.output, block=site.block))
    return apply(model, base.Site(NAME, site.at))


def _pixels(model: ir.Model, anchor: ir.Node, term: _Term) -> ir.Value:
    if term.stride == 1:
        return term.x
    name = str(anchor.outputs[0].name)
    bounds = {"start": [0, 0], "end": [_END, _END], "axes": [2, 3], "step": [term.stride] * 2}
    given = [graph.initializer(model, f"{name}/{k}", np.array(v, np.int64)) for k, v in bounds.items()]
    return base.put_before(anchor, "Slice", [term.x, *given])


def padded_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001
    """List the additions to the first channels of a map only."""
    found = []
    for node in model.graph:
        if (partial := _partial(node)) is not None:
            shape = (graph.dims(partial.whole), graph.dims(partial.shortcut))
            found.append(base.Site(PADDED, str(node.outputs[0].name), shape))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Partial:
    """concat(whole[:, :k] + shortcut, whole[:, k:])."""

    whole: ir.Value
    shortcut: ir.Value


def _partial(node: ir.Node | None) -> _Partial | None:
    if node is None or node.op_type != "Concat" or graph.attribute(node, "axis") != 1:
        return None
    added, *rest = node.inputs
    last = rest[0] if len(rest) == 1 else None
    add = added.producer() if added is not None else None
    if add is None or add.op_type != "Add" or last is None:
        return None
    tail = _channels(last)
    for first, shortcut in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        head = _channels(first) if first is not None else None
        if head is None or tail is None or shortcut is None or head[0] is not tail[0]:
            continue
        whole, shape = graph.dims(head[0]), graph.dims(shortcut)
        if whole is None or shape is None or whole[1] is None or shape[1] is None or whole[2:] != shape[2:]:
            continue
        if (head[1], head[2], tail[1]) == (0, shape[1], shape[1]) and tail[2] >= whole[1]:
            return _Partial(head[0], shortcut)
    return None


def _channels(value: ir.Value) -> tuple[ir.Value, int, int] | None:
    """Give (x, from, to) of a Slice of channels with step 1; None for anything else."""
    node = value.producer()
    if node is None or node.op_type != "Slice" or len(node.inputs) < 4:  # noqa: PLR2004 - X, starts, ends, axes
        return None
    start, end, axis = (graph.scalar(v) for v in tuple(node.inputs)[1:4])
    step = graph.scalar(node.inputs[4]) if len(node.inputs) > 4 else 1  # noqa: PLR2004 - the optional steps
    if start is None or end is None or axis != 1 or step != 1 or start < 0 or end < 0:
        return None
    return base.input_of(node, 0), int(start), int(end)


def padded(model: ir.Model, site: base.Site) -> int:
    """Add a shortcut with fewer channels as one padded with zero channels.

    Before: y = concat(c[:, :k] + x, c[:, k:]),  x: (N, k, H, W), c: (N, C, H, W), k < C
    After:  y = c + Pad(x with C - k zero channels)
    Proof:  the first k channels are c + x in both, the others c and c + 0.
    Needs:  the cut is at x's number of channels, both parts are the whole of c, shapes known but the batch.
    """
    node = base.producer(model, site.at)
    partial = _partial(node)
    if node is None or partial is None:
        return 0
    more = (graph.dims(partial.whole) or ())[1] or 0
    more -= (graph.dims(partial.shortcut) or ())[1] or 0
    pads = graph.initializer(model, f"{site.at}/pads", np.array([0, 0, 0, 0, 0, more, 0, 0], np.int64))
    wide = base.put_before(node, "Pad", [partial.shortcut, pads])
    graph.replace(node.outputs[0], base.put_before(node, "Add", [partial.whole, wide]))
    return 1
