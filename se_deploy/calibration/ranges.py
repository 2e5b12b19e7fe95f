"""Ranges from statistics: where to clip a channel's values, by one of four methods."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.calibration.statistics import BINS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.calibration.statistics import Statistics
    from se_deploy.protocols import FloatArray
    from se_deploy.schema.common import Method

    _Cost = Callable[[FloatArray, FloatArray], FloatArray]

METHODS: tuple[Method, ...] = ("mse", "percentile", "entropy", "minmax")

LEVELS = 256  # of INT8
PERCENTILE = 99.99  # what NVIDIA's pytorch-quantization examples use
# Of the extent, tried by mse; the smallest are for a value or two that are far from all others.
_CLIPS = np.concatenate([np.geomspace(0.01, 0.15, 6), np.linspace(0.2, 0.6, 5), np.linspace(0.65, 1, 15)])
_MOST_CLIPPED = 0.05  # share of the values that a cut by entropy may leave outside
_LEAST_SHARE = 1e-12  # of a bin in a logarithm: below one value in any data that is calibrated on
_LEAST_SPAN = 1e-30  # of a histogram: keeps bins of constant channels apart
_ENTROPY_LEVELS = 128  # of the coarse distribution that entropy compares with


def choose_ranges(error: ClipError, methods: Sequence[Method]) -> dict[Method, tuple[FloatArray, FloatArray]]:
    """Return each channel's range [low, high], (C,) each, by each method, of what `error` is of.

    Percentile and entropy look at the distribution of the whole tensor and clip the channels there: few
    values of one channel say nothing about its tails. The range holds 0 where the extent did.
    """
    chosen: dict[Method, tuple[FloatArray, FloatArray]] = {}
    statistics = error.statistics
    for method in methods:
        low, high = statistics.low, statistics.high
        if method == "mse":

            def squared(low: FloatArray, high: FloatArray) -> FloatArray:
                """Return the expected squared error: step^2 / 12 inside, squared distance outside."""
                return error(low, high) + ((high - low) / (LEVELS - 1)) ** 2 / 12

            low, high = _best_cut(statistics, squared, _CLIPS)
        elif method != "minmax":
            merged = error.whole.statistics
            one_low, one_high = _percentile(merged) if method == "percentile" else _least_divergence(merged)
            low = np.minimum(np.maximum(low, one_low), high)
            high = np.maximum(np.minimum(high, one_high), low)
        chosen[method] = (low, high)
    return chosen


def _percentile(statistics: Statistics) -> tuple[FloatArray, FloatArray]:
    """Return the range without (100 - PERCENTILE) % of the values, half of them at each end."""
    below = np.cumsum(statistics.histogram, axis=1)
    edge = (1 - PERCENTILE / 100) / 2
    width = (statistics.histogram_high - statistics.histogram_low) / BINS
    begin = (below <= edge).sum(axis=1)
    end = BINS - (below >= 1 - edge).sum(axis=1) + 1
    low, high = statistics.histogram_low + begin * width, statistics.histogram_low + end * width
    return np.clip(low, statistics.low, statistics.high), np.clip(high, statistics.low, statistics.high)


def _best_cut(statistics: Statistics, cost: _Cost, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each channel's cheapest range of those clipped at both ends, the upper or the lower.

    Tensors behind a ReLU pile up at their low end, which must not be cut: there only the far end moves.
    """
    centre = (statistics.low + statistics.high) / 2
    half = (statistics.high - statistics.low) / 2
    share = shares[::-1, None]  # the whole extent first: it wins a tie
    low, high = statistics.low[None], statistics.high[None]
    cuts = (
        (centre - share * half, centre + share * half),
        (low, statistics.low + share * 2 * half),
        (statistics.high - share * 2 * half, high),
    )
    best = np.concatenate([cost(*cut) for cut in cuts]).argmin(axis=0)[None]
    shape = (len(share), len(half))
    begins, ends = (
        np.concatenate([np.broadcast_to(end, shape) for end in side]) for side in zip(*cuts, strict=True)
    )
    return np.take_along_axis(begins, best, 0)[0], np.take_along_axis(ends, best, 0)[0]


