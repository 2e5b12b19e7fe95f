"""`demo`: `run` on what ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli.parameters import command
from se_deploy.cli.run import finish, typed

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.options import HostOptions, TargetOptions, TimingOptions


@command(
    "demo",
    options.demo_folder,
    options.rewritten_target,
    options.run_timing,
    options.host_cpu,
    options.verify,
    options.overwrite,
    options.reporter("parity", "fusion", "fused", "precision", "latency"),
)
def demo(
    output: Path,
    target: TargetOptions,
    timing: TimingOptions,
    host: HostOptions,
    verify: bool,
    overwrite: bool,
    reporter: Reporter,
) -> None:
    """Do `run` on the shipped SE-ResNet-20, its checkpoint and the shipped digits: nothing else is needed.

    \b
    Example:
        se-deploy demo -o out
    """
    from se_deploy.commands import demo as verb

    with reporter.progress() as progress:
        result = verb.demo(
            output,
            target=target,
            host=host,
            timing=timing,
            verify=verify,
            overwrite=overwrite,
            command=typed(),
            progress=progress,
        )
    finish(reporter, result)
