"""Outputs of which a network finds as many as there are: their rows are compared as a set.

Behind a non-maximum suppression the last bit decides which boxes come, how many, and in which order. Boxes
are matched with their scores and labels, as `comparison` does; what is left without a partner is counted, and
what has one is held to the same limits as any other output. Where nothing was found on any input, nothing was
compared, and the verdict says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import comparison
from se_deploy.comparison import detections
from se_deploy.comparison.kinds import kinds_of
from se_deploy.errors import BadInput
from se_deploy.verification import distances
from se_deploy.verification.distances import Wrong

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from se_deploy.comparison import Tolerance
    from se_deploy.comparison.detections import Compared
    from se_deploy.protocols import Arrays
    from se_deploy.schema.common import OutputKind
    from se_deploy.verification.probes import Probe

Kinds = dict[str, "OutputKind"]

LARGEST = "largest error"
UNMATCHED = "share of rows without a partner"
_MOST_UNMATCHED = 0.5
"""However unsteady the source is: sets of which less is in common are others."""
_SETS = frozenset({"boxes", "scores", "labels"})


@dataclass(frozen=True, slots=True)
class Judged:
    """The worst probe of each output, None where it is right, and what limits could not say."""

    wrong: Mapping[str, Wrong | None]
    notes: tuple[str, ...] = ()


def kinds_of_sets(
    probes: Sequence[Probe],
    answers: Sequence[Arrays],
    found: Collection[str],
    given: Mapping[str, OutputKind] | None,
) -> Kinds:
    """Return the outputs that may be compared as sets, with what they are.

    These are boxes with what goes with them row by row, and scores and labels among `found`; what `given`
    says overrules the guess, which is made where the source found most. Raises: BadInput as `kinds_of`.
    """
    most = max(range(len(answers)), key=lambda i: sum(array.size for array in answers[i].values()))
    kinds = kinds_of(answers[most], probes[most].feeds, given)
    boxes = [name for name, kind in kinds.items() if kind == "boxes"]
    return {
        name: kind
        for name, kind in kinds.items()
        if kind in _SETS and (name in found or any(_rows_of(name, box, answers) for box in boxes))
    }


def judged(
    kinds: Mapping[str, OutputKind],
    probes: Sequence[Probe],
    answers: Sequence[tuple[Arrays, Arrays]],
    source_again: Sequence[Sequence[Arrays]],
) -> Judged:
    """Judge outputs of a step that claims exactness, as sets.

    `answers`: the source's and the candidate's, for each probe. What has a partner may differ by rounding,
    and nothing may be without one; where the source's own answers to inputs that differ in their last bits,
    `source_again`, are further apart, that is the limit, and a note says so.
    """
    wrong: dict[str, Wrong | None] = dict.fromkeys(kinds)
    notes: list[str] = []
    for probe, (want, got), again in zip(probes, answers, source_again, strict=True):
        measures = _measured(kinds, want, got)
        own = [_measured(kinds, want, other) for other in again]
        for name in kinds:
            for what, error in measures[name].items():
                exact = 0.0
                if what == LARGEST:
                    exact = distances.rounding(distances.largest(want[name]))
                limit = max(exact, _movement(what, [other[name] for other in own]))
                worst = wrong[name]
                if error <= limit:
                    if error > exact:
                        notes.append(_unsteady(name, what, error, limit))
                elif worst is None or (worst.error is not None and worst.error < error):
                    shown = error if np.isfinite(error) else None
                    wrong[name] = Wrong(probe.feeds, f"{what} on {probe.kind}", shown, limit)
    return Judged(wrong, tuple(notes))


def _movement(what: str, own: Sequence[Mapping[str, float]]) -> float:
    """Return how far roundings may move a measure, by how far one change in the last bits moves it."""
    moved = distances.ROUNDINGS * max((each.get(what, 0.0) for each in own), default=0.0)
    if not np.isfinite(moved):  # what cannot be brought together with itself is no measure of anything
        return 0.0
    return moved if what == LARGEST else min(moved, _MOST_UNMATCHED)


def _unsteady(name: str, what: str, error: float, limit: float) -> str:
    return (
        f"output '{name}': {what} {error:.3g}; the source itself moves by up to {limit:.3g} when its input "
        "moves in the last bits, so that no more can be told"
    )


def not_found(kinds: Mapping[str, OutputKind], answers: Iterable[tuple[Arrays, Arrays]]) -> tuple[str, ...]:
    """Return a note for each output of which neither side found anything on any input."""
    empty = dict.fromkeys(kinds, True)
    for pair in answers:
        for name, kind in kinds.items():
            filled = (np.any(one[name]) if kind == "boxes" else one[name].size for one in pair)
            empty[name] = empty[name] and not any(filled)
    return tuple(
        f"output '{name}': nothing was found on any check input, so that no {kind} were compared"
        for name, kind in kinds.items()
        if empty[name]
    )


def side_by_side(kinds: Mapping[str, OutputKind], want: Arrays, got: Arrays) -> dict[str, Compared] | None:
    """Return each output's rows with those that they are; None where they cannot be."""
    try:
        aligned = detections.aligned(kinds, want, got)
    except BadInput:
        return None
    for name, compared in aligned.items():
        if compared.reference is want[name]:  # no boxes go with it: row by row, which says nothing of a set
            put = detections.as_multisets if kinds[name] == "labels" else detections.best_first
            aligned[name] = put(want[name], got[name])
    return aligned


