"""`demo`: `run` on the shipped network, checkpoint and digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.commands.run import RunResult, run
from se_deploy.options import CalibrationOptions, NetworkOptions, RewriteOptions
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from se_deploy.protocols import Progress


def demo(
    folder: str | Path,
    *,
    verify: bool = True,
    overwrite: bool = False,
    runtime: str = "auto",
    targets: Sequence[str] = (),
    rewrites: RewriteOptions | None = None,
    threads: int = 0,
    warmup_ms: float = 200,
    duration_s: float = 3,
    iterations: int = 10,
    command: str | None = None,
    progress: Progress = silent,
) -> RunResult:
    """Run the shipped SE-ResNet-20 on the shipped digits; parity is judged on the 1,000 held out."""
    from se_deploy.shipped import shipped  # noqa: PLC0415 - only here

    return run(
        "se_deploy:se_resnet20",
        folder,
        network=NetworkOptions(checkpoint=shipped("se_resnet20_digits.safetensors")),
        calibration=CalibrationOptions(data=shipped("calibration-images-idx3-ubyte.gz")),
        data=shipped("heldout-images-idx3-ubyte.gz"),
        runtime=runtime,
        targets=targets,
        rewrites=rewrites,
        threads=threads,
        warmup_ms=warmup_ms,
        duration_s=duration_s,
        iterations=iterations,
        verify=verify,
        overwrite=overwrite,
        command=command or f"se-deploy demo -o {folder}",
        verb="demo",
        progress=progress,
    )
