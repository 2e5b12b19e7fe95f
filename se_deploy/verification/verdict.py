"""The source's answers against those of what a step made of it.

Two rules. A step that claims exactness may differ by what FP32 rounding makes; where the network itself
answers differently after a change of its input in the last bits, nothing more can be asked of the step. A
step that lowers the precision is held to that precision's tolerances on noise and on the user's data, and on
black and white images only to staying finite: a NaN or inf that the source does not have always fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from msgspec import convert
from msgspec.structs import replace

from se_deploy import batching, comparison
from se_deploy.errors import BadInput, counted
from se_deploy.schema import common, finite
from se_deploy.verification import distances, sets
from se_deploy.verification.distances import Wrong
from se_deploy.verification.mixing import mixed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from se_deploy.comparison import Divergence, Tolerance
    from se_deploy.protocols import Array, Arrays, Session
    from se_deploy.schema.common import OutputKind
    from se_deploy.verification.probes import Probe


@dataclass(frozen=True, slots=True)
class CheckInput:
    """One array that was fed in a check."""

    name: str
    dims: tuple[int, ...]
    kind: str  # "noise", "extremes" (black and white) or "data" (the user's)


NOT_FINITE = "not finite"


@dataclass(frozen=True, slots=True)
class Failure:
    """One output that a step got wrong, the worst of all probes."""

    step: str  # "export", "simplify", "canonical form: NAME", "rewrite: NAME", "fp16", "int8"
    node: str | None  # where it begins; None where that could not be found out
    output: str
    measure: str  # what `error` is: "largest error", "not finite", ...
    error: float | None  # None where it is no finite number
    limit: float
    preset: str | None = None  # the tolerance preset that was missed; None: the step claimed exactness
    tensor: str | None = None  # what `node` writes

    @property
    def is_not_finite(self) -> bool:
        """Whether it is a NaN or inf that the source does not have."""
        return self.measure.startswith(NOT_FINITE)

    @property
    def text(self) -> str:
        """The failure in a user's words."""
        where = "" if self.node is None else f", from node '{self.node}' on, which writes '{self.tensor}'"
        if self.error is None:
            return f"{self.step}: '{self.output}' is {self.measure}{where}"
        return (
            f"{self.step}: '{self.output}' has {self.measure} {self.error:.3g}, limit {self.limit:.3g}{where}"
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """The verdict on everything that a command did to a graph."""

    inputs: tuple[CheckInput, ...] = ()
    failures: tuple[Failure, ...] = ()
    taken_back: tuple[Failure, ...] = ()  # of steps that were undone; the rest is right unless `failures`
    skipped: bool = False  # --no-verify
    notes: tuple[str, ...] = ()  # what could not be compared, or holds of one batch only, in words
    max_abs_error: float | None = None  # of all real outputs on all probes; None where nothing was compared
    max_rel_error: float | None = None  # the same over the output's largest magnitude

    @property
    def passed(self) -> bool:
        """Whether everything was compared and nothing failed; a step that was taken back does no harm."""
        return not self.skipped and not self.failures

    @property
    def wrong(self) -> tuple[Failure, ...]:
        """What always fails: a step that claimed exactness, or an answer that is not finite."""
        return tuple(f for f in self.failures if f.preset is None)

    @property
    def missed(self) -> tuple[Failure, ...]:
        """Missed presets of a lower precision: a warning unless they are gated on."""
        return tuple(f for f in self.failures if f.preset is not None)

    @property
    def summary(self) -> str:
        """What came of it in a few words, for a line of progress."""
        if self.skipped:
            return "not compared"
        if self.max_abs_error is None and not self.inputs:
            return "nothing more to compare"
        if self.max_abs_error is None and self.failures:
            return counted(len(self.failures), "failure")
        if not self.max_abs_error:
            return "no difference"
        wrong = f"{counted(len(self.failures), 'failure')}, " if self.failures else ""
        return f"{wrong}largest error {self.max_rel_error or 0:.1e} of the largest output"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that a user must hear of and that is no failure by itself."""
        if self.skipped:
            return ("the result was not compared with its source (--no-verify)", *self.notes)
        return (
            *(f"taken back, since it changed the answers: {f.text}" for f in self.taken_back),
            *(f.text for f in self.missed),
            *self.notes,
        )

    def joined(self, other: Verified) -> Verified:
        """Return both verdicts as one, with the larger error."""
        return Verified(
            tuple(dict.fromkeys((*self.inputs, *other.inputs))),
            (*self.failures, *other.failures),
            (*self.taken_back, *other.taken_back),
            self.skipped or other.skipped,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
            _larger(self.max_abs_error, other.max_abs_error),
            _larger(self.max_rel_error, other.max_rel_error),
        )


def to_schema(found: Verified) -> common.Verified:
    """Return `verified` of the JSON objects."""
    return common.Verified(
        passed=found.passed,
        skipped=found.skipped,
        inputs=tuple(convert(one, common.CheckInput, from_attributes=True) for one in found.inputs),
        failures=tuple(map(_failure_to_schema, found.failures)),
        taken_back=tuple(map(_failure_to_schema, found.taken_back)),
    )


def _failure_to_schema(found: Failure) -> common.CheckFailure:
    made = convert(found, common.CheckFailure, from_attributes=True)
    return replace(made, error=finite(found.error), limit=finite(found.limit))


def skipped() -> Verified:
    """Return the verdict of a user who wants none."""
    return Verified(skipped=True)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the source answers to each probe."""

    probes: tuple[Probe, ...]
    answers: tuple[Arrays, ...]  # by output name, one for each probe
    opened: Callable[[], AbstractContextManager[Session]]  # the source, to be asked again
    sets: Mapping[str, OutputKind] = field(default_factory=dict)  # whose rows may be any, in any order
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)  # that somebody named
    unsteady: tuple[Failure, ...] = ()  # outputs that the source answers otherwise each time
    mixing: tuple[str, ...] = ()  # warnings of outputs that are not made sample by sample

    @property
    def inputs(self) -> tuple[CheckInput, ...]:
        """The arrays that were fed."""
        return tuple(
            CheckInput(name, array.shape, probe.kind)
            for probe in self.probes
            for name, array in probe.feeds.items()
        )


