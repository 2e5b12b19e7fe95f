"""Fold pixels into channels in front of the first convolution.

An image has 3 channels; tensor cores want a multiple of 4, so a compiler pads the largest map of the network
with zeros. Folding 2 x 2 pixels into 12 channels needs no padding: a quarter less to write and to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.convolution import Conv, convolution
from se_deploy.passes.editing import put_before
from se_deploy.passes.registry import Refused, Tried, every, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array

_BLOCK = 2
_PADDED_TO = 4  # channels that a compiler pads an image to


@dataclass(frozen=True, slots=True)
class _Stem:
    site: str
    conv: Conv
    size: tuple[int, int]  # H, W of the image, even
    out: tuple[int, int]  # H, W of the convolution's output

    @property
    def shape(self) -> tuple[object, ...]:
        """The weights'."""
        return self.conv.weights.shape


def _match(model: ir.Model, node: ir.Node) -> _Stem | Refused:  # noqa: ARG001 - one signature
    conv = convolution(node)
    if isinstance(conv, Refused):
        return conv
    shape, out = graph.dims(conv.x), graph.dims(conv.y)
    if shape is None or out is None or None in {*shape[2:], *out[2:]}:
        return Refused("height and width are free")
    height, width, out_height, out_width = (int(d or 0) for d in (*shape[2:], *out[2:]))
    if conv.weights.shape[1] >= _PADDED_TO or conv.groups != 1:
        return Refused(f"it reads {_PADDED_TO} channels or more, or several groups")
    if height % _BLOCK or width % _BLOCK:
        return Refused("height or width is odd")
    if conv.strides != (_BLOCK, _BLOCK) or conv.dilations != (1, 1) or max(conv.kernel) == 1:
        return Refused("its stride is not 2, or it has a dilation or a 1x1 kernel")
    return _Stem(str(conv.y.name), conv, (height, width), (out_height, out_width))


@rewrite(
    name="stem-space-to-depth",
    idea="pixels folded into channels before the stem",
    where=every("Conv"),
    match=_match,
    after=("hoist-squeeze-kxk", "pointwise-as-convolution"),
    tried=Tried(turn=8),
)
def stem_space_to_depth(model: ir.Model, found: _Stem) -> None:
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
    conv = found.conv
    (height, width), (rows, columns) = found.size, found.out
    weights, top, bottom = _fold(conv.weights, 2, conv.pads[0], height // _BLOCK, rows)
    weights, left, right = _fold(weights, 3, conv.pads[1], width // _BLOCK, columns)
    folded = put_before(conv.node, "SpaceToDepth", [conv.x], blocksize=_BLOCK)
    taken = graph.initializer(model, f"{found.site}/folded", _to_depth(weights))
    inputs = [v for v in (folded, taken, *conv.node.inputs[2:]) if v is not None]
    graph.replace(conv.y, put_before(conv.node, "Conv", inputs, pads=[top, left, bottom, right]))


def _fold(weights: Array, axis: int, pad: int, blocks: int, outputs: int) -> tuple[Array, int, int]:
    """A kernel axis of k taps as (taps', 2), with the padding before and behind.

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
