"""Move the gate into the weights of the convolution that it scales.

A convolution is linear in its weights, so scaling its output channels is scaling its weights, which are a
hundred times smaller than the map. The product of gate and weights is computed per image: a run-time weight,
which only some compilers like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.passes.convolution import Conv, attributes_of, convolution
from se_deploy.passes.editing import declare, put_before, reshape_before
from se_deploy.passes.parts import Scaled, scaled, static_batch_1
from se_deploy.passes.registry import Refused, Tried, every_block, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock


@dataclass(frozen=True, slots=True)
class Gated:
    """y = g (W * u + b), where the gate does not wait for the convolution."""

    site: str
    block: Scaled
    conv: Conv

    @property
    def shape(self) -> tuple[object, ...]:
        """Weights, groups, height and width."""
        return (*self.conv.weights.shape, self.conv.groups, *(graph.dims(self.conv.y) or ())[2:])


def match(model: ir.Model, block: SEBlock) -> Gated | Refused:
    """The convolution that a block scales, where its gate may be moved into the weights."""
    found = scaled(model, block)
    if isinstance(found, Refused):
        return found
    if not static_batch_1(found.data):
        return Refused("the batch is not fixed at 1, and one set of weights serves one image")
    conv = convolution(found.data.producer(), "what it scales")
    if isinstance(conv, Refused):
        return conv
    if graph.sole_consumer(conv.y) is not found.scale:
        return Refused(f"something else reads what it scales, '{conv.y.name}' (its squeeze, unless hoisted)")
    return Gated(block.output, found, conv)


@rewrite(
    name="gate-into-previous",
    idea="gate into the previous convolution's weights",
    where=every_block,
    match=match,
    after=("hoist-squeeze-1x1", "hoist-squeeze-kxk", "gate-behind-pool"),
    tried=Tried(forms=(("squeeze-average-pool", "hoist-squeeze-1x1", "hoist-squeeze-kxk"),)),
    run_time_weights=True,
)
def gate_into_previous(model: ir.Model, found: Gated) -> None:
    """Scale the rows of the convolution in front instead of its output; static batch 1.

    Before: x = W * u + b: (1, O, H, W);  y = g x,  g: (1, O, 1, 1)
    After:  y = (g W) * u + g b,  row o of the weights (O, I, kh, kw) times g[o]
    Proof:  y[o] = g[o] (sum_i W[o, i] * u[i] + b[o]) = sum_i (g[o] W[o, i]) * u[i] + g[o] b[o]; groups,
            strides, padding and dilation do not touch the output channel.
    Needs:  batch 1 for ever (one set of weights), constant weights, and the scale the convolution's only
            reader: then the gate is not computed from it (hoist the squeeze first).
    The bias is an Add of (1, O, 1, 1): as a run-time input of Conv it costs a kernel more.
    """
    conv, gate, anchor = found.conv, found.block.gate, found.block.scale
    rows = reshape_before(model, anchor, gate, (conv.weights.shape[0], 1, 1, 1))
    weights = put_before(anchor, "Mul", [graph.input_of(conv.node, 1), rows])
    declare(weights, conv.weights.shape, like=gate)
    y = put_before(anchor, "Conv", [conv.x, weights], **attributes_of(conv))
    if conv.bias is not None:
        column = graph.initializer(model, f"{found.block.y.name}/bias", conv.bias.reshape(1, -1, 1, 1))
        bias = put_before(anchor, "Mul", [gate, column])
        declare(bias, (1, conv.weights.shape[0], 1, 1), like=gate)
        y = put_before(anchor, "Add", [y, bias])
    graph.replace(found.block.y, y)
