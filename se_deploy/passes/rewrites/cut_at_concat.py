"""Cut a convolution at the borders of the concatenation that it reads, so that no map is copied into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.convolution import Conv, convolution
from se_deploy.passes.editing import put_before
from se_deploy.passes.parts import MAP_RANK
from se_deploy.passes.registry import Refused, Tried, every, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array


@dataclass(frozen=True, slots=True)
class _Concat:
    """A concatenation along channels of known numbers, and the convolutions that read it."""

    site: str
    inputs: tuple[ir.Value, ...]
    cuts: Array  # where along the channels each part but the first begins
    convs: tuple[Conv, ...]

    @property
    def shape(self) -> tuple[object, ...]:
        """The parts', and each convolution's weights and strides."""
        return (
            *(graph.dims(v) for v in self.inputs),
            *((c.weights.shape, c.strides) for c in self.convs),
        )


def _concat(node: ir.Node, site: str, convs: tuple[Conv, ...]) -> _Concat | Refused:
    inputs = tuple(graph.input_of(node, i) for i in range(len(node.inputs)))
    channels = []
    for value in inputs:
        shape = graph.dims(value)
        if shape is None or len(shape) != MAP_RANK or shape[1] is None:
            return Refused("a part is no map (N, C, H, W) with a known number of channels")
        channels.append(shape[1])
    if graph.attribute(node, "axis") != 1:
        return Refused("it does not join parts along the channels")
    return _Concat(site, inputs, np.cumsum(channels)[:-1], convs)


def _match_sum(model: ir.Model, node: ir.Node) -> _Concat | Refused:  # noqa: ARG001 - one signature
    y = node.outputs[0]
    if y.is_graph_output():
        return Refused("what it writes is an output of the graph")
    convs = []
    for use in y.uses():
        conv = convolution(use.node, "a reader of it")
        if isinstance(conv, Refused):
            return conv
        if conv.groups != 1 or conv.x is not y:
            return Refused(f"Conv '{conv.node.name}' that reads it has groups")
        convs.append(conv)
    return _concat(node, str(y.name), tuple(convs)) if convs else Refused("nothing reads it")


@rewrite(
    name="concat-as-sum",
    idea="convolve a concatenation part by part",
    where=every("Concat"),
    match=_match_sum,
    after=("concat-behind-depthwise",),
    tried=Tried(turn=4),
)
def concat_as_sum(model: ir.Model, found: _Concat) -> None:
    """Convolve the parts of a concatenation and add, instead of concatenating first.

    Before: z = W * concat(x1, ..., xk) + b
    After:  z = (W1 * x1 + b) + W2 * x2 + ... + Wk * xk,  W cut along its input channels
    Proof:  a convolution is a sum over input channels; cut the sum at the borders of the parts.
    Needs:  concatenation along channels of known numbers, read only by convolutions with one group and
            constant weights, and no graph output. Any kernel, stride and padding.
    """
    for conv in found.convs:
        attributes = {name: attr.value for name, attr in conv.node.attributes.items()}
        parts = np.split(conv.weights, found.cuts, axis=1)
        total = None
        for i, (x, weights) in enumerate(zip(found.inputs, parts, strict=True)):
            given = [x, graph.initializer(model, f"{conv.y.name}/part{i}", weights)]
            given += [v for v in conv.node.inputs[2:] if v is not None and i == 0]
            term = put_before(conv.node, "Conv", given, **attributes)
            total = term if total is None else put_before(conv.node, "Add", [total, term])
        if total is not None:
            graph.replace(conv.y, total)


def _match_depthwise(model: ir.Model, node: ir.Node) -> _Concat | Refused:  # noqa: ARG001 - one signature
    conv = convolution(node)
    if isinstance(conv, Refused):
        return conv
    source = conv.x.producer()
    if not conv.is_depthwise or source is None or source.op_type != "Concat":
        return Refused("it is no depthwise convolution of a concatenation")
    if graph.sole_consumer(conv.x) is not node:
        return Refused("something else reads the concatenation too")
    return _concat(source, str(conv.y.name), (conv,))


@rewrite(
    name="concat-behind-depthwise",
    idea="concatenate behind the depthwise convolution",
    where=every("Conv"),
    match=_match_depthwise,
    tried=Tried(turn=2),
)
def concat_behind_depthwise(model: ir.Model, found: _Concat) -> None:
    """Concatenate behind a depthwise convolution, where a stride has made the maps smaller.

    Before: y = depthwise(concat(x1, ..., xk); W, b)
    After:  y = concat(depthwise(x1; W1, b1), ..., depthwise(xk; Wk, bk)),  W and b cut along channels
    Proof:  a depthwise convolution computes each channel from that channel alone.
    Needs:  concatenation along channels of known numbers, read by the depthwise convolution only (one
            output per channel, constant weights), and no graph output.
    """
    (conv,) = found.convs
    weights = np.split(conv.weights, found.cuts)
    biases = [None] * len(weights) if conv.bias is None else np.split(conv.bias, found.cuts)
    parts = []
    for i, (x, w, b) in enumerate(zip(found.inputs, weights, biases, strict=True)):
        given = [x, graph.initializer(model, f"{found.site}/part{i}", w)]
        given += [] if b is None else [graph.initializer(model, f"{found.site}/bias{i}", b)]
        attributes = {name: attr.value for name, attr in conv.node.attributes.items()}
        parts.append(put_before(conv.node, "Conv", given, **{**attributes, "group": len(w)}))
    graph.replace(conv.y, put_before(conv.node, "Concat", parts, axis=1))
