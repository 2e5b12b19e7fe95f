"""Fold pixels into channels in front of the first convolution.

An image has 3 channels; tensor cores want a multiple of 4, so a compiler pads the largest map of the network
with zeros. Folding 2 x 2 pixels into 12 channels needs no padding: a quarter less to write and to read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.rewrites import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock

NAME = "stem-space-to-depth"

_BLOCK = 2
_PADDED_TO = 4  # channels that a compiler pads an image to


def sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:  # noqa: ARG001 - one signature
    """List the convolutions with stride 2 that read an image of few channels and even height and width."""
    convs = [conv for node in model.graph if (conv := base.conv(node)) is not None and _fits(conv)]
    return tuple(base.Site(NAME, str(conv.y.name), conv.weights.shape) for conv in convs)


def _fits(conv: base.Conv) -> bool:
    shape = graph.dims(conv.x)
    if shape is None or shape[2] is None or shape[3] is None or conv.weights.shape[1] >= _PADDED_TO:
        return False
    even = shape[2] % _BLOCK == 0 and shape[3] % _BLOCK == 0
    return (
        even
        and conv.groups == 1
        and conv.strides == (_BLOCK, _BLOCK)
        and conv.dilations == (1, 1)
        and max(conv.kernel) > 1
    )


def apply(model: ir.Model, site: base.Site) -> int:
    """Turn a stride-2 convolution into a stride-1 one over 2 x 2 pixels folded into channels.

    Before: y = conv(x: (N, C, H, W); W: (O, C, kh, kw), stride 2, pads (t, l, b, r)) + bias
    After:  y = conv(SpaceToDepth(x): (N, 4 C, H / 2, W / 2); W': (O, 4 C, kh', kw'), stride 1, pads') + bias
    Proof:  along one axis y[i] = sum_k W[k] x[2 i + k - t]. Write k - t = 2 a + r with r in {0, 1}: then
            x[2 (i + a) + r] is channel r of the folded map at i + a, so W'[a, r] = W[2 a + r + t] (0 where
            W has no such tap), with a from floor(-t / 2) on, which is the new padding. Zero padding of x is
            zero padding of the folded map, because H and W are even and pads reach it in whole pixels
            through taps that are 0.
    Needs:  stride 2, dilation 1, one group, constant weights, H and W known and even, fewer than 4 channels.
    """
    conv = base.conv(base.producer(model, site.at))
    shape = graph.dims(conv.x) if conv is not None else None
    out = graph.dims(conv.y) if conv is not None else None
    if conv is None or shape is None or out is None or not _fits(conv):
        return 0
    height, width = out[2], out[3]
    if height is None or width is None or shape[2] is None or shape[3] is None:
        return 0
    weights, top, bottom = _fold(conv.weights, 2, conv.pads[0], shape[2] // _BLOCK, height)
    weights, left, right = _fold(weights, 3, conv.pads[1], shape[3] // _BLOCK, width)
    folded = base.put_before(conv.node, "SpaceToDepth", [conv.x], blocksize=_BLOCK)
    taken = graph.initializer(model, f"{site.at}/folded", _to_depth(weights))
    inputs = [folded, taken, *conv.node.inputs[2:]]
    y = base.put_before(
        conv.node, "Conv", [v for v in inputs if v is not None], pads=[top, left, bottom, right]
    )
    graph.replace(conv.y, y)
    return 1


def _fold(weights: Array, axis: int, pad: int, blocks: int, outputs: int) -> tuple[Array, int, int]:
    """Split a kernel axis of k taps into (taps', 2); give it with the padding before and behind.

    The new tap a stands for the old taps 2 a + pad and 2 a + pad + 1, a from `first` to `last`.
    """
    first = -((pad + 1) // _BLOCK)
    last = max((weights.shape[axis] - 1 - pad) // _BLOCK, blocks - outputs)
    shape = list(weights.shape)
    shape[axis] = _BLOCK * (last - first + 1)
    spread = np.zeros(shape, weights.dtype)
    start = -_BLOCK * first - pad
    index = [slice(None)] * weights.ndim
    index[axis] = slice(start, start + weights.shape[axis])
    spread[tuple(index)] = weights
    return spread, -first, outputs + last - blocks


def _to_depth(weights: Array) -> Array:
    """(O, C, 2 a, 2 b) -> (O, 4 C, a, b), channels in the order of SpaceToDepth: row, column, channel."""
    o, c, height, width = weights.shape
    split = weights.reshape(o, c, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    return np.ascontiguousarray(
        split.transpose(0, 3, 5, 1, 2, 4).reshape(o, c * _BLOCK**2, height // _BLOCK, width // _BLOCK)
    )
