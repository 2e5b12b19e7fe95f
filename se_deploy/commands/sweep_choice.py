"""What a sweep says to deploy: per target the fastest artifact that is about as accurate as the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.report import units
from se_deploy.schema.sweep import SweepChoice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.schema.sweep import SweepArtifact, SweepCell

ABOUT_AS_ACCURATE = 0.01
"""How much less accurate than the target's best a recommended artifact may be: one point of top-1, which is
what users of INT8 commonly accept."""

_TIMES = ("measured", "planned", None)


@dataclass(frozen=True, slots=True)
class _Candidate:
    cell: SweepCell
    artifact: SweepArtifact

    @property
    def cost(self) -> tuple[int, float, int]:
        """The time per image, measured ones first; where none is known, the planned bytes.

        A roofline is always short of what is measured: the two are not compared.
        """
        one = self.artifact
        return (_TIMES.index(one.ms_from), one.ms or 0.0, one.activation_bytes or 0)


def choices(cells: Sequence[SweepCell]) -> tuple[SweepChoice, ...]:
    """Return what to deploy on each target, in the order in which the cells name them."""
    return tuple(_choice(target, cells) for target in dict.fromkeys(cell.target for cell in cells))


def _choice(target: str | None, cells: Sequence[SweepCell]) -> SweepChoice:
    passing = [
        _Candidate(cell, one)
        for cell in cells
        for one in cell.artifacts
        if cell.target == target and one.passed
    ]
    if not passing:
        return SweepChoice(
            target=target, folder=None, artifact=None, reason="no artifact passes its verdicts"
        )
    accuracies = [one.artifact.accuracy for one in passing if one.artifact.accuracy is not None]
    best = max(accuracies, default=None)
    near = [one for one in passing if _is_near(one.artifact.accuracy, best)]
    chosen = min(near, key=lambda one: one.cost)
    ms, source = chosen.artifact.ms, chosen.artifact.ms_from
    alike = sum(one.artifact.ms_from == source for one in near)
    rest = len(near) - alike
    unlike = f"; not compared with {rest} that have no {source} time" if rest else ""
    time = (
        "no time is known, it moves the fewest bytes"
        if ms is None
        else f"{units.milliseconds(ms)} per image, {source}"
    )
    if best is None or chosen.artifact.accuracy is None:
        among = f"the fastest of {alike} that pass; the data has no classes to count accuracy by"
    else:
        among = (
            f"top-1 {100 * chosen.artifact.accuracy:.2f} %, the fastest of {alike} within one point of "
            f"the best ({100 * best:.2f} %)"
        )
    return SweepChoice(
        target=target,
        folder=chosen.cell.folder,
        artifact=chosen.artifact.path,
        reason=f"{time}; {among}{unlike}",
    )


def _is_near(accuracy: float | None, best: float | None) -> bool:
    return best is None or (accuracy is not None and accuracy >= best - ABOUT_AS_ACCURATE)
