"""Outputs of a candidate against the reference's, each measured by what it is, in one streaming pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import batching, data
from se_deploy.comparison import detections
from se_deploy.comparison.disagreements import Disagreement, Disagreements
from se_deploy.comparison.kinds import kinds_of
from se_deploy.comparison.sums import (
    TOP,
    Errors,
    Overlap,
    Share,
    agreeing,
    answers,
    in_top,
    largest,
    largest_gap,
)
from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from se_deploy.comparison.detections import Compared
    from se_deploy.protocols import Array, Arrays, Session
    from se_deploy.schema.common import OutputKind

_CLASS_SCORES = 2  # axes of (N, classes)


@dataclass(frozen=True, slots=True)
class OutputParity:
    """How far one output of a candidate is from the reference's, over all samples.

    None is what has no meaning for the kind: labels have no cosine, numbers no IoU. Of boxes the numbers are
    those of the pairs that were matched.
    """

    name: str
    max_abs: float
    max_rel: float | None  # max_abs over the largest magnitude of the reference
    cosine: float | None
    sqnr_db: float | None  # reference power over error power
    top1_agreement: float | None  # of logits: samples with the same largest class; of labels: `agreement`
    kind: OutputKind = "values"
    top5_agreement: float | None = None  # samples whose answer is among the candidate's five; of 6 classes up
    agreement: float | None = None  # equal labels or pixels; boxes that have a partner in the other set
    iou: float | None = None  # of masks the mean over the classes, of boxes over all of both sets, if any
    worst_cosine: float | None = None  # of an embedding: the sample that turned most


@dataclass(frozen=True, slots=True)
class Parity:
    """A candidate measured against the reference."""

    outputs: tuple[OutputParity, ...]
    samples: int
    reference_accuracy: float | None = None  # top-1 against labels, of the first output that names classes
    candidate_accuracy: float | None = None
    disagreements: tuple[Disagreement, ...] = ()  # of the same output, a few
    label_doubt: str = ""  # why the labels do not fit that output, so that no accuracy was measured


def compare(
    reference: Session,
    candidate: Session,
    batches: Iterable[Arrays],
    *,
    labels: npt.NDArray[np.int64] | None = None,
    counted: int | None = None,
    kinds: Mapping[str, OutputKind] | None = None,
) -> Parity:
    """Run both on the same batches and measure every output by its kind.

    Inputs and outputs are matched by name, those of other names by position. `kinds` overrules what an
    output is taken for, by the reference's name of it; else the first batch decides. `counted`: as in
    `Samples`, among how many sorted names the labels are places.
    Raises: BadInput where the two do not have the same outputs, or `kinds` does not fit them.
    """
    names = paired([o.name for o in reference.outputs], [o.name for o in candidate.outputs], "outputs")
    feeds_as = paired([i.name for i in reference.inputs], [i.name for i in candidate.inputs], "inputs")
    meters: dict[str, _Meter] = {}
    right = np.zeros(2)
    differing = Disagreements()
    seen, doubt = 0, ""
    for feeds in batches:
        want = batching.run(reference, feeds)
        answered = batching.run(candidate, {feeds_as[name]: value for name, value in feeds.items()})
        got = {name: answered[other] for name, other in names.items()}
        count = batching.rows(feeds)
        if not meters:
            meters = {name: _Meter(kind) for name, kind in kinds_of(want, feeds, kinds).items()}
        _measure(meters, want, got)
        classifier = _classifier(meters, want, count)
        if classifier:
            differing.add(want[classifier], got[classifier])
        if classifier and labels is not None and not seen and want[classifier].ndim == _CLASS_SCORES:
            doubt = data.doubt(labels, counted, want[classifier].shape[1])
        if classifier and labels is not None and not doubt:
            truth = labels[seen : seen + count]
            right += [(_answer(each[classifier]) == truth).sum() for each in (want, got)]
        seen += count
    if not seen:
        raise BadInput("there is no sample to compare on", hint="name data with --data")
    judged = labels is not None and classifier is not None and not doubt
    return Parity(
        outputs=tuple(meters[name].parity(name) for name in names),
        samples=seen,
        reference_accuracy=float(right[0] / seen) if judged else None,
        candidate_accuracy=float(right[1] / seen) if judged else None,
        disagreements=differing.kept,
        label_doubt=doubt,
    )


def measured(name: str, pairs: Iterable[tuple[Array, Array]], kind: OutputKind | None = None) -> OutputParity:
    """Measure one output from (reference, candidate) arrays of equal shapes. Raises: BadInput for others.

    `kind`: what it is, where that is known; else the first pair decides.
    """
    meter: _Meter | None = None
    for want, got in pairs:
        meter = meter or _Meter(kind or kinds_of({name: want}, {})[name])
        _measure({name: meter}, {name: want}, {name: got})
    return (meter or _Meter("values")).parity(name)


def measured_together(
    kinds: Mapping[str, OutputKind], pairs: Iterable[tuple[Arrays, Arrays]]
) -> dict[str, OutputParity]:
    """Measure outputs of known kinds from the (reference's, candidate's) answers to several batches.

    Boxes are matched first, and their scores and labels with them. Raises: BadInput for other shapes.
    """
    meters = {name: _Meter(kind) for name, kind in kinds.items()}
    for want, got in pairs:
        _measure(meters, {name: want[name] for name in kinds}, {name: got[name] for name in kinds})
    return {name: meter.parity(name) for name, meter in meters.items()}


def _measure(meters: Mapping[str, _Meter], want: Arrays, got: Arrays) -> None:
    """Add one batch to every output's sums: what belongs to boxes goes with them as they are matched."""
    kinds = {name: meter.kind for name, meter in meters.items()}
    for name, compared in detections.aligned(kinds, want, got).items():
        meters[name].add(compared, finite=_is_finite(got[name]))


