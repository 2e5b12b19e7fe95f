"""What tensors hold, channel by channel, summed up in one streaming pass.

Memory depends on the network and the batch, not on how many samples there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.calibration import observation
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, FloatArray, Progress, Runtime

_Attributes = dict[str, int | list[int]] | None

BINS = 512
POSITIONS = 1 << 10
"""Values of each channel that enter its histogram, over all samples together: enough for its moments."""
TAIL_POSITIONS = 1 << 14
"""Enough to say what clipping costs: with `POSITIONS` squared error cuts too much (3 to 13 dB)."""
_STRIDE = 7919  # between the first positions of two samples: a prime, so that they walk over all of a step
_LEAST_POSITIONS = 64  # of each sample: with 21, of 1,024 samples, a text recognizer lost 0.7 dB
# Of a histogram's half span: what is wide enough for bins that float32 tells apart, and a margin in which
# the extremes fall into the outer bins, not onto their edges.
_LEAST_HALF = 1e-12
_FLOAT32_STEP = 1e-6
_MARGIN = 1.01
_UNSEEN = 1000
"""Samples among which one is expected to reach the end of the range: tails that were not seen yet."""
_EULER = 0.5772156649015329
_RETURN_LEVEL = math.sqrt(6) / math.pi * (math.log(_UNSEEN) - _EULER)
"""Of Gumbel's distribution: standard deviations above its mean, which are exceeded once in `_UNSEEN`."""
_PRIOR_SAMPLES = 4
"""Samples that the other channels' tails count for: their shape, in a channel's own mean and deviation."""
MOST_TOLD = 128
"""Samples that tails are known from at most: of more samples a histogram holds fewer values each, so that a
cut looks cheap by chance as often. Without this bound doubt vanishes with them, and clipping grows."""
_EDGE = 1e-3  # of a bin: float32, in which values are counted, may put one at an edge into either
_WAITING = 4 * BINS  # values of each channel that are counted at once: a histogram is touched as a whole
_COUNTED_ROWS = 32  # channels whose waiting values are worked on at once: they stay in a core's cache
_SHAPE_BINS = 512
_SHAPE_END = 64.0  # deviations from the mean: further values are counted there
# Operator sets from which axes are an input.
_MIN_MAX_AXES_INPUT = 18
_SUM_AXES_INPUT = 13


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was observed of one tensor, by channel; all arrays float64, (C,) where not said otherwise."""

    low: FloatArray
    high: FloatArray
    mean: FloatArray
    variance: FloatArray
    histogram: FloatArray  # (C, BINS) shares between the two edges; each row sums to 1
    histogram_low: FloatArray  # left edge of the histogram, at most low
    histogram_high: FloatArray  # right edge, at least high
    tails: Tails | None = None  # None: nothing is known beyond what was seen

    def centres(self) -> FloatArray:
        """Return the middle of every bin, (C, BINS), moved into the extent."""
        steps = (np.arange(BINS) + 0.5) / BINS
        middles = (self.histogram_high - self.histogram_low)[:, None] * steps
        middles += self.histogram_low[:, None]
        np.maximum(middles, self.low[:, None], out=middles)  # quicker than np.clip by bounds that differ
        return np.minimum(middles, self.high[:, None], out=middles)

    def usual(self) -> FloatArray:
        """Return which of its ends and 0 each channel takes most often, (C,); the low end of equals."""
        candidates = np.stack([self.low, np.zeros_like(self.low), self.high])
        place = (candidates - self.histogram_low) / (self.histogram_high - self.histogram_low) * BINS
        share = np.zeros_like(place)
        for near in (place - _EDGE, place + _EDGE):
            index = np.clip(near, 0, BINS - 1).astype(np.int64)
            np.maximum(share, np.take_along_axis(self.histogram.T, index, axis=0), out=share)
        share[1, (self.low > 0) | (self.high < 0)] = -1
        found: FloatArray = np.take_along_axis(candidates, share.argmax(axis=0)[None], axis=0)[0]
        return found

    def divided(self, factor: FloatArray) -> Statistics:
        """Return the statistics of the tensor with each channel divided by a positive number, (C,)."""
        return Statistics(
            low=self.low / factor,
            high=self.high / factor,
            mean=self.mean / factor,
            variance=self.variance / factor**2,
            histogram=self.histogram,
            histogram_low=self.histogram_low / factor,
            histogram_high=self.histogram_high / factor,
            tails=None if self.tails is None else self.tails.divided(factor),
        )

    def per_tensor(self) -> Statistics:
        """Return the statistics of the tensor as a whole: one channel."""
        low, high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        mean = self.mean.mean(keepdims=True)
        variance = (self.variance + self.mean**2).mean(keepdims=True) - mean**2
        span = max(float(high[0] - low[0]), np.finfo(np.float64).tiny)
        place = self.centres()
        place -= low[0]
        place /= span
        place *= BINS
        index = place.astype(np.int64)
        np.clip(index, 0, BINS - 1, out=index)
        histogram = np.bincount(index.ravel(), self.histogram.ravel(), BINS)[None]
        return Statistics(low, high, mean, variance, histogram / histogram.sum(), low, high)

    def expected(self) -> Statistics:
        """Return what other data is expected to show: wider extents, and tails that all channels share.

        Few samples say little of one channel's tails, and all channels together much more: a share of each
        histogram, the smaller the more samples there are (of `MOST_TOLD` at most), has the shape of all of
        them, in the channel's own mean and deviation, within the extent that it is expected to reach.
        """
        if self.tails is None:
            return self
        deviation = np.sqrt(self.variance)
        moves = deviation > _FLOAT32_STEP * np.maximum(-self.low, self.high)
        if not moves.any():
            return self
        # Finer near the mean, where most values are: a logarithm on both sides of 0.
        ends = np.arcsinh(_SHAPE_END)
        centres = self.centres()
        scaled = (centres - self.mean[:, None])[moves]
        scaled /= deviation[moves, None]
        np.arcsinh(scaled, out=scaled)
        scaled /= ends
        scaled += 1
        scaled *= _SHAPE_BINS / 2
        index = np.clip(scaled, 0, _SHAPE_BINS - 1, out=scaled).astype(np.int64)
        shape = np.bincount(index.ravel(), self.histogram[moves].ravel(), _SHAPE_BINS)
        steps = np.sinh(((np.arange(_SHAPE_BINS) + 0.5) / _SHAPE_BINS * 2 - 1) * ends)
        values = self.mean[:, None] + deviation[:, None] * steps
        share = _PRIOR_SAMPLES / (_PRIOR_SAMPLES + self.tails.samples)
        low, high = self.tails.low, self.tails.high
        span = np.maximum(high - low, np.finfo(np.float64).tiny)

        def spread(x: FloatArray, weights: FloatArray) -> FloatArray:
            """Return the weights of (C, n) values, which are written over, by the bin that each lies in."""
            np.clip(x, low[:, None], high[:, None], out=x)
            x -= low[:, None]
            x /= span[:, None]
            x *= BINS
            bins = np.clip(x, 0, BINS - 1, out=x).astype(np.int64)
            bins += np.arange(len(x))[:, None] * BINS
            counted = np.bincount(bins.ravel(), weights.ravel(), len(x) * BINS).astype(np.float64, copy=False)
            return counted.reshape(len(x), BINS)

        histogram = spread(centres, self.histogram)
        other = spread(values, np.broadcast_to(shape / shape.sum(), values.shape))
        histogram[moves] = ((1 - share) * histogram + share * other)[moves]
        return Statistics(low, high, self.mean, self.variance, histogram, low, high)


@dataclass(frozen=True, slots=True)
class Tails:
    """How far other data is expected to reach, (C,), and the samples that say so."""

    low: FloatArray  # at most what was seen, by no more than the extent that was
    high: FloatArray  # at least what was seen, as above
    samples: int  # at most `MOST_TOLD`
    dispersion: float = 0.0  # of each sample's reaches over the farthest: variance over squared mean

    def divided(self, factor: FloatArray) -> Tails:
        """Return the tails of the tensor with each channel divided by a positive number, (C,)."""
        return Tails(self.low / factor, self.high / factor, self.samples, self.dispersion)


def measure(
    model: ir.Model,
    axes: Mapping[str, int],
    samples: Samples,
    runtime: Runtime,
    *,
    positions: int = POSITIONS,
    progress: Progress = silent,
) -> dict[str, Statistics]:
    """Return the statistics of every tensor of `axes` (name to channel axis) over `samples`, in one pass.

    Every value enters the extent; mean, variance and histogram are those of about `positions` values of each
    channel, evenly spread. Raises: BadData where a tensor holds NaN or infinity.
    """
    probed = _probed(model, axes, max(_LEAST_POSITIONS, positions // samples.count))
    inputs = {v.name for v in model.graph.inputs}

    def digest(start: int, arrays: dict[str, Array]) -> dict[str, tuple[Array, Array, Array]]:
        reduced = {}
        for name, probe in probed.probes.items():
            low, high = arrays[probe.low], arrays[probe.high]
            total = arrays[probe.total]  # of finite values it may overflow, and is inf then
            marks = np.where(np.isnan(total), total, np.float32(0))
            # The values that are counted are among those that these three are of.
            observation.check_finite(name, start, low, high, marks, is_input=name in inputs)
            reduced[name] = (low, high, arrays[probe.values])
        return reduced

    channels: dict[str, _Channels] = {}
    wanted = [output for probe in probed.probes.values() for output in probe.outputs]
    reduced_whole = {probe.total for probe in probed.probes.values()}
    held = sum(4 * math.prod(d or 1 for d in (graph.dims(v) or ())[1:]) for v in _values(model, axes))
    for part in observation.map_batches(
        probed.model,
        wanted,
        samples,
        runtime,
        digest,
        without_rows=reduced_whole,
        sample_bytes=held,
        numbered=probed.number,
        progress=progress,
        step="ranges",
    ):
        for name, (low, high, values) in part.items():
            if name not in channels:
                channels[name] = _Channels(low.shape[1])
            channels[name].add(low, high, values)
    return {name: sums.statistics() for name, sums in channels.items()}


def _values(model: ir.Model, names: Iterable[str]) -> list[ir.Value]:
    """Return the inputs and inner tensors of these names."""
    known = {v.name: v for v in model.graph.inputs} | {v.name: v for n in model.graph for v in n.outputs}
    return [known[name] for name in names]


@dataclass(frozen=True, slots=True)
class _Probe:
    """Names of what a probed graph gives of one tensor."""

    low: str  # (N, C)
    high: str  # (N, C)
    total: str  # NaN where any value is: minimum and maximum may pass over one
    values: str  # (N, C, n)

    @property
    def outputs(self) -> tuple[str, ...]:
        """All of them."""
        return self.low, self.high, self.total, self.values


@dataclass(frozen=True, slots=True)
class _Probed:
    """A copy of a graph that reduces its tensors itself, by the names of these."""

    model: ir.Model
    probes: Mapping[str, _Probe]
    number: str  # the input that takes the number of the batch's first sample


def _probed(model: ir.Model, axes: Mapping[str, int], positions: int) -> _Probed:
    """Return a copy that gives extent, sum and about `positions` values of each sample and channel.

    The tensors themselves, most of the memory and of the copying, do not leave the runtime.
    """
    copy = model.clone()
    taken = graph.value_names(copy)
    numbers = {
        "rows": [0, 0, -1],
        "axes": [0, 2],
        "last": [2],
        "one": [1],
        "two": [2],
        "end": [np.iinfo(np.int64).max],
        "positions": [positions],
        "stride": [_STRIDE],
    }
    constants = {
        name: graph.initializer(copy, f"probe_{name}", np.array(number, np.int64), taken)
        for name, number in numbers.items()
    }
    # Each batch begins elsewhere: the same few pixels of every image would not stand for the others.
    first = ir.Value(
        name=graph.fresh_name("probe_first", taken),
        shape=ir.Shape([]),  # not (1,): it would be taken for a batch
        type=ir.TensorType(ir.DataType.INT64),
    )
    constants["first"] = first
    probes = {}
    for number, value in enumerate(_values(copy, axes)):
        name = value.name or ""
        nodes, results = _probe(value, axes[name], constants, opset=graph.opset(copy))
        for kind, result in results.items():
            result.name = graph.fresh_name(f"probe_{number}_{kind}", taken)
            taken.add(result.name)
        probes[name] = _Probe(**{kind: str(result.name) for kind, result in results.items()})
        graph.insert_after(value, nodes)
    copy.graph.inputs.append(first)
    return _Probed(copy, probes, str(first.name))


def _probe(
    value: ir.Value, axis: int, constants: Mapping[str, ir.Value], *, opset: int
) -> tuple[list[ir.Node], dict[str, ir.Value]]:
    """Return the nodes that reduce a tensor with channels on `axis`, and their results by field of _Probe."""
    nodes: list[ir.Node] = []

    def then(op: str, *given: ir.Value | str, attributes: _Attributes = None) -> ir.Value:
        nodes.append(ir.node(op, [constants[v] if isinstance(v, str) else v for v in given], attributes))
        return nodes[-1].outputs[0]

    def reduced(op: str, axes_input: int, axes: str, numbers: list[int]) -> ir.Value:
        if opset >= axes_input:
            return then(op, rows, axes, attributes={"keepdims": 0})
        return then(op, rows, attributes={"keepdims": 0, "axes": numbers})

    if axis != 1:
        rank = len(graph.dims(value) or ())
        value = then(
            "Transpose", value, attributes={"perm": [0, axis, *(i for i in range(1, rank) if i != axis)]}
        )
    rows = then("Reshape", value, "rows")  # (N, C, positions)
    results = {
        "low": reduced("ReduceMin", _MIN_MAX_AXES_INPUT, "last", [2]),
        "high": reduced("ReduceMax", _MIN_MAX_AXES_INPUT, "last", [2]),
        "total": reduced("ReduceSum", _SUM_AXES_INPUT, "axes", [0, 2]),
    }
    # A step that shares no factor with the rows' length walks over all columns of the image.
    step = then("Div", then("Gather", then("Shape", rows), "two"), "positions")
    step = then("Add", then("Mul", then("Div", step, "two"), "two"), "one")
    begin = then("Mod", then("Mul", "first", "stride"), step)
    results["values"] = then("Slice", rows, begin, "end", "two", step)
    return nodes, results


class _Extremes:
    """Mean and variance of each sample's own extreme, by channel, as the samples come."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.first: FloatArray | None = None  # squares around it: far from 0 they would lose the variance
        self.total, self.squares = np.zeros(channels), np.zeros(channels)

    def add(self, extremes: Array) -> None:
        """Add the extremes of some samples, (N, C)."""
        values = extremes.astype(np.float64)
        if self.first is None:
            self.first = values[0].copy()
        values -= self.first
        self.count += len(values)
        self.total += values.sum(axis=0)
        self.squares += (values**2).sum(axis=0)

    def expected(self, side: int) -> FloatArray:
        """Return the extreme expected among `_UNSEEN` samples, (C,): the largest (1) or the smallest (-1).

        By Gumbel's distribution of largest values with the mean and variance that were seen.
        """
        mean, variance = self.moments()
        expected: FloatArray = mean + side * _RETURN_LEVEL * np.sqrt(variance)
        return expected

    def moments(self) -> tuple[FloatArray, FloatArray]:
        """Return mean and variance, (C,) each."""
        first = 0.0 if self.first is None else self.first
        mean = self.total / self.count
        return first + mean, np.maximum(self.squares / self.count - mean**2, 0)