def expect(
    opened: Callable[[], AbstractContextManager[Session]],
    probes: Sequence[Probe],
    *,
    found: Collection[str] = (),
    kinds: Mapping[str, OutputKind] | None = None,
) -> Expected:
    """Run the source on every probe.

    `found`: outputs whose rows the network finds, by name; `kinds` says what outputs are, where the guess is
    wrong. Raises: BadInput where the source refuses a probe, or `kinds` does not fit.
    """
    with opened() as session:
        answers = tuple(_asked(session, probe.feeds) for probe in probes)
        smallest = min(range(len(probes)), key=lambda i: sum(a.size for a in probes[i].feeds.values()))
        again = _asked(session, probes[smallest].feeds)
        as_sets = sets.kinds_of_sets(probes, answers, found, kinds)
        unsteady = _unsteady({n: a for n, a in answers[smallest].items() if n not in as_sets}, again)
        mixing = mixed(
            lambda feeds: _asked(session, feeds),
            session.inputs,
            [(probe.feeds, made) for probe, made in zip(probes, answers, strict=True)],
            apart={*found, *as_sets, *(one.output for one in unsteady)},
        )
    return Expected(tuple(probes), answers, opened, as_sets, kinds or {}, unsteady, mixing)


def _unsteady(once: Arrays, again: Arrays) -> tuple[Failure, ...]:
    """Return the outputs that a source answers otherwise when it is asked the same again.

    Chance, or state that each call changes, moves them. Limits are taken from how far a source moves: nothing
    that is made of this one could fail, and no graph equals it.
    """
    found = []
    for name, want in once.items():
        error = distances.distance(want, again[name]) if want.shape == again[name].shape else math.inf
        limit = distances.rounding(distances.largest(want)) if want.dtype.kind == "f" else 0.0
        if error > limit:
            what = "another answer when it is asked the same again (chance, or state that a call changes), by"
            found.append(Failure("the source itself", None, name, what, finite(error), limit))
    return tuple(found)


