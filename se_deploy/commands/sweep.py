"""`sweep`: many runs in one folder, cached by what went into them, with one report."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from se_deploy import files, locks, report, schema
from se_deploy.commands import run, sweep_cell, sweep_choice, sweep_results
from se_deploy.commands.run_files import PRECISIONS
from se_deploy.commands.sweep_cell import CELL, LOWER, PREPARE
from se_deploy.errors import BadInput, OutputExists, counted
from se_deploy.protocols import silent
from se_deploy.schema import tool_version
from se_deploy.schema.sweep import Sweep, SweepCell, SweepChoice, SweepNode
from se_deploy.sweeps import cluster
from se_deploy.sweeps.local import Local, jobs_that_fit
from se_deploy.sweeps.tasks import Count, LostWorker, NotShared, NoWorker, Outcome, Task, TimeLimit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from se_deploy.commands.sweep_plan import Cell, Matrix
    from se_deploy.protocols import Progress
    from se_deploy.sweeps.tasks import Executor, Node

LOCAL = "local"

SWEEP, TABLE, PAGE = "sweep.json", "sweep.csv", "report.html"
"""What a sweep's folder holds besides its cells."""

_OF_THE_MACHINE = frozenset(
    {
        LostWorker.__name__,
        TimeLimit.__name__,
        NoWorker.__name__,
        NotShared.__name__,
        "MissingRuntime",
        "DeviceFailed",
        "CannotWrite",
    }
)
"""Kinds of failure that another try may not have: these cells are tried again, all others keep theirs."""

_COLUMNS = (
    "model", "precision", "target", "batch", "state", "artifact", "run_recommends", "sweep_recommends",
    "parity", "accuracy", "top1_agreement", "sqnr_db", "kernels", "activation_bytes", "size_bytes", "ms",
    "ms_from", "node", "seconds", "folder", "reason",
)  # fmt: skip
_MEASURED = _COLUMNS[_COLUMNS.index("accuracy") : _COLUMNS.index("node")]
"""What a row has of its engine by the names that the engine's own fields have."""


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Who works on a sweep, and how it treats what is there."""

    on: str = LOCAL  # or "ray", or "ray://HOST:PORT"
    jobs: int | None = None  # processes of this machine; None: as many as its memory allows
    retries: int = 1  # of a step whose worker was lost
    store: Path | None = None  # keeps what was built for other sweeps; every node of a cluster sees it
    retry_failed: bool = False
    overwrite: bool = False  # cells of which something that went in has changed

    def __post_init__(self) -> None:
        """Raises: BadInput for what has no effect on who works."""
        if self.on != LOCAL and self.jobs is not None:
            raise BadInput(
                f"--jobs counts processes of this machine, and --on {self.on} leaves the work to a cluster",
                hint="leave it out: `se-deploy worker --cpus N` says how many steps a node does at a time",
            )


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Every cell, and who worked on them."""

    folder: Path
    command: str
    made: Sweep

    @property
    def warnings(self) -> tuple[str, ...]:
        """What failed, and what the others warn of, in words."""
        return self.made.warnings

    @property
    def verdicts(self) -> dict[str, tuple[str, ...]]:
        """What fails, by the name of a gate: `cells` for those that have no result."""
        found: dict[str, list[str]] = {"cells": [_failed(one) for one in self.made.cells if one.reason]}
        for cell in self.made.cells:
            for gate, texts in cell.failures.items():
                found.setdefault(gate, []).extend(f"{cell.folder}: {text}" for text in texts)
        return {gate: tuple(texts) for gate, texts in found.items()}

    @property
    def unjudged(self) -> dict[str, str]:
        """The verdicts that a cell with a result has not, and the last such cell, by the name of a gate."""
        return {
            gate: f"{cell.folder} has no verdict"
            for cell in self.made.cells
            for gate, passed in cell.verdicts.items()
            if passed is None
        }

    @property
    def failed(self) -> tuple[str, ...]:
        """What fails in any case: NaN or inf that the source does not have, and a sweep without a result."""
        wrong = [f"{cell.folder}: {text}" for cell in self.made.cells for text in cell.not_finite]
        nothing = ["no cell has a result"] if self.made.failed == len(self.made.cells) else []
        return (*wrong, *nothing)


def packages() -> Mapping[str, str]:
    """Return the versions of what computes here: a part of every cell's key."""
    return run.machine().packages


