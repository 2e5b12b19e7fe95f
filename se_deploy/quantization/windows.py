"""What a layer's outputs see of its input: rows of columns, at a few sampled positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from se_deploy.protocols import Array

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution's window; a fully connected layer's is one element along all other axes."""

    kernel: tuple[int, ...]  # () where the input is no image
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # as ONNX orders them
    axis: int = 1  # of the channels

    def positions(self, shape: tuple[int, ...], count: int, random: np.random.Generator) -> IntArray:
        """Choose `count` output positions of an input (N, C, ...), as flat numbers with repetition."""
        return random.integers(0, self.count(shape), count)

    def count(self, shape: tuple[int, ...]) -> int:
        """Count the output positions of an input."""
        return int(np.prod(self._outputs(shape)))

    def sample_of(self, shape: tuple[int, ...], at: IntArray) -> IntArray:
        """Give the sample that each position belongs to."""
        return at // int(np.prod(self._outputs(shape)[1:]))

    def rows(self, x: Array, at: IntArray) -> Array:
        """Give the windows at these positions: (len(at), C, taps)."""
        if not self.kernel:
            moved = np.moveaxis(x, self.axis, -1)
            return moved.reshape(-1, moved.shape[-1])[at][:, :, None]
        n = len(self.kernel)
        if any(self.pads):
            edges = [(0, 0), (0, 0), *zip(self.pads[:n], self.pads[n:], strict=True)]
            x = np.pad(x, edges)
        sample, *places = np.unravel_index(at, self._outputs(x.shape, padded=True))
        # Open windows by index: for every tap, one gather of all channels.
        taps = np.stack(np.unravel_index(np.arange(int(np.prod(self.kernel))), self.kernel))  # (n, taps)
        index = [
            place[:, None] * stride + tap[None, :] * dilation
            for place, stride, tap, dilation in zip(places, self.strides, taps, self.dilations, strict=True)
        ]
        key = (sample[:, None], slice(None), *index)
        gathered = x[key]  # (P, taps, C): the slice lands last
        return np.ascontiguousarray(gathered.transpose(0, 2, 1))

    def _outputs(self, shape: tuple[int, ...], *, padded: bool = False) -> tuple[int, ...]:
        """Give the shape of the positions: (N, outputs per axis...)."""
        if not self.kernel:
            return tuple(d for i, d in enumerate(shape) if i != self.axis)
        n = len(self.kernel)
        pads = (0,) * 2 * n if padded else self.pads
        return (
            shape[0],
            *(
                (size + pads[i] + pads[n + i] - self.dilations[i] * (self.kernel[i] - 1) - 1)
                // self.strides[i]
                + 1
                for i, size in enumerate(shape[2:])
            ),
        )
