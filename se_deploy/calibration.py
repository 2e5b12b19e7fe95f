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

    _Cost = Callable[["Statistics", FloatArray, FloatArray], FloatArray]

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("mse", "percentile", "entropy", "minmax")

BINS = 256
LEVELS = 256
PERCENTILE = 99.99
_BATCH_BYTES = 48 << 20  # of observed tensors that one run may give back
_MAX_BATCH = 16
_POSITIONS = 2048  # per sample and tensor that enter a histogram; all of them enter the extent
_CLIPS = np.concatenate([np.linspace(0.2, 0.6, 9), np.linspace(0.625, 1, 31)])  # of the extent, tried by mse
_ENTROPY_LEVELS = 128  # of the coarse distribution that entropy compares with


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was seen of one tensor, by channel; all arrays float64, (C,) where not said otherwise."""

    low: FloatArray
    high: FloatArray
    mean: FloatArray
    variance: FloatArray
    histogram: FloatArray  # (C, BINS) shares between low and high; each row sums to 1

    def centres(self) -> FloatArray:
        """Give the middle of every bin, (C, BINS)."""
        steps = (np.arange(BINS) + 0.5) / BINS
        return self.low[:, None] + (self.high - self.low)[:, None] * steps

    def merged(self) -> Statistics:
        """Give the statistics of the tensor as a whole: one channel."""
        low, high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        mean = self.mean.mean(keepdims=True)
        variance = (self.variance + self.mean**2).mean(keepdims=True) - mean**2
        span = max(float(high[0] - low[0]), np.finfo(np.float64).tiny)
        index = np.clip(((self.centres() - low[0]) / span * BINS).astype(np.int64), 0, BINS - 1)
        histogram = np.bincount(index.ravel(), self.histogram.ravel(), BINS)[None]
        return Statistics(low, high, mean, variance, histogram / histogram.sum())


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


def batch_size(model: ir.Model, *, sample_bytes: int = 0) -> int:
    """Choose how many samples are run at once: what the graph is frozen to, or what memory allows."""
    fixed = [d[0] for v in model.graph.inputs if (d := graph.dims(v))]
    if fixed and fixed[0] is not None:
        return fixed[0]
    return int(max(1, min(_MAX_BATCH, _BATCH_BYTES // max(1, sample_bytes))))


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
        size = batch_size(model, sample_bytes=0)
        if graph.dims(model.graph.inputs[0])[:1] == (None,):  # type: ignore[index]  # inputs have a rank
            first = next(samples.batches(1))
            seen = {**first, **session.run(first)}
            size = batch_size(model, sample_bytes=sum(seen[name].nbytes for name in tensors))
        elif samples.count < size:
            raise BadData(
                f"the graph takes {size} samples at a time, the data holds {samples.count}",
                hint="give more data, or export with --batch dynamic",
            )
        done = 0
        for feeds in samples.batches(size):
            count = len(next(iter(feeds.values())))
            if count < size and samples.count >= size and not _free_batch(model):
                break
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
    """Measure every tensor of `axes` (name to channel axis) on `samples`, in two streaming passes."""
    extents = {name: _Extent() for name in axes}
    for arrays in observe(model, list(axes), samples, runtime, progress=progress, step="extent"):
        for name, axis in axes.items():
            extents[name].add(by_channel(arrays[name], axis))
    histograms = {name: _Histogram(extent.low, extent.high) for name, extent in extents.items()}
    for arrays in observe(model, list(axes), samples, runtime, progress=progress, step="histogram"):
        for name, axis in axes.items():
            histograms[name].add(thin(by_channel(arrays[name], axis), len(arrays[name])))
    return {name: extents[name].statistics(histograms[name].counts) for name in axes}


def by_channel(array: Array, axis: int) -> Array:
    """View a tensor as (C, values per channel)."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def thin(values: Array, samples: int) -> Array:
    """Keep at most _POSITIONS values per sample of each channel, evenly spread."""
    return values[:, :: max(1, values.shape[1] // (_POSITIONS * samples))]


def interval(found: Statistics, method: Method) -> tuple[FloatArray, FloatArray]:
    """Choose each channel's range [low, high], (C,) each, by one of the methods.

    The range is cut at both ends in proportion to the extent's own two ends, and holds 0 where that did.
    """
    if method == "minmax":
        return found.low, found.high
    if method == "percentile":
        return _percentile(found)
    return _cut(found, _entropy_cost if method == "entropy" else _squared_cost)


def _free_batch(model: ir.Model) -> bool:
    size = graph.dims(model.graph.inputs[0])
    return not size or size[0] is None


def _percentile(found: Statistics) -> tuple[FloatArray, FloatArray]:
    """Leave out (100 - PERCENTILE) % of the values, half of them at each end."""
    below = np.cumsum(found.histogram, axis=1)
    edge = (1 - PERCENTILE / 100) / 2
    width = (found.high - found.low) / BINS
    first = (below <= edge).sum(axis=1)
    last = BINS - (below >= 1 - edge).sum(axis=1) + 1
    return found.low + first * width, np.minimum(found.low + last * width, found.high)


def _cut(found: Statistics, cost: _Cost) -> tuple[FloatArray, FloatArray]:
    """Try a list of cuts of both ends and keep each channel's cheapest."""
    centre = (found.low + found.high) / 2
    half = (found.high - found.low) / 2
    # Non-negative tensors pile up at their low end, which must not be cut: only the far end moves there.
    costs, lows, highs = [], [], []
    for share in _CLIPS:
        for low, high in (
            (centre - share * half, centre + share * half),
            (found.low, found.low + share * 2 * half),
            (found.high - share * 2 * half, found.high),
        ):
            costs.append(cost(found, low, high))
            lows.append(low)
            highs.append(high)
    best = np.argmin(np.stack(costs), axis=0)
    rows = np.arange(len(best))
    return np.stack(lows)[best, rows], np.stack(highs)[best, rows]


def _squared_cost(found: Statistics, low: FloatArray, high: FloatArray) -> FloatArray:
    """Give the expected squared error: step^2 / 12 inside, the distance to the range outside."""
    return clip_error(found, low, high) + ((high - low) / (LEVELS - 1)) ** 2 / 12


def clip_error(found: Statistics, low: FloatArray, high: FloatArray) -> FloatArray:
    """Give the expected squared distance of a value to [low, high], (C,)."""
    x = found.centres()
    outside = np.maximum(low[:, None] - x, 0) + np.maximum(x - high[:, None], 0)
    error: FloatArray = np.einsum("cb,cb->c", found.histogram, outside**2)
    return error


def _entropy_cost(found: Statistics, low: FloatArray, high: FloatArray) -> FloatArray:
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


class _Extent:
    """Smallest, largest, mean and variance per channel of what was added."""

    def __init__(self) -> None:
        self.low: FloatArray = np.zeros(0)
        self.high: FloatArray = np.zeros(0)
        self.count = 0
        self.total: FloatArray = np.zeros(0)
        self.squares: FloatArray = np.zeros(0)

    def add(self, values: Array) -> None:
        """Add (C, n) values."""
        low, high = values.min(axis=1).astype(np.float64), values.max(axis=1).astype(np.float64)
        total = values.sum(axis=1, dtype=np.float64)
        squares = np.einsum("cn,cn->c", values, values, dtype=np.float64)
        if not self.count:
            self.low, self.high, self.total, self.squares = low, high, total, squares
        else:
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
            self.total, self.squares = self.total + total, self.squares + squares
        self.count += values.shape[1]

    def statistics(self, counts: FloatArray) -> Statistics:
        mean = self.total / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return Statistics(self.low, self.high, mean, variance, shares)


class _Histogram:
    """Counts per channel in BINS equal bins between its low and its high."""

    def __init__(self, low: FloatArray, high: FloatArray) -> None:
        self.low = low.astype(np.float32)[:, None]
        self.scale = (BINS / np.maximum(high - low, 1e-30)).astype(np.float32)[:, None]
        self.counts = np.zeros((len(low), BINS))

    def add(self, values: Array) -> None:
        """Add (C, n) values."""
        index = ((values - self.low) * self.scale).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        index += np.arange(len(index), dtype=np.int32)[:, None] * BINS
        self.counts += np.bincount(index.ravel(), minlength=self.counts.size).reshape(self.counts.shape)
