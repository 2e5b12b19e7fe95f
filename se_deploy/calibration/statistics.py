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
_LEAST_POSITIONS = 8  # of each sample
# Of a histogram's half span: what is wide enough for bins that float32 tells apart, and a margin in which
# the extremes fall into the outer bins, not onto their edges.
_LEAST_HALF = 1e-12
_FLOAT32_STEP = 1e-6
_MARGIN = 1.01
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

    def centres(self) -> FloatArray:
        """Return the middle of every bin, (C, BINS), moved into the extent."""
        steps = (np.arange(BINS) + 0.5) / BINS
        middles = self.histogram_low[:, None] + (self.histogram_high - self.histogram_low)[:, None] * steps
        return np.clip(middles, self.low[:, None], self.high[:, None])

    def per_tensor(self) -> Statistics:
        """Return the statistics of the tensor as a whole: one channel."""
        low, high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        mean = self.mean.mean(keepdims=True)
        variance = (self.variance + self.mean**2).mean(keepdims=True) - mean**2
        span = max(float(high[0] - low[0]), np.finfo(np.float64).tiny)
        index = np.clip(((self.centres() - low[0]) / span * BINS).astype(np.int64), 0, BINS - 1)
        histogram = np.bincount(index.ravel(), self.histogram.ravel(), BINS)[None]
        return Statistics(low, high, mean, variance, histogram / histogram.sum(), low, high)


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
            low, high, values = arrays[probe.low], arrays[probe.high], arrays[probe.values]
            total = arrays[probe.total]  # of finite values it may overflow, and is inf then
            marks = np.where(np.isnan(total), total, np.float32(0))
            observation.check_finite(name, start, low, high, values, marks, is_input=name in inputs)
            rows = values.transpose(1, 0, 2)  # (C, N, positions)
            reduced[name] = (low, high, rows.reshape(len(rows), -1))
        return reduced

    channels: dict[str, _Channels] = {}
    wanted = [output for probe in probed.probes.values() for output in probe.outputs]
    reduced_whole = {
        name for probe in probed.probes.values() for name in (probe.low, probe.high, probe.total)
    }
    held = sum(4 * math.prod(d or 1 for d in (graph.dims(v) or ())[1:]) for v in _values(model, axes))
    for part in observation.map_batches(
        probed.model,
        wanted,
        samples,
        runtime,
        digest,
        without_rows=reduced_whole,
        sample_bytes=held,
        progress=progress,
        step="ranges",
    ):
        for name, (low, high, values) in part.items():
            channels.setdefault(name, _Channels(len(low))).add(low, high, values)
    return {name: sums.statistics() for name, sums in channels.items()}


def _values(model: ir.Model, names: Iterable[str]) -> list[ir.Value]:
    """Return the inputs and inner tensors of these names."""
    known = {v.name: v for v in model.graph.inputs} | {v.name: v for n in model.graph for v in n.outputs}
    return [known[name] for name in names]


@dataclass(frozen=True, slots=True)
class _Probe:
    """Names of what a probed graph gives of one tensor: (C,) each, but for `values`, (N, C, n)."""

    low: str
    high: str
    total: str  # NaN where any value is: minimum and maximum may pass over one
    values: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """All of them."""
        return self.low, self.high, self.total, self.values


@dataclass(frozen=True, slots=True)
class _Probed:
    """A copy of a graph that reduces its tensors itself, by the names of these."""

    model: ir.Model
    probes: Mapping[str, _Probe]


def _probed(model: ir.Model, axes: Mapping[str, int], positions: int) -> _Probed:
    """Return a copy that gives extent, sum and about `positions` values of each sample and channel.

    The tensors themselves, most of the memory and of the copying, do not leave the runtime.
    """
    copy = model.clone()
    taken = graph.value_names(copy)
    numbers = {
        "rows": [0, 0, -1],
        "axes": [0, 2],
        "zero": [0],
        "one": [1],
        "two": [2],
        "end": [np.iinfo(np.int64).max],
        "positions": [positions],
    }
    constants = {
        name: graph.initializer(copy, f"probe_{name}", np.array(number, np.int64), taken)
        for name, number in numbers.items()
    }
    probes = {}
    for number, value in enumerate(_values(copy, axes)):
        name = value.name or ""
        nodes, results = _probe(value, axes[name], constants, opset=graph.opset(copy))
        for kind, result in results.items():
            result.name = graph.fresh_name(f"probe_{number}_{kind}", taken)
            taken.add(result.name)
        probes[name] = _Probe(**{kind: str(result.name) for kind, result in results.items()})
        graph.insert_after(value, nodes)
    return _Probed(copy, probes)