def verify(
    expected: Expected,
    made: Session,
    *,
    step: str,
    tolerance: Tolerance | None = None,
    locate: Callable[[Arrays], Divergence | None] = lambda feeds: None,  # noqa: ARG005 - one signature
) -> Verified:
    """Compare what a step made with its source, on the source's probes.

    `tolerance` None: the step claims exactness within FP32 rounding. `locate` finds the node from which the
    two differ on a batch. Outputs are matched by name, or by position where the names differ.
    """
    answers: list[Arrays] = []
    inputs = expected.inputs
    for probe in expected.probes:
        try:
            answers.append(_asked(made, probe.feeds, list(expected.answers[0])))
        except BadInput as e:
            shown = ", ".join(f"'{n}' {'x'.join(map(str, a.shape))}" for n, a in probe.feeds.items())
            broken = Failure(step, None, _names(made), f"refused for {shown}: {e.message}", None, 0.0)
            return Verified(inputs, (broken,))
    names = list(expected.answers[0])
    judge = _exact if tolerance is None else _near
    as_sets = _as_sets(expected, answers, tolerance)
    judged = {
        name: as_sets.wrong[name]
        if name in as_sets.wrong
        else _finite(expected, answers, name)
        or _shaped(expected, answers, name)
        or judge(expected, answers, name, tolerance)
        for name in names
    }
    failures = [
        _failure(step, name, wrong, locate(wrong.feeds))
        for name, wrong in judged.items()
        if wrong is not None
    ]
    together = list(zip(expected.answers, answers, strict=True))
    compared = _side_by_side(expected, together, as_sets.wrong)
    return Verified(
        inputs,
        tuple(failures),
        notes=(
            *expected.mixing,
            *_uncompared(expected, names),
            *sets.not_found(expected.sets, together),
            *as_sets.notes,
        ),
        max_abs_error=_largest(compared, relative=False),
        max_rel_error=_largest(compared, relative=True),
    )


def _as_sets(expected: Expected, answers: Sequence[Arrays], tolerance: Tolerance | None) -> sets.Judged:
    """Judge as sets what may be one and is not the same row by row; nothing where all of it is."""
    kinds = expected.sets
    if all(_same_rows(expected, answers, name) for name in kinds):
        return sets.Judged({})
    if tolerance is not None:
        taken = _like_data(expected)
        pairs = [(expected.answers[i], answers[i]) for i in taken]
        return sets.near(kinds, [expected.probes[i] for i in taken], pairs, tolerance)
    again = []
    with expected.opened() as session:
        for probe in expected.probes:
            seeds = range(distances.PERTURBATIONS)
            again.append([_asked(session, distances.perturbed(probe.feeds, seed)) for seed in seeds])
    return sets.judged(kinds, expected.probes, list(zip(expected.answers, answers, strict=True)), again)


def _same_rows(expected: Expected, answers: Sequence[Arrays], name: str) -> bool:
    pairs = [(want[name], got[name]) for want, got in zip(expected.answers, answers, strict=True)]
    return all(
        want.shape == got.shape
        and np.array_equal(np.isfinite(want), np.isfinite(got))
        and distances.distance(want, got)
        <= (distances.rounding(distances.largest(want)) if want.dtype.kind == "f" else 0)
        for want, got in pairs
    )


def _side_by_side(
    expected: Expected, together: Sequence[tuple[Arrays, Arrays]], as_sets: Collection[str]
) -> list[tuple[Array, Array]]:
    """Return what was compared with what, over all probes and real outputs."""
    found = []
    for want, got in together:
        aligned = sets.side_by_side(expected.sets, want, got) if as_sets else None
        for name in want:
            x, y = want[name], got[name]
            if name in as_sets and aligned is not None:
                x, y = aligned[name].reference, aligned[name].candidate
            if x.dtype.kind == "f" and x.shape == y.shape:
                found.append((x, y))
    return found


def _larger(one: float | None, other: float | None) -> float | None:
    """Return the larger error; NaN is the largest, None stands for nothing compared."""
    known = [error for error in (one, other) if error is not None]
    return max(known, default=None, key=lambda e: math.inf if math.isnan(e) else e)


def _largest(pairs: Iterable[tuple[Array, Array]], *, relative: bool) -> float | None:
    """Return the largest error of all real outputs; None where there is none to compare."""
    worst: float | None = None
    for want, got in pairs:
        reach = (distances.largest(want) or 1.0) if relative else 1.0
        worst = _larger(worst, distances.distance(want, got) / reach)
    return worst


def _failure(step: str, output: str, wrong: Wrong, begins: Divergence | None) -> Failure:
    node, tensor = (None, None) if begins is None else (begins.node, begins.tensor)
    return Failure(step, node, output, wrong.measure, wrong.error, wrong.limit, wrong.preset, tensor)


