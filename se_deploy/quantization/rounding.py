"""Weights to INT8, and the bias that takes back what the offset and the rounding do to the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.quantization.qdq import QuantizedLayer
from se_deploy.quantization.scales import SMALLEST_SCALE, WEIGHT_LEVELS, representable

if TYPE_CHECKING:
    from se_deploy.calibration import Statistics
    from se_deploy.protocols import Array, FloatArray
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantParams

_SHRINKS = np.linspace(1, 0.7, 9, dtype=np.float32)
"""Of the full range of the weights, tried as their range; the full one first: it wins a tie."""
_INT32_BIAS = 2.0**30
"""Half of what int32 holds: the mean error of rounding is added to the bias after the scale was chosen."""
_FP16_ROUNDING = 2.0**-10  # of a scale: at least what rounding it to FP16 may take away
_UNSEEN_IMPORTANCE = 0.01
"""Of the mean, for a channel that never moved on the data: it may not stay so, and its weights are not to be
clipped, at little cost to the others."""


@dataclass(frozen=True, slots=True)
class WeightScale:
    """The scale of a layer's weights, (G, O/G, 1, 1), all equal where it is per tensor."""

    values: FloatArray
    per_channel: bool
    raised_for_bias: bool  # above what the weights alone ask for


def round_nearest(
    layer: Layer, params: QuantParams, statistics: Statistics, *, per_channel: bool
) -> QuantizedLayer:
    """Return the layer with weights rounded to the nearest level, their range by expected output error."""
    matrix, bias = fold_into_weights(layer, params)
    groups, _, channels, taps = matrix.shape
    factor = 1.0 if params.equalization is None else params.equalization.astype(np.float64)
    power = (statistics.variance + statistics.mean**2) / factor**2
    importance = np.repeat(power.reshape(groups, 1, channels, 1), taps, axis=3)
    scale = raised_for_bias(weight_scale(matrix, importance, per_channel=per_channel), bias, params.scale)
    q = np.clip(np.round(matrix / scale.values), -WEIGHT_LEVELS, WEIGHT_LEVELS)
    offset = 0.0 if params.offset is None else params.offset.astype(np.float64)
    mean = ((statistics.mean - offset) / factor).reshape(groups, 1, channels, 1)
    drift = ((matrix - q * scale.values) * mean).sum(axis=(2, 3)).reshape(-1)
    return to_quantized_layer(layer, params, q, scale, bias + drift)


def fold_into_weights(layer: Layer, params: QuantParams) -> tuple[FloatArray, FloatArray]:
    """Return weights (G, O/G, C/G, taps) and bias (O,) that take offset and equalization back, in float64."""
    matrix = layer.matrix.astype(np.float64)
    groups, _, channels, _ = matrix.shape
    bias = np.zeros(layer.outputs) if layer.bias is None else layer.bias.astype(np.float64)
    if params.offset is not None:
        offset = params.offset.astype(np.float64).reshape(groups, 1, channels, 1)
        bias = bias + (matrix * offset).sum(axis=(2, 3)).reshape(-1)
    if params.equalization is not None:
        matrix = matrix * params.equalization.astype(np.float64).reshape(groups, 1, channels, 1)
    return matrix, bias


def weight_scale(matrix: FloatArray, importance: FloatArray, *, per_channel: bool) -> WeightScale:
    """Return the scale of least squared error, weighted by `importance`, (G, 1, C/G, taps) or as `matrix`."""
    over = (2, 3) if per_channel else (0, 1, 2, 3)
    matrix = matrix.astype(np.float32)
    unseen = _UNSEEN_IMPORTANCE * importance.mean()
    importance = np.where(importance > 0, importance, unseen).astype(np.float32)
    full = np.maximum(
        np.abs(matrix).max(axis=over, keepdims=True) / WEIGHT_LEVELS, np.float32(SMALLEST_SCALE)
    )
    best = np.full(full.shape, np.inf)
    chosen = full
    for shrink in _SHRINKS:
        scale = full * shrink
        q = matrix / scale
        np.rint(q, out=q)
        np.clip(q, -WEIGHT_LEVELS, WEIGHT_LEVELS, out=q)
        q *= scale
        q -= matrix
        q *= q
        q *= importance
        cost = q.sum(axis=over, keepdims=True, dtype=np.float64)
        chosen = np.where(cost < best, scale, chosen)
        best = np.minimum(cost, best)
    values = np.broadcast_to(representable(chosen.astype(np.float64)), (*matrix.shape[:2], 1, 1))
    return WeightScale(values, per_channel, raised_for_bias=False)


def raised_for_bias(scale: WeightScale, bias: FloatArray, input_scale: float) -> WeightScale:
    """Return the scale, raised where the bias (O,) in steps of the product would leave int32.

    A runtime may add the bias to the int32 sums. It costs nothing that can be seen: a rounded weight is then
    wrong by less than 2^-23 of the bias, about what FP32 resolves of their sum.
    """
    least = np.abs(bias).reshape(scale.values.shape) / (input_scale * _INT32_BIAS)
    if not scale.per_channel:
        least = np.broadcast_to(least.max(), least.shape)
    low = scale.values < least
    raised = np.where(low, representable(least * (1 + _FP16_ROUNDING)), scale.values)
    return WeightScale(raised, scale.per_channel, raised_for_bias=bool(low.any()))


def to_quantized_layer(
    layer: Layer, params: QuantParams, q: Array, scale: WeightScale, bias: FloatArray
) -> QuantizedLayer:
    """Return quantized weights (G, O/G, C/G, taps) in the node's own layout, with their scale and bias."""
    # ConvTranspose stores (C, O/G, ...): one scale per entry of that axis cannot tell the groups apart.
    values = scale.values.reshape(-1)
    return QuantizedLayer(
        node=layer.node,
        params=params,
        weight=layer.as_stored(q.astype(np.int8)),
        weight_scale=np.asarray(values if scale.per_channel else values[0], np.float32),
        axis=layer.output_axis,
        bias=bias.astype(np.float32) if layer.bias is not None or bool(np.abs(bias).max() > 0) else None,
        raised_for_bias=scale.raised_for_bias,
    )
