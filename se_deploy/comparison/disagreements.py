"""The samples that a candidate answers otherwise than the reference, the surest answers first."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.comparison.sums import NO_CLASS, largest

if TYPE_CHECKING:
    from se_deploy.protocols import Array

MOST = 12
"""Samples that are kept: what a person looks through; how many there are, top-1 agreement says."""

_SCORES = 2  # axes of (N, classes)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One sample whose class the two do not agree on."""

    sample: int  # its place in the data, from 0
    reference: int  # the class index that each gives
    candidate: int
    margin: float | None  # of the reference's score over that of the candidate's class; None for labels


class Disagreements:
    """The `MOST` samples with the largest margins, over the batches."""

    def __init__(self) -> None:
        """Begin with no sample seen."""
        self._kept: list[tuple[float, int, Disagreement]] = []
        self._seen = 0

    def add(self, want: Array, got: Array) -> None:
        """Add one batch of class scores (N, classes), or of labels (N,)."""
        scored = want.ndim == _SCORES
        ours, theirs = (largest(want, axis=1), largest(got, axis=1)) if scored else (want, got)
        both = np.isfinite(ours) & np.isfinite(theirs)  # labels written as floats may be NaN: no class
        both &= (ours != NO_CLASS) & (theirs != NO_CLASS)
        for row in np.flatnonzero((ours != theirs) & both).tolist():
            a, b = int(ours[row]), int(theirs[row])
            margin = float(want[row, a]) - float(want[row, b]) if scored else None
            found = Disagreement(self._seen + row, a, b, margin)
            sure = 0.0 if margin is None else margin if math.isfinite(margin) else math.inf
            heapq.heappush(self._kept, (sure, -found.sample, found))
            if len(self._kept) > MOST:
                heapq.heappop(self._kept)
        self._seen += len(want)

    @property
    def kept(self) -> tuple[Disagreement, ...]:
        """Return them with the reference's surest first, equal ones in the data's order."""
        return tuple(found for *_, found in sorted(self._kept, key=lambda one: (-one[0], -one[1])))
