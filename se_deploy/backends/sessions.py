"""What sessions share: checking what they are fed, and timing calls that block."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.protocols import Array, Arrays, FloatArray, TensorSpec


def checked(feeds: Arrays, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return `feeds` as contiguous arrays in the inputs' order; a scalar stays one.

    Raises: BadInput where an input is missing, unknown, of another element type or of a shape that the
    network does not take.
    """
    names = [spec.name for spec in inputs]
    if set(feeds) != set(names):
        raise BadInput(
            f"the network takes {_list(names)}, but was fed {_list(sorted(feeds))}",
            hint="feed one array for each input, by its name",
        )
    for spec in inputs:
        array = feeds[spec.name]
        if array.dtype != spec.dtype:
            raise BadInput(
                f"input '{spec.name}' takes {spec.dtype}, but was fed {array.dtype}",
                hint=f"convert it with .astype('{spec.dtype}')",
            )
        fits = array.ndim == len(spec.dims) and all(
            d in (None, n) for d, n in zip(spec.dims, array.shape, strict=True)
        )
        if not fits:
            raise BadInput(
                f"input '{spec.name}' takes {shape_text(spec.dims)}, but was fed {shape_text(array.shape)}",
                hint="give data of the network's own size, or export it with a free batch (--batch dynamic)",
            )
    return {name: np.asarray(feeds[name], order="C") for name in names}  # ascontiguousarray makes 0-d 1-d


def wall_times(call: Callable[[], object], calls: int) -> FloatArray:
    """Time `calls` calls that return when they are done, in ms."""
    times = np.empty(calls)
    for i in range(calls):
        start = time.perf_counter_ns()
        call()
        times[i] = (time.perf_counter_ns() - start) / 1e6
    return times


def end_to_end_ms(run: Callable[[Arrays], object], feeds: Arrays, calls: int) -> float:
    """Return the median wall time of `calls` calls from host arrays to host arrays, in ms."""
    return float(np.median(wall_times(lambda: run(feeds), calls)))


def shape_text(dims: Sequence[int | None]) -> str:
    """Write a shape as "?x3x224x224"."""
    return "x".join("?" if d is None else str(d) for d in dims) or "a scalar"


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