class _Channels:
    """Extent, mean, variance and histogram per channel, summed up as the values come.

    A histogram lies around the middle of the first values; its span doubles whenever values fall outside,
    and two bins become one.
    """

    def __init__(self, channels: int) -> None:
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.lows, self.highs, self.shares = (_Extremes(channels) for _ in range(3))
        self.counts = np.zeros((channels, BINS))
        self.centre, self.half = np.zeros(channels), np.zeros(channels)
        self.count = 0
        self.total, self.squares = np.zeros(channels), np.zeros(channels)
        self.waiting: list[Array] = []  # not counted yet: a histogram is touched as a whole each time

    def add(self, low: Array, high: Array, values: Array) -> None:
        """Add (N, C) extents of all values of each sample, and (N, C, n) of the values."""
        self.low, self.high = np.minimum(self.low, low.min(axis=0)), np.maximum(self.high, high.max(axis=0))
        self.lows.add(low)
        self.highs.add(high)
        reach = np.maximum(-low, high)
        farthest = np.maximum(reach.max(axis=1, keepdims=True), _LEAST_HALF)
        self.shares.add(reach / farthest)  # of a sample: its contrast is that of all channels
        self.waiting.append(values)
        if sum(part[:, 0].size for part in self.waiting) >= _WAITING:
            self._count()

    def _count(self) -> None:
        if not self.count:
            self.centre = (self.low + self.high) / 2
            least = _LEAST_HALF + _FLOAT32_STEP * np.abs(self.centre)
            self.half = np.maximum((self.high - self.low) / 2, least) * _MARGIN
        reach = np.maximum(self.high - self.centre, self.centre - self.low)
        while (narrow := reach > self.half).any():
            pairs = self.counts[narrow].reshape(-1, BINS // 2, 2).sum(axis=2)
            self.counts[narrow] = np.pad(pairs, ((0, 0), (BINS // 4, BINS // 4)))
            self.half = np.where(narrow, self.half * 2, self.half)
        for first in range(0, len(self.counts), _COUNTED_ROWS):
            rows = slice(first, first + _COUNTED_ROWS)
            some = [part[:, rows].transpose(1, 0, 2) for part in self.waiting]
            self._add(rows, np.concatenate([one.reshape(len(one), -1) for one in some], axis=1))
        self.count += sum(part[:, 0].size for part in self.waiting)
        self.waiting.clear()

    def _add(self, rows: slice, values: Array) -> None:
        """Add the values (C', n) of some channels, and write over them."""
        # In bins around the centre: squares of values far from 0 would lose the variance, and those of large
        # ones leave float32.
        bin_size = 2 * self.half[rows] / BINS
        values -= self.centre[rows].astype(np.float32)[:, None]
        values *= (1 / bin_size).astype(np.float32)[:, None]
        self.total[rows] += bin_size * values.sum(axis=1)
        self.squares[rows] += bin_size**2 * (values[:, None] @ values[:, :, None])[:, 0, 0]
        values += np.float32(BINS / 2)
        np.clip(values, 0, BINS - 1, out=values)
        self.counts[rows] += [np.bincount(index, minlength=BINS) for index in values.astype(np.intp)]

    def statistics(self) -> Statistics:
        """Return the statistics of what was added."""
        if self.waiting:
            self._count()
        mean = self.total / self.count
        return Statistics(
            self.low,
            self.high,
            mean + self.centre.astype(np.float32),
            np.maximum(self.squares / self.count - mean**2, 0),
            self.counts / self.count,
            self.centre - self.half,
            self.centre + self.half,
            Tails(
                np.clip(self.lows.expected(-1), 2 * self.low - self.high, self.low),
                np.clip(self.highs.expected(1), self.high, 2 * self.high - self.low),
                min(self.lows.count, MOST_TOLD),
                self._dispersion(),
            ),
        )

    def _dispersion(self) -> float:
        """Return how much samples differ in which channels reach far, over all channels."""
        mean, variance = self.shares.moments()
        power = float((mean**2).sum())
        return float(variance.sum()) / power if power else 0.0
