"""`report`: runs side by side, from what they left."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from se_deploy import files
from se_deploy.backends import manifest as manifests
from se_deploy.errors import BadArtifact, BadInput
from se_deploy.schema import load, results, tool_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


def report(folders: Sequence[Path]) -> results.Report:
    """Return the runs that `folders` hold, each with its folder, and warn of what is not there as it was.

    Raises: BadInput.
    """
    runs = tuple(replace(read_report(folder), folder=str(folder)) for folder in folders)
    altered = tuple(
        text for folder, run in zip(folders, runs, strict=True) for text in _altered(folder, run.artifacts)
    )
    return results.Report(tool_version=tool_version(), warnings=altered, runs=runs)


def _altered(folder: Path, artifacts: Mapping[str, str]) -> Iterator[str]:
    """Yield what the figures of a run are no longer of: files that are gone, engines that are others."""
    for name in artifacts.values():
        path = folder / name
        if not files.is_regular(path):
            yield f"'{path}' is gone: the figures are of what it was"
        elif manifests.path_of(path).name in artifacts.values() and files.is_regular(manifests.path_of(path)):
            try:
                checked = manifests.check(path)
            except BadArtifact as e:
                yield f"{e.message}: the figures are of what it was"
            else:
                yield from checked.warnings


def read_report(folder: Path) -> results.Run:
    """Return the report.json that a run left. Raises: BadInput."""
    return load(
        folder / "report.json",
        cast("type[results.Run]", results.Run | results.Demo),
        what="the report of a run",
        error=BadInput,
        hint="name folders that `se-deploy run` filled",
    )
