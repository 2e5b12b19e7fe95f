"""Move the gate off the map, into weights that are a hundred times smaller or behind a pooling.

A convolution is linear in its weights, so scaling its input or output channels is scaling its weights. The
product of gate and weights is computed per image: a run-time weight, which only some compilers like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.rewrites import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

PREVIOUS = "gate-into-previous"
NEXT = "gate-into-next"
NEXT_BATCHED = "gate-into-next-batched"
BEHIND_POOL = "gate-behind-pool"


def previous_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks that scale a convolution which their gate does not wait for."""
    found = []
    for block in blocks:
        if (conv := previous_convolution(model, block)) is not None:
            shape = (*conv.weights.shape, conv.groups, *(graph.dims(conv.y) or ())[2:])
            found.append(base.Site(PREVIOUS, block.output, shape, block))
    return tuple(found)


def previous_convolution(model: ir.Model, block: SEBlock) -> base.Conv | None:
    """Give the convolution that a block scales, where `previous` may move the gate into it; else None."""
    found = base.parts(model, block)
    if found is None or found.scale is None or found.data is None or not base.static_batch_1(found.data):
        return None
    conv = base.conv(found.data.producer())
    if conv is None or graph.sole_consumer(conv.y) is not found.scale:
        return None
    return None if base.depends_on(found.gate, conv.node) else conv


def previous(model: ir.Model, site: base.Site) -> int:
    """Scale the rows of the convolution in front instead of its output; static batch 1.

    Before: x = W * u + b: (1, O, H, W);  y = g x,  g: (1, O, 1, 1)
    After:  y = (g W) * u + g b,  row o of the weights (O, I, kh, kw) times g[o]
    Proof:  y[o] = g[o] (sum_i W[o, i] * u[i] + b[o]) = sum_i (g[o] W[o, i]) * u[i] + g[o] b[o]; groups,
            strides, padding and dilation do not touch the output channel.
    Needs:  batch 1 for ever (one set of weights), constant weights, the scale the convolution's only reader,
            and a gate that is not computed from the convolution (hoist the squeeze first).
    The bias is an Add of (1, O, 1, 1): as a run-time input of Conv it costs a kernel more.
    """
    conv = previous_convolution(model, site.block) if site.block is not None else None
    found = base.parts(model, site.block) if site.block is not None else None
    if conv is None or found is None or found.scale is None:
        return 0
    anchor, name = found.scale, found.scale.outputs[0].name
    rows = base.reshape_before(model, anchor, found.gate, (conv.weights.shape[0], 1, 1, 1))
    weights = base.put_before(anchor, "Mul", [base.input_of(conv.node, 1), rows])
    base.declare(weights, conv.weights.shape, like=found.gate)
    y = base.put_before(anchor, "Conv", [conv.x, weights], **_attributes(conv))
    if conv.bias is not None:
        column = graph.initializer(model, f"{name}/bias", conv.bias.reshape(1, -1, 1, 1))
        bias = base.put_before(anchor, "Mul", [found.gate, column])
        base.declare(bias, (1, conv.weights.shape[0], 1, 1), like=found.gate)
        y = base.put_before(anchor, "Add", [y, bias])
    graph.replace(anchor.outputs[0], y)
    return 1


def next_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks whose output is read by convolutions only, for a batch of 1."""
    found = []
    for block in blocks:
        convs = _next(model, block)
        if convs:
            shape = (*(c.weights.shape for c in convs), *(graph.dims(convs[0].x) or ())[2:])
            found.append(base.Site(NEXT, block.output, shape, block))
    return tuple(found)


def _next(model: ir.Model, block: SEBlock) -> tuple[base.Conv, ...]:
    found = base.parts(model, block)
    if found is None or found.scale is None or found.data is None or not base.static_batch_1(found.data):
        return ()
    y = found.scale.outputs[0]
    convs = [base.conv(use.node) for use in y.uses()]
    kept = tuple(c for c in convs if c is not None and c.x is y and _takes_gate(c))
    return kept if len(kept) == len(convs) and not y.is_graph_output() else ()


def _takes_gate(conv: base.Conv) -> bool:
    return conv.groups == 1 or (conv.groups == conv.weights.shape[0] and conv.weights.shape[1] == 1)


def next_conv(model: ir.Model, site: base.Site) -> int:
    """Scale the columns of the convolutions behind instead of their input; static batch 1.

    Before: y = g x,  x: (1, C, H, W), g: (1, C, 1, 1);  z = W * y + b,  W: (O, C, kh, kw)
    After:  z = (W g) * x + b,  column c of the weights times g[c]
    Proof:  z[o] = sum_c W[o, c] * (g[c] x[c]) + b[o] = sum_c (W[o, c] g[c]) * x[c] + b[o]; zero padding
            stays zero. Depthwise (one input channel per output channel): W[c] g[c] by row.
    Needs:  batch 1 for ever: at a batch equal to O the product would broadcast without an error and be
            wrong. Constant weights, one group or depthwise, every reader of y such a convolution and y no
            graph output.
    """
    convs = _next(model, site.block) if site.block is not None else ()
    found = base.parts(model, site.block) if site.block is not None else None
    if not convs or found is None or found.data is None:
        return 0
    for conv in convs:
        gate = found.gate
        if conv.groups != 1:
            gate = base.reshape_before(model, conv.node, gate, (conv.weights.shape[0], 1, 1, 1))
        weights = base.put_before(conv.node, "Mul", [base.input_of(conv.node, 1), gate])
        conv.node.replace_input_with(0, found.data)
        conv.node.replace_input_with(1, weights)
    return 1


def next_batched_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks whose output is read by one 1x1 convolution only, whatever the batch."""
    found = []
    for block in blocks:
        if (conv := _next_batched(model, block)) is not None:
            shape = (*conv.weights.shape, *(graph.dims(conv.x) or ())[2:])
            found.append(base.Site(NEXT_BATCHED, block.output, shape, block))
    return tuple(found)


