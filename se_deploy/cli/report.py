"""`report`: runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli.parameters import arguments, command
from se_deploy.cli.types import IN_DIR

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter


@command(
    "report",
    arguments("folders", IN_DIR),
    options.output_page,
    options.overwrite,
    options.reporter(),
)
def report(folders: tuple[Path, ...], output: Path | None, overwrite: bool, reporter: Reporter) -> None:
    """Put the runs in FOLDERS side by side, from their report.json.

    \b
    Example:
        se-deploy report out-fp32 out-int8 -o compare.html
    """
    from se_deploy import files
    from se_deploy import report as pages
    from se_deploy.commands import report as verb
    from se_deploy.tables import runs

    if output:
        files.claim(output, overwrite=overwrite)
    result = verb.report(folders)
    if output:
        pairs = [(str(run.folder), run) for run in result.runs]
        files.write_text(output, pages.compare_html(pairs))
    reporter.finish(result, [runs.side_by_side(result)], warnings=result.warnings)
