"""Tables of sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from se_deploy.errors import counted
from se_deploy.tables.base import add, megabytes, number, passed, percent, titled

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.schema.sweep import Sweep, SweepCell
    from se_deploy.tables.base import Grid

_STYLES = {"done": "green", "cached": "cyan", "failed": "bold red"}


def sweep(result: Sweep, folder: Path) -> list[Grid | str]:
    """Return every cell's artifacts, what to deploy on each target, and where the report is."""
    table = titled(
        f"{counted(len(result.cells), 'cell')}: {result.done} done, {result.cached} cached, "
        f"{result.failed} failed",
        ["network", "precision", "target", "batch", "state", "engine", "top-1", "same as PyTorch", "MB/image",
         "ms", "parity"],
        right=(6, 7, 8, 9),
        spare=(3, 7, 8, 5),
    )  # fmt: skip
    for cell in result.cells:
        _add(table, cell)
        table.add_section()
    lines: list[Grid | str] = [table]
    for choice in result.recommended:
        where = "" if choice.folder is None else f"{choice.folder}/{choice.artifact}: "
        lines.append(
            f"The sweep recommends for {choice.target or 'the default target'}: {where}{choice.reason}"
        )
    return [*lines, f"Report: {folder / result.report}"]


def _add(table: Grid, cell: SweepCell) -> None:
    state = Text(cell.state, style=_STYLES[cell.state])
    own = (cell.model, cell.precision, cell.target or "default", str(cell.batch))
    if not cell.artifacts:
        add(table, *own, state, "", "", "", "", "", "")
    for one in cell.artifacts:
        ms = number(one.ms) if one.ms_from != "planned" else f"{number(one.ms)} planned"
        add(table,
            *own, state, one.path.removeprefix("model.").removesuffix(".engine"), percent(one.accuracy),
            percent(one.top1_agreement), megabytes(one.activation_bytes), ms, passed(one.passed),
        )  # fmt: skip
