"""Weights to INT8, and the bias that takes back what the offset and the rounding do to the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy.quantization.qdq import QuantizedLayer

if TYPE_CHECKING:
    from se_deploy.calibration import Statistics
    from se_deploy.protocols import Array, FloatArray
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import QuantParams

LEVELS = 127  # of weights: -127 to 127, symmetric, so that -W is as exact as W
_SHRINKS = np.linspace(0.7, 1, 9, dtype=np.float32)  # of the full range of the weights, tried as their range
_SMALLEST_SCALE = 1e-8


def round_nearest(
    layer: Layer, params: QuantParams, statistics: Statistics, *, per_channel: bool
) -> QuantizedLayer:
    """Return the layer with weights rounded to the nearest of 255 levels, range by expected output error."""
    matrix, bias = fold_into_weights(layer, params)
    groups, _, channels, taps = matrix.shape
    factor = 1.0 if params.equalization is None else params.equalization.astype(np.float64)
    power = (statistics.variance + statistics.mean**2) / factor**2
    importance = np.repeat(power.reshape(groups, 1, channels, 1), taps, axis=3)
    scale = weight_scale(matrix, importance, per_channel=per_channel)
    q = np.clip(np.round(matrix / scale), -LEVELS, LEVELS)
    offset = 0.0 if params.offset is None else params.offset.astype(np.float64)
    mean = ((statistics.mean - offset) / factor).reshape(groups, 1, channels, 1)
    drift = ((matrix - q * scale) * mean).sum(axis=(2, 3)).reshape(-1)
    return to_quantized_layer(layer, params, q, scale, bias + drift, per_channel=per_channel)


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


def weight_scale(matrix: FloatArray, importance: FloatArray, *, per_channel: bool) -> FloatArray:
    """Return the scale of least weighted squared error: (G, O/G, 1, 1), all equal where it is per tensor."""
    over = (2, 3) if per_channel else (0, 1, 2, 3)
    matrix, importance = matrix.astype(np.float32), importance.astype(np.float32)
    full = np.maximum(np.abs(matrix).max(axis=over, keepdims=True) / LEVELS, np.float32(_SMALLEST_SCALE))
    best = np.full(full.shape, np.inf)
    chosen = full
    for shrink in _SHRINKS:
        scale = full * shrink
        q = matrix / scale
        np.rint(q, out=q)
        np.clip(q, -LEVELS, LEVELS, out=q)
        q *= scale
        q -= matrix
        q *= q
        q *= importance
        cost = q.sum(axis=over, keepdims=True, dtype=np.float64)
        chosen = np.where(cost < best, scale, chosen)
        best = np.minimum(cost, best)
    return np.broadcast_to(fp16_exact(chosen.astype(np.float64)), (*matrix.shape[:2], 1, 1))


def fp16_exact(scale: FloatArray) -> FloatArray:
    """Return scales rounded to FP16 where it has its 11 bits: an FP16 graph then dequantizes to the same.

    It costs nothing: integers are chosen for the rounded scale. Smaller or larger scales stay as they are.
    """
    smallest, largest = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)
    normal = (scale >= smallest) & (scale <= largest)
    half = np.where(normal, scale, 1).astype(np.float16).astype(np.float64)
    return np.where(normal, half, scale)


def to_quantized_layer(
    layer: Layer, params: QuantParams, q: Array, scale: FloatArray, bias: FloatArray, *, per_channel: bool
) -> QuantizedLayer:
    """Return quantized weights (G, O/G, C/G, taps) in the node's own layout, with their scale and bias."""
    # ConvTranspose stores (C, O/G, ...): one scale per entry of that axis cannot tell the groups apart.
    scales = scale.reshape(-1) if per_channel else scale.reshape(-1)[0]
    return QuantizedLayer(
        node=layer.node,
        params=params,
        weight=layer.as_stored(q.astype(np.int8)),
        weight_scale=np.asarray(scales, np.float32),
        axis=layer.output_axis,
        bias=bias.astype(np.float32) if layer.bias is not None or bool(np.abs(bias).max() > 0) else None,
    )
