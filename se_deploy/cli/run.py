"""`run`: everything, into one folder."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from se_deploy.cli import engine_options, options
from se_deploy.cli.parameters import argument, command, group, optional, repeated
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_PATH, OUT_DIR, FolderOrKind, Model
from se_deploy.options import OUTPUT_KINDS, RunOptions

if TYPE_CHECKING:
    from se_deploy.cli.output import Reporter
    from se_deploy.cli.parameters import Given
    from se_deploy.commands.run_result import RunResult
    from se_deploy.options import CalibrationOptions

_data = optional(
    "--data", IN_PATH, "Samples to measure parity on; default: the calibration data.", section=Section.DATA
)


_folder = optional("-o folder", OUT_DIR, "Folder to fill; required.", section=Section.OUTPUT)
_outputs = repeated(
    "--output outputs",
    FolderOrKind(),
    f"What an output is, where the guess is wrong: one of {', '.join(OUTPUT_KINDS)}; or -o's folder.",
    section=Section.LIMITS,
)


def _output(given: Given) -> Path:
    """Return the folder, which --output names too. Raises: click.UsageError where there is not just one."""
    folders = [one for one in (_folder.of(given), *_outputs.of(given)) if isinstance(one, Path)]
    if len(folders) != 1:
        raise click.UsageError("Name one folder to fill with -o.")
    return folders[0]


def _options(given: Given) -> RunOptions:
    engine = engine_options.engine.of(given)
    host = options.host_cpu.of(given)
    kinds = options.by_name(one for one in _outputs.of(given) if not isinstance(one, Path))
    return RunOptions(
        precision=options.precision.of(given) or "int8",
        data=_data.of(given),
        target=options.rewritten_target.of(given),
        network=dataclasses.replace(options.written_network.of(given), kinds=kinds),
        engine=engine,
        host=dataclasses.replace(host, plugins=engine.features.plugins),
        timing=options.run_timing.of(given),
        verify=options.verify.of(given),
    )


@command(
    "run",
    argument("model", Model()),
    group("output", _output, _folder, _outputs),
    group(
        "chosen",
        _options,
        _data,
        _outputs,
        options.written_network,
        options.precision,
        options.rewritten_target,
        engine_options.engine,
        options.run_timing,
        options.host_cpu,
        options.verify,
    ),
    options.calibration,
    options.overwrite,
    options.dry_run,
    options.reporter("parity", "fusion", "fused", "precision", "latency"),
    first="-o --calib-data --data --pretrained --checkpoint "
    "--input-size --precision --target --gate --overwrite",
)
def run(
    model: str,
    output: Path,
    chosen: RunOptions,
    calibration: CalibrationOptions,
    overwrite: bool,
    dry_run: bool,
    reporter: Reporter,
) -> None:
    """Export, inspect, quantize, build, compare and time MODEL; leave it all in one folder.

    Writes model.onnx, model.fp16.onnx, model.int8.onnx, an FP16 and an INT8 engine with their manifests,
    report.json and report.html. --fp16 leaves INT8 out.

    \b
    Example:
        se-deploy run timm:mobilenetv3_small_100 --calib-data photos/ -o out
    """
    from se_deploy.commands import run as verb

    if dry_run:
        from se_deploy.commands import dry_run as dry
        from se_deploy.tables import files

        seen = dry.run(model, output, calibration=calibration, options=chosen, overwrite=overwrite)
        reporter.finish(seen, files.dry_run(seen))
        return
    with reporter.progress() as progress:
        result = verb.run(
            model,
            output,
            calibration=calibration,
            options=chosen,
            overwrite=overwrite,
            command=typed(),
            progress=progress,
        )
    finish(reporter, result)


def typed() -> str:
    """Return the command as it was typed, for the report's section on how to reproduce it."""
    return shlex.join(["se-deploy", *click.get_current_context().obj])


def finish(reporter: Reporter, result: RunResult) -> None:
    """Print what a run did."""
    from se_deploy.commands import run as verb
    from se_deploy.tables import runs

    payload = verb.to_schema(result)
    reporter.finish(
        payload,
        runs.run(payload, result.folder),
        warnings=result.warnings,
        failed=result.not_finite,
        verdicts=result.failures,
        unjudged={
            name: "the timing is unstable" for name, passed in result.verdicts.items() if passed is None
        },
        then=["bundle", result.deployed.engine, "-o", "to-the-device"] if result.recommended else (),
    )
