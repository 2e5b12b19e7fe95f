"""`export`: a network becomes an ONNX file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli.parameters import argument, command, defaulted
from se_deploy.cli.sections import Section
from se_deploy.cli.types import Model
from se_deploy.options import FLOAT_TYPES

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.options import CalibrationOptions, FloatType, NetworkOptions, Precision, TargetOptions


@command(
    "export",
    argument("model", Model()),
    options.output_onnx,
    options.written_network,
    options.precision,
    defaulted(
        "--io", click.Choice(FLOAT_TYPES), "fp32", "Type of inputs and outputs.", section=Section.OUTPUT
    ),
    options.exported_target,
    options.calibration,
    options.verify,
    options.on,
    options.overwrite,
    options.dry_run,
    options.reporter("parity"),
    first="--output --pretrained --checkpoint --input-size --batch "
    "--fp16 --runtime --target --opset --overwrite",
)
def export(
    model: str,
    output: Path,
    network: NetworkOptions,
    precision: Precision | None,
    io: FloatType,
    target: TargetOptions,
    calibration: CalibrationOptions,
    verify: bool,
    on: str,
    overwrite: bool,
    dry_run: bool,
    reporter: Reporter,
) -> None:
    """Write MODEL as ONNX with every SE block in one spelling.

    MODEL: timm:NAME, torchvision:NAME, se_deploy:NAME, package.module:callable, path/to/file.py:callable,
    path/to/model.pt2 or an ONNX file. The result is checked against PyTorch (or the file given).

    \b
    Examples:
        se-deploy export timm:seresnet50 --pretrained -o seresnet50.onnx
        se-deploy export net.onnx --fp16 --runtime tensorrt-rtx --batch 1 -o net.fp16.onnx
    """
    from se_deploy.commands import export as verb
    from se_deploy.tables import files, graphs

    if dry_run:
        from se_deploy.commands import dry_run as dry

        seen = dry.export(
            model,
            output,
            precision=precision or "fp32",
            target=target,
            network=network,
            calibration=calibration,
            verify=verify,
            on=on,
            overwrite=overwrite,
        )
        reporter.finish(seen, files.dry_run(seen))
        return
    with reporter.progress() as progress:
        result = verb.export(
            model,
            output,
            precision=precision or "fp32",
            io=io,
            target=target,
            network=network,
            calibration=calibration,
            verify=verify,
            on=on,
            overwrite=overwrite,
            progress=progress,
        )
    payload = verb.to_schema(result)
    half = ["--fp16"] if precision in {None, "fp32"} else []
    reporter.finish(
        payload,
        [
            files.exported(payload),
            graphs.blocks(payload),
            *(graphs.refused(payload) if reporter.verbose else ()),
        ],
        warnings=result.warnings,
        verified=result.verified,
        then=["build-engine", output, *half, "-o", output.with_suffix(".engine")],
    )
