"""Where in a canonical graph a block's hidden units and gates are, and the function between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.advice.widths import Layer
from se_deploy.passes.rewrites import prune_hidden_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.advice.widths import Function
    from se_deploy.protocols import FloatArray
    from se_deploy.se_blocks import SEBlock

_FAR = 1e4  # where every bounded gate is at its bound
_LEARNED_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Excitation:
    """A block's hidden units and what reads them."""

    hidden: str  # name of h, (N, R, 1, 1), behind the activation
    layer: Layer
    removable: tuple[int, ...]  # units that the weights alone prove idle for every input


@dataclass(frozen=True, slots=True)
class ExcitationSite:
    """A block of a canonical graph: gate = function(layer(h))."""

    block: SEBlock
    excitation: Excitation | str  # or why it is not read, in a user's words
    function: Function | None  # None where it is none of those that are known

    @property
    def top(self) -> float:
        """The most that a gate can be; its gain where the function is not known."""
        return self.block.gain if self.function is None else float(self.function(np.array([_FAR]))[0])


def locate(model: ir.Model, block: SEBlock) -> ExcitationSite:
    """Return where a block's hidden units are and its gate's function."""
    nodes = {node.name: node for node in model.graph}
    last = nodes[block.layers[-1]]
    chain = [nodes[name] for name in block.nodes]
    function = _function(chain[chain.index(last) + 1 :], block.gate_output)
    return ExcitationSite(block, _excitation(model, block, last), function)


def _excitation(model: ir.Model, block: SEBlock, last: ir.Node) -> Excitation | str:
    if len(block.layers) < _LEARNED_LAYERS or block.reduced is None:
        return "it has one learned layer: no hidden units"
    weight, hidden = graph.constant(last.inputs[1]), last.inputs[0]
    if last.op_type != "Conv" or weight is None or weight.shape[:2] != (block.channels, block.reduced):
        return "its last layer is no 1x1 convolution over all hidden units"
    if hidden is None or hidden.name is None:
        return "its hidden units have no name"
    bias = graph.constant(last.inputs[2]) if len(last.inputs) > 2 else None  # noqa: PLR2004 - x, W, B
    layer = Layer(
        weight.reshape(block.channels, -1).astype(np.float64),
        np.zeros(block.channels) if bias is None else bias.astype(np.float64),
    )
    return Excitation(hidden.name, layer, prune_hidden_units.removable(model, block))


def _function(nodes: Sequence[ir.Node], gate: str) -> Function | None:
    """Return what stands between the last layer and the gate as one function; None where that is unknown."""
    steps: list[Function] = []
    for node in nodes:
        step = _step(node)
        if step is None:
            return None
        steps.append(step)
        if node.outputs[0].name == gate:
            return lambda z: _apply(steps, z)
    return None


def _apply(steps: Sequence[Function], values: FloatArray) -> FloatArray:
    for step in steps:
        values = step(values)
    return values


def _step(node: ir.Node) -> Function | None:
    if node.op_type == "Sigmoid":
        return lambda z: 0.5 * (1 + np.tanh(z / 2))
    if node.op_type == "Tanh":
        return np.tanh
    if node.op_type == "HardSigmoid":
        alpha, beta = (_attribute(node, name, value) for name, value in (("alpha", 0.2), ("beta", 0.5)))
        return lambda z: np.clip(alpha * z + beta, 0, 1)
    if node.op_type in {"Add", "Mul"}:
        factors = [value for tensor in node.inputs if (value := graph.scalar(tensor)) is not None]
        if len(factors) == 1:
            factor = factors[0]
            return (lambda z: z + factor) if node.op_type == "Add" else (lambda z: z * factor)
    return None


def _attribute(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else found.as_float()
