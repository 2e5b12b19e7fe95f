"""Spell the last fully connected layer as a product and a sum, which merge with what follows.

TensorRT-RTX launches a 1x1 convolution on a 1x1 map as a kernel of its own; a product and a sum over a
dimension of a few dozen are pointwise to it and join the gate and the product with weights or map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.convolution import Conv, convolution
from se_deploy.passes.editing import put_before, reduce_before, reshape_before
from se_deploy.passes.parts import parts
from se_deploy.passes.registry import Refused, Tried, every_block, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

_LARGEST = 64  # hidden units; beyond it the sum is a kernel of its own again and its arithmetic grows


@dataclass(frozen=True, slots=True)
class _LastLayer:
    site: str
    fc2: Conv

    @property
    def shape(self) -> tuple[object, ...]:
        """(C, R, 1, 1)."""
        return self.fc2.weights.shape


def _match(model: ir.Model, block: SEBlock) -> _LastLayer | Refused:
    found = parts(model, block)
    if isinstance(found, Refused):
        return found
    if found.scale is not None:
        return Refused("its gate multiplies a map, not weights: the sum would be computed again per pixel")
    if len(found.layers) < 2:  # noqa: PLR2004 - one: the first
        return Refused("it has one learned layer only")
    fc2 = convolution(found.layers[-1], "its last layer")
    if isinstance(fc2, Refused):
        return fc2
    shape = graph.dims(fc2.x)
    if fc2.groups != 1 or not fc2.is_pointwise or shape is None or shape[2:] != (1, 1):
        return Refused(f"its last layer '{fc2.node.name}' is no 1x1 convolution of one group on one pixel")
    if fc2.weights.shape[1] > _LARGEST:
        return Refused(f"its {fc2.weights.shape[1]} hidden units are more than {_LARGEST}")
    return _LastLayer(block.output, fc2)


@rewrite(
    name="excite-as-sum",
    idea="last layer as a sum that merges with the gate",
    where=every_block,
    match=_match,
    after=("gate-into-previous", "gate-into-next", "gate-into-next-batched", "gated-add-as-concat"),
    tried=Tried(
        forms=(
            ("squeeze-average-pool", "gate-into-next"),
            ("squeeze-average-pool", "gate-into-next-batched"),
        )
    ),
)
def excite_as_sum(model: ir.Model, found: _LastLayer) -> None:
    """Write the matrix product out as a broadcast product and a sum.

    Before: e = W2 a + b2,  a: (N, R, 1, 1), W2: (C, R, 1, 1)
    After:  e = sum_r (a' * W2')[n, c, r] + b2,  a': (N, 1, R), W2': (1, C, R), back to (N, C, 1, 1)
    Proof:  the definition of the matrix product.
    Needs:  a map of 1x1, kernel 1x1, one group, constant weights. Offered only where the gate multiplies
            weights, not a map, and for at most 64 hidden units: the sum is computed again for each element
            that it is merged with, R operations for each of the O x C weights, which the convolution
            multiplies H x W times anyway.
    """
    fc2 = found.fc2
    channels, hidden = fc2.weights.shape[:2]
    name = fc2.y.name
    rows = graph.initializer(model, f"{name}/rows", fc2.weights[None, :, :, 0, 0])
    units = reshape_before(model, fc2.node, fc2.x, (0, 1, hidden))
    product = put_before(fc2.node, "Mul", [units, rows])
    summed = reduce_before(model, fc2.node, "ReduceSum", product, (2,))
    if fc2.bias is not None:
        column = graph.initializer(model, f"{name}/bias", np.reshape(fc2.bias, (1, -1, 1)))
        summed = put_before(fc2.node, "Add", [summed, column])
    graph.replace(fc2.y, reshape_before(model, fc2.node, summed, (0, channels, 1, 1)))
