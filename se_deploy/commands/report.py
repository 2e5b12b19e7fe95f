"""`report`: runs side by side, from what they left."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from se_deploy.errors import BadInput
from se_deploy.schema import load, results, tool_version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def report(folders: Sequence[Path]) -> results.Report:
    """Return the runs that `folders` hold, each with its folder. Raises: BadInput."""
    runs = tuple(replace(read_report(folder), folder=str(folder)) for folder in folders)
    return results.Report(tool_version=tool_version(), warnings=(), runs=runs)


def read_report(folder: Path) -> results.Run:
    """Return the report.json that a run left. Raises: BadInput."""
    return load(
        folder / "report.json",
        cast("type[results.Run]", results.Run | results.Demo),
        what="the report of a run",
        error=BadInput,
        hint="name folders that `se-deploy run` filled",
    )
