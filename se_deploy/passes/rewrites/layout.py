"""Say the same with other attributes or nodes, so that a compiler copies no map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.rewrites import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

CONVOLVE = "pointwise-as-convolution"
SPLIT = "concat-as-sum"
COPY = "concat-of-copies"
BEHIND_DEPTHWISE = "concat-behind-depthwise"

_IDEMPOTENT = frozenset({"Relu"})
_FC = 256  # TensorRT-RTX makes a matrix product of a 1x1 convolution from this many channels on


def convolve_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001
    """List the wide 1x1 convolutions over maps."""
    found = []
    for node in model.graph:
        conv = base.conv(node)
        if conv is not None and _is_wide(conv):
            shape = (*conv.weights.shape, *(graph.dims(conv.y) or ())[2:])
            found.append(base.Site(CONVOLVE, str(conv.y.name), shape))
    return tuple(found)


def _is_wide(conv: base.Conv) -> bool:
    shape = graph.dims(conv.y)
    map_of_one = shape is not None and shape[2:] == (1, 1)
    wide = min(conv.weights.shape[:2]) >= _FC // 2 and max(conv.weights.shape[:2]) >= _FC
    return wide and conv.is_pointwise and conv.groups == 1 and conv.dilations == (1, 1) and not map_of_one


def convolve(model: ir.Model, site: base.Site) -> int:
    """Keep a 1x1 convolution a convolution by giving it a dilation.

    Before: Conv(x; W: (O, C, 1, 1), dilations = (1, 1))
    After:  Conv(x; W: (O, C, 1, 1), dilations = (2, 2))
    Proof:  dilation is the distance between taps; a 1x1 kernel has one tap.
    Needs:  kernel 1x1, stride 1, no padding, one group.
    TensorRT-RTX turns wide undilated ones into matrix products and copies the map to their layout; a
    convolution reads the map as it lies and takes bias, Add and Relu into its epilogue.
    """
    conv = base.conv(base.producer(model, site.at))
    if conv is None or not _is_wide(conv):
        return 0
    attributes = {name: attr.value for name, attr in conv.node.attributes.items()}
    attributes["dilations"] = [2, 2]
    inputs = [v for v in conv.node.inputs if v is not None]
    graph.replace(conv.y, base.put_before(conv.node, "Conv", inputs, **attributes))
    return 1


def split_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001
    """List the channel concatenations that only convolutions read."""
    found = []
    for node in model.graph:
        convs = _concat_readers(node)
        if convs:
            shape = (*(graph.dims(v) for v in node.inputs), *(c.weights.shape for c in convs))
            found.append(base.Site(SPLIT, str(node.outputs[0].name), shape))
    return tuple(found)


def _concat_readers(node: ir.Node | None) -> tuple[base.Conv, ...]:
    if node is None or not _is_channel_concat(node):
        return ()
    y = node.outputs[0]
    convs = [base.conv(use.node) for use in y.uses()]
    kept = tuple(c for c in convs if c is not None and c.groups == 1 and c.x is y)
    return kept if len(kept) == len(convs) and not y.is_graph_output() else ()


def split(model: ir.Model, site: base.Site) -> int:
    """Convolve the parts of a concatenation and add, instead of concatenating first.

    Before: z = W * concat(x1, ..., xk) + b
    After:  z = (W1 * x1 + b) + W2 * x2 + ... + Wk * xk,  W cut along its input channels
    Proof:  a convolution is a sum over input channels; cut the sum at the borders of the parts.
    Needs:  concatenation along channels of known numbers, read only by convolutions with one group and
            constant weights, and no graph output. Any kernel, stride and padding.
    """
    node = base.producer(model, site.at)
    convs = _concat_readers(node)
    if node is None or not convs:
        return 0
    inputs = [base.input_of(node, i) for i in range(len(node.inputs))]
    cuts = np.cumsum([(graph.dims(v) or ())[1] or 0 for v in inputs])[:-1]
    for conv in convs:
        attributes = {name: attr.value for name, attr in conv.node.attributes.items()}
        total = None
        for i, (x, weights) in enumerate(zip(inputs, np.split(conv.weights, cuts, axis=1), strict=True)):
            part = [x, graph.initializer(model, f"{conv.y.name}/part{i}", weights)]
            part += [v for v in conv.node.inputs[2:] if v is not None and i == 0]
            term = base.put_before(conv.node, "Conv", part, **attributes)
            total = term if total is None else base.put_before(conv.node, "Add", [total, term])
        if total is not None:
            graph.replace(conv.y, total)
    return len(convs)


def behind_depthwise_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001
    """List the channel concatenations that only one depthwise convolution reads."""
    found = []
    for node in model.graph:
        conv = _depthwise_reader(node)
        if conv is not None:
            shape = (*(graph.dims(v) for v in node.inputs), conv.weights.shape, conv.strides)
            found.append(base.Site(BEHIND_DEPTHWISE, str(conv.y.name), shape))
    return tuple(found)


def _depthwise_reader(node: ir.Node | None) -> base.Conv | None:
    if node is None or not _is_channel_concat(node):
        return None
    conv = base.conv(graph.sole_consumer(node.outputs[0]))
    per_channel = conv is not None and conv.groups == conv.weights.shape[0] and conv.weights.shape[1] == 1
    return conv if conv is not None and per_channel and conv.x is node.outputs[0] else None


def behind_depthwise(model: ir.Model, site: base.Site) -> int:
    """Concatenate behind a depthwise convolution, where a stride has made the maps smaller.

    Before: y = depthwise(concat(x1, ..., xk); W, b)
    After:  y = concat(depthwise(x1; W1, b1), ..., depthwise(xk; Wk, bk)),  W and b cut along channels
    Proof:  a depthwise convolution computes each channel from that channel alone.
    Needs:  concatenation along channels of known numbers, read by the depthwise convolution only (one
            output per channel, constant weights), and no graph output.
    """
    after = base.producer(model, site.at)
    source = after.inputs[0].producer() if after is not None and after.inputs[0] is not None else None
    conv = _depthwise_reader(source)
    if source is None or conv is None:
        return 0
    inputs = [base.input_of(source, i) for i in range(len(source.inputs))]
    cuts = np.cumsum([(graph.dims(v) or ())[1] or 0 for v in inputs])[:-1]
    weights = np.split(conv.weights, cuts)
    biases = [None] * len(inputs) if conv.bias is None else np.split(conv.bias, cuts)
    parts = []
    for i, (x, w, b) in enumerate(zip(inputs, weights, biases, strict=True)):
        given = [x, graph.initializer(model, f"{site.at}/part{i}", w)]
        given += [] if b is None else [graph.initializer(model, f"{site.at}/bias{i}", b)]
        attributes = {name: attr.value for name, attr in conv.node.attributes.items()}
        parts.append(base.put_before(conv.node, "Conv", given, **{**attributes, "group": len(w)}))
    graph.replace(conv.y, base.put_before(conv.node, "Concat", parts, axis=1))
    return 1


def _is_channel_concat(node: ir.Node) -> bool:
    if node.op_type != "Concat" or graph.attribute(node, "axis") != 1:
        return False
    parts = [graph.dims(v) for v in node.inputs]
    return all(p is not None and len(p) == base.SPATIAL_RANK and p[1] is not None for p in parts)


def copy_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001
    """List the concatenations of which a part comes out of a Relu and is read by a convolution too."""
    found = []
    for node in model.graph:
        if node.op_type == "Concat" and (shared := _shared(node)):
            shape = tuple(graph.dims(base.input_of(node, i)) for i in shared)
            found.append(base.Site(COPY, str(node.outputs[0].name), shape))
    return tuple(found)


def _shared(node: ir.Node) -> list[int]:
    """Give the inputs of a concatenation that come out of a Relu and that something else reads too."""
    found = []
    for i, value in enumerate(node.inputs):
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type not in _IDEMPOTENT or value is None:
            continue
        others = [use.node for use in value.uses() if use.node is not node]
        if any(n.op_type == "Conv" and _depthwise(n) for n in others):
            found.append(i)
    return found


def _depthwise(node: ir.Node) -> bool:
    conv = base.conv(node)
    return conv is not None and conv.groups == conv.weights.shape[0] > 1 and conv.weights.shape[1] == 1


def copy(model: ir.Model, site: base.Site) -> int:
    """Apply Relu once more where a map enters a concatenation.

    Before: r = Relu(c);  concat(r, ...);  depthwise(r)
    After:  r = Relu(c);  concat(Relu(r), ...);  depthwise(r)
    Proof:  Relu(Relu(c)) = max(max(c, 0), 0) = Relu(c), bit for bit.
    Needs:  the part comes straight out of a Relu and a depthwise convolution reads it too.
    TensorRT-RTX lets the producer write into the concatenation; its depthwise kernel cannot read a slice of
    it and works on a copy of twice the channels. The second Relu is a plain copy.
    """
    node = base.producer(model, site.at)
    shared = _shared(node) if node is not None and node.op_type == "Concat" else []
    if node is None:
        return 0
    for i in shared:
        node.replace_input_with(i, base.put_before(node, "Relu", [base.input_of(node, i)]))
    return len(shared)
