"""Whether a network answers each sample by itself, in a row of its own: what batches and slices rest on.

A network that does not is right and can be exported, but its answers are those of one batch: other commands
feed other ones, in slices, padded, of one sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from se_deploy import batching
from se_deploy.verification import distances

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from se_deploy.protocols import Array, Arrays, TensorSpec

_ROUNDINGS = 10
"""How much more than the order of a sum may move a row: no kernel computes it by the values of the others."""


def mixed(
    ask: Callable[[Arrays], Arrays],
    inputs: Sequence[TensorSpec],
    asked: Sequence[tuple[Arrays, Arrays]],
    *,
    apart: Collection[str] = (),
) -> tuple[str, ...]:
    """Return a warning for each output that has no row for each sample, or whose rows depend on the others.

    `asked`: batches and the answers to them; one more is asked for, whose samples are all the middle one of
    the largest, which has others before it and behind it; of two samples each is asked for so. `apart` are
    outputs of which nothing is said, such as those whose rows the network finds.
    Nothing is said where no batch holds two samples, or where an input's first axis does not count them.
    """
    firsts = {spec.dims[0] is None for spec in inputs if spec.dims}
    frozen = batching.frozen(inputs)
    asked = [pair for pair in asked if frozen in {None, batching.rows(pair[0])}]  # others are fed in slices
    if not asked:
        return ()
    feeds, answers = max(asked, key=lambda pair: batching.rows(pair[0]))
    count = batching.rows(feeds)
    if len(firsts) != 1 or count < 2:  # noqa: PLR2004 - one alone depends on no other
        return ()
    middle = range(2) if count == 2 else (count // 2,)  # noqa: PLR2004 - the first of a sequence has none before it
    alike = {
        row: ask({n: np.repeat(a[row : row + 1], count, 0) if a.ndim else a for n, a in feeds.items()})
        for row in middle
    }
    batches = [(batching.rows(batch), made) for batch, made in asked]
    told = (
        _told(
            name,
            array,
            {row: one[name] for row, one in alike.items()},
            [(n, made[name]) for n, made in batches],
        )
        for name, array in answers.items()
        if name not in apart
    )
    return tuple(text for text in told if text)


def _told(name: str, array: Array, alike: Mapping[int, Array], asked: Sequence[tuple[int, Array]]) -> str:
    """Return what is to be said of one output, "" for nothing; `alike` by the sample that all are."""
    if all(np.array_equal(array, one) for one in (*(one for _, one in asked), *alike.values())):
        return ""  # the same for any input: it is no answer to a sample
    rows = {len(one) / n if one.ndim else None for n, one in asked}
    each = rows.pop() if len(rows) == 1 else None
    if not each or not each.is_integer():
        lengths = {n: len(one) for n, one in asked if one.ndim}
        axis = " and ".join(f"{length} for {n} samples" for n, length in lengths.items())
        return (
            f"output '{name}' has no row for each sample: {axis or 'it is one number'}. What belongs to "
            "which is not known where samples are fed in slices or a batch is filled up: give it the batch "
            "as its first axis, or export with --batch 1"
        )
    moved = max(
        _moved(array, one, slice(row * int(each), (row + 1) * int(each))) for row, one in alike.items()
    )
    if not moved:
        return ""
    return (
        f"output '{name}' answers a sample otherwise where the others in its batch are others, by "
        f"{moved:.3g}: what is measured, calibrated and predicted depends on the batch. Put layers that "
        "average over it into eval(), or export with the --batch that is deployed"
    )


def _moved(array: Array, other: Array, rows: slice) -> float:
    """Return by how much these rows differ in two answers; 0 where that is rounding."""
    want, got = array[rows], other[rows]
    moved = distances.distance(want, got) if want.shape == got.shape else np.inf
    rounding = _ROUNDINGS * distances.rounding(distances.largest(want)) if want.dtype.kind == "f" else 0.0
    return moved if moved > rounding else 0.0
