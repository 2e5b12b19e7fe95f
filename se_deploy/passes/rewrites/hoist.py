"""Squeeze before the convolution instead of behind it: the mean of a linear map is the map of the mean.

The squeeze then reads the convolution's input, a quarter of the channels in a bottleneck, the convolution
folds into the first fully connected layer, and the gate no longer waits for the convolution.
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

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock

POINTWISE = "hoist-squeeze-1x1"
SAME_PADDED = "hoist-squeeze-kxk"

_ODD = 1


@dataclass(frozen=True, slots=True)
class _Hoist:
    """Everything that the move needs: pool(conv(u)) -> fc1."""

    conv: base.Conv
    fc1: base.Conv
    squeezed: ir.Value


def pointwise_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks whose squeeze reads a linear 1x1 convolution."""
    return _sites(POINTWISE, model, blocks)


def same_padded_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the blocks whose squeeze reads a linear k x k convolution with the same padding."""
    return _sites(SAME_PADDED, model, blocks)


def pointwise(model: ir.Model, site: base.Site) -> int:
    """Squeeze the input of a linear 1x1 convolution.

    Before: x = W3 u + b3;  s = mean(x): (N, C, 1, 1);  h = W1 s + b1
    After:  s' = mean(u): (N, C_in, 1, 1);  h = (W1 W3) s' + (W1 b3 + b1)
    Proof:  x[o, p] = sum_i W3[o, i] u[i, p] + b3[o] at every position p, the mean over p is linear, so
            mean(x) = W3 mean(u) + b3, and W1 mean(x) + b1 = (W1 W3) mean(u) + (W1 b3 + b1).
            A grouped W3 is the block-diagonal matrix that it stands for. Products in float64.
    Needs:  kernel 1x1, stride 1, no padding (each position is met once), constant weights, nothing between
            it, the pool and fc1, fc1 1x1 with one group and the squeeze's only reader. Any batch.
    """
    return _apply(model, site, POINTWISE)


def same_padded(model: ir.Model, site: base.Site) -> int:
    """Squeeze the input of a linear k x k convolution, k odd, as k x k shifted means.

    Before: x = conv(u; W: (C, C_in, k, k), zero padding k // 2) + b;  s = mean(x);  h = W1 s + b1
    After:  P = AveragePool(u, kernel_shape = (H, W), pads k // 2, count_include_pad = 1): (N, C_in, k, k)
            h = conv(P; W': (R, C_in, k, k), no padding) + (W1 b + b1),  W'[r, i] = sum_c W1[r, c] W[c, i]
    Proof:  with zeros outside the map, x[c, p] = sum_i,d W[c, i, d] u[i, p + d - k // 2] + b[c]. The mean
            over p of u[i, p + d - k // 2] is the mean of the H x W window of the padded map that starts at
            d, divided by H * W with its zeros counted: P[i, d]. So mean(x)[c] = sum_i,d W[c, i, d] P[i, d]
            + b[c], and fc1 applied to it is the k x k convolution above, which fits into P exactly once.
    Needs:  k odd and larger than 1, stride 1, dilation 1, zero padding k // 2 on all sides, H and W known,
            k // 2 < min(H, W) (ONNX Runtime refuses such a pooling), and what `pointwise` needs of fc1.
            Depthwise and grouped convolutions too.
    """
    return _apply(model, site, SAME_PADDED)


def _match(model: ir.Model, block: SEBlock, name: str) -> _Hoist | None:
    found = base.parts(model, block)
    pool = found.squeezed.producer() if found is not None else None
    if found is None or pool is None or pool.op_type != "GlobalAveragePool":
        return None
    conv = base.conv(found.read.producer())
    fc1 = base.conv(graph.sole_consumer(found.squeezed))
    if conv is None or fc1 is None or fc1.groups != 1 or not fc1.is_pointwise:
        return None
    fits = conv.is_pointwise if name == POINTWISE else _is_same_padded(conv)
    return _Hoist(conv, fc1, found.squeezed) if fits else None


def _is_same_padded(conv: base.Conv) -> bool:
    k, shape = conv.kernel, graph.dims(conv.x)
    if shape is None or shape[2] is None or shape[3] is None:
        return False
    return (
        k[0] == k[1] > 1
        and k[0] % 2 == _ODD
        and conv.strides == conv.dilations == (1, 1)
        and conv.pads == (k[0] // 2,) * 4
        and k[0] // 2 < min(shape[2], shape[3])
    )


def _sites(name: str, model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    found = []
    for block in blocks:
        if (hoist := _match(model, block, name)) is not None:
            shape = (*hoist.conv.weights.shape, hoist.conv.groups, *(graph.dims(hoist.conv.x) or ())[2:])
            found.append(base.Site(name, block.output, shape, block))
    return tuple(found)


def _apply(model: ir.Model, site: base.Site, name: str) -> int:
    hoist = _match(model, site.block, name) if site.block is not None else None
    if hoist is None:
        return 0
    conv, fc1, shape = hoist.conv, hoist.fc1, graph.dims(hoist.conv.x)
    weights, bias = _folded(fc1, conv)
    if name == POINTWISE:
        squeezed = base.put_before(fc1.node, "GlobalAveragePool", [conv.x])
    else:
        squeezed = base.put_before(
            fc1.node,
            "AveragePool",
            [conv.x],
            kernel_shape=list(shape[2:]) if shape else [],
            pads=list(conv.pads),
            count_include_pad=1,
        )
    inputs = [
        squeezed,
        graph.initializer(model, f"{fc1.y.name}/hoisted_weights", weights),
        graph.initializer(model, f"{fc1.y.name}/hoisted_bias", bias),
    ]
    y = base.put_before(fc1.node, "Conv", inputs, kernel_shape=list(weights.shape[2:]))
    graph.replace(fc1.y, y)
    return 1


def _folded(fc1: base.Conv, conv: base.Conv) -> tuple[Array, Array]:
    """Give W1 W (R, C_in, k, k) and W1 b + b1 (R,), summed in float64, group by group."""
    w1 = fc1.weights[:, :, 0, 0].astype(np.float64)
    w = conv.weights.astype(np.float64)
    per_group = np.split(w, conv.groups)
    columns = np.split(w1, conv.groups, axis=1)
    weights = np.concatenate(
        [np.einsum("rc,cikl->rikl", c, g) for c, g in zip(columns, per_group, strict=True)], axis=1
    )
    bias = np.zeros(len(w1)) if fc1.bias is None else fc1.bias.astype(np.float64)
    if conv.bias is not None:
        bias = bias + w1 @ conv.bias.astype(np.float64)
    return weights.astype(fc1.weights.dtype), bias.astype(fc1.weights.dtype)
