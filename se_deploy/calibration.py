"""Ranges of a network's inner tensors, from one pass for their extent and one for their histograms.

Everything is summed up as it streams by: memory depends on the network and the batch, not on how many
samples there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from onnx_ir.passes import common

from se_deploy import graph
from se_deploy.errors import BadData
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, FloatArray, Progress, Runtime

    _Cost = Callable[[FloatArray, FloatArray], FloatArray]

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("mse", "percentile", "entropy", "minmax")

BINS = 512
LEVELS = 256
PERCENTILE = 99.99
_BATCH_BYTES = 16 << 20  # of observed tensors that one run may give back
_MAX_BATCH = 4
_POSITIONS = 1 << 14  # of each channel that enter its histogram, over all samples together
_LEAST_POSITIONS = 16  # of each sample
_CLIPS = np.concatenate([np.linspace(0.2, 0.6, 9), np.linspace(0.625, 1, 31)])  # of the extent, tried by mse
_ENTROPY_LEVELS = 128  # of the coarse distribution that entropy compares with


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was seen of one tensor, by channel; all arrays float64, (C,) where not said otherwise."""

    low: FloatArray
    high: FloatArray
    mean: FloatArray
    variance: FloatArray
    histogram: FloatArray  # (C, BINS) shares between first and last; each row sums to 1
    first: FloatArray  # left edge of the histogram, at most low
    last: FloatArray  # right edge, at least high

    def centres(self) -> FloatArray:
        """Give the middle of every bin, (C, BINS), moved into the extent."""
        steps = (np.arange(BINS) + 0.5) / BINS
        middles = self.first[:, None] + (self.last - self.first)[:, None] * steps
        return np.clip(middles, self.low[:, None], self.high[:, None])

    def merged(self) -> Statistics:
        """Give the statistics of the tensor as a whole: one channel."""
        low, high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        mean = self.mean.mean(keepdims=True)
        variance = (self.variance + self.mean**2).mean(keepdims=True) - mean**2
        span = max(float(high[0] - low[0]), np.finfo(np.float64).tiny)
        index = np.clip(((self.centres() - low[0]) / span * BINS).astype(np.int64), 0, BINS - 1)
        histogram = np.bincount(index.ravel(), self.histogram.ravel(), BINS)[None]
        return Statistics(low, high, mean, variance, histogram / histogram.sum(), low, high)


