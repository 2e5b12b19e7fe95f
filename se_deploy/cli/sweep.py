"""`sweep`: networks x precisions x targets x batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import click

from se_deploy.cli import options
from se_deploy.cli.parameters import command, defaulted, group, optional, optional_argument, repeated, switch
from se_deploy.cli.run import typed
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_DIR, IN_FILE, IN_PATH, Batch, Model, NumberRange, TargetName
from se_deploy.schema.sweep import RunPrecision

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.cli.parameters import Given
    from se_deploy.commands.sweep import SweepOptions
    from se_deploy.commands.sweep_plan import Asked

_models = repeated("--model models", Model(), "Network to run; repeatable.", section=Section.NETWORK)
_precisions = repeated(
    "--precision precisions",
    click.Choice(get_args(RunPrecision)),
    "Precision to run in; repeatable.",
    section=Section.PRECISION,
)
_targets = repeated(
    "--target targets",
    TargetName(),
    "Compute capability (sm86) or device (orin-nano) to build for; repeatable.",
    section=Section.TARGET,
)
_batches = repeated(
    "--batch batches", Batch(), "Batch size to freeze, or dynamic; repeatable.", section=Section.INPUT
)
_calib_data = optional(
    "--calib-data", IN_PATH, "Samples to calibrate every network on.", section=Section.CALIBRATION
)
_data = optional(
    "--data", IN_PATH, "Samples to measure parity on; default: the calibration data.", section=Section.DATA
)
_seconds = optional(
    "--cell-seconds",
    NumberRange(min=0, min_open=True),
    "What a cell may take; one that takes longer has failed.",
    section=Section.HOST,
)
_jobs = optional(
    "--jobs",
    click.IntRange(min=1),
    "Processes of this machine; default: as many as its memory allows.",
    section=Section.HOST,
)
_retries = defaulted(
    "--retries", click.IntRange(min=0), 1, "New tries of a step whose worker was lost.", section=Section.HOST
)
_store = optional(
    "--store",
    IN_DIR,
    "Folder that keeps what is built, also for other sweeps; all nodes of a cluster have to see it.",
    section=Section.CLUSTER,
)
_retry_failed = switch("--retry-failed", "Try cells again that failed before.", section=Section.OUTPUT)
_overwrite = switch("--overwrite", "Compute cells again whose inputs have changed.", section=Section.OUTPUT)


def _asked(given: Given) -> Asked:
    from se_deploy.commands.sweep_plan import Asked

    return Asked(
        _models.of(given),
        _precisions.of(given),
        tuple(target.called for target in _targets.of(given)),
        tuple("dynamic" if batch is None else batch for batch in _batches.of(given)),
        _calib_data.of(given),
        _data.of(given),
        _seconds.of(given),
    )


def _options(given: Given) -> SweepOptions:
    from se_deploy.commands.sweep import SweepOptions

    return SweepOptions(
        on=options.on.of(given),
        jobs=_jobs.of(given),
        retries=_retries.of(given),
        store=_store.of(given),
        retry_failed=_retry_failed.of(given),
        overwrite=_overwrite.of(given),
    )


@command(
    "sweep",
    optional_argument("file", IN_FILE),
    options.output_folder,
    group("asked", _asked, _models, _precisions, _targets, _batches, _calib_data, _data, _seconds),
    group("chosen", _options, options.on, _jobs, _retries, _store, _retry_failed, _overwrite),
    options.reporter("cells", "parity", "fusion", "precision", "latency"),
    first="-o --model --precision --target --batch --calib-data --data --on --cell-seconds --overwrite",
)
def sweep(file: Path | None, output: Path, asked: Asked, chosen: SweepOptions, reporter: Reporter) -> None:
    """Do `run` for every network, precision, target and batch of FILE (sweep.toml), or of the flags.

    Each cell has a folder, and is computed once: a second call goes on where the first one ended. A cell that
    fails is a result with its reason. Leaves report.html, sweep.json and sweep.csv.

    \b
    Example of sweep.toml:
        models = ["timm:seresnet50", "nets/own.onnx"]
        precisions = ["fp16", "int8"]
        targets = ["sm86", "orin-nano"]
        batches = [1, "dynamic"]
        calib_data = "photos"
    \b
    Example:
        se-deploy sweep sweep.toml -o out
    """
    from se_deploy.commands import sweep as verb
    from se_deploy.commands import sweep_plan
    from se_deploy.tables import sweeps

    matrix = sweep_plan.read(file, asked, verb.packages())
    with reporter.progress() as progress:
        result = verb.sweep(matrix, output, options=chosen, command=typed(), progress=progress)
    reporter.finish(
        result.made,
        sweeps.sweep(result.made, output),
        warnings=result.warnings,
        failed=result.failed,
        verdicts=result.verdicts,
        unjudged=result.unjudged,
    )
