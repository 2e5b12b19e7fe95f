"""Second-order weight rounding: each layer's outputs are kept, not its weights.

Layers are done in order, a few at a time, on the inputs that the network quantized so far gives them.
Weights are rounded column by column, each column's error spread over those that are still free (optimal
brain quantization, "GPTQ": Frantar et al. 2022); how far the second moments of few samples are believed is
chosen on the half of the samples that they were not taken from. The bias takes back the mean error of the
rounding and, on request, what upstream rounding did to the mean. No labels and no training: only sums over
the calibration data, whose size is fixed.

Moving the weights themselves to undo upstream errors (the regression of the float output on the quantized
input) was tried: each layer gets nearer to the float one, and the network further from it, because such a
regression shrinks towards the mean and the shrinking adds up over the layers (MobileNetV3: 28 to 21 dB).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration
from se_deploy.precision import trial
from se_deploy.protocols import silent
from se_deploy.quantization import rounding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.precision import Grid, QuantizedLayer
    from se_deploy.protocols import Array, FloatArray, Progress, Runtime
    from se_deploy.quantization.layers import Layer

PASSES = 6  # over the data, at most: layers of one pass do not see each other's errors
_SUM_BYTES = 64 << 20  # of second moments that one pass may hold
_ROWS_PER_COLUMN = 4  # observations wanted per unknown
_LEAST_ROWS, _MOST_ROWS = 2048, 16384
_LARGEST = 4608  # columns; wider layers are rounded to nearest
_LARGEST_JUDGED = 320  # columns; wider layers take the first damping without a trial
_ENOUGH = 2  # positions per column without which a wide layer is rounded to nearest
_BLOCK = 64


_DAMPINGS = (0.02, 0.5, 100.0)
"""Tried on the second moments, over their mean diagonal; the last one is rounding to nearest."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over sampled positions of a layer's input columns; K = C/G * taps."""

    second: FloatArray  # (G, K, K) of the quantized input, centred, over the rows
    wanted: FloatArray  # (G, K) mean of what the input should be: not rounded, or the float network's
    given: FloatArray  # (G, K) mean of the quantized input


def reconstruct(
    model: ir.Model,
    layers: Sequence[Layer],
    grids: Mapping[str, Grid],
    start: Sequence[QuantizedLayer],
    samples: Samples,
    *,
    runtime: Runtime,
    per_channel: bool,
    upstream: bool,
    progress: Progress = silent,
) -> list[QuantizedLayer]:
    """Round the weights of all layers, in order; `start` is what a layer keeps that is not reached."""
    done: dict[str, QuantizedLayer] = {}
    fallback = {layer.node: layer for layer in start}
    for i, group in enumerate(groups := _groups(layers)):
        measured = _measure(
            model, group, grids, list(done.values()), samples, runtime=runtime, upstream=upstream
        )
        for layer in group:
            if layer.node in measured:
                done[layer.node] = _round(
                    layer,
                    grids[layer.tensor],
                    measured[layer.node],
                    per_channel=per_channel and layer.scales_per_channel,
                )
            else:
                done[layer.node] = fallback[layer.node]
        progress("weights", i + 1, len(groups))
    return [done[layer.node] for layer in layers]


