"""Weights to INT8, and the bias that takes back what shift and rounding do to the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy.quantization.qdq import QuantizedLayer

if TYPE_CHECKING:
    from se_deploy.calibration import Statistics
    from se_deploy.protocols import Array, FloatArray
    from se_deploy.quantization.layers import Layer
    from se_deploy.quantization.qdq import Grid

LEVELS = 127
_SHRINKS = np.linspace(0.7, 1, 9, dtype=np.float32)
_SMALLEST_SCALE = 1e-8


def round_nearest(layer: Layer, grid: Grid, found: Statistics, *, per_channel: bool) -> QuantizedLayer:
    """Quantize a layer's weights to the nearest of 255 levels, range by expected output error."""
    matrix, bias = folded(layer, grid)
    groups, _, channels, taps = matrix.shape
    divisor = 1.0 if grid.divisor is None else grid.divisor.astype(np.float64)
    power = (found.variance + found.mean**2) / divisor**2
    importance = np.repeat(power.reshape(groups, 1, channels, 1), taps, axis=3)
    scale = weight_scale(matrix, importance, per_channel=per_channel)
    q = np.clip(np.round(matrix / scale), -LEVELS, LEVELS)
    shift = 0.0 if grid.offset is None else grid.offset.astype(np.float64)
    mean = ((found.mean - shift) / divisor).reshape(groups, 1, channels, 1)
    drift = ((matrix - q * scale) * mean).sum(axis=(2, 3)).reshape(-1)
    return finished(layer, grid, q, scale, bias + drift, per_channel=per_channel)


def folded(layer: Layer, grid: Grid) -> tuple[FloatArray, FloatArray]:
    """Give weights (G, O/G, C/G, taps) and bias (O,) for the shifted and divided input, in float64."""
    matrix = layer.matrix.astype(np.float64)
    groups, _, channels, _ = matrix.shape
    bias = np.zeros(layer.outputs) if layer.bias is None else layer.bias.astype(np.float64)
    if grid.offset is not None:
        offset = grid.offset.astype(np.float64).reshape(groups, 1, channels, 1)
        bias = bias + (matrix * offset).sum(axis=(2, 3)).reshape(-1)
    if grid.divisor is not None:
        matrix = matrix * grid.divisor.astype(np.float64).reshape(groups, 1, channels, 1)
    return matrix, bias


def weight_scale(matrix: FloatArray, importance: FloatArray, *, per_channel: bool) -> FloatArray:
    """Choose the scale by weighted squared error: (G, O/G, 1, 1), all equal where one serves the tensor."""
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
    """Round scales to FP16 where it has its 11 bits, so that an FP16 graph dequantizes to the same values.

    It costs nothing: integers are chosen for the rounded scale. Smaller or larger scales stay as they are.
    """
    smallest, largest = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)
    normal = (scale >= smallest) & (scale <= largest)
    half = np.where(normal, scale, 1).astype(np.float16).astype(np.float64)
    return np.where(normal, half, scale)


def finished(
    layer: Layer, grid: Grid, q: Array, scale: FloatArray, bias: FloatArray, *, per_channel: bool
) -> QuantizedLayer:
    """Put quantized weights back into the node's own layout."""
    # ConvTranspose stores (C, O/G, ...): one scale per entry of that axis cannot tell the groups apart.
    scales = scale.reshape(-1) if per_channel else scale.reshape(-1)[0]
    return QuantizedLayer(
        node=layer.node,
        grid=grid,
        weight=layer.as_stored(q.astype(np.int8)),
        weight_scale=np.asarray(scales, np.float32),
        axis=layer.output_axis,
        bias=bias.astype(np.float32) if layer.bias is not None or bool(np.abs(bias).max() > 0) else None,
    )
