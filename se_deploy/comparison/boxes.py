"""Sets of boxes: which of one set is which of the other, and by how much they overlap.

A detector gives as many boxes as it finds, in the order of its scores: near ties change places and boxes at
the threshold come and go with the last bit. So sets are matched, as COCO's evaluation does, before anything
in them is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from se_deploy.protocols import Array, FloatArray

    Indices = npt.NDArray[np.int64]

Form = Literal["corners", "centre"]

COORDINATES = 4
MIN_IOU = 0.5
"""Below this two boxes are not the same object: PASCAL VOC's threshold, and COCO's lowest."""

_DENSE = 2**22  # pairs: more is a grid of anchors, compared in place before the rest is matched
_ROWS = 256  # boxes whose overlaps with all others are held at a time


@dataclass(frozen=True, slots=True)
class Matching:
    """Which box of the reference is which of the candidate, with their IoU; others have none."""

    reference: Indices  # (P,) row numbers
    candidate: Indices  # (P,)
    iou: FloatArray  # (P,)


def form_of(rows: Array) -> Form | None:
    """Return how boxes (K, 4) are written: corners x1 y1 x2 y2, or centre and size; None where neither."""
    known = rows[np.isfinite(rows).all(axis=1)] if rows.dtype.kind == "f" else rows
    if (known[:, 2:] >= known[:, :2]).all():
        return "corners"
    return "centre" if (known[:, 2:] >= 0).all() else None


def corners(rows: Array, form: Form) -> FloatArray:
    """Return boxes (K, 4) as x1 y1 x2 y2."""
    found: FloatArray = rows.astype(np.float64)
    if form == "corners":
        return found
    half = found[:, 2:] / 2
    return np.concatenate([found[:, :2] - half, found[:, :2] + half], axis=1)


def areas(rows: FloatArray) -> FloatArray:
    """Return the areas (...) of boxes (..., 4) written by their corners."""
    sides = np.maximum(rows[..., 2:] - rows[..., :2], 0)
    product: FloatArray = sides[..., 0] * sides[..., 1]
    return product


def iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the IoU of boxes (..., 4) by their corners, one by one; equal boxes have 1, NaN has 0."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(axis=-1)
    union = areas(a) + areas(b) - shared
    found = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return np.nan_to_num(np.where((a == b).all(axis=-1), 1.0, found), nan=0.0)


def match(
    reference: FloatArray,
    candidate: FloatArray,
    *,
    labels: tuple[Array, Array] | None = None,
    scores: tuple[Array, Array] | None = None,
) -> Matching:
    """Pair boxes (K, 4) and (M, 4) by their corners, those with the largest IoU first, each at most once.

    Boxes of equal labels, (K,) and (M,), come before others, and of equal IoU those with the nearer scores.
    """
    rows, columns, overlap = _pairs(reference, candidate)
    gap, other = np.zeros(len(rows)), np.zeros(len(rows), bool)
    if scores is not None:
        gap = np.abs(_flat(scores[0])[rows] - _flat(scores[1])[columns])
    if labels is not None:
        other = labels[0][rows] != labels[1][columns]
    order = np.lexsort((gap, -overlap, other))
    free = (np.ones(len(reference), bool), np.ones(len(candidate), bool))
    taken = []
    for at in order:
        i, j = rows[at], columns[at]
        if free[0][i] and free[1][j]:
            free[0][i] = free[1][j] = False
            taken.append(at)
    chosen = np.array(taken, np.int64)
    return Matching(rows[chosen], columns[chosen], overlap[chosen])


def _flat(scores: Array) -> FloatArray:
    """Return one score for each box: the largest where there is one for each class."""
    found: FloatArray = scores.astype(np.float64).max(axis=tuple(range(1, scores.ndim)), initial=-np.inf)
    return found


def _pairs(a: FloatArray, b: FloatArray) -> tuple[Indices, Indices, FloatArray]:
    """Return the row numbers and the IoU of all pairs that may be the same object."""
    found: list[tuple[Any, Any, Any]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    left, right = np.arange(len(a)), np.arange(len(b))
    if len(a) * len(b) > _DENSE:
        both = np.arange(min(len(a), len(b)))
        overlap = iou(a[both], b[both])
        placed = both[overlap >= MIN_IOU]
        found.append((placed, placed, overlap[placed]))
        left, right = np.setdiff1d(left, placed), np.setdiff1d(right, placed)
    for start in range(0, len(left), _ROWS):
        part = left[start : start + _ROWS]
        overlap = iou(a[part][:, None], b[right][None])
        rows, columns = np.nonzero(overlap >= MIN_IOU)
        found.append((part[rows], right[columns], overlap[rows, columns]))
    rows, columns, overlaps = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, columns, overlaps