def sweep(
    matrix: Matrix,
    folder: str | Path,
    *,
    options: SweepOptions | None = None,
    command: str | None = None,
    progress: Progress = silent,
) -> SweepResult:
    """Run every cell of `matrix` that has no result in `folder` yet, and write the sweep's report.

    A cell that fails is a result with its reason; the others go on.
    Raises: BadInput, OutputExists for cells whose inputs changed, MissingRuntime, CannotWrite.
    """
    folder, options = Path(folder), options or SweepOptions()
    said = command or f"se-deploy sweep -o {folder}"
    with locks.folder(folder):
        began = time.monotonic()
        known = {cell.folder: _known(folder, cell) for cell in matrix.cells}
        _refuse_changed(matrix.cells, known, overwrite=options.overwrite)
        kept = {
            cell.folder: one
            for cell in matrix.cells
            if (one := known[cell.folder]) is not None and _stands(one, cell, retry=options.retry_failed)
        }
        altered = {name: lost for name, one in kept.items() if (lost := sweep_results.altered(one, folder))}
        _refuse_altered(altered.values(), overwrite=options.overwrite)
        kept = {name: one for name, one in kept.items() if name not in altered}
        left = [cell for cell in matrix.cells if cell.folder not in kept]
        made: dict[str, SweepCell] = {}
        notes: list[str] = []
        nodes: tuple[Node, ...] = ()
        if left:
            with _executor(options) as executor:
                nodes = executor.nodes
                made = _work(left, matrix, folder, executor, notes=notes, progress=progress)
        cells = tuple(made.get(cell.folder) or _again(kept[cell.folder]) for cell in matrix.cells)
        result = Sweep(
            tool_version=tool_version(),
            warnings=(*_warnings(cells), *notes),
            cells=cells,
            report=PAGE,
            csv=TABLE,
            on=options.on,
            done=_count(cells, "done"),
            cached=_count(cells, "cached"),
            failed=_count(cells, "failed"),
            seconds=time.monotonic() - began,
            recommended=sweep_choice.choices(cells),
            nodes=tuple(SweepNode(name=node.name, tags=node.tags) for node in nodes),
            command=said,
            date=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        )
        with files.together() as publish:
            publish(folder / SWEEP).write_text(f"{schema.encode(result)}\n", "utf-8")
            publish(folder / TABLE).write_text(as_csv(cells, result.recommended), "utf-8")
            publish(folder / PAGE).write_text(report.sweep_html(result), "utf-8", errors="backslashreplace")
    return SweepResult(folder, said, result)


def read_sweep(folder: Path) -> Sweep:
    """Return what an earlier sweep left in its folder. Raises: BadInput."""
    hint = "name a folder that `se-deploy sweep` filled"
    return schema.load(folder / SWEEP, Sweep, what="the result of a sweep", error=BadInput, hint=hint)


@contextlib.contextmanager
def _executor(options: SweepOptions) -> Iterator[Executor]:
    """Open who works. Raises: BadInput, MissingRuntime."""
    if options.on == LOCAL:
        yield Local(Path.cwd(), options.jobs or jobs_that_fit(), options.retries, options.store)
        return
    with cluster.opened(options.on, retries=options.retries, store=options.store) as joined:
        yield joined


def _known(folder: Path, cell: Cell) -> SweepCell | None:
    """Return what an earlier sweep found of this cell; None where nothing is there."""
    path = folder / cell.folder / CELL
    if not path.exists():
        return None
    hint = "remove the cell's folder: it is then computed again"
    return schema.load(path, SweepCell, what="the result of a cell", error=BadInput, hint=hint)


def _refuse_changed(cells: Iterable[Cell], known: Mapping[str, SweepCell | None], *, overwrite: bool) -> None:
    changed = [
        cell.folder
        for cell in cells
        if (one := known[cell.folder]) is not None and one.key != cell.key and one.state != "failed"
    ]
    if changed and not overwrite:
        raise OutputExists(
            f"what goes into {counted(len(changed), 'cell')} has changed since, the first: {changed[0]}",
            hint="pass --overwrite to compute them again, or name another folder",
        )


def _refuse_altered(altered: Collection[str], *, overwrite: bool) -> None:
    if altered and not overwrite:
        raise OutputExists(
            f"{counted(len(altered), 'cell')} not as the sweep left it, the first: {next(iter(altered))} is "
            "another file, or gone",
            hint="pass --overwrite to compute them again, or put back what was there",
        )


def _stands(one: SweepCell, cell: Cell, *, retry: bool) -> bool:
    """Whether what is known of a cell is its result: a machine's failure is none."""
    if one.key != cell.key:
        return False
    return one.state != "failed" or not (retry or one.kind in _OF_THE_MACHINE)


def _again(one: SweepCell) -> SweepCell:
    return one if one.state == "failed" else replace(one, state="cached")


def _count(cells: Sequence[SweepCell], state: str) -> int:
    return sum(cell.state == state for cell in cells)


def _failed(cell: SweepCell) -> str:
    return f"{cell.folder} failed: {cell.reason}"


def _warnings(cells: Sequence[SweepCell]) -> tuple[str, ...]:
    return tuple(_failed(cell) for cell in cells if cell.state == "failed")


