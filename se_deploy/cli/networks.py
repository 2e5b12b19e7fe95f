"""`networks`: the SE networks that ship."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli.parameters import command

if TYPE_CHECKING:
    from se_deploy.cli.output import Reporter


@command("networks", options.reporter())
def networks(reporter: Reporter) -> None:
    """List the SE networks that ship, with parameters, multiply-accumulates, SE blocks and reference.

    \b
    Example:
        se-deploy networks
    """
    from se_deploy.commands import networks as verb
    from se_deploy.tables import lists

    with reporter.progress() as progress:
        result = verb.networks(progress=progress)
    example = result.networks[0].name
    reporter.finish(
        result,
        [lists.networks(result)],
        then=["export", f"se_deploy:{example}", "-o", f"{example}.onnx"],
    )
