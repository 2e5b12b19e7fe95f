"""Squeeze before the convolution instead of behind it: the mean of a linear map is the map of the mean.

The squeeze then reads the convolution's input, a quarter of the channels in a bottleneck, the convolution
folds into the first fully connected layer, and the gate no longer waits for the convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import graph
from se_deploy.passes.convolution import Conv, convolution
from se_deploy.passes.editing import put_before
from se_deploy.passes.parts import parts
from se_deploy.passes.registry import Refused, Scope, Tried, every_block, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

    from se_deploy.protocols import Array
    from se_deploy.se_blocks.types import SEBlock


@dataclass(frozen=True, slots=True)
class _Hoist:
    """Everything that the move needs: pool(conv(u)) -> fc1."""

    site: str
    conv: Conv
    fc1: Conv

    @property
    def shape(self) -> tuple[object, ...]:
        """Weights, groups, height and width."""
        return (*self.conv.weights.shape, self.conv.groups, *(graph.dims(self.conv.x) or ())[2:])

    @property
    def shrinks(self) -> bool:
        """Whether the squeeze then reads no more channels than before."""
        outputs, per_group = self.conv.weights.shape[:2]
        return bool(per_group * self.conv.groups <= outputs)


def _linear(model: ir.Model, block: SEBlock) -> _Hoist | Refused:
    """The convolution that a block squeezes and its first layer, whatever the kernel."""
    found = parts(model, block)
    if isinstance(found, Refused):
        return found
    pool = found.squeezed.producer()
    if pool is None or pool.op_type != "GlobalAveragePool":
        return Refused("its squeeze has another spelling than GlobalAveragePool already", taken=True)
    conv = convolution(found.read.producer(), "what it squeezes")
    if isinstance(conv, Refused):
        return conv
    reader = graph.sole_consumer(found.squeezed)
    if reader is None:
        return Refused("its squeeze has several readers")
    fc1 = convolution(reader, "its first layer")
    if isinstance(fc1, Refused):
        return fc1
    if fc1.groups != 1 or not fc1.is_pointwise:
        return Refused(f"its first layer '{fc1.node.name}' is no 1x1 convolution of one group")
    if _may_overflow(fc1, conv):
        return Refused(f"the weights of '{fc1.node.name}' and '{conv.node.name}' as one might overflow")
    return _Hoist(block.output, conv, fc1)


def _may_overflow(fc1: Conv, conv: Conv) -> bool:
    """Whether a bound on the folded weights and bias is beyond their type; cheaper than folding them."""
    largest = float(np.finfo(fc1.weights.dtype).max)
    rows = float(np.abs(fc1.weights.astype(np.float64)).sum(axis=(1, 2, 3)).max())
    reach = max(float(np.abs(a).max(initial=0)) for a in (conv.weights, _bias(conv)))
    return not rows * reach + float(np.abs(_bias(fc1)).max(initial=0)) < largest  # NaN is no weight either


def _bias(conv: Conv) -> Array:
    return np.zeros(1) if conv.bias is None else conv.bias.astype(np.float64)


def _match_1x1(model: ir.Model, block: SEBlock) -> _Hoist | Refused:
    found = _linear(model, block)
    if isinstance(found, Refused) or found.conv.is_pointwise:
        return found
    return Refused(f"Conv '{found.conv.node.name}' that it squeezes is not 1x1 with stride 1 and no padding")


def _match_kxk(model: ir.Model, block: SEBlock) -> _Hoist | Refused:
    found = _linear(model, block)
    if isinstance(found, Refused):
        return found
    conv, (k, width), shape = found.conv, found.conv.kernel, graph.dims(found.conv.x)
    name = f"Conv '{conv.node.name}' that it squeezes"
    if shape is None or shape[2] is None or shape[3] is None:
        return Refused(f"{name} reads a map whose height and width are free")
    if k != width or k == 1 or k % 2 == 0:
        return Refused(f"{name} has a {k}x{width} kernel, not an odd square larger than 1x1")
    if conv.strides != (1, 1) or conv.dilations != (1, 1) or conv.pads != (k // 2,) * 4:
        return Refused(f"{name} has a stride, a dilation or another padding than {k // 2} on all sides")
    if k // 2 >= min(shape[2], shape[3]):
        return Refused(f"{name} pads by as much as its map of {shape[2]}x{shape[3]} measures")
    return found


@rewrite(
    name="hoist-squeeze-1x1",
    idea="squeeze before the linear 1x1 convolution",
    where=every_block,
    match=_match_1x1,
    after=("concat-as-sum", "partial-add-as-pad"),
    scope=Scope.LESS_WORK,
    tried=Tried(forms=(("hoist-squeeze-kxk",), ("squeeze-average-pool", "hoist-squeeze-kxk"))),
    pays_unplanned=lambda found: found.shrinks,
)
def hoist_squeeze_1x1(model: ir.Model, found: _Hoist) -> None:
    """Squeeze the input of a linear 1x1 convolution.

    Before: x = W3 u + b3;  s = mean(x): (N, C, 1, 1);  h = W1 s + b1
    After:  s' = mean(u): (N, C_in, 1, 1);  h = (W1 W3) s' + (W1 b3 + b1)
    Proof:  x[o, p] = sum_i W3[o, i] u[i, p] + b3[o] at every position p, the mean over p is linear, so
            mean(x) = W3 mean(u) + b3, and W1 mean(x) + b1 = (W1 W3) mean(u) + (W1 b3 + b1).
            A grouped W3 is the block-diagonal matrix that it stands for. Products in float64.
    Needs:  kernel 1x1, stride 1, no padding (each position is met once), constant weights, nothing between
            it, the pool and fc1, fc1 1x1 with one group and the squeeze's only reader. Any batch.
    """
    squeezed = put_before(found.fc1.node, "GlobalAveragePool", [found.conv.x])
    _convolve(model, found, squeezed)


@rewrite(
    name="hoist-squeeze-kxk",
    idea="squeeze before the linear k x k convolution",
    where=every_block,
    match=_match_kxk,
    after=("hoist-squeeze-1x1",),
    tried=Tried(),  # in the forms of the 1x1 kernel: one convolution has one kernel
)
def hoist_squeeze_kxk(model: ir.Model, found: _Hoist) -> None:
    """Squeeze the input of a linear k x k convolution, k odd, as k x k shifted means.

    Before: x = conv(u; W: (C, C_in, k, k), zero padding k // 2) + b;  s = mean(x);  h = W1 s + b1
    After:  P = AveragePool(u, kernel_shape = (H, W), pads k // 2, count_include_pad = 1): (N, C_in, k, k)
            h = conv(P; W': (R, C_in, k, k), no padding) + (W1 b + b1),  W'[r, i] = sum_c W1[r, c] W[c, i]
    Proof:  with zeros outside the map, x[c, p] = sum_i,d W[c, i, d] u[i, p + d - k // 2] + b[c]. The mean
            over p of u[i, p + d - k // 2] is the mean of the H x W window of the padded map that starts at
            d, divided by H * W with its zeros counted: P[i, d]. So mean(x)[c] = sum_i,d W[c, i, d] P[i, d]
            + b[c], and fc1 applied to it is the k x k convolution above, which fits into P exactly once.
    Needs:  k odd and larger than 1, stride 1, dilation 1, zero padding k // 2 on all sides, H and W known,
            k // 2 < min(H, W) (ONNX Runtime refuses such a pooling), and of fc1 what
            `hoist_squeeze_1x1` needs. Depthwise and grouped convolutions too.
    """
    conv, shape = found.conv, graph.dims(found.conv.x) or ()
    squeezed = put_before(
        found.fc1.node,
        "AveragePool",
        [conv.x],
        kernel_shape=list(shape[2:]),
        pads=list(conv.pads),
        count_include_pad=1,
    )
    _convolve(model, found, squeezed)


def _convolve(model: ir.Model, found: _Hoist, squeezed: ir.Value) -> None:
    """Put the convolution and fc1, folded into one, behind the hoisted squeeze."""
    fc1 = found.fc1
    weights, bias = _folded(fc1, found.conv)
    inputs = [
        squeezed,
        graph.initializer(model, f"{fc1.y.name}/hoisted_weights", weights),
        graph.initializer(model, f"{fc1.y.name}/hoisted_bias", bias),
    ]
    graph.replace(fc1.y, put_before(fc1.node, "Conv", inputs, kernel_shape=list(weights.shape[2:])))


def _folded(fc1: Conv, conv: Conv) -> tuple[Array, Array]:
    """W1 W (R, C_in, k, k) and W1 b + b1 (R,), summed in float64, group by group."""
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