def _measured(kinds: Mapping[str, OutputKind], want: Arrays, got: Arrays) -> dict[str, dict[str, float]]:
    """Return how far each output is off, by measure; infinitely where the two cannot be brought together."""
    aligned = side_by_side(kinds, want, got)
    if aligned is None:
        return {name: {LARGEST: np.inf} for name in kinds}
    found: dict[str, dict[str, float]] = {}
    for name, compared in aligned.items():
        numbers = want[name].dtype.kind == "f"
        measures = {
            LARGEST if numbers else "share of other values": distances.distance(
                compared.reference, compared.candidate
            )
        }
        if numbers and np.isfinite(want[name]).all() and not np.isfinite(got[name]).all():
            measures[LARGEST] = np.inf
        if compared.unmatched is not None:
            pairs = len(compared.reference) if compared.iou is None else len(compared.iou)
            measures[UNMATCHED] = compared.unmatched / max(1, pairs + compared.unmatched)
        found[name] = measures
    return found


def near(
    kinds: Mapping[str, OutputKind],
    probes: Sequence[Probe],
    answers: Sequence[tuple[Arrays, Arrays]],
    tolerance: Tolerance,
) -> Judged:
    """Judge outputs of a step that lowers the precision, as sets, by that precision's tolerances."""
    pairs = []
    for want, got in answers:
        hidden = {name: distances.masked(want[name], got[name]) for name in kinds if _alike(want, got, name)}
        left, right = ({name: both[side] for name, both in hidden.items()} for side in (0, 1))
        pairs.append(({**want, **left}, {**got, **right}))
    try:
        measured = comparison.measured_together(kinds, pairs)
    except BadInput as e:
        apart = Wrong(probes[0].feeds, f"not to be matched: {e.message}", None, 0.0, tolerance.preset)
        return Judged(dict.fromkeys(kinds, apart))
    found: dict[str, Wrong | None] = {}
    for name, parity in measured.items():
        miss = next(iter(tolerance.misses(parity)), None)
        found[name] = None
        if miss is not None:
            error = miss.value if np.isfinite(miss.value) else None
            what = f"{miss.measure} on {probes[0].kind}"
            found[name] = Wrong(probes[0].feeds, what, error, miss.limit, tolerance.preset)
    return Judged(found)


def _alike(want: Arrays, got: Arrays, name: str) -> bool:
    return want[name].shape == got[name].shape


def _rows_of(name: str, box: str, answers: Sequence[Arrays]) -> bool:
    """Whether an output has one row for each box on every probe, and is no score of every sample."""
    axes = answers[0][box].ndim - 1
    return all(each[name].shape[:axes] == each[box].shape[:axes] for each in answers)
