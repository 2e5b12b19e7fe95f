"""How far two arrays are apart, and how far rounding alone may bring them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from se_deploy.protocols import Array, Arrays

REORDERED = 1e-4
"""Largest error over the output's largest magnitude: the same FP32 sums in another order, grown by layers."""
RESOLUTION = 1e-6
"""Error that FP32 makes on values around 1: random inputs may leave a sigmoid's output hardly above it."""
ROUNDINGS = 16
"""How much more than one such change the roundings of all layers together may move the answer."""
PERTURBATIONS = 2
_SMALL = 1e-2
"""Share of a small output's magnitude that RESOLUTION may make up at most: its size was no accident."""
_LAST_BITS = 2.0**-21
"""Change of the input, over its largest magnitude, that shows how far rounding alone may move the answer."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """The worst probe of one output."""

    feeds: Arrays
    measure: str
    error: float | None  # None where it is no finite number
    limit: float
    preset: str | None = None


def rounding(reach: float) -> float:
    """Return the error that rounding may make in an output whose largest magnitude is `reach`."""
    return max(REORDERED * reach, min(RESOLUTION, _SMALL * reach) if reach else RESOLUTION)


def distance(want: Array, got: Array) -> float:
    """Return the largest error where the source is finite; of integers the share that differs."""
    if want.size == 0:
        return 0.0
    if want.dtype.kind != "f":
        return float((want != got).mean())
    at = np.isfinite(want)
    gap = np.abs(want[at].astype(np.float64) - got[at].astype(np.float64))
    return float(gap.max()) if gap.size else 0.0


def largest(array: Array) -> float:
    """Return the largest finite magnitude, 0 where there is none."""
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0


def perturbed(feeds: Arrays, seed: int) -> dict[str, Array]:
    """Return the inputs changed at random in their last bits; integers as they are."""
    rng = np.random.default_rng(seed)
    return {name: _perturbed(array, rng) for name, array in feeds.items()}


def masked(want: Array, got: Array) -> tuple[Array, Array]:
    """Leave out what the source itself has no number for."""
    if want.dtype.kind != "f" or np.isfinite(want).all():
        return want, got
    at = np.isfinite(want)
    return np.where(at, want, 0), np.where(at, got, 0)


def _perturbed(array: Array, rng: np.random.Generator) -> Array:
    if array.dtype.kind != "f" or not array.size:
        return array
    step = (largest(array) or 1.0) * _LAST_BITS
    moved: Array = array + step * rng.uniform(-1, 1, array.shape)
    return np.asarray(moved).astype(array.dtype)
