"""Any number of samples through a graph that takes a fixed number: sliced, the last slice padded.

Padding repeats the last sample, so that it adds no new value anywhere, and no answer to it leaves here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from se_deploy.protocols import Array, Arrays, Session, TensorSpec

_MOVES = 0.02
"""Of an output's largest magnitude: what rounding, in INT8 with one scale for a batch too, does not reach."""


def run(session: Session, feeds: Arrays, *, apart: bool = False) -> dict[str, Array]:
    """Return the outputs for all samples in `feeds`, whose first axes count samples.

    Real numbers are converted to the type that the session takes. A graph with a free batch, or frozen to
    this number, is run once. `apart`: each sample was seen to be answered by itself, so that no padding is
    tried.
    Raises: BadInput where the feeds do not fit; BadData where an output's rows are not those of samples, or
    depend on what a slice is padded with (which is tried with another padding).
    """
    feeds = _typed(feeds, session.inputs)
    size, count = frozen(session.inputs), _count(feeds)
    if size is None or count in {size, 0}:
        return session.run(feeds)
    slices = []
    for part, rows in sliced(feeds, size):
        made = session.run(part)
        slices.append({name: unpadded(name, array, size, rows) for name, array in made.items()})
        if apart or rows == size:
            continue
        if (other := _padded_otherwise(feeds, part, rows)) is not None:
            again = {name: unpadded(name, a, size, rows) for name, a in session.run(other).items()}
            _refuse_mixing(slices[-1], again, size, rows)
    return {name: np.concatenate([one[name] for one in slices]) for name in slices[0]}


def sliced(feeds: Arrays, size: int) -> Iterator[tuple[dict[str, Array], int]]:
    """Yield batches of `size` samples, and how many samples of `feeds` each holds: the last one is padded."""
    count = _count(feeds)
    for start in range(0, count, size):
        rows = min(size, count - start)
        part = {name: a[start : start + rows] if a.ndim else a for name, a in feeds.items()}
        yield padded(part, size), rows


def frozen(inputs: Sequence[TensorSpec]) -> int | None:
    """Return the number of samples that every input with a first axis is fixed to; None where one is free."""
    firsts = {spec.dims[0] for spec in inputs if spec.dims}
    return firsts.pop() if len(firsts) == 1 else None


def rows(feeds: Arrays) -> int:
    """Return how many samples a batch holds: 1 where first axes differ, as of a frame and a state with it."""
    counts = {len(array) for array in feeds.values() if array.ndim}
    return counts.pop() if len(counts) == 1 else 1


def padded(feeds: Arrays, size: int) -> dict[str, Array]:
    """Return a batch of `size` samples: the last one is repeated."""
    return {
        name: a if not a.ndim or len(a) == size else np.concatenate([a, np.repeat(a[-1:], size - len(a), 0)])
        for name, a in feeds.items()
    }


def unpadded(name: str, array: Array, size: int, rows: int) -> Array:
    """Return what `array`, made from `size` samples, holds of the first `rows`.

    Its first axis may hold several rows for each sample. Raises: BadData where it does not.
    """
    if rows == size:
        return array if array.ndim else array[None]
    if not array.ndim or len(array) % size:
        raise BadData(
            f"'{name}' has no row for each sample, so that the last {rows} cannot be told from padding",
            hint=f"give a multiple of {size} samples, or export with --batch dynamic",
        )
    return array[: len(array) // size * rows]


def _padded_otherwise(feeds: Arrays, part: Arrays, rows: int) -> dict[str, Array] | None:
    """Return a padded slice with another padding: the first sample of all, or the last one back to front.

    None where both are what it is padded with already.
    """
    for back_to_front in (False, True):
        other = {name: _tail(feeds[name], a, rows, back_to_front) for name, a in part.items()}
        if any(not np.array_equal(other[name], a) for name, a in part.items()):
            return other
    return None


def _tail(whole: Array, part: Array, rows: int, back_to_front: bool) -> Array:
    if not part.ndim:
        return part
    row = part[-1:].reshape(-1)[::-1].reshape(part[-1:].shape) if back_to_front else whole[:1]
    return np.concatenate([part[:rows], np.repeat(row, len(part) - rows, 0)])


def _refuse_mixing(made: Arrays, again: Arrays, size: int, rows: int) -> None:
    for name, array in made.items():
        if _moved(array, again[name]):
            raise BadData(
                f"'{name}' answers a sample otherwise where the others in its batch are others, and the last "
                f"{rows} of a batch of {size} would be answered with padding",
                hint=f"give a multiple of {size} samples, or export with --batch 1",
            )


def _moved(array: Array, other: Array) -> bool:
    """Whether two answers to the same samples differ by more than rounding; infinities count."""
    if array.shape != other.shape:
        return True
    if array.dtype.kind != "f":
        return not np.array_equal(array, other)
    finite = np.isfinite(array)
    if not np.array_equal(finite, np.isfinite(other)):
        return True
    numbers = array[finite].astype(np.float64)
    gap = np.abs(numbers - other[finite]).max(initial=0)
    return bool(gap > _MOVES * np.abs(numbers).max(initial=0))


def _count(feeds: Arrays) -> int:
    counts = {len(array) for array in feeds.values() if array.ndim}
    return counts.pop() if len(counts) == 1 else 0


def _typed(feeds: Arrays, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    types = {spec.name: spec.dtype for spec in inputs}
    return {
        name: array.astype(types[name])
        if name in types and array.dtype.kind == types[name].kind == "f" and array.dtype != types[name]
        else array
        for name, array in feeds.items()
    }