def _probe(
    value: ir.Value, axis: int, constants: Mapping[str, ir.Value], *, opset: int
) -> tuple[list[ir.Node], dict[str, ir.Value]]:
    """Return the nodes that reduce a tensor with channels on `axis`, and their results by field of _Probe."""
    nodes: list[ir.Node] = []

    def then(op: str, *given: ir.Value | str, attributes: _Attributes = None) -> ir.Value:
        nodes.append(ir.node(op, [constants[v] if isinstance(v, str) else v for v in given], attributes))
        return nodes[-1].outputs[0]

    def reduced(op: str, axes_input: int) -> ir.Value:
        if opset >= axes_input:
            return then(op, rows, "axes", attributes={"keepdims": 0})
        return then(op, rows, attributes={"keepdims": 0, "axes": [0, 2]})

    if axis != 1:
        rank = len(graph.dims(value) or ())
        value = then(
            "Transpose", value, attributes={"perm": [0, axis, *(i for i in range(1, rank) if i != axis)]}
        )
    rows = then("Reshape", value, "rows")  # (N, C, positions)
    results = {
        "low": reduced("ReduceMin", _MIN_MAX_AXES_INPUT),
        "high": reduced("ReduceMax", _MIN_MAX_AXES_INPUT),
        "total": reduced("ReduceSum", _SUM_AXES_INPUT),
    }
    # A step that shares no factor with the rows' length walks over all columns of the image.
    step = then("Div", then("Gather", then("Shape", rows), "two"), "positions")
    step = then("Add", then("Mul", then("Div", step, "two"), "two"), "one")
    results["values"] = then("Slice", rows, "zero", "end", "two", step)
    return nodes, results


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
        self.waiting: list[Array] = []  # not counted yet: a histogram is touched as a whole each time

    def add(self, low: Array, high: Array, values: Array) -> None:
        """Add (C,) extents of all values and (C, n) of them."""
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.waiting.append(values)
        if sum(part.shape[1] for part in self.waiting) >= BINS:
            self._count()

    def _count(self) -> None:
        values = np.concatenate(self.waiting, axis=1)
        self.waiting.clear()
        if not self.count:
            self.centre = (self.low + self.high) / 2
            least = _LEAST_HALF + _FLOAT32_STEP * np.abs(self.centre)
            self.half = np.maximum((self.high - self.low) / 2, least) * _MARGIN
        reach = np.maximum(self.high - self.centre, self.centre - self.low)
        while (narrow := reach > self.half).any():
            pairs = self.counts[narrow].reshape(-1, BINS // 2, 2).sum(axis=2)
            self.counts[narrow] = np.pad(pairs, ((0, 0), (BINS // 4, BINS // 4)))
            self.half = np.where(narrow, self.half * 2, self.half)
        # Around the centre, because squares of values far from 0 would lose the variance.
        moved = values - self.centre.astype(np.float32)[:, None]
        self.total += moved.sum(axis=1, dtype=np.float64)
        self.squares += np.einsum("cn,cn->c", moved, moved, dtype=np.float64)  # squares leave float32 first
        self.count += values.shape[1]
        moved *= (BINS / (2 * self.half)).astype(np.float32)[:, None]
        index = (moved + np.float32(BINS / 2)).astype(np.int64)
        np.clip(index, 0, BINS - 1, out=index)
        index += np.arange(len(index))[:, None] * BINS
        self.counts += np.bincount(index.ravel(), minlength=self.counts.size).reshape(self.counts.shape)

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
        )
