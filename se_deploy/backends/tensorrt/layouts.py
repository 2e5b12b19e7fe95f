"""How an engine's input or output lies in memory where it is not row by row: packed from NCHW and back.

An engine that was built with --io-format takes such tensors as they are, so that no copy stands before its
first kernel. TensorRT's "Data Format Descriptions" say what each format is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.errors import BadArtifact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.protocols import Array

_CHANNEL = 1  # of (N, C, ...)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Where the channels of (N, C, ...) lie: last, or in groups of `lanes` behind the other dimensions."""

    last: bool = False
    lanes: int = 1  # channels are padded with 0 to a multiple of it

    def shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        """Return the shape in memory of a tensor of shape `dims`."""
        batch, channels, *rest = dims
        groups = -(-channels // self.lanes)
        if self.last:
            return (batch, *rest, groups * self.lanes)
        return (batch, groups, *rest, self.lanes)

    def packed(self, array: Array) -> Array:
        """Return (N, C, ...) as it lies in memory, contiguous."""
        missing = -array.shape[_CHANNEL] % self.lanes
        padded = np.pad(array, [(0, missing if i == _CHANNEL else 0) for i in range(array.ndim)])
        if self.last:
            return np.ascontiguousarray(np.moveaxis(padded, _CHANNEL, -1))
        batch, channels, *rest = padded.shape
        grouped = padded.reshape(batch, channels // self.lanes, self.lanes, *rest)
        return np.ascontiguousarray(np.moveaxis(grouped, _CHANNEL + 1, -1))

    def unpacked(self, array: Array, channels: int) -> Array:
        """Return what lies in memory as (N, C, ...), contiguous, with `channels` of its channels."""
        if self.last:
            whole = np.moveaxis(array, -1, _CHANNEL)
        else:
            grouped = np.moveaxis(array, -1, _CHANNEL + 1)
            batch, groups, lanes, *rest = grouped.shape
            whole = grouped.reshape(batch, groups * lanes, *rest)
        return np.ascontiguousarray(whole[:, :channels])


FORMATS = {
    "HWC": TensorLayout(last=True),
    "HWC8": TensorLayout(last=True, lanes=8),
    "HWC16": TensorLayout(last=True, lanes=16),
    "DHWC": TensorLayout(last=True),
    "DHWC8": TensorLayout(last=True, lanes=8),
    "CHW2": TensorLayout(lanes=2),
    "CHW4": TensorLayout(lanes=4),
    "CHW16": TensorLayout(lanes=16),
    "CHW32": TensorLayout(lanes=32),
    "CDHW32": TensorLayout(lanes=32),
}
"""By TensorRT's name; LINEAR is row by row. The DLA's own formats have strides that only it knows."""

LINEAR = "LINEAR"


def layout_of(format_name: str, tensor: str) -> TensorLayout | None:
    """Return the layout of a format by TensorRT's name; None for LINEAR. Raises: BadArtifact for others."""
    if format_name == LINEAR:
        return None
    if format_name not in FORMATS:
        raise BadArtifact(
            f"'{tensor}' lies in memory as {format_name}, which cannot be packed here",
            hint=f"build the engine with --io-format and one of {', '.join((LINEAR, *FORMATS))}",
        )
    return FORMATS[format_name]
