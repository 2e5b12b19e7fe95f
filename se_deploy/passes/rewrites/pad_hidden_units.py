"""Give a block an even number of hidden units.

In FP16 TensorRT-RTX reads channels in pairs: a layer with an odd number of inputs (above 4) gets a kernel of
its own that pads them, one per block, and the verdict is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.rewrites import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

NAME = "even-hidden-units"

_READ_AS_THEY_ARE = 4  # hidden units, up to which the compiler takes an odd number


@dataclass(frozen=True, slots=True)
class _Odd:
    fc1: base.Conv
    fc2: base.Conv
    between: tuple[ir.Value, ...]  # everything from fc1 to fc2, (N, R, 1, 1)


def sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks with an odd number of hidden units."""
    return tuple(
        base.Site(NAME, block.output, (block.output,), block)
        for block in blocks
        if _odd(model, block) is not None
    )


def _odd(model: ir.Model, block: SEBlock) -> _Odd | None:
    layers = base.bottleneck(base.parts(model, block))
    if layers is None:
        return None
    fc1, fc2 = layers
    hidden = len(fc1.weights)
    if hidden % 2 == 0 or hidden <= _READ_AS_THEY_ARE:
        return None
    between = _between(fc1.y, fc2.x)
    return None if between is None else _Odd(fc1, fc2, between)


def _between(first: ir.Value, last: ir.Value) -> tuple[ir.Value, ...] | None:
    """Give the tensors of an elementwise function of one tensor and of scalars; None for anything else."""
    known, front = [first], [first]
    while front:
        value = front.pop()
        if value is last:
            continue
        for use in value.uses():
            others = [v for v in use.node.inputs if v is not None and v not in known]
            if use.node.op_type not in _ELEMENTWISE or any(graph.scalar(v) is None for v in others):
                return None
            if use.node.outputs[0] not in known:
                known.append(use.node.outputs[0])
                front.append(use.node.outputs[0])
    # What reads the last one must be fc2 alone.
    return tuple(known) if last in known and graph.sole_consumer(last) is not None else None


_ELEMENTWISE = frozenset({
    "Add", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mish",
    "Mul", "Relu", "Sigmoid", "Softplus", "Tanh",
})  # fmt: skip


def apply(model: ir.Model, site: base.Site) -> int:
    """Add one hidden unit that nothing reads.

    Before: e = W2 act(W1 s + b1) + b2,  W1: (R, C, 1, 1), W2: (C, R, 1, 1), R odd
    After:  the same with R + 1 units, row R of W1 and of b1 and column R of W2 all 0
    Proof:  act is elementwise, so units 0 to R - 1 are as before, and unit R is multiplied by 0: whatever
            finite number act(0) is, it adds nothing.
    Needs:  two 1x1 layers with constant weights and one group, between them elementwise functions of the
            hidden units and of scalars, which nothing else reads; more than 4 units.
    """
    odd = _odd(model, site.block) if site.block is not None else None
    if odd is None:
        return 0
    fc1, fc2, name = odd.fc1, odd.fc2, site.at
    one_more = ((0, 1), (0, 0), (0, 0), (0, 0))
    fc1.node.replace_input_with(1, graph.initializer(model, f"{name}/even1", np.pad(fc1.weights, one_more)))
    if fc1.bias is not None:
        bias = graph.initializer(model, f"{name}/even_bias", np.pad(fc1.bias, (0, 1)))
        fc1.node.replace_input_with(2, bias)
    columns = ((0, 0), (0, 1), (0, 0), (0, 0))
    fc2.node.replace_input_with(1, graph.initializer(model, f"{name}/even2", np.pad(fc2.weights, columns)))
    for value in odd.between:
        value.shape = None  # holds R; inferred again
    return 1
