"""`check`: every gate of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli.output import judging
from se_deploy.cli.parameters import command, optional
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter


@command(
    "check",
    optional(
        "--config",
        IN_FILE,
        "Configuration; default: se-deploy.toml, or [tool.se-deploy] of pyproject.toml, in this folder.",
        section=Section.DATA,
    ),
    options.junit,
    options.overwrite,
    options.reporter(),
)
def check(config: Path | None, junit: Path | None, overwrite: bool, reporter: Reporter) -> None:
    """Evaluate every gate of the configuration: parity, fusion, precision, latency, chain, sweep.

    \b
    Example of se-deploy.toml:
        [parity]                  # also: atol, rtol, min_cosine, samples, checkpoint, model_args, ...
        reference = "timm:seresnet50"
        candidates = ["net.onnx", "net.engine"]
        data = "photos"
        min_top1 = 0.99
        [fusion]                  # also: runtime, target
        files = ["net.onnx"]
        allow_split = 0
        [precision]
        files = {"net.engine" = "fp16"}
        [latency]                 # also: threads, batch, duration_s
        files = ["net.onnx"]
        reference = "timm:seresnet50"
        min_speedup = 1.2         # or max_p50_ms
        [chain]                   # INT8 by TensorRT's published rules
        files = ["net.int8.onnx"]
        allow_breaks = 0
        [sweep]                   # also: max_accuracy_drop, max_slowdown
        folder = "sweep"
        against = "sweep-of-the-last-release"
    \b
    Sections repeat as [[parity]]; paths are relative to the file.
    \b
    Example:
        se-deploy check --junit verdicts.xml
    """
    from se_deploy import files, report
    from se_deploy.commands import check as verb
    from se_deploy.tables import measurements

    with judging("check", junit, overwrite=overwrite), reporter.progress() as progress:
        result = verb.check(verb.read(config), progress=progress)
    payload = verb.to_schema(result)
    if junit:
        files.write_text(junit, report.junit(payload))
    reporter.finish(
        payload, [measurements.checked(payload)], warnings=result.warnings, failed=result.failures
    )
