"""Running sums of one output over the batches: errors of numbers, answers of classes, IoU of masks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from se_deploy.protocols import Array

IDENTICAL_DB = 200.0
"""Reported in place of an infinite signal-to-quantization-noise ratio."""

TOP = 5
"""Classes that top-5 agreement allows the reference's answer to be among."""


@dataclass(slots=True)
class Errors:
    """Of numbers: the largest error, and the sums that cosine and SQNR are made of."""

    count: int = 0
    dot: float = 0.0
    reference: float = 0.0
    candidate: float = 0.0
    error: float = 0.0
    max_abs: float = 0.0
    reach: float = 0.0
    worst_cosine: float = 1.0  # of one sample

    def add(self, want: Array, got: Array) -> None:
        """Add arrays of equal shapes."""
        x, y = want.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        gap = x - y
        self.count += gap.size
        self.dot += float(x @ y)
        self.reference += float(x @ x)
        self.candidate += float(y @ y)
        self.error += float(gap @ gap)
        if gap.size:
            self.max_abs = float(np.maximum(self.max_abs, np.abs(gap).max()))  # NaN stays
            self.reach = max(self.reach, float(np.abs(x).max()))

    def add_rows(self, want: Array, got: Array) -> None:
        """Keep the smallest cosine of one sample, the first axis; NaN stays."""
        for x, y in zip(want.astype(np.float64), got.astype(np.float64), strict=True):
            norms = math.sqrt(float(np.vdot(x, x) * np.vdot(y, y)))
            cosine = float(np.vdot(x, y)) / norms if norms else float((x == y).all())
            if not cosine >= self.worst_cosine:
                self.worst_cosine = cosine

    @property
    def same(self) -> bool:
        """Whether there was no error."""
        return self.error == 0.0

    @property
    def max_rel(self) -> float:
        """The largest error over the largest magnitude of the reference."""
        return self.max_abs / self.reach if self.reach else (0.0 if self.same else math.inf)

    @property
    def cosine(self) -> float:
        """The cosine between all of the reference and all of the candidate."""
        norms = math.sqrt(self.reference * self.candidate)
        return self.dot / norms if norms else (1.0 if self.same else 0.0)

    @property
    def sqnr_db(self) -> float:
        """Reference power over error power, in decibels."""
        if self.same:
            return IDENTICAL_DB
        if not math.isfinite(self.error) or not self.reference:
            return -IDENTICAL_DB
        return min(IDENTICAL_DB, 10 * math.log10(self.reference / self.error))


@dataclass(slots=True)
class Share:
    """How many of how many."""

    hits: float = 0.0
    total: int = 0

    def add(self, hits: float, total: int) -> None:
        """Add `hits` of `total`."""
        self.hits += hits
        self.total += total

    @property
    def value(self) -> float | None:
        """The share; None of nothing."""
        return self.hits / self.total if self.total else None


@dataclass(slots=True)
class Overlap:
    """Of masks: the pixels of each class in the reference, in the candidate and in both."""

    reference: Counter[int] = field(default_factory=Counter)
    candidate: Counter[int] = field(default_factory=Counter)
    both: Counter[int] = field(default_factory=Counter)

    def add(self, want: Array, got: Array) -> None:
        """Add masks of class numbers, of equal shapes."""
        for counter, pixels in (
            (self.reference, want), (self.candidate, got), (self.both, want[agreeing(want, got)]),
        ):  # fmt: skip
            classes, counts = np.unique(pixels, return_counts=True)
            counter.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))

    @property
    def mean_iou(self) -> float | None:
        """The mean over the classes that either has; None without a pixel."""
        known = self.reference.keys() | self.candidate.keys()
        shares = [
            self.both[c] / (self.reference[c] + self.candidate[c] - self.both[c]) for c in sorted(known)
        ]
        return sum(shares) / len(shares) if shares else None


def largest_gap(want: Array, got: Array) -> float:
    """Return the largest difference of integers or booleans, exact whatever their size."""
    if not want.size:
        return 0.0
    common = np.result_type(want, got)
    if common.kind not in "iu":  # booleans, or a type that no integer type holds both of
        return float(np.abs(want.astype(np.float64) - got.astype(np.float64)).max())
    x, y = want.astype(common), got.astype(common)
    with np.errstate(over="ignore"):  # modulo 2^64 the difference is exact, taken the right way round
        gaps = np.maximum(x, y).astype(np.uint64) - np.minimum(x, y).astype(np.uint64)
    return float(gaps.max())


NO_CLASS = int(np.iinfo(np.int64).min)
"""The answer of scores that hold a NaN: none is the largest of them. It is no label, and equals no answer."""


def largest(scores: Array, *, axis: int) -> Array:
    """Return the class with the largest score along `axis`, the first of equals; `NO_CLASS` beside a NaN."""
    found: Array = scores.argmax(axis=axis)  # numpy takes NaN for the largest
    if scores.dtype.kind != "f":
        return found
    known: Array = np.where(np.isnan(scores).any(axis=axis), NO_CLASS, found)
    return known


def agreeing(want: Array, got: Array) -> Array:
    """Return whether two answers are the same class; where there is none they are not."""
    same: Array = (want == got) & (want != NO_CLASS)
    return same


def in_top(want: Array, got: Array) -> Array:
    """Return for each sample of (..., classes) whether the answer of one is among the five of the other."""
    answer = want.argmax(axis=-1, keepdims=True)
    before: Array = (got > np.take_along_axis(got, answer, axis=-1)).sum(axis=-1)
    known: Array = (largest(want, axis=-1) != NO_CLASS) & (largest(got, axis=-1) != NO_CLASS)
    among: Array = (before < TOP) & known
    return among


def answers(want: Array, got: Array) -> tuple[Array, Array]:
    """Return the class of each pixel of two (N, classes, H, W); of a single class, whether it is there.

    It is from a probability of 0.5 on, or from a score of 0 where the reference gives no probabilities.
    """
    if want.shape[1] > 1:
        return largest(want, axis=1), largest(got, axis=1)
    limit = 0.5 if want.size and bool(((want >= 0) & (want <= 1)).all()) else 0.0
    return _is_there(want[:, 0], limit), _is_there(got[:, 0], limit)


def _is_there(scores: Array, limit: float) -> Array:
    there: Array = np.where(np.isnan(scores), NO_CLASS, scores > limit)
    return there
