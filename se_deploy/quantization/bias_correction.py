"""Bias correction: each layer's mean error in the quantized network is taken back in its bias.

Rounding is no noise where a tensor holds one value over and over (an image's background, what a ReLU leaves
of it): the same error at each position adds up, in every layer behind and through every residual Add. What
is left of it at a layer's output is its mean per channel (Nagel et al., "Data-Free Quantization through
Weight Equalization and Bias Correction", 2019). Layers are corrected in order, each on what the layers before
it give once they are corrected: all at once, each would correct for the others too, which is worse than none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import batching, calibration
from se_deploy.protocols import silent
from se_deploy.quantization import qdq, segments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, FloatArray, Progress, Runtime
    from se_deploy.quantization.qdq import QuantizedLayer

_BATCH = 4  # samples of a run: a piece of the graph is small
_HELD_BYTES = 64 << 20  # of tensors between two pieces: samples are left out where they would hold more
_LEAST_DOUBT = 1e-30  # of a mean's square: keeps its quotient finite where nothing was rounded


def correct(
    model: ir.Model,
    planned: Sequence[QuantizedLayer],
    samples: Samples,
    *,
    runtime: Runtime,
    fast: Runtime,
    progress: Progress = silent,
) -> list[QuantizedLayer]:
    """Return the layers with biases by which each channel's mean is that of the float network.

    `fast` runs the float network `model`, `runtime` the quantized one, node by node. A mean error is taken
    back as far as the samples agree on it. A layer whose output has no rows for each sample stays as it is.
    """
    nodes = {str(node.name): node for node in model.graph}
    written = {layer.node: str(nodes[layer.node].outputs[0].name) for layer in planned}
    axes = {tensor: qdq.channel_axis(nodes[name]) for name, tensor in written.items()}
    wanted = _float_means(model, axes, samples, fast)
    held = _batches(model, samples)
    trial = qdq.trial(model, planned)
    layer_of = {written[layer.node]: layer for layer in planned}
    corrected = {}
    pieces = segments.cut(trial, list(layer_of))
    for i, piece in enumerate(pieces):
        with runtime.open(segments.as_model(trial, piece, held[0].arrays)) as session:
            for batch in held:
                batch.arrays.update(session.run({name: batch.arrays[name] for name in piece.reads}))
        (tensor,) = (name for name in piece.leaves if name in layer_of)
        error = _mean_error(wanted.get(tensor), [batch.means(tensor, axes[tensor]) for batch in held])
        if error is not None:
            layer = layer_of[tensor]
            bias = error if layer.bias is None else layer.bias + error
            corrected[layer.node] = dataclasses.replace(layer, bias=bias.astype(np.float32))
            for batch in held:
                batch.add(tensor, error, axes[tensor])
        for batch in held:
            batch.drop(piece.last_read)
        while len(held) > 1 and sum(batch.held_bytes for batch in held) > _HELD_BYTES:
            held.pop()
        progress("biases", i + 1, len(pieces))
    return [corrected.get(layer.node, layer) for layer in planned]


@dataclass(slots=True)
class _Batch:
    """Samples on their way through the graph, as the tensors between two of its pieces."""

    size: int  # samples, padding included
    rows: int  # of them; the others are padding
    arrays: dict[str, Array]  # by name

    @property
    def held_bytes(self) -> int:
        """What the tensors take."""
        return sum(array.nbytes for array in self.arrays.values())

    def means(self, tensor: str, axis: int) -> FloatArray | None:
        """Return `_means` of a tensor, without padding."""
        means = _means(self.arrays[tensor], self.size, axis)
        return None if means is None else means[: self.rows]

    def add(self, tensor: str, error: FloatArray, axis: int) -> None:
        """Add a number, (C,), to each channel of a tensor."""
        array = self.arrays[tensor]
        along = [1] * array.ndim
        along[axis] = -1
        self.arrays[tensor] = array + error.astype(array.dtype).reshape(along)

    def drop(self, tensors: Sequence[str]) -> None:
        """Forget tensors that nothing reads any more."""
        for name in tensors:
            self.arrays.pop(name, None)


def _batches(model: ir.Model, samples: Samples) -> list[_Batch]:
    fixed = calibration.frozen_batch(model)
    found = []
    for feeds in samples.batches(fixed or _BATCH):
        rows = batching.rows(feeds)
        arrays = dict(feeds) if fixed is None else batching.padded(feeds, fixed)
        found.append(_Batch(fixed or rows, rows, arrays))
    return found


def _float_means(
    model: ir.Model, axes: Mapping[str, int], samples: Samples, fast: Runtime
) -> dict[str, FloatArray]:
    """Return each tensor's mean of each sample and channel, (N, C), in the float network."""
    inputs = [str(value.name) for value in model.graph.inputs]

    def means(start: int, arrays: dict[str, Array]) -> dict[str, FloatArray]:  # noqa: ARG001 - as map_batches calls it
        size = batching.rows({name: arrays[name] for name in inputs})
        found = {name: _means(arrays[name], size, axis) for name, axis in axes.items()}
        return {name: mean for name, mean in found.items() if mean is not None}

    parts: dict[str, list[FloatArray]] = {}
    for part in calibration.map_batches(model, [*inputs, *axes], samples, fast, means):
        for name, mean in part.items():
            parts.setdefault(name, []).append(mean)
    return {name: np.concatenate(found) for name, found in parts.items()}


def _means(array: Array, size: int, axis: int) -> FloatArray | None:
    """Return the mean of each of `size` samples and each channel; None where the rows are not samples'."""
    if array.ndim < 2 or len(array) % size:  # noqa: PLR2004 - samples and channels
        return None
    last = np.moveaxis(array, axis, -1)
    mean: FloatArray = last.reshape(size, -1, last.shape[-1]).mean(axis=1, dtype=np.float64)
    return mean


def _mean_error(wanted: FloatArray | None, given: Sequence[FloatArray | None]) -> FloatArray | None:
    """Return by how much each channel is too low, (C,), the less of it the more the samples differ in it."""
    known = [part for part in given if part is not None]
    if wanted is None or not known:
        return None
    got = np.concatenate(known)
    error = wanted[: len(got)] - got
    mean = error.mean(axis=0)
    doubt = error.var(axis=0) / max(1, len(error) - 1)
    shrunk: FloatArray = mean * mean**2 / np.maximum(mean**2 + doubt, _LEAST_DOUBT)
    return shrunk