def _asked(session: Session, feeds: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
    """Run a session on inputs of other names and precision; `outputs` are the names to answer under."""
    inputs = comparison.paired(list(feeds), [spec.name for spec in session.inputs], "inputs")
    made = batching.run(session, {inputs[name]: array for name, array in feeds.items()})
    if outputs is None:
        return made
    names = comparison.paired(list(outputs), [spec.name for spec in session.outputs], "outputs")
    return {name: made[other] for name, other in names.items()}


def _names(session: Session) -> str:
    return ", ".join(spec.name for spec in session.outputs)


def _shaped(expected: Expected, answers: Sequence[Arrays], name: str) -> Wrong | None:
    for probe, want, got in zip(expected.probes, expected.answers, answers, strict=True):
        if want[name].shape != got[name].shape:
            shapes = [" x ".join(map(str, a[name].shape)) for a in (got, want)]
            return Wrong(probe.feeds, f"of shape {shapes[0]} instead of {shapes[1]}", None, 0.0)
    return None


def _finite(expected: Expected, answers: Sequence[Arrays], name: str) -> Wrong | None:
    """Find a NaN or inf where the source has a number."""
    for probe, want, got in zip(expected.probes, expected.answers, answers, strict=True):
        x, y = want[name], got[name]
        if y.dtype.kind == "f" and x.shape == y.shape and (np.isfinite(x) & ~np.isfinite(y)).any():
            return Wrong(probe.feeds, f"{NOT_FINITE} on {probe.kind}, where the source is", None, 0.0)
    return None


def _exact(
    expected: Expected, answers: Sequence[Arrays], name: str, _tolerance: Tolerance | None
) -> Wrong | None:
    """Hold one output to FP32 rounding; integers and booleans to equality."""
    worst: Wrong | None = None
    for number, probe in enumerate(expected.probes):
        want, got = expected.answers[number][name], answers[number][name]
        error = distances.distance(want, got)
        numbers = want.dtype.kind == "f"
        limit = distances.rounding(distances.largest(want)) if numbers else 0.0
        if error <= limit:
            continue
        limit = max(limit, distances.ROUNDINGS * _sensitivity(expected, number, name))
        if error > limit and (worst is None or error - limit > (worst.error or 0.0) - worst.limit):
            measure = "largest error" if numbers else "share of other values"
            worst = Wrong(probe.feeds, f"{measure} on {probe.kind}", error, limit)
    return worst


def _sensitivity(expected: Expected, number: int, name: str) -> float:
    """Measure how far the source's own answer moves when its input moves in the last bits."""
    feeds = expected.probes[number].feeds
    moved = 0.0
    with expected.opened() as session:
        for seed in range(distances.PERTURBATIONS):
            other = _asked(session, distances.perturbed(feeds, seed))[name]
            moved = max(moved, distances.distance(expected.answers[number][name], other))
    return moved


def _near(
    expected: Expected, answers: Sequence[Arrays], name: str, tolerance: Tolerance | None
) -> Wrong | None:
    """Hold one output to a precision's tolerances, on what is like real samples."""
    if tolerance is None:
        raise ValueError("a step that claims no exactness needs a tolerance")
    taken = _like_data(expected)
    pairs = [(expected.answers[i][name], answers[i][name]) for i in taken]
    masked = [distances.masked(*pair) for pair in pairs]
    misses = tolerance.misses(comparison.measured(name, masked, expected.kinds.get(name)))
    if not misses:
        return None
    miss = misses[0]
    kind = expected.probes[taken[0]].kind
    error = miss.value if math.isfinite(miss.value) else None
    return Wrong(
        expected.probes[taken[0]].feeds, f"{miss.measure} on {kind}", error, miss.limit, tolerance.preset
    )


def _like_data(expected: Expected) -> list[int]:
    """Return the numbers of the probes that are like real samples: the user's, else noise."""
    for kind in ("data", "noise"):
        taken = [i for i, probe in enumerate(expected.probes) if probe.kind == kind]
        if taken:
            return taken
    return []


def _uncompared(expected: Expected, names: Iterable[str]) -> tuple[str, ...]:
    """Return the outputs of which the source itself has no number on any probe."""
    return tuple(
        f"output '{name}' of the source is not finite on any check input: nothing was compared"
        for name in names
        if all(a[name].dtype.kind == "f" and not np.isfinite(a[name]).any() for a in expected.answers)
        and (name not in expected.sets or any(a[name].size for a in expected.answers))
    )
