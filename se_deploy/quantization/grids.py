"""Choose each tensor's grid by the error that it makes at the outputs of the layers that read it.

With x quantized in steps of d_c * s, the error of y = W x is, up to what correlates,

    sum_c |W_c|^2 ((d_c s)^2 / 12 + clipped_c)  +  sum_o step_o^2 / 12 * sum_c var(x_c / d_c)

Dividing each channel by its own size (d) shrinks the first sum and, where large and small columns then meet
in one row of the weights, enlarges the second: a power between 0 and 1 of the size is chosen per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration
from se_deploy.quantization.qdq import Grid
from se_deploy.quantization.rounding import fp16_exact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.calibration import Method, Statistics
    from se_deploy.protocols import FloatArray
    from se_deploy.quantization.layers import Layer

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SMALLEST_SHARE = 1 / 64  # of the largest channel's size: a channel that was quiet so far may not stay so
_SHARES = np.linspace(0.4, 1, 9)  # of the full range, tried as the range of the whole tensor
_WEIGHT_FACTOR = 0.4  # what weight rounding that looks at the data leaves of the error of plain rounding
_WEIGHT_LEVELS = 127
_STEPS = calibration.LEVELS - 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A grid, and the error that it is predicted to make at its readers' outputs, over their power."""

    grid: Grid
    noise: float


def choose(
    found: Statistics,
    readers: Sequence[Layer],
    methods: Sequence[Method],
    *,
    shift: bool,
    divide: bool,
    per_channel: bool,
) -> dict[Method, Choice]:
    """Choose scale, offset and divisor of the tensor that `readers` read, by each method."""
    error = calibration.ClipError(found)
    ranges = calibration.intervals(found, methods, error)
    if not divide:
        merged = found.merged()
        whole = calibration.intervals(merged, methods, calibration.ClipError(merged))
        for method, (low, high) in ranges.items():
            begin = np.maximum(low, whole[method][0])
            ranges[method] = (begin, np.maximum(begin, np.minimum(high, whole[method][1])))
    if any(layer.padded for layer in readers):  # with zeros, which must not be clipped
        ranges = {method: (np.minimum(low, 0), np.maximum(high, 0)) for method, (low, high) in ranges.items()}
    weight = sum(layer.column_power for layer in readers)
    power_out = max(float((weight * found.variance).sum()), 1e-30)
    chosen = {}
    for method, (low, high) in ranges.items():
        size = (high - low) / _STEPS if shift else np.maximum(np.maximum(-low, high) / _WEIGHT_LEVELS, 0)
        largest = max(float(size.max()), 1e-12)
        share = np.maximum(size / largest, _SMALLEST_SHARE)
        best = np.inf
        for power in POWERS if divide else (0.0,):
            divisor = share**power
            reach = float((size / divisor).max())
            noise = sum(
                _weight_noise(layer, divisor, found.variance, per_channel=per_channel) for layer in readers
            )
            # minmax promises that nothing is clipped
            scales = fp16_exact((_SHARES if method != "minmax" else np.ones(1)) * reach)
            step = divisor * scales[:, None]  # (scales, C)
            offset = _offset(low, high, step) if shift else np.zeros_like(step)
            clipped = error(offset - 128 * step, offset + 127 * step)
            totals = (weight * (step**2 / 12 + clipped)).sum(axis=1) + noise
            i = int(totals.argmin())
            if totals[i] < best:
                best = float(totals[i])
                grid = Grid(
                    float(scales[i]),
                    offset[i].astype(np.float32) if shift else None,
                    divisor.astype(np.float32) if power else None,
                )
                chosen[method] = Choice(grid, best / power_out)
    return chosen


def predicted_noise(layer: Layer, grid: Grid, found: Statistics, *, per_channel: bool) -> float:
    """Predict the error at a layer's output over its power, from its grid and its input's variance."""
    divisor = np.ones(len(found.variance)) if grid.divisor is None else grid.divisor.astype(np.float64)
    rounded = float((layer.column_power * (divisor * grid.scale) ** 2).sum()) / 12
    power = float((layer.column_power * found.variance).sum())
    return (rounded + _weight_noise(layer, divisor, found.variance, per_channel=per_channel)) / max(
        power, 1e-30
    )


def _offset(low: FloatArray, high: FloatArray, step: FloatArray) -> FloatArray:
    """Place the 256 levels: from the low end for one-sided channels, else around the middle.

    A one-sided channel (behind ReLU, an image's pixels) has a value of its own at its low end, which is met
    exactly that way.
    """
    one_sided = (low >= 0) | (-low < 0.25 * high) | ((high - low) <= _STEPS * step * (1 + 1e-9))
    return np.where(one_sided, low + 128 * step, (low + high) / 2 + step / 2)


def _weight_noise(layer: Layer, divisor: FloatArray, variance: FloatArray, *, per_channel: bool) -> float:
    """Predict the output error of rounding W diag(d), summed over the output channels."""
    groups, _, channels, taps = layer.matrix.shape
    d = divisor.reshape(groups, channels)
    steps = (layer.largest * d[:, None, :]).max(axis=2) / _WEIGHT_LEVELS  # (G, O/G)
    if not per_channel:
        steps = np.full_like(steps, steps.max())
    power = (variance.reshape(groups, channels) / d**2).sum(axis=1) * taps
    return _WEIGHT_FACTOR * float(((steps**2).sum(axis=1) / 12 * power).sum())
