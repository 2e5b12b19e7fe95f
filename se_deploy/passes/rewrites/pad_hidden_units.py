"""Pad a block to an even number of hidden units.

In FP16 TensorRT-RTX reads channels in pairs: a layer with an odd number of inputs (above 4) gets a kernel of
its own that pads them, one per block, and the verdict is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.convolution import Conv, bottleneck
from se_deploy.passes.registry import Refused, Tried, every_block, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

_READ_AS_THEY_ARE = 4  # hidden units, up to which the compiler takes an odd number


@dataclass(frozen=True, slots=True)
class _Odd:
    site: str
    fc1: Conv
    fc2: Conv
    between: tuple[ir.Value, ...]  # everything from fc1 to fc2, (N, R, 1, 1)

    @property
    def shape(self) -> tuple[object, ...]:
        """Its weights are a block's own: no two are alike."""
        return (self.site,)


def _match(model: ir.Model, block: SEBlock) -> _Odd | Refused:
    layers = bottleneck(model, block)
    if isinstance(layers, Refused):
        return layers
    hidden = len(layers.fc1.weights)
    if hidden % 2 == 0:
        return Refused(f"its {hidden} hidden units are an even number")
    if hidden <= _READ_AS_THEY_ARE:
        return Refused(f"its {hidden} hidden units are few enough to be read as they are")
    between = _between(layers.fc1.y, layers.fc2.x)
    if between is None:
        return Refused("between its layers is more than an elementwise function that nothing else reads")
    return _Odd(block.output, layers.fc1, layers.fc2, between)


def _between(first: ir.Value, last: ir.Value) -> tuple[ir.Value, ...] | None:
    """The tensors of an elementwise function of one tensor and of scalars; None for anything else."""
    known, front = [first], [first]
    while front:
        value = front.pop()
        if value is last:
            continue
        for use in value.uses():
            others = [v for v in use.node.inputs if v is not None and v not in known]
            if use.node.op_type not in _ELEMENTWISE or any(graph.scalar(v) is None for v in others):
                return None
            if use.node.op_type == "Div" and graph.constant(use.node.inputs[1]) is None:
                return None  # the unit that is added might divide by 0
            if use.node.outputs[0] not in known:
                known.append(use.node.outputs[0])
                front.append(use.node.outputs[0])
    # What reads the last one must be fc2 alone.
    return tuple(known) if last in known and graph.sole_consumer(last) is not None else None


_ELEMENTWISE = frozenset({
    "Add", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mish",
    "Mul", "Relu", "Sigmoid", "Softplus", "Tanh",
})  # fmt: skip


@rewrite(
    name="even-hidden-units",
    idea="pad the hidden units to an even number",
    where=every_block,
    match=_match,
    after=("dead-hidden-units",),
    tried=Tried(first=True),
)
def pad_hidden_units(model: ir.Model, found: _Odd) -> None:
    """Add one hidden unit that nothing reads.

    Before: e = W2 act(W1 s + b1) + b2,  W1: (R, C, 1, 1), W2: (C, R, 1, 1), R odd
    After:  the same with R + 1 units, row R of W1 and of b1 and column R of W2 all 0
    Proof:  act is elementwise, so units 0 to R - 1 are as before, and unit R is multiplied by 0: whatever
            finite number act(0) is, it adds nothing.
    Needs:  two 1x1 layers with constant weights and one group, between them elementwise functions of the
            hidden units and of scalars, which nothing else reads and which divide by scalars only; more
            than 4 units.
    """
    fc1, fc2, name = found.fc1, found.fc2, found.site
    one_more = ((0, 1), (0, 0), (0, 0), (0, 0))
    fc1.node.replace_input_with(1, graph.initializer(model, f"{name}/even1", np.pad(fc1.weights, one_more)))
    if fc1.bias is not None:
        bias = graph.initializer(model, f"{name}/even_bias", np.pad(fc1.bias, (0, 1)))
        fc1.node.replace_input_with(2, bias)
    columns = ((0, 0), (0, 1), (0, 0), (0, 0))
    fc2.node.replace_input_with(1, graph.initializer(model, f"{name}/even2", np.pad(fc2.weights, columns)))
    for value in found.between:
        value.shape = None  # holds R; inferred again
