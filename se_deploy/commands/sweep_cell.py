"""What the processes of a sweep do: each half of `run` of one cell, from folders into a folder."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from se_deploy import files, locks, once, schema
from se_deploy.backends import keeping
from se_deploy.commands import portable, run, shapes
from se_deploy.report import facts
from se_deploy.roofline import roofline_ms
from se_deploy.schema.sweep import SweepArtifact, SweepCell
from se_deploy.targets import figures

if TYPE_CHECKING:
    from se_deploy.commands.build_engine import BuildResult
    from se_deploy.commands.run import Prepared, RunResult
    from se_deploy.commands.sweep_plan import Cell
    from se_deploy.options import CalibrationOptions, RunOptions
    from se_deploy.schema.results import Run
    from se_deploy.sweeps.tasks import Places
    from se_deploy.targets import Device

PREPARE, LOWER, DEPLOY = "export, quantize", "lower precision", "build-engine, profile"
"""The names of a cell's steps: what any machine can do, all of it or behind what a cell of a wider precision
did, and what needs the device."""

CELL = "cell.json"
"""What a cell's folder holds besides what `run` leaves: what came of it. It is written last."""

_PREPARED = "prepared.pickle"  # between two steps, by way of Ray or of --store; never in a folder of results


@dataclass(frozen=True, slots=True)
class _Asked:
    """A cell's options with the paths that hold here."""

    model: str
    calibration: CalibrationOptions
    options: RunOptions


def prepare(work: object, places: Places) -> None:
    """Do the half of a cell that any machine can do, behind what a wider precision did.

    Raises: what a step of `run` raises.
    """
    asked = _here(cast("Cell", work), places)
    with keeping.kept(), once.kept_in(places.kept), locks.folder(places.output):
        done = run.prepared(
            asked.model,
            places.output,
            calibration=asked.calibration,
            options=asked.options,
            wider=_taken(places),
        )
    (places.output / _PREPARED).write_bytes(portable.dumps(done.portable()))


def deploy(work: object, places: Places) -> None:
    """Do the half of a cell that its device is needed for. Raises: what a step of `run` raises."""
    cell = cast("Cell", work)
    asked = _here(cell, places)
    done = _taken(places)
    if done is None:
        raise ValueError("a cell is deployed after it was prepared")
    with keeping.kept(), once.kept_in(places.kept), locks.folder(places.output):
        result = run.deployed(
            done,
            places.output,
            calibration=asked.calibration,
            options=asked.options,
            said=run.Said("run", cell.command),
        )
    files.write_text(places.output / CELL, f"{schema.encode(_summary(cell, result))}\n")


def _taken(places: Places) -> Prepared | None:
    """Return what the step before prepared, its files copied to here; None for a first step."""
    if places.before is None:
        return None
    done: Prepared = portable.loads((places.before / _PREPARED).read_bytes())
    for name in done.written:
        shutil.copy(places.before / name, places.output / name)
    return done


def _here(cell: Cell, places: Places) -> _Asked:
    """Return what is asked for, its paths as they are where this process works."""

    def at(path: Path | None) -> Path | None:
        return None if path is None else Path(places.at(path.as_posix()))

    path, colon, name = cell.model.rpartition(".py:")
    model = f"{places.at(f'{path}.py')}:{name}" if colon else places.at(cell.model)
    network = dataclasses.replace(cell.options.network, checkpoint=at(cell.options.network.checkpoint))
    return _Asked(
        model,
        dataclasses.replace(cell.calibration, data=at(cell.calibration.data)),
        dataclasses.replace(cell.options, data=at(cell.options.data), network=network),
    )


def _summary(cell: Cell, result: RunResult) -> SweepCell:
    made = run.to_schema(result)
    name = result.recommended
    return SweepCell(
        model=cell.model,
        precision=cell.precision,
        target=cell.target.called if cell.target else None,
        batch=cell.batch or "dynamic",
        state="done",
        folder=cell.folder,
        reason=None,
        key=cell.key,
        report=f"{cell.folder}/{made.report}",
        recommendation=made.recommendation,
        recommended=None if name is None else result.engines[name].engine.name,
        artifacts=_artifacts(cell, result, made),
        verdicts=result.verdicts,
        failures=result.failures,
        not_finite=result.not_finite,
        warnings=result.warnings,
    )


def _artifacts(cell: Cell, result: RunResult, made: Run) -> tuple[SweepArtifact, ...]:
    """Return the cell's engines, each with its accuracy and its time."""
    rows = {row.name: row for row in facts.artifacts(made)}
    batches = {timing.path: timing.batch for timing in facts.timings(made)}
    found = []
    for precision, built in result.engines.items():
        row = rows[built.engine.name]
        measured = None if row.p50_ms is None else row.p50_ms / batches[row.name]
        planned = None if measured is not None else _planned_ms(cell, built)
        known = measured if measured is not None else planned
        found.append(
            SweepArtifact(
                path=row.name,
                precision=precision,
                passed=row.passed and not built.precision_failures,
                accuracy=row.accuracy,
                top1_agreement=row.top1_agreement,
                sqnr_db=row.sqnr_db,
                kernels=row.kernels,
                activation_bytes=row.activation_bytes,
                size_bytes=row.size_bytes,
                ms=known,
                ms_from=None if known is None else "planned" if measured is None else "measured",
                kept=built.built.kept,
            )
        )
    return tuple(found)


def _planned_ms(cell: Cell, built: BuildResult) -> float | None:
    """Return the roofline of an engine's plan on the cell's device; None without figures of it."""
    plan = built.built.plan
    named = cell.target.device if cell.target is not None else None
    device = named if named is not None and named.has_figures else _known(plan.target)
    if device is None:
        return None
    return roofline_ms(plan, shapes.macs(built.lowered.rewritten, plan), device)


def _known(targets: str) -> Device | None:
    """Return a device of a plan's first target whose figures are known; an engine may serve several."""
    return next((found for name in targets.split("+") if (found := figures(name)) is not None), None)
