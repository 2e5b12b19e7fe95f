"""`demo`: `run` on the shipped network, checkpoint and digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.commands.run import run
from se_deploy.options import (
    CalibrationOptions,
    HostOptions,
    NetworkOptions,
    RunOptions,
    TimingOptions,
    target_options,
)
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.commands.run_result import RunResult
    from se_deploy.options import TargetLike
    from se_deploy.protocols import Progress


def demo(
    folder: str | Path,
    *,
    target: TargetLike | None = None,
    host: HostOptions | None = None,
    timing: TimingOptions | None = None,
    verify: bool = True,
    overwrite: bool = False,
    command: str | None = None,
    progress: Progress = silent,
) -> RunResult:
    """Run the shipped SE-ResNet-20 on the shipped digits; parity is measured on the 1,000 held out."""
    from se_deploy.shipped import shipped  # noqa: PLC0415 - only here

    return run(
        "se_deploy:se_resnet20",
        folder,
        calibration=CalibrationOptions(data=shipped("calibration-images-idx3-ubyte.gz")),
        options=RunOptions(
            data=shipped("heldout-images-idx3-ubyte.gz"),
            network=NetworkOptions(checkpoint=shipped("se_resnet20_digits.safetensors")),
            target=target_options(target),
            host=host or HostOptions(),
            timing=timing or RunOptions().timing,
            verify=verify,
        ),
        overwrite=overwrite,
        command=command or f"se-deploy demo -o {folder}",
        verb="demo",
        progress=progress,
    )