def _work(
    cells: Sequence[Cell],
    matrix: Matrix,
    folder: Path,
    executor: Executor,
    *,
    notes: list[str],
    progress: Progress,
) -> dict[str, SweepCell]:
    """Run cells and publish each as it ends; return them by folder, and what is to be said in `notes`."""
    shared: dict[str, list[Cell]] = {}
    for cell in cells:
        shared.setdefault(cell.prepare_key, []).append(cell)
    behind = _behind(cells)
    tasks: list[Task] = []
    kin: dict[str, str] = {}  # by what cells have alike: the key of the last one's task
    for cell in cells:
        if shared[cell.prepare_key][0] is cell:
            tasks.append(
                Task(
                    cell.prepare_key,
                    sweep_cell.prepare,
                    cell,
                    cell.files,
                    after=behind[cell.prepare_key],
                    seconds=matrix.cell_seconds,
                )
            )
        tasks.append(
            Task(
                cell.key,
                sweep_cell.deploy,
                cell,
                cell.files,
                after=cell.prepare_key,
                reuses=kin.get(cell.kin),
                needs=cell.target.called if cell.target else None,
                seconds=matrix.cell_seconds,
            )
        )
        kin[cell.kin] = cell.key
    by_key = {cell.key: cell for cell in cells}
    prepared: dict[str, Outcome] = {}
    made: dict[str, SweepCell] = {}
    seen = _Seen(progress, len(cells))

    def ended(outcome: Outcome) -> None:
        cell = by_key.get(outcome.key)
        if cell is None:
            prepared[outcome.key] = outcome
            return
        first = shared[cell.prepare_key][0] is cell
        chain = _chain(cell.prepare_key, behind)
        before = [
            sweep_results.step(
                PREPARE if behind[key] is None else LOWER, prepared[key], shared=not first or key != chain[-1]
            )
            for key in chain
        ]
        made[cell.folder] = sweep_results.published(cell, outcome, before, folder)
        if outcome.note is not None:
            notes.append(f"{cell.folder}: {outcome.note}")
        seen.cell(made[cell.folder])

    seen.count(Count(0, len(tasks)))
    executor.run(tasks, matrix.inputs, ended=ended, count=seen.count)
    return made


def _behind(cells: Sequence[Cell]) -> dict[str, str | None]:
    """Return which preparation each goes on behind, by key: the next wider precision of the same network."""
    found: dict[str, str | None] = {}
    last: dict[str, str] = {}  # by what is exported
    for cell in sorted(cells, key=lambda cell: -PRECISIONS.index(cell.precision)):
        if cell.prepare_key not in found:
            found[cell.prepare_key] = last.get(cell.source_key)
            last[cell.source_key] = cell.prepare_key
    return found


def _chain(key: str, behind: Mapping[str, str | None]) -> list[str]:
    """Return the preparations that make one, itself last."""
    chain = [key]
    while (before := behind[chain[0]]) is not None:
        chain.insert(0, before)
    return chain


class _Seen:
    """Says how far the sweep is: cells done, running, failed, and what is left of the time."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._began = time.monotonic()
        self._done = self._failed = 0

    def cell(self, made: SweepCell) -> None:
        """A cell has ended."""
        self._done += 1
        self._failed += made.state == "failed"
        found = made.reason or f"{made.seconds:.1f} s on {', '.join(made.nodes)}"
        self._progress(made.folder, 0, 1)
        self._progress(made.folder, 1, 1, f"{made.state}: {found}")

    def count(self, count: Count) -> None:
        """Steps have begun or ended."""
        spent = time.monotonic() - self._began
        left = (
            "" if not self._done else f", some {spent / self._done * (self._total - self._done):.0f} s left"
        )
        words = f"{counted(count.running, 'step')} running, {counted(self._failed, 'cell')} failed{left}"
        if self._done == self._total:
            words = f"{self._done - self._failed} done, {self._failed} failed"
        self._progress("cells", self._done, self._total, words)


def as_csv(cells: Sequence[SweepCell], choices: Sequence[SweepChoice] = ()) -> str:
    """Return a row for each engine of each cell, and one for each cell that has none.

    `run_recommends`: of the cell's own engines, as its report says; `sweep_recommends`: of all engines for
    the target, which are the `choices`.
    """
    chosen = {(one.folder, one.artifact) for one in choices}
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    table.writeheader()
    for cell in cells:
        own: dict[str, object] = {
            "model": cell.model,
            "precision": cell.precision,
            "target": cell.target,
            "batch": cell.batch,
            "state": cell.state,
            "node": " ".join(cell.nodes),
            "seconds": round(cell.seconds, 3),
            "folder": cell.folder,
            "reason": cell.reason,
        }
        rows = [
            {
                "artifact": one.path,
                "run_recommends": one.path == cell.recommended,
                "sweep_recommends": (cell.folder, one.path) in chosen,
                "parity": one.passed,
                **{name: getattr(one, name) for name in _MEASURED},
            }
            for one in cell.artifacts
        ]
        for row in rows or [{}]:
            table.writerow({name: _harmless(value) for name, value in (own | row).items()})
    return text.getvalue()


def _harmless(value: object) -> object:
    """Return a value that no spreadsheet takes for a formula."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value) if value is not None else ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value
