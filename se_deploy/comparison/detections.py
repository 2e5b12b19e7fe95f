"""What is compared with what: position by position, or as sets where a network gives as many as it finds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from se_deploy.comparison import boxes
from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.comparison.boxes import Form
    from se_deploy.protocols import Array, Arrays, FloatArray
    from se_deploy.schema.common import OutputKind

_COMPANIONS = frozenset({"scores", "labels", "mask"})
_PER_IMAGE = 3  # axes of boxes (N, K, 4)


@dataclass(frozen=True, slots=True)
class Compared:
    """Two arrays of equal shapes, value for value."""

    reference: Array
    candidate: Array
    unmatched: int | None = None  # of sets: values or boxes of either that the other has no partner for
    iou: FloatArray | None = None  # of matched boxes


def aligned(kinds: Mapping[str, OutputKind], want: Arrays, got: Arrays) -> dict[str, Compared]:
    """Return each output's values side by side: boxes, and what goes with them, as the boxes are matched.

    Raises: BadInput where shapes differ that have no free number of rows.
    """
    found: dict[str, Compared] = {}
    for name, kind in kinds.items():
        if kind == "boxes":
            beside = tuple(
                other
                for other, its in kinds.items()
                if its in _COMPANIONS and other not in found and _goes_with(name, other, want, got)
            )
            found |= _matched(name, beside, kinds, want, got)
    for name, kind in kinds.items():
        if name not in found:
            found[name] = _alone(name, kind, want[name], got[name])
    return found


def _goes_with(name: str, other: str, want: Arrays, got: Arrays) -> bool:
    """Whether an output has one row for each box, in the reference and in the candidate."""
    axes = want[name].ndim - 1
    return all(each[other].shape[:axes] == each[name].shape[:-1] for each in (want, got))


def _matched(
    name: str, beside: tuple[str, ...], kinds: Mapping[str, OutputKind], want: Arrays, got: Arrays
) -> dict[str, Compared]:
    axes = want[name].ndim - 1
    for key in (name, *beside):
        if want[key].ndim != got[key].ndim or want[key].shape[axes:] != got[key].shape[axes:]:
            raise _shapes(key, want[key], got[key])
    form = boxes.form_of(want[name].reshape(-1, boxes.COORDINATES))
    if form is None:
        raise BadInput(
            f"output '{name}' holds rows that are no boxes: neither corners in order nor a positive size",
            hint=f"compare it as numbers: --output {name}:values",
        )
    images: Sequence[Any] = [...]
    if want[name].ndim == _PER_IMAGE:
        if len(want[name]) != len(got[name]):
            raise _shapes(name, want[name], got[name])
        images = range(len(want[name]))
    pairs: list[tuple[Arrays, Arrays]] = []
    overlaps, unmatched = [], 0
    for at in images:
        a, b = (_filled({key: each[key][at] for key in (name, *beside)}, name, form) for each in (want, got))
        matching = boxes.match(
            boxes.corners(a[name], form),
            boxes.corners(b[name], form),
            labels=next(((a[k], b[k]) for k in beside if kinds[k] == "labels" and a[k].ndim == 1), None),
            scores=next(((a[k], b[k]) for k in beside if kinds[k] == "scores"), None),
        )
        pairs.append((_rows(a, matching.reference), _rows(b, matching.candidate)))
        overlaps.append(matching.iou)
        unmatched += len(a[name]) + len(b[name]) - 2 * len(matching.iou)
    made = {
        key: Compared(
            np.concatenate([a[key] for a, _ in pairs]),
            np.concatenate([b[key] for _, b in pairs]),
        )
        for key in (name, *beside)
    }
    made[name] = replace(made[name], unmatched=unmatched, iou=np.concatenate(overlaps))
    return made


def _filled(image: Arrays, name: str, form: Form) -> Arrays:
    """Leave out the rows of zeros that detectors of a fixed size fill up with."""
    return _rows(image, np.flatnonzero(boxes.areas(boxes.corners(image[name], form)) != 0))


def _rows(image: Arrays, rows: Array) -> Arrays:
    return {key: array[rows] for key, array in image.items()}


def _alone(name: str, kind: OutputKind, want: Array, got: Array) -> Compared:
    if want.shape == got.shape:
        return Compared(want, got, 0 if kind == "scores" else None)
    if want.ndim and want.ndim == got.ndim and want.shape[1:] == got.shape[1:]:
        if kind == "scores":
            return best_first(want, got)
        if kind == "labels":
            return as_multisets(want, got)
    raise _shapes(name, want, got)


def best_first(want: Array, got: Array) -> Compared:
    """Return the best scores of both, in order; unmatched is by how many more one has."""
    few = min(len(want), len(got))
    a, b = (-np.sort(-each.astype(np.float64), axis=0)[:few] for each in (want, got))
    return Compared(a, b, abs(len(want) - len(got)))


def as_multisets(want: Array, got: Array) -> Compared:
    """Return the rows that both have, on both sides; unmatched is the number of values in all others."""
    width = math.prod(want.shape[1:])
    one, other = (Counter(map(tuple, each.reshape(len(each), width).tolist())) for each in (want, got))
    shared = [*(one & other).elements()]
    rows = np.array(shared, want.dtype).reshape(len(shared), *want.shape[1:])
    return Compared(rows, rows, (len(want) + len(got) - 2 * len(rows)) * width)


def _shapes(name: str, want: Array, got: Array) -> BadInput:
    return BadInput(
        f"the outputs '{name}' have shapes {want.shape} and {got.shape}",
        hint="compare the same network; what finds as many as there are is compared by --output NAME:boxes, "
        "NAME:scores or NAME:labels",
    )