def _is_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _classifier(meters: Mapping[str, _Meter], want: Arrays, count: int) -> str | None:
    """Return the first output that says one class of each sample."""
    for name, meter in meters.items():
        shape = want[name].shape
        if (meter.kind == "logits" and len(shape) == _CLASS_SCORES) or (
            meter.kind == "labels" and shape == (count,)
        ):
            return name
    return None


def _answer(array: Array) -> Array:
    return largest(array, axis=1) if array.ndim == _CLASS_SCORES else array


class _Meter:
    """What is summed up of one output over the batches."""

    def __init__(self, kind: OutputKind) -> None:
        self.kind = kind
        self._errors, self._masks = Errors(), Overlap()
        self._top1, self._top5, self._equal, self._iou = Share(), Share(), Share(), Share()
        self._finite = True
        self._exact = False  # integers or booleans, or floats that are taken for labels
        self._gap = 0.0

    def add(self, compared: Compared, *, finite: bool) -> None:
        """Add one batch; `finite`: whether the candidate's whole array is."""
        want, got = compared.reference, compared.candidate
        self._finite = self._finite and finite
        self._exact = self.kind == "labels" or (self.kind == "mask" and want.dtype.kind != "f")
        if self._exact:
            exact = want.dtype.kind != "f" and got.dtype.kind != "f"
            gap = largest_gap(want, got) if exact else _gap(want, got)
            self._gap = float(np.maximum(self._gap, gap))
        else:
            self._errors.add(want, got)
        if self.kind == "labels":
            self._equal.add(int((want == got).sum()), want.size + (compared.unmatched or 0))
        elif self.kind == "mask":
            pixels = (want, got) if self._exact else answers(want, got)
            self._equal.add(int(agreeing(*pixels).sum()), pixels[0].size)
            self._masks.add(*pixels)
        elif self.kind == "logits":
            same = agreeing(largest(want, axis=-1), largest(got, axis=-1))
            self._top1.add(int(same.sum()), same.size)
            if want.shape[-1] > TOP:
                self._top5.add(int(in_top(want, got).sum()), same.size)
        elif self.kind == "embedding":
            self._errors.add_rows(want, got)
        elif compared.unmatched is not None:
            pairs = len(want) if compared.iou is None else len(compared.iou)
            self._equal.add(pairs, pairs + compared.unmatched)
            if compared.iou is not None:
                self._iou.add(float(compared.iou.sum()), pairs + compared.unmatched)

    def parity(self, name: str) -> OutputParity:
        """Return what was measured."""
        errors = self._errors
        numbers = not self._exact and (errors.count > 0 or not self._iou.total)  # some, or none on both sides
        gap = self._gap if self._exact else errors.max_abs if numbers else math.nan
        iou = self._masks.mean_iou if self.kind == "mask" else self._iou.value
        return OutputParity(
            name=name,
            max_abs=gap if self._finite or not math.isfinite(gap) else math.nan,
            max_rel=errors.max_rel if numbers else None,
            cosine=errors.cosine if numbers else None,
            sqnr_db=errors.sqnr_db if numbers else None,
            top1_agreement=self._equal.value if self.kind == "labels" else self._top1.value,
            kind=self.kind,
            top5_agreement=self._top5.value,
            agreement=self._equal.value,
            iou=iou,
            worst_cosine=errors.worst_cosine if self.kind == "embedding" else None,
        )


def _gap(want: Array, got: Array) -> float:
    """Return the largest difference of labels that are written as floats; NaN where there is one."""
    gaps = np.abs(want.astype(np.float64) - got.astype(np.float64))
    return float(gaps.max()) if gaps.size else 0.0


def paired(ours: list[str], theirs: list[str], what: str) -> Mapping[str, str]:
    """Match names with themselves, the rest of both by position. Raises: BadInput for other counts."""
    if len(ours) != len(theirs):
        raise BadInput(
            f"the reference has {len(ours)} {what} ({', '.join(ours)}), the candidate {len(theirs)} "
            f"({', '.join(theirs)})",
            hint="compare the same network",
        )
    rest = iter([name for name in theirs if name not in ours])
    return {name: name if name in theirs else next(rest) for name in ours}
