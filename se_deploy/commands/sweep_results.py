"""What came of a cell goes into its folder: the files of its run, and `cell.json` last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from se_deploy import files, schema
from se_deploy.commands.sweep_cell import CELL, DEPLOY
from se_deploy.errors import BadInput, CannotWrite
from se_deploy.schema.sweep import SweepCell, SweepStep
from se_deploy.sweeps.tasks import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.commands.sweep_plan import Cell
    from se_deploy.sweeps.tasks import Outcome


def step(name: str, outcome: Outcome, *, shared: bool) -> SweepStep | None:
    """Return a step as results name it; None for one that was not begun."""
    if not outcome.attempts and outcome.failure is not None:
        return None
    return SweepStep(
        name=name, node=outcome.node, seconds=outcome.seconds, attempts=outcome.attempts, shared=shared
    )


def published(cell: Cell, outcome: Outcome, before: Sequence[SweepStep | None], folder: Path) -> SweepCell:
    """Put what a cell made into its folder, its result last, and return that; `before`: its first steps."""
    place = folder / cell.folder
    files.claim(place / CELL, overwrite=True)
    _remove_earlier(place)
    steps = [one for one in (*before, step(DEPLOY, outcome, shared=False)) if one is not None]
    why = outcome.failure or _in_the_way(outcome.output, place)
    if why is None and outcome.output is not None:
        summary = schema.load(
            outcome.output / CELL, SweepCell, what="the result of a cell", error=BadInput, hint="run it again"
        )
        page = None if summary.report is None else f"{cell.folder}/{Path(summary.report).name}"
        made = [path for path in sorted(outcome.output.iterdir()) if path.name != CELL]
        # Another sweep, which shares --store with this one, may have made it for its own folder.
        result = replace(
            summary,
            folder=cell.folder,
            report=page,
            steps=tuple(steps),
            files=tuple(path.name for path in made),
            sha256={path.name: files.sha256(path) for path in made},
        )
        for path in made:
            (place / path.name).unlink(missing_ok=True)
            shutil.move(path, place / path.name)
    else:
        result = SweepCell(
            model=cell.model,
            precision=cell.precision,
            target=cell.target.called if cell.target else None,
            batch=cell.batch or "dynamic",
            state="failed",
            folder=cell.folder,
            reason=None if why is None else why.message,
            kind=None if why is None else why.kind,
            hint=None if why is None else why.hint,
            key=cell.key,
            steps=tuple(steps),
        )
    files.write_text(place / CELL, f"{schema.encode(result)}\n")
    return result


def altered(one: SweepCell, folder: Path) -> str | None:
    """Return the first file of a cell that is not what the cell left; None where all are."""
    for name in one.files:
        path = folder / one.folder / name
        if not files.is_regular(path) or files.sha256(path) != one.sha256.get(name):
            return f"{one.folder}/{name}"
    return None


def _in_the_way(made: Path | None, place: Path) -> Failure | None:
    """Return why what a cell made cannot be put into its folder: another thing has a file's name there."""
    try:
        for path in [] if made is None else sorted(made.iterdir()):
            files.refuse_taken(place / path.name, overwrite=True)
    except CannotWrite as e:
        return Failure(e.kind, e.message, "move it to another place, and run the sweep again")
    return None


def _remove_earlier(place: Path) -> None:
    """Remove an earlier result from a cell's folder: what it left would pass for the new one's.

    What is in no result stays: it is the user's.
    """
    path = place / CELL
    if not path.exists():
        return
    hint = "remove the cell's folder: it is then computed again"
    earlier = schema.load(path, SweepCell, what="the result of a cell", error=BadInput, hint=hint)
    path.unlink()  # first: who is killed from here on leaves no result that lacks files
    for left in place.iterdir():  # what is there, not what is named: that may lead out of the folder
        if left.name in earlier.files and (left.is_symlink() or not left.is_dir()):
            left.unlink()
