"""A sweep against an earlier one: what had a result has one, what passed passes, and no figure is worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.commands.sweep import read_sweep
from se_deploy.errors import BadInput
from se_deploy.report import units
from se_deploy.schema.results import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from se_deploy.schema.sweep import SweepArtifact, SweepCell


@dataclass(frozen=True, slots=True)
class SweepGate:
    """Two folders of sweeps, and how much worse the later one may be."""

    folder: Path
    against: Path  # the earlier one
    max_accuracy_drop: float  # of top-1, as a share
    max_slowdown: float  # of the time per image, as a share


def judged(gate: SweepGate) -> tuple[Gate, ...]:
    """Return a verdict for each cell of the earlier sweep that had a result. Raises: BadInput."""
    now = {cell.folder: cell for cell in read_sweep(gate.folder).cells}
    earlier = [cell for cell in read_sweep(gate.against).cells if cell.state != "failed"]
    if not earlier:
        raise BadInput(
            f"no cell of '{gate.against}' has a result: there is nothing to hold '{gate.folder}' against",
            hint="name a sweep that has some as `against`",
        )
    outcomes = []
    for before in earlier:
        worse = list(_worse(before, now.get(before.folder), gate))
        outcomes.append(
            Gate(
                gate="sweep",
                name=f"{gate.folder}/{before.folder}",
                passed=not worse,
                details=tuple(worse) or _unworse(before, now[before.folder]),
            )
        )
    return tuple(outcomes)


def _unworse(before: SweepCell, now: SweepCell) -> tuple[str, ...]:
    """Return what a cell that is not worse is told, with the figures that could not be compared."""
    artifacts = {one.path: one for one in now.artifacts}
    silent = []
    for old in before.artifacts:
        new = artifacts[old.path]
        if old.accuracy is None:
            silent.append(f"{old.path}: top-1 was not compared, it was not known before")
        if old.ms is None or old.ms_from != new.ms_from:
            was, found = (one.ms_from or "not known" for one in (old, new))
            silent.append(f"{old.path}: the time was not compared, it was {was} and is {found}")
    silent += [
        f"{name} was not compared, it could not be judged now"
        for name, passed in before.verdicts.items()
        if passed and now.verdicts.get(name) is None
    ]
    return ("no figure that was compared is worse than before", *silent)


def _worse(before: SweepCell, now: SweepCell | None, gate: SweepGate) -> Iterator[str]:
    if now is None:
        yield "the cell is not in the sweep any more"
        return
    if now.state == "failed":
        yield f"the cell had a result, and failed: {now.reason}"
        return
    for verdict, passed in before.verdicts.items():
        if passed and now.verdicts.get(verdict) is False:
            yield f"{verdict} passed before, and fails: {'; '.join(now.failures.get(verdict, ()))}"
    artifacts = {one.path: one for one in now.artifacts}
    for old in before.artifacts:
        if old.path not in artifacts:
            yield f"{old.path} is not there any more"
        else:
            yield from _figures(old, artifacts[old.path], gate)


def _figures(old: SweepArtifact, new: SweepArtifact, gate: SweepGate) -> Iterator[str]:
    if old.passed and not new.passed:
        found = "fails" if new.passed is False else "has none now"
        yield f"{old.path} passed its verdicts before, and {found}"
    if old.accuracy is not None and (
        new.accuracy is None or new.accuracy < old.accuracy - gate.max_accuracy_drop
    ):
        found = "not known" if new.accuracy is None else f"{100 * new.accuracy:.2f} %"
        yield (
            f"{old.path}: top-1 was {100 * old.accuracy:.2f} % and is {found}, "
            f"{100 * gate.max_accuracy_drop:g} points less are allowed"
        )
    comparable = old.ms is not None and new.ms is not None and old.ms_from == new.ms_from
    if comparable and old.ms is not None and new.ms is not None and new.ms > old.ms * (1 + gate.max_slowdown):
        yield (
            f"{old.path}: {units.milliseconds(old.ms)} per image have become {units.milliseconds(new.ms)} "
            f"({new.ms_from}), "
            f"{100 * gate.max_slowdown:g} % more are allowed"
        )
