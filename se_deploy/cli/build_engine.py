"""`build-engine`: an ONNX file becomes an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import engine_options, options
from se_deploy.cli import remote as elsewhere
from se_deploy.cli.parameters import argument, command
from se_deploy.cli.types import IN_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.commands.remote import Remote
    from se_deploy.options import CalibrationOptions, EngineOptions, ImageOptions, Precision, TargetOptions


@command(
    "build-engine",
    argument("model", IN_FILE),
    options.output_engine,
    options.image,
    options.precision,
    options.rewritten_target,
    engine_options.engine,
    options.calibration,
    options.verify,
    options.on,
    options.overwrite,
    elsewhere.remote,
    options.dry_run,
    options.reporter("parity", "fusion", "fused", "precision", benefit=True),
    first="--output --fp16 --int8 --calib-data --runtime "
    "--target --opt-shapes --max-shapes --workspace --overwrite",
)
def build_engine(
    model: Path,
    output: Path,
    image: ImageOptions,
    precision: Precision | None,
    target: TargetOptions,
    engine: EngineOptions,
    calibration: CalibrationOptions,
    verify: bool,
    on: str,
    overwrite: bool,
    remote: Remote | None,
    dry_run: bool,
    reporter: Reporter,
) -> None:
    """Build a TensorRT engine from MODEL.onnx, with a manifest, and check its precision.

    --int8 quantizes first, from --calib-data, unless the file holds Q/DQ nodes already. The rewritten ONNX
    is kept beside the engine. Exits with 3 where the plan does not run in the precision asked for.

    \b
    Example:
        se-deploy build-engine net.onnx --int8 --calib-data photos/ -o net.engine
    """
    from se_deploy.commands import build_engine as verb
    from se_deploy.schema import results
    from se_deploy.tables import files

    if dry_run:
        from se_deploy.commands import dry_run as dry

        seen = dry.build_engine(
            model,
            output,
            precision=precision,
            target=target,
            image=image,
            calibration=calibration,
            verify=verify,
            on=on if remote is None else "local",  # the device is who would join a cluster
            overwrite=overwrite,
        )
        reporter.finish(seen, files.dry_run(seen))
        return
    if remote is not None:
        elsewhere.finish(remote, results.BuildEngine, files.built, reporter)
        return
    with reporter.progress() as progress:
        result = verb.build_engine(
            model,
            output,
            precision=precision,
            target=target,
            image=image,
            engine=engine,
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
        files.built(payload),
        warnings=result.warnings,
        verified=result.verified,
        failed=result.precision_failures,
        verdicts={
            "fusion": result.fusion_failures,
            "benefit": reporter.benefit(result.worth),
        },
        unjudged={} if payload.plan.blocks else {"fusion": "there is no SE block"},
        then=["bundle", output, "-o", "to-the-device"],
    )