def observed(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Give a copy of `model` whose outputs are these tensors; graph inputs among them are left out."""
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.clear()
    # ONNX Runtime refuses a graph without nodes: where only inputs are asked for, the first node stays.
    wanted = [values[name] for name in tensors if name in values] or list(values.values())[:1]
    copy.graph.outputs.extend(wanted)
    common.RemoveUnusedNodesPass()(copy)  # no more: this graph is run and thrown away
    return copy


def frozen_batch(model: ir.Model) -> int | None:
    """Give the number of samples that the graph is frozen to; None where it is free."""
    first = graph.dims(model.graph.inputs[0])
    return first[0] if first else None


def observe(
    model: ir.Model,
    tensors: Sequence[str],
    samples: Samples,
    runtime: Runtime,
    *,
    progress: Progress = silent,
    step: str = "observe",
) -> Iterator[dict[str, Array]]:
    """Run `samples` and give the arrays of `tensors` batch by batch, graph inputs included.

    A graph that is frozen to a batch gets only whole batches.

    Raises: BadData where a tensor is not finite or the samples do not fill one batch.
    """
    with runtime.open(observed(model, tensors)) as session:
        frozen = frozen_batch(model)
        if frozen is None:
            first = next(samples.batches(1))
            seen = {**first, **session.run(first)}
            sample_bytes = sum(seen[name].nbytes for name in tensors)
            size = int(np.clip(_BATCH_BYTES // max(1, sample_bytes), 1, _MAX_BATCH))
        else:
            size = frozen
        if frozen is not None and samples.count < size:
            raise BadData(
                f"the graph takes {size} samples at a time, the data holds {samples.count}",
                hint="give more data, or export with --batch dynamic",
            )
        done = 0
        for feeds in samples.batches(size):
            count = len(next(iter(feeds.values())))
            if frozen is not None and count < size:
                break  # the graph takes whole batches only
            arrays = {**feeds, **session.run(feeds)}
            for name in tensors:
                if not np.isfinite(arrays[name]).all():
                    raise BadData(
                        f"the tensor '{name}' is not finite on samples {done} to {done + count - 1}",
                        hint="the network overflows on this data: check its normalization",
                    )
            done += count
            progress(step, done, samples.count)
            yield {name: arrays[name] for name in tensors}


def measure(
    model: ir.Model,
    axes: Mapping[str, int],
    samples: Samples,
    runtime: Runtime,
    *,
    progress: Progress = silent,
) -> dict[str, Statistics]:
    """Measure every tensor of `axes` (name to channel axis) on `samples`, in one streaming pass.

    Every value enters the extent; mean, variance and histogram are those of evenly spread positions.
    """
    found: dict[str, _Channels] = {}
    positions = max(_LEAST_POSITIONS, _POSITIONS // samples.count)
    for arrays in observe(model, list(axes), samples, runtime, progress=progress, step="ranges"):
        for name, axis in axes.items():
            array = arrays[name]
            if name not in found:
                found[name] = _Channels(array.shape[axis])
            others = tuple(i for i in range(array.ndim) if i != axis)
            found[name].add(
                array.min(axis=others), array.max(axis=others), _thin(array, axis, positions * len(array))
            )
    return {name: channels.statistics() for name, channels in found.items()}


def _thin(array: Array, axis: int, most: int) -> Array:
    """Take about `most` values of each channel, evenly spread: (C, values)."""
    values = np.moveaxis(array, axis, 1).reshape(len(array), array.shape[axis], -1)  # a view for images
    step = max(1, len(array) * values.shape[2] // most)
    # A step that shares no factor with the rows' length walks over all columns of the picture.
    return np.ascontiguousarray(values[:, :, :: step | 1].transpose(1, 0, 2)).reshape(array.shape[axis], -1)


def interval(found: Statistics, method: Method) -> tuple[FloatArray, FloatArray]:
    """Choose each channel's range [low, high], (C,) each, by one of the methods.

    The range is cut at both ends in proportion to the extent's own two ends, and holds 0 where that did.
    """
    if method == "minmax":
        return found.low, found.high
    if method == "percentile":
        return _percentile(found)
    if method == "entropy":
        return _cut(found, lambda low, high: _entropy(found, low, high), _CLIPS[::4])
    error = ClipError(found)

    def squared(low: FloatArray, high: FloatArray) -> FloatArray:
        """Give the expected squared error: step^2 / 12 inside, the distance to the range outside."""
        return error(low, high) + ((high - low) / (LEVELS - 1)) ** 2 / 12

    return _cut(found, squared, _CLIPS)


def _percentile(found: Statistics) -> tuple[FloatArray, FloatArray]:
    """Leave out (100 - PERCENTILE) % of the values, half of them at each end."""
    below = np.cumsum(found.histogram, axis=1)
    edge = (1 - PERCENTILE / 100) / 2
    width = (found.last - found.first) / BINS
    begin = (below <= edge).sum(axis=1)
    end = BINS - (below >= 1 - edge).sum(axis=1) + 1
    low, high = found.first + begin * width, found.first + end * width
    return np.clip(low, found.low, found.high), np.clip(high, found.low, found.high)


def _cut(found: Statistics, cost: _Cost, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Try cuts of both ends, of the upper and of the lower, and keep each channel's cheapest.

    Tensors behind a ReLU pile up at their low end, which must not be cut: there only the far end moves.
    """
    centre = (found.low + found.high) / 2
    half = (found.high - found.low) / 2
    best = np.full(len(centre), np.inf)
    low, high = found.low, found.high
    for share in shares[::-1]:  # the whole extent first: it wins a tie
        for begin, end in (
            (centre - share * half, centre + share * half),
            (found.low, found.low + share * 2 * half),
            (found.high - share * 2 * half, found.high),
        ):
            now = cost(begin, end)
            low, high = np.where(now < best, begin, low), np.where(now < best, end, high)
            best = np.minimum(best, now)
    return low, high


class ClipError:
    """The expected squared distance of a channel's values to a range, from running sums of the histogram."""

    def __init__(self, found: Statistics) -> None:
        """Sum up shares, values and squares from the left, once for many ranges."""
        x, h = found.centres(), found.histogram
        zero = np.zeros((len(x), 1))
        self.sums = [np.concatenate([zero, np.cumsum(h * x**p, axis=1)], axis=1) for p in range(3)]
        self.first, self.width = found.first, np.maximum(found.last - found.first, 1e-30) / BINS
        self.rows = np.arange(len(x))

    def __call__(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """Give the error of [low, high], (C,) each."""
        under = self._below(low)
        over = [s[:, -1] - b for s, b in zip(self.sums, self._below(high), strict=True)]
        error = sum(s2 - 2 * edge * s1 + edge**2 * s0 for (s0, s1, s2), edge in ((under, low), (over, high)))
        return np.maximum(error, 0)

    def _below(self, edge: FloatArray) -> list[FloatArray]:
        """Give the three sums over bins whose middle lies below `edge`."""
        index = np.clip(np.round((edge - self.first) / self.width), 0, BINS).astype(np.int64)
        return [s[self.rows, index] for s in self.sums]


def _entropy(found: Statistics, low: FloatArray, high: FloatArray) -> FloatArray:
    """Give the divergence (Kullback-Leibler) of the clipped distribution from its coarse form."""
    x = found.centres()
    inside = (x >= low[:, None]) & (x <= high[:, None])
    clipped = np.where(inside, found.histogram, 0)
    first, last = inside.argmax(axis=1), BINS - 1 - inside[:, ::-1].argmax(axis=1)
    rows = np.arange(len(x))
    clipped[rows, first] += np.where(x < low[:, None], found.histogram, 0).sum(axis=1)
    clipped[rows, last] += np.where(x > high[:, None], found.histogram, 0).sum(axis=1)
    width = np.maximum(high - low, np.finfo(np.float64).tiny)
    group = np.clip(
        ((x - low[:, None]) / width[:, None] * _ENTROPY_LEVELS).astype(np.int64), 0, _ENTROPY_LEVELS - 1
    )
    flat = (group + rows[:, None] * _ENTROPY_LEVELS)[inside]
    size = len(x) * _ENTROPY_LEVELS
    mass = np.bincount(flat, found.histogram[inside], size)
    members = np.bincount(flat, (found.histogram[inside] > 0).astype(np.float64), size)
    coarse = np.zeros_like(x)
    coarse[inside] = (mass / np.maximum(members, 1))[flat]
    coarse = np.where(found.histogram > 0, coarse, 0)
    coarse = coarse / np.maximum(coarse.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    ratio = np.log(np.maximum(clipped, 1e-12) / np.maximum(coarse, 1e-12))
    divergence: FloatArray = np.where(clipped > 0, clipped * ratio, 0).sum(axis=1)
    return divergence


class _Channels:
    """Extent, mean, variance and histogram per channel, summed up as the values come.

    A histogram lies around the middle of the first values; its span doubles whenever values fall outside,
    and two bins become one.
    """

    def __init__(self, channels: int) -> None:
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.counts = np.zeros((channels, BINS))
        self.centre, self.half = np.zeros(channels), np.zeros(channels)
        self.count = 0
        self.total, self.squares = np.zeros(channels), np.zeros(channels)

    def add(self, low: Array, high: Array, values: Array) -> None:
        """Add (C,) extents of all values and (C, n) of them."""
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        if not self.count:
            self.centre = (self.low + self.high) / 2
            self.half = np.maximum((self.high - self.low) / 2, 1e-12 + 1e-6 * np.abs(self.centre)) * 1.01
        reach = np.maximum(self.high - self.centre, self.centre - self.low)
        while (narrow := reach > self.half).any():
            pairs = self.counts[narrow].reshape(-1, BINS // 2, 2).sum(axis=2)
            self.counts[narrow] = np.pad(pairs, ((0, 0), (BINS // 4, BINS // 4)))
            self.half = np.where(narrow, self.half * 2, self.half)
        first, scale = (self.centre - self.half)[:, None], (BINS / (2 * self.half))[:, None]
        index = ((values - first.astype(np.float32)) * scale.astype(np.float32)).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        index += np.arange(len(index), dtype=np.int32)[:, None] * BINS
        self.counts += np.bincount(index.ravel(), minlength=self.counts.size).reshape(self.counts.shape)
        moved = values - self.centre[:, None]  # float64: squares far from 0 would lose the variance
        self.total += moved.sum(axis=1)
        self.squares += np.einsum("cn,cn->c", moved, moved)
        self.count += values.shape[1]

    def statistics(self) -> Statistics:
        """Give what was summed up."""
        mean = self.total / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0)
        return Statistics(
            self.low,
            self.high,
            mean + self.centre,
            variance,
            self.counts / self.count,
            self.centre - self.half,
            self.centre + self.half,
        )
