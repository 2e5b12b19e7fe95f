"""Move the gate into the weights of the convolutions that read what it scales: their columns, per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.convolution import Conv, convolution
from se_deploy.passes.editing import put_before, reshape_before
from se_deploy.passes.parts import Scaled, scaled, static_batch_1
from se_deploy.passes.registry import Refused, Tried, every_block, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock


@dataclass(frozen=True, slots=True)
class _Next:
    site: str
    block: Scaled
    convs: tuple[Conv, ...]

    @property
    def shape(self) -> tuple[object, ...]:
        """All weights, height and width."""
        return (*(c.weights.shape for c in self.convs), *(graph.dims(self.convs[0].x) or ())[2:])


def _match(model: ir.Model, block: SEBlock) -> _Next | Refused:
    found = scaled(model, block)
    if isinstance(found, Refused):
        return found
    if not static_batch_1(found.data):
        return Refused("the batch is not fixed at 1, and one set of weights serves one image")
    if found.y.is_graph_output():
        return Refused("its output is an output of the graph")
    convs = []
    for use in found.y.uses():
        conv = convolution(use.node, "a reader of its output")
        if isinstance(conv, Refused):
            return conv
        if conv.x is not found.y or not (conv.groups == 1 or conv.is_depthwise):
            return Refused(f"Conv '{conv.node.name}' behind it is neither of one group nor depthwise")
        convs.append(conv)
    return _Next(block.output, found, tuple(convs)) if convs else Refused("nothing reads its output")


@rewrite(
    name="gate-into-next",
    idea="gate into the next convolution's weights",
    where=every_block,
    match=_match,
    after=("gate-into-previous",),
    tried=Tried(forms=(("squeeze-average-pool",),)),
    run_time_weights=True,
)
def gate_into_next(model: ir.Model, found: _Next) -> None:
    """Scale the columns of the convolutions behind instead of their input; static batch 1.

    Before: y = g x,  x: (1, C, H, W), g: (1, C, 1, 1);  z = W * y + b,  W: (O, C, kh, kw)
    After:  z = (W g) * x + b,  column c of the weights times g[c]
    Proof:  z[o] = sum_c W[o, c] * (g[c] x[c]) + b[o] = sum_c (W[o, c] g[c]) * x[c] + b[o]; zero padding
            stays zero. Depthwise (one input channel per output channel): W[c] g[c] by row.
    Needs:  batch 1 for ever: at a batch equal to O the product would broadcast without an error and be
            wrong. Constant weights, one group or depthwise, every reader of y such a convolution and y no
            graph output.
    """
    for conv in found.convs:
        gate = found.block.gate
        if conv.groups != 1:
            gate = reshape_before(model, conv.node, gate, (conv.weights.shape[0], 1, 1, 1))
        weights = put_before(conv.node, "Mul", [graph.input_of(conv.node, 1), gate])
        conv.node.replace_input_with(0, found.block.data)
        conv.node.replace_input_with(1, weights)


def _match_batched(model: ir.Model, block: SEBlock) -> _Next | Refused:
    found = scaled(model, block)
    if isinstance(found, Refused):
        return found
    reader = graph.sole_consumer(found.y)
    if reader is None:
        return Refused("its output has several readers, or is an output of the graph")
    conv = convolution(reader, "what reads its output")
    if isinstance(conv, Refused):
        return conv
    if conv.x is not found.y or not conv.is_pointwise or conv.groups != 1:
        return Refused(f"Conv '{conv.node.name}' behind it is no 1x1 convolution of one group")
    return _Next(block.output, found, (conv,))


@rewrite(
    name="gate-into-next-batched",
    idea="gate into the next 1x1 convolution as a product per image",
    where=every_block,
    match=_match_batched,
    after=("gate-into-next",),
    tried=Tried(forms=(("squeeze-average-pool",),)),
    run_time_weights=True,
)
def gate_into_next_batched(model: ir.Model, found: _Next) -> None:
    """Scale the columns of the 1x1 convolution behind, one set of weights per image: a batched product.

    Before: y = g x,  x: (N, C, H, W), g: (N, C, 1, 1);  z = W y + b,  W: (O, C, 1, 1)
    After:  z = x' M + b in the NHWC view,  x': (N, H, W, C),  M[n] = diag(g[n]) W^T: (N, 1, C, O)
    Proof:  z[n, o, p] = sum_c W[o, c] g[n, c] x[n, c, p] + b[o] = sum_c x'[n, p, c] M[n, c, o] + b[o] at
            every position p; each image multiplies its own M[n], so any batch is right.
    Needs:  kernel 1x1, stride 1, no padding, one group, constant weights; y read by nothing else and no
            graph output.
    """
    (conv,) = found.convs
    anchor, name = conv.node, conv.y.name
    channels = int(conv.weights.shape[1])
    columns = np.ascontiguousarray(conv.weights[:, :, 0, 0].T)[None]
    gate = reshape_before(model, anchor, found.block.gate, (0, channels, 1))
    product = put_before(anchor, "Mul", [graph.initializer(model, f"{name}/columns", columns), gate])
    per_image = reshape_before(model, anchor, product, (0, 1, channels, columns.shape[2]))
    nhwc = put_before(anchor, "Transpose", [found.block.data], perm=[0, 2, 3, 1])
    z = put_before(anchor, "MatMul", [nhwc, per_image])
    if conv.bias is not None:
        z = put_before(anchor, "Add", [z, graph.input_of(anchor, 2)])
    graph.replace(conv.y, put_before(anchor, "Transpose", [z], perm=[0, 3, 1, 2]))
