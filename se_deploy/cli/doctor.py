"""`doctor`: what this machine can build and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli.parameters import command

if TYPE_CHECKING:
    from se_deploy.cli.output import Reporter
    from se_deploy.schema.results import Doctor

_DEMO_NEEDS = {"torch", "onnxscript", "safetensors"}
"""It exports a network, then compares and builds it; a look at an ONNX file needs none of them."""


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
    reporter.finish(result, lists.doctor(result), then=_next(result))


def _next(result: Doctor) -> list[str]:
    """Return a command that runs with what is here."""
    from se_deploy.backends import registry

    here = {check.name for check in result.checks if check.state == "ok"}
    compares = any("onnx" in backend.runs for backend in registry.every() if backend.name in here)
    demo = here >= _DEMO_NEEDS and compares and result.can_build
    return ["demo", "-o", "out"] if demo else ["inspect", "your-network.onnx"]