def _groups(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Cut the layers, in order, into few groups whose moments fit."""
    most = -(-len(layers) // PASSES)
    groups: list[list[Layer]] = [[]]
    held = 0
    for layer in layers:
        size = 16 * layer.groups * _columns(layer) ** 2
        if groups[-1] and (len(groups[-1]) >= most or held + size > _SUM_BYTES):
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += size
    return groups


def _columns(layer: Layer) -> int:
    return int(layer.matrix.shape[2] * layer.matrix.shape[3])


def _measure(
    model: ir.Model,
    group: Sequence[Layer],
    grids: Mapping[str, Grid],
    done: Sequence[QuantizedLayer],
    samples: Samples,
    *,
    runtime: Runtime,
    upstream: bool,
) -> dict[str, _Sums]:
    """Sum up these layers' inputs over the samples; the float network's only where they are wanted."""
    reached = [layer for layer in group if layer.window is not None and _columns(layer) <= _LARGEST]
    tensors = list(dict.fromkeys(layer.tensor for layer in reached))
    if not tensors:
        return {}
    sums = {layer.node: _Sums(layer) for layer in reached}
    random = np.random.default_rng(0)
    quantized = calibration.observe(trial(model, done), tensors, samples, runtime)
    floats = calibration.observe(model, tensors, samples, runtime) if upstream and done else None
    for given in quantized:
        wanted = given if floats is None else next(floats)
        for layer in reached:
            count = len(given[layer.tensor])
            rows = int(np.clip(_ROWS_PER_COLUMN * _columns(layer), _LEAST_ROWS, _MOST_ROWS))
            each = -(-rows * count // samples.count)
            window, grid = layer.window, grids[layer.tensor]
            assert window is not None  # noqa: S101 - reached holds no other
            at = window.positions(given[layer.tensor].shape, each, random)
            q = window.rows(given[layer.tensor], at)  # (P, C, taps)
            x = q if floats is None else window.rows(wanted[layer.tensor], at)
            x, q = _onto(x, grid, quantize=False), _onto(q, grid, quantize=True)
            sums[layer.node].available += window.count(given[layer.tensor].shape)
            odd = window.sample_of(given[layer.tensor].shape, at) % 2 == 1
            for half in (0, 1):
                sums[layer.node].add(half, x[odd == half], q[odd == half])
    return sums


def _onto(x: Array, grid: Grid, *, quantize: bool) -> Array:
    """Shift and divide (P, C, taps), and round to the grid."""
    if grid.offset is not None:
        x = x - grid.offset[:, None]
    if grid.divisor is not None:
        x = x / grid.divisor[:, None]
    if quantize:
        scale = np.float32(grid.scale)
        x = np.clip(np.round(x / scale), -128, 127) * scale
    return x


class _Sums:
    """Accumulates the moments of one layer's two inputs, of every other sample apart."""

    def __init__(self, layer: Layer) -> None:
        g, k = layer.groups, _columns(layer)
        self.groups = g
        self.rows = np.zeros(2)
        self.available = 0  # different positions that there were to sample
        self.second = np.zeros((2, g, k, k), np.float32)
        self.wanted, self.given = np.zeros((2, g, k)), np.zeros((2, g, k))
        self.centre: Array | None = None  # (G, 1, K): float32 sums of squares far from 0 would lose the rest

    def add(self, half: int, x: Array, q: Array) -> None:
        """Add (P, C, taps) float and quantized rows."""
        if not len(x):
            return
        g = self.groups
        x = x.reshape(len(x), g, -1).transpose(1, 0, 2)
        q = q.reshape(len(q), g, -1).transpose(1, 0, 2)
        if self.centre is None:
            self.centre = q.mean(axis=1, keepdims=True)
        x, q = x - self.centre, q - self.centre
        self.second[half] += q.transpose(0, 2, 1) @ q
        self.wanted[half] += x.sum(axis=1, dtype=np.float64)
        self.given[half] += q.sum(axis=1, dtype=np.float64)
        self.rows[half] += x.shape[1]

    def moments(self, *halves: int) -> Moments:
        """Give the moments of one half or of both."""
        n = max(1.0, sum(self.rows[h] for h in halves))
        wanted = sum(self.wanted[h] for h in halves) / n
        given = sum(self.given[h] for h in halves) / n
        second = sum(self.second[h] for h in halves) / n - given[:, :, None] * given[:, None, :]
        centre = 0.0 if self.centre is None else self.centre[:, 0]
        return Moments((second + second.transpose(0, 2, 1)) / 2, wanted + centre, given + centre)


def _round(layer: Layer, grid: Grid, sums: _Sums, *, per_channel: bool) -> QuantizedLayer:
    """Round with the damping and the trust that do best on the half they were not fitted to."""
    matrix, bias = rounding.folded(layer, grid)
    g, o, _, _ = matrix.shape
    flat = matrix.reshape(g, o, -1)
    whole = sums.moments(0, 1)
    best = _DAMPINGS[0] if sums.available >= _ENOUGH * flat.shape[2] else _DAMPINGS[-1]
    if flat.shape[2] <= _LARGEST_JUDGED and sums.rows.all():
        one, other = sums.moments(0), sums.moments(1)
        costs = []
        for damping in _DAMPINGS:
            q, scale = _fit(flat, matrix.shape, one, damping, per_channel=per_channel)
            costs.append(_cost(flat, q * scale[:, :, None], other))
        best = _DAMPINGS[int(np.argmin(costs))]
    q, scale = _fit(flat, matrix.shape, whole, best, per_channel=per_channel)
    rounded = q * scale[:, :, None]
    drift = (flat * whole.wanted[:, None, :] - rounded * whole.given[:, None, :]).sum(axis=2)
    return rounding.finished(
        layer, grid, q.reshape(matrix.shape), scale, bias + drift.reshape(-1), per_channel=per_channel
    )


def _fit(
    flat: FloatArray, shape: tuple[int, ...], moments: Moments, damping: float, *, per_channel: bool
) -> tuple[FloatArray, FloatArray]:
    """Give integers (G, O, K) and scales (G, O)."""
    level = np.maximum(np.einsum("gkk->g", moments.second) / flat.shape[2], 1e-12)[:, None, None]
    importance = np.broadcast_to(np.einsum("gkk->gk", moments.second)[:, None, :], flat.shape)
    scale = rounding.weight_scale(flat.reshape(shape), importance.reshape(shape), per_channel=per_channel)
    scale = scale.reshape(shape[:2])
    if damping == _DAMPINGS[-1]:  # to nearest: no need to factor anything
        return np.clip(np.round(flat / scale[:, :, None]), -rounding.LEVELS, rounding.LEVELS), scale
    return round_columns(flat, scale, moments.second + damping * level * np.eye(flat.shape[2])), scale


def _cost(wanted: FloatArray, rounded: FloatArray, moments: Moments) -> float:
    """Give the squared output error of the rounding in these moments."""
    apart = wanted - rounded
    return float(((apart @ moments.second) * apart).sum())


def _definite(second: FloatArray) -> FloatArray:
    """Give second moments (G, K, K) that are positive definite.

    An input that hardly varies around a large mean leaves rounding noise when it is centred, and with it
    negative eigenvalues; those matrices are shifted above zero.
    """
    try:
        np.linalg.cholesky(second)
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(second)[:, :1, None]
        shift: FloatArray = np.maximum(0.0, 1e-12 - 2 * lowest) * np.eye(second.shape[-1])
        return second + shift
    return second


def round_columns(weight: FloatArray, scale: FloatArray, second: FloatArray) -> FloatArray:
    """Round (G, O, K) weights to integers times `scale` (G, O), minimizing the error under `second`.

    The columns with the largest second moments go first; each leaves its error to the columns after it, by
    the Cholesky factor of the inverse of `second` (G, K, K).
    """
    order = np.argsort(-np.einsum("gkk->gk", second), axis=1)
    back = np.argsort(order, axis=1)
    w = np.take_along_axis(weight, order[:, None, :], axis=2).copy()
    h = np.take_along_axis(np.take_along_axis(second, order[:, :, None], axis=1), order[:, None, :], axis=2)
    upper = np.linalg.cholesky(np.linalg.inv(_definite(h))).transpose(0, 2, 1)
    q = np.empty_like(w)
    k = w.shape[2]
    for first in range(0, k, _BLOCK):
        last = min(first + _BLOCK, k)
        errors = np.empty((*w.shape[:2], last - first))
        for j in range(first, last):
            column = w[:, :, j]
            q[:, :, j] = np.clip(np.round(column / scale), -rounding.LEVELS, rounding.LEVELS)
            error = (column - q[:, :, j] * scale) / upper[:, j, j, None]
            w[:, :, j + 1 : last] -= error[:, :, None] * upper[:, None, j, j + 1 : last]
            errors[:, :, j - first] = error
        w[:, :, last:] -= errors @ upper[:, first:last, last:]
    rounded: FloatArray = np.take_along_axis(q, back[:, None, :], axis=2)
    return rounded
