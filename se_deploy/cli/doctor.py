"""`doctor`: what this machine can build and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli.parameters import command

if TYPE_CHECKING:
    from se_deploy.cli.output import Reporter


@command("doctor", options.reporter())
def doctor(reporter: Reporter) -> None:
    """Show what this machine can build and run, with the command that installs what is missing.

    \b
    Example:
        se-deploy doctor
    """
    from se_deploy.commands.doctor import doctor
    from se_deploy.tables import lists

    result = doctor()
    reporter.finish(result, lists.doctor(result), then=["demo", "-o", "out"])
