"""Scales that every precision can hold: positive, finite, and neither 0 nor infinite in FP16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy.quantization.fp16_ranges import LARGEST, SMALLEST

if TYPE_CHECKING:
    from se_deploy.protocols import FloatArray

SMALLEST_SCALE, LARGEST_SCALE = SMALLEST, LARGEST
"""A scale outside becomes 0 or infinite when the graph is turned into FP16, and TensorRT refuses 0."""

WEIGHT_LEVELS = 127
"""On each side of 0: weights are symmetric, so that -W is as exact as W."""

UNSEEN_SCALE = 2.0**-4
"""Of a tensor that is 0 on all calibration data: exact for that 0, and +-8 holds what activations behind a
normalization mostly are, should other data reach them."""

_FP16_NORMAL = float(np.finfo(np.float16).tiny)  # from here FP16 has all its 11 bits


def representable(scale: FloatArray) -> FloatArray:
    """Return scales within what FP16 holds, rounded to FP16 where it has its 11 bits.

    An FP16 graph then dequantizes to the same values. It costs nothing: integers are chosen for the rounded
    scale. Scales of fewer bits stay as they are.
    """
    held = np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE)
    half = np.where(held >= _FP16_NORMAL, held, 1).astype(np.float16).astype(np.float64)
    return np.where(held >= _FP16_NORMAL, half, held)


def out_of_range(low: float, high: float, levels: int) -> str | None:
    """Return why no scale serves values in [low, high] with `levels` on each side of 0; None where one does.

    Values that are all 0 need none.
    """
    largest = max(abs(low), abs(high))
    if largest > LARGEST_SCALE * levels:
        return f"reaches {largest:.3g}, more than an INT8 tensor with an FP16 scale holds"
    if 0 < largest < SMALLEST_SCALE * levels:
        return f"is never larger than {largest:.3g}, less than an INT8 tensor with an FP16 scale resolves"
    return None