def _next_batched(model: ir.Model, block: SEBlock) -> base.Conv | None:
    found = base.parts(model, block)
    if found is None or found.scale is None or found.data is None:
        return None
    y = found.scale.outputs[0]
    conv = base.conv(graph.sole_consumer(y))
    if conv is None or conv.x is not y or not conv.is_pointwise or conv.groups != 1:
        return None
    return conv


def next_batched(model: ir.Model, site: base.Site) -> int:
    """Scale the columns of the 1x1 convolution behind, one set of weights per image: a batched product.

    Before: y = g x,  x: (N, C, H, W), g: (N, C, 1, 1);  z = W y + b,  W: (O, C, 1, 1)
    After:  z = x' M + b in the NHWC view,  x': (N, H, W, C),  M[n] = diag(g[n]) W^T: (N, 1, C, O)
    Proof:  z[n, o, p] = sum_c W[o, c] g[n, c] x[n, c, p] + b[o] = sum_c x'[n, p, c] M[n, c, o] + b[o] at
            every position p; each image multiplies its own M[n], so any batch is right.
    Needs:  kernel 1x1, stride 1, no padding, one group, constant weights; y read by nothing else and no
            graph output.
    """
    conv = _next_batched(model, site.block) if site.block is not None else None
    found = base.parts(model, site.block) if site.block is not None else None
    if conv is None or found is None or found.data is None:
        return 0
    anchor, name = conv.node, conv.y.name
    channels = int(conv.weights.shape[1])
    columns = np.ascontiguousarray(conv.weights[:, :, 0, 0].T)[None]
    gate = base.reshape_before(model, anchor, found.gate, (0, channels, 1))
    product = base.put_before(anchor, "Mul", [graph.initializer(model, f"{name}/columns", columns), gate])
    per_image = base.reshape_before(model, anchor, product, (0, 1, channels, columns.shape[2]))
    nhwc = base.put_before(anchor, "Transpose", [found.data], perm=[0, 2, 3, 1])
    z = base.put_before(anchor, "MatMul", [nhwc, per_image])
    if conv.bias is not None:
        z = base.put_before(anchor, "Add", [z, base.input_of(anchor, 2)])
    graph.replace(conv.y, base.put_before(anchor, "Transpose", [z], perm=[0, 3, 1, 2]))
    return 1


def behind_pool_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks whose output is read by one pooling only, and whose gate cannot be negative."""
    return tuple(
        base.Site(BEHIND_POOL, block.output, graph.dims(pool.inputs[0]) or (), block)
        for block in blocks
        if (pool := _pool(model, block)) is not None
    )


def _pool(model: ir.Model, block: SEBlock) -> ir.Node | None:
    found = base.parts(model, block)
    if found is None or found.scale is None:
        return None
    node = graph.sole_consumer(found.scale.outputs[0])
    if node is None or len(node.outputs) != 1:
        return None
    if node.op_type == "MaxPool" and base.is_nonnegative(found.gate):
        return node
    return node if node.op_type == "AveragePool" else None


def behind_pool(model: ir.Model, site: base.Site) -> int:
    """Multiply by the gate behind the pooling that follows, on a quarter of the elements.

    Before: y = g x,  g: (N, C, 1, 1);  z = pool(y)
    After:  z = g pool(x)
    Proof:  in one channel g is one number for all positions. max(g a, g b) = g max(a, b) for g >= 0, also
            after rounding, which keeps the order; padding (minus infinity) is in no window alone. The mean
            is linear: mean(g a, g b) = g mean(a, b), with padded zeros too.
    Needs:  a gate that cannot be negative for MaxPool (sigmoid, hard sigmoid, ...), the pooling y's only
            reader, y no graph output. The block's output is then the pooling's.
    """
    node = _pool(model, site.block) if site.block is not None else None
    found = base.parts(model, site.block) if site.block is not None else None
    if node is None or found is None or found.scale is None or found.data is None:
        return 0
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    pooled = base.put_before(node, node.op_type, [found.data], **attributes)
    graph.replace(node.outputs[0], base.put_before(node, "Mul", [pooled, found.gate]))
    return 1


def _attributes(conv: base.Conv) -> dict[str, object]:
    return {
        "kernel_shape": list(conv.kernel),
        "group": conv.groups,
        "strides": list(conv.strides),
        "pads": list(conv.pads),
        "dilations": list(conv.dilations),
    }
