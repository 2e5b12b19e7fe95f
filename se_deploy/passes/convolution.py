"""A convolution as rewrites read it: constant weights, and its attributes filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from se_deploy import graph
from se_deploy.errors import counted
from se_deploy.passes.parts import MAP_RANK, Parts, parts
from se_deploy.passes.registry import Refused

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock

_LAYERS_OF_A_BOTTLENECK = 2  # squeeze and excite


@dataclass(frozen=True, slots=True)
class Conv:
    """A 2-D convolution with constant weights (O, I / groups, kh, kw)."""

    node: ir.Node
    weights: Array
    bias: Array | None
    groups: int
    strides: tuple[int, ...]
    pads: tuple[int, ...]  # top, left, bottom, right
    dilations: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return (int(self.weights.shape[2]), int(self.weights.shape[3]))

    @property
    def is_pointwise(self) -> bool:
        """Whether it is 1 x 1 with stride 1 and no padding."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and self.pads == (0, 0, 0, 0)

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel is computed from one input channel of its own."""
        outputs, inputs_per_group = (int(n) for n in self.weights.shape[:2])
        return self.groups == outputs and inputs_per_group == 1

    @property
    def x(self) -> ir.Value:
        """What it reads."""
        return graph.input_of(self.node, 0)

    @property
    def y(self) -> ir.Value:
        """What it writes."""
        return self.node.outputs[0]


def convolution(node: ir.Node | None, role: str = "it") -> Conv | Refused:
    """Read a 2-D convolution; `role` is what a refusal calls it.

    Refused: anything else, computed (or quantized) weights, auto_pad.
    """
    if node is None:
        return Refused(f"{role} is no convolution")
    if node.op_type != "Conv" or node.domain:
        return Refused(f"{role} is {node.op_type} '{node.name}', not a convolution")
    weights = graph.constant(node.inputs[1])
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None  # noqa: PLR2004 - Conv(X, W, B)
    bias = graph.constant(node.inputs[2]) if has_bias else None
    if weights is None or (has_bias and bias is None):
        return Refused(f"{role}, Conv '{node.name}', has weights that are computed in the graph")
    if weights.ndim != MAP_RANK:
        return Refused(f"{role}, Conv '{node.name}', is not 2-D")
    if graph.attribute(node, "auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return Refused(f"{role}, Conv '{node.name}', pads by auto_pad: simplify the graph first")
    groups = cast("int", graph.attribute(node, "group", 1))
    return Conv(
        node,
        weights,
        bias,
        groups,
        graph.ints(node, "strides", (1, 1)),
        graph.ints(node, "pads", (0, 0, 0, 0)),
        graph.ints(node, "dilations", (1, 1)),
    )


def attributes_of(conv: Conv) -> dict[str, object]:
    """The attributes of a new convolution that is like `conv`."""
    return {
        "kernel_shape": list(conv.kernel),
        "group": conv.groups,
        "strides": list(conv.strides),
        "pads": list(conv.pads),
        "dilations": list(conv.dilations),
    }


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The two 1x1 layers of squeeze and excite: fc1 (R, C, 1, 1), fc2 (C, R, 1, 1), of one group each."""

    parts: Parts
    fc1: Conv
    fc2: Conv


def bottleneck(model: ir.Model, block: SEBlock) -> Bottleneck | Refused:
    """The two layers of a block; Refused for a block with others."""
    found = parts(model, block)
    if isinstance(found, Refused):
        return found
    if len(found.layers) != _LAYERS_OF_A_BOTTLENECK:
        return Refused(f"it has {counted(len(found.layers), 'learned layer')}, not squeeze and excite")
    fc1, fc2 = (convolution(layer, "a learned layer") for layer in found.layers)
    if isinstance(fc1, Refused):
        return fc1
    if isinstance(fc2, Refused):
        return fc2
    for layer in (fc1, fc2):
        if not layer.is_pointwise or layer.groups != 1:
            return Refused(f"its layer '{layer.node.name}' is no 1x1 convolution of one group")
    return Bottleneck(found, fc1, fc2)