class ClipError:
    """The expected squared distance of a channel's values to a range, from running sums of the histogram."""

    def __init__(self, statistics: Statistics) -> None:
        """Sum up shares, values and squares from the left, once for many ranges."""
        self.statistics = statistics
        x, h = statistics.centres(), statistics.histogram
        self.sums = np.empty((3, len(x), BINS + 1))  # of h, h x and h x^2, up to each edge between bins
        self.sums[:, :, 0] = 0
        values = h.copy()
        for power in range(3):
            np.cumsum(values, axis=1, out=self.sums[power, :, 1:])
            values *= x
        span = statistics.histogram_high - statistics.histogram_low
        self.histogram_low, self.width = statistics.histogram_low, np.maximum(span, _LEAST_SPAN) / BINS
        self.rows = np.arange(len(x)) * (BINS + 1)

    def __call__(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """Return the error of [low, high], (..., C) each; where one end is the same, it is looked at once."""
        under, over = self._below(low), self._total(high.ndim) - self._below(high)
        error: FloatArray = _squared_distance(under, low) + _squared_distance(over, high)
        return np.maximum(error, 0)

    @functools.cached_property
    def whole(self) -> ClipError:
        """The error of the tensor as one channel."""
        return ClipError(self.statistics.per_tensor())

    def _total(self, rank: int) -> FloatArray:
        """Return the three sums over all bins, to be broadcast to edges of a rank."""
        return self.sums[:, :, -1].reshape(3, *(1,) * (rank - 1), -1)

    def _below(self, edge: FloatArray) -> FloatArray:
        """Return the three sums over bins whose middle lies below `edge`, (3, ..., C)."""
        index = np.clip(np.rint((edge - self.histogram_low) / self.width), 0, BINS).astype(np.int64)
        return self.sums.reshape(3, -1).take(index + self.rows, axis=1)


def _squared_distance(sums: FloatArray, edge: FloatArray) -> FloatArray:
    """Return the summed squared distance to `edge` of values with these sums."""
    distance: FloatArray = sums[2] - 2 * edge * sums[1] + edge**2 * sums[0]
    return distance


def _least_divergence(statistics: Statistics) -> tuple[FloatArray, FloatArray]:
    """Return the range of a tensor (C = 1) whose clipped distribution is most like its coarse form.

    By the divergence (Kullback-Leibler) of the two. The bin of 0 counts as much as those beside it: the pile
    that a ReLU leaves there is met exactly by any scale, and would ask for bins as fine as its own.
    """
    x, histogram = statistics.centres()[0], statistics.histogram[0].copy()
    zero = int(np.abs(x).argmin())
    beside = [i for i in (zero - 1, zero + 1) if 0 <= i < BINS]
    histogram[zero] = min(histogram[zero], histogram[beside].mean())
    histogram /= max(float(histogram.sum()), np.finfo(np.float64).tiny)

    def divergences(low: FloatArray, high: FloatArray) -> FloatArray:
        """Return the divergence of each cut, (cuts, 1) or (1, 1) as each end."""
        low, high = np.broadcast_arrays(low, high)
        inside = (x >= low) & (x <= high)
        clipped = np.where(inside, histogram, 0)
        first, last = inside.argmax(axis=1), BINS - 1 - inside[:, ::-1].argmax(axis=1)
        rows = np.arange(len(low))
        clipped[rows, first] += np.where(x < low, histogram, 0).sum(axis=1)
        clipped[rows, last] += np.where(x > high, histogram, 0).sum(axis=1)
        width = np.maximum(high - low, np.finfo(np.float64).tiny)
        group = np.clip(((x - low) / width * _ENTROPY_LEVELS).astype(np.int64), 0, _ENTROPY_LEVELS - 1)
        flat = (group + rows[:, None] * _ENTROPY_LEVELS)[inside]
        size = len(rows) * _ENTROPY_LEVELS
        mass = np.bincount(flat, np.broadcast_to(histogram, inside.shape)[inside], size)
        members = np.bincount(flat, np.broadcast_to(histogram > 0, inside.shape)[inside], size)
        coarse = np.zeros(inside.shape)
        coarse[inside] = (mass / np.maximum(members, 1))[flat]
        coarse = np.where(histogram > 0, coarse, 0)
        coarse = coarse / np.maximum(coarse.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        ratio = np.log(np.maximum(clipped, _LEAST_SHARE) / np.maximum(coarse, _LEAST_SHARE))
        divergence = np.where(clipped > 0, clipped * ratio, 0).sum(axis=1)
        # A few bins with everything in them are like their coarse form too.
        return np.where((histogram * ~inside).sum(axis=1) > _MOST_CLIPPED, np.inf, divergence)[:, None]

    return _best_cut(statistics, divergences, _CLIPS[1::2])  # every second: each takes all bins
