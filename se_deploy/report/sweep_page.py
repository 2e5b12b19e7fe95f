"""The page of a sweep: every artifact of every cell, accuracy against time, and what to deploy where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from se_deploy import extras
from se_deploy.report import plots
from se_deploy.report.facts import Note
from se_deploy.report.templating import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.report.plots import Plot
    from se_deploy.schema.sweep import Sweep, SweepArtifact, SweepCell, SweepChoice


@dataclass(frozen=True, slots=True)
class Row:
    """One artifact of a cell; None where the cell has none."""

    cell: SweepCell
    artifact: SweepArtifact | None
    link: str | None  # to the run's own report
    front: bool  # no other of its target that is timed alike is both faster and as accurate
    by_sweep: bool  # it is what the sweep recommends for the target, of all cells
    by_run: bool  # it is what the cell's own run recommends, of its own engines

    @property
    def engine(self) -> str | None:
        """The artifact's name without what all have in common."""
        return None if self.artifact is None else self.artifact.path.removeprefix("model.")

    @property
    def nodes(self) -> str:
        """Which node ran which step."""
        if len(self.cell.nodes) == 1:
            return self.cell.nodes[0]
        return "; ".join(f"{step.name}: {step.node}" for step in self.cell.steps)


def sweep_html(sweep: Sweep) -> str:
    """Write the page of a `sweep`: links lead to the reports of its cells, beside it."""
    rows = _rows(sweep)
    targets = list(dict.fromkeys(cell.target for cell in sweep.cells))
    drawn = [_plot(i, target, rows) for i, target in enumerate(targets)]
    found = [plot for plot in drawn if plot is not None]
    return render(
        "sweep.html.j2",
        {
            "sweep": sweep,
            "rows": rows,
            "choices": [(choice, _link(choice)) for choice in sweep.recommended],
            "plots": found,
            "no_plots": None if found else _why_none(),
            "failures": [cell for cell in sweep.cells if cell.state == "failed"],
            "notes": [Note(", ".join(names), text) for text, names in _warned(sweep.cells).items()],
        },
    )


def _rows(sweep: Sweep) -> list[Row]:
    chosen = {(one.folder, one.artifact) for one in sweep.recommended}
    fronts = {
        target: {
            id(one)
            for source in ("measured", "planned")  # a roofline is always short of what is measured
            for one in _front(
                [a for c in sweep.cells if c.target == target for a in c.artifacts if a.ms_from == source]
            )
        }
        for target in {cell.target for cell in sweep.cells}
    }
    return [
        Row(
            cell,
            one,
            None if cell.report is None else quote(cell.report),
            one is not None and id(one) in fronts[cell.target],
            one is not None and (cell.folder, one.path) in chosen,
            one is not None and one.path == cell.recommended,
        )
        for cell in sweep.cells
        for one in cell.artifacts or (None,)
    ]


def share_of(one: SweepArtifact) -> float | None:
    """Return the accuracy, where the data has no classes the share of answers that are as before."""
    return one.top1_agreement if one.accuracy is None else one.accuracy


def _front(artifacts: Sequence[SweepArtifact]) -> list[SweepArtifact]:
    """Return those that pass and that no faster one equals, the fastest first."""
    measured = [
        (one.ms, share, one)
        for one in artifacts
        if one.passed and one.ms is not None and (share := share_of(one)) is not None
    ]
    front: list[SweepArtifact] = []
    best = -1.0
    for _, share, one in sorted(measured, key=lambda found: (found[0], -found[1])):
        if share > best:
            front.append(one)
            best = share
    return front


def _link(choice: SweepChoice) -> str | None:
    return None if choice.folder is None else quote(f"{choice.folder}/report.html")


def _plot(index: int, target: str | None, rows: Sequence[Row]) -> Plot | None:
    points = [
        plots.Point(
            f"{row.cell.model} {row.cell.precision}: {row.engine}",
            row.artifact.ms,
            share,
            planned=row.artifact.ms_from == "planned",
            passed=bool(row.artifact.passed),
            front=row.front,
        )
        for row in rows
        if row.artifact is not None
        and row.cell.target == target
        and row.artifact.ms is not None
        and (share := share_of(row.artifact)) is not None
    ]
    counted = any(row.artifact is not None and row.artifact.accuracy is not None for row in rows)
    what = "top-1" if counted else "same answers as PyTorch"
    return plots.front(points, f"front-{index}", target or "the default target", what)


def _why_none() -> str:
    if plots.available():
        return "No artifact has both an accuracy and a time."
    return f"The plots were left out, matplotlib is not installed: {extras.INSTALL['matplotlib']}"


def _warned(cells: Sequence[SweepCell]) -> dict[str, list[str]]:
    """Return each warning with the cells that gave it."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for text in cell.warnings:
            found.setdefault(text, []).append(cell.folder)
    return found
