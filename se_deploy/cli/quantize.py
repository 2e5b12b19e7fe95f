"""`quantize`: an FP32 ONNX file becomes one with INT8 Q/DQ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli.parameters import argument, command, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.options import CalibrationOptions, ImageOptions, TargetOptions


@command(
    "quantize",
    argument("model", IN_FILE),
    options.output_onnx,
    options.image,
    switch("--fp16", "Write the rest of the graph in FP16.", section=Section.PRECISION),
    options.target,
    options.calibration,
    options.verify,
    options.on,
    options.overwrite,
    options.dry_run,
    options.reporter("parity", benefit=True),
    first="--output --calib-data --calib-samples --input-size --mean "
    "--std --runtime --target --keep --overwrite",
)
def quantize(
    model: Path,
    output: Path,
    image: ImageOptions,
    fp16: bool,
    target: TargetOptions,
    calibration: CalibrationOptions,
    verify: bool,
    on: str,
    overwrite: bool,
    dry_run: bool,
    reporter: Reporter,
) -> None:
    """Write MODEL.onnx with explicit INT8 Q/DQ nodes: symmetric, SE-aware, from calibration data.

    \b
    Example:
        se-deploy quantize net.onnx --calib-data photos/ -o net.int8.onnx
    """
    from se_deploy.commands import quantize as verb
    from se_deploy.tables import files

    if dry_run:
        from se_deploy.commands import dry_run as dry

        seen = dry.quantize(
            model,
            output,
            target=target,
            image=image,
            calibration=calibration,
            verify=verify,
            on=on,
            overwrite=overwrite,
        )
        reporter.finish(seen, files.dry_run(seen))
        return
    with reporter.progress() as progress:
        result = verb.quantize(
            model,
            output,
            base="fp16" if fp16 else "fp32",
            target=target,
            image=image,
            calibration=calibration,
            verify=verify,
            on=on,
            timed="benefit" in reporter.gates,
            overwrite=overwrite,
            progress=progress,
        )
    payload = verb.to_schema(result)
    reporter.finish(
        payload,
        [files.quantized(payload)],
        warnings=result.warnings,
        verified=result.verified,
        verdicts={"benefit": reporter.benefit(result.worth)},
        then=["parity", model, output, "--data", calibration.data] if calibration.data else (),
    )
