"""A layer's input as a matrix (im2col): one row for each of a few sampled output positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from se_deploy.quantization.qdq import same_pads

if TYPE_CHECKING:
    from se_deploy.protocols import Array

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ConvWindow:
    """A convolution's window; a fully connected layer's is one element along all other axes."""

    kernel: tuple[int, ...]  # () for a fully connected layer
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # as ONNX orders them; () where auto_pad settles them for each input
    auto_pad: str = "NOTSET"  # or SAME_UPPER, SAME_LOWER: where the input's size is free
    axis: int = 1  # of the channels

    def positions(self, shape: tuple[int, ...], count: int, random: np.random.Generator) -> IntArray:
        """Return `count` random output positions of an input (N, C, ...), as flat numbers with repetition."""
        return random.integers(0, self.count(shape), count)

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of output positions of an input of this shape."""
        return int(np.prod(self._outputs(shape)))

    def rows(self, x: Array, positions: IntArray) -> Array:
        """Return a copy of the windows at these positions: (P, C, taps)."""
        if not self.kernel:
            moved = np.moveaxis(x, self.axis, -1)
            return moved.reshape(-1, moved.shape[-1])[positions][:, :, None]
        sample, *corners = np.unravel_index(positions, self._outputs(x.shape))
        taps = np.stack(np.unravel_index(np.arange(int(np.prod(self.kernel))), self.kernel))  # (n, taps)
        index = [
            corner[:, None] * stride + tap[None, :] * dilation - pad
            for corner, stride, tap, dilation, pad in zip(
                corners, self.strides, taps, self.dilations, self._pads(x.shape), strict=False
            )
        ]
        inside = np.ones(index[0].shape, bool)  # padding is 0: cheaper than a padded copy of all of x
        for i, size in enumerate(x.shape[2:]):
            inside &= (index[i] >= 0) & (index[i] < size)
            np.clip(index[i], 0, size - 1, out=index[i])
        # Open windows by index: for every tap, one gather of all channels.
        key = (sample[:, None], slice(None), *index)
        gathered = x[key]  # (P, taps, C): the slice lands last
        gathered[~inside] = 0
        return np.ascontiguousarray(gathered.transpose(0, 2, 1))

    def _pads(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the pads of an input of this shape, as ONNX orders them."""
        if self.auto_pad == "NOTSET":
            return self.pads
        upper = self.auto_pad == "SAME_UPPER"
        return same_pads(shape[2:], self.kernel, self.strides, self.dilations, upper=upper)

    def _outputs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the positions: (N, outputs per axis...)."""
        if not self.kernel:
            return tuple(d for i, d in enumerate(shape) if i != self.axis)
        n, pads = len(self.kernel), self._pads(shape)
        return (
            shape[0],
            *(
                (size + pads[i] + pads[n + i] - self.dilations[i] * (self.kernel[i] - 1) - 1)
                // self.strides[i]
                + 1
                for i, size in enumerate(shape[2:])
            ),
        )
