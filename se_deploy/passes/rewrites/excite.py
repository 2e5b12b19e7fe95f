"""Spell the last fully connected layer as a product and a sum, which merge with what follows.

TensorRT-RTX launches a 1x1 convolution on a 1x1 map as a kernel of its own; a product and a sum over a
dimension of a few dozen are pointwise to it and join the gate and the product with weights or map.
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

NAME = "excite-as-sum"

_LARGEST = 64  # hidden units; beyond it the sum is a kernel of its own again and its arithmetic grows


def sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks with a gate moved into weights and few hidden units."""
    return tuple(
        base.Site(NAME, block.output, fc2.weights.shape, block)
        for block in blocks
        if (fc2 := _last_layer(model, block)) is not None
    )


def _last_layer(model: ir.Model, block: SEBlock) -> base.Conv | None:
    found = base.parts(model, block)
    if found is None or found.scale is not None or len(found.layers) < 2:  # noqa: PLR2004 - one: the first
        return None
    fc2 = base.conv(found.layers[-1])
    if fc2 is None or fc2.groups != 1 or not fc2.is_pointwise or fc2.weights.shape[1] > _LARGEST:
        return None
    shape = graph.dims(fc2.x)
    return fc2 if shape is not None and shape[2:] == (1, 1) else None


def apply(model: ir.Model, site: base.Site) -> int:
    """Write the matrix product out as a broadcast product and a sum.

    Before: e = W2 a + b2,  a: (N, R, 1, 1), W2: (C, R, 1, 1)
    After:  e = sum_r (a' * W2')[n, c, r] + b2,  a': (N, 1, R), W2': (1, C, R), back to (N, C, 1, 1)
    Proof:  the definition of the matrix product.
    Needs:  a map of 1x1, kernel 1x1, one group, constant weights. Offered only where the gate multiplies
            weights, not a map, and for at most 64 hidden units: the sum is computed again for each element
            that it is merged with, R operations for each of the O x C weights, which the convolution
            multiplies H x W times anyway.
    """
    fc2 = _last_layer(model, site.block) if site.block is not None else None
    if fc2 is None:
        return 0
    channels, hidden = fc2.weights.shape[:2]
    name = fc2.y.name
    rows = graph.initializer(model, f"{name}/rows", fc2.weights[None, :, :, 0, 0])
    units = base.reshape_before(model, fc2.node, fc2.x, (0, 1, hidden))
    summed = base.reduce_before(model, fc2.node, "ReduceSum", _mul(fc2.node, units, rows), (2,))
    if fc2.bias is not None:
        column = graph.initializer(model, f"{name}/bias", np.reshape(fc2.bias, (1, -1, 1)))
        summed = base.put_before(fc2.node, "Add", [summed, column])
    graph.replace(fc2.y, base.reshape_before(model, fc2.node, summed, (0, channels, 1, 1)))
    return 1


def _mul(anchor: ir.Node, a: ir.Value, b: ir.Value) -> ir.Value:
    return base.put_before(anchor, "Mul", [a, b])
