"""`inspect`, `doctor`, `report`, `networks`: nothing is changed, something is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_deploy.cli import options, talk
from se_deploy.options import ADVICE_SAMPLES


@click.command()
@click.argument("file", type=options.IN_FILE)
@click.option("--plan", is_flag=True, help="Also ask each compiler at hand what it would run.")
@click.option("--html", type=options.OUT_FILE, help="Write a page with the graph around each block drawn.")
@click.option("--calib-data", type=options.IN_PATH, help="Advise on each block's ratio from these samples.")
@click.option(
    "--calib-samples",
    type=click.IntRange(min=2),
    default=ADVICE_SAMPLES,
    show_default=True,
    help="Look at no more of them than this.",
)
@options.image
@click.option("--input-size", type=options.Dims(), help="For a file that carries no input spec.")
@options.runtime
@options.target
@options.gate
@options.overwrite
@options.talk
def inspect(file: Path, **params: Any) -> None:
    """Show the SE blocks of an ONNX file, with --plan whether they fuse; or what an engine holds.

    Reading an engine needs no GPU: its manifest is checked against its bytes.

    \b
    Examples:
        se-deploy inspect net.onnx --plan
        se-deploy inspect net.onnx --plan --gate fused
        se-deploy inspect net.onnx --calib-data photos/ --html widths.html
    """
    from se_deploy import files, report, schema
    from se_deploy.cli import arguments, render
    from se_deploy.commands import inspect as verb

    say = talk.of(params)
    if params["html"]:
        files.claim(params["html"], overwrite=params["overwrite"])
    with say.progress() as progress:
        result = verb.inspect(
            file,
            plan=params["plan"] or "fusion" in params["gates"] or "fused" in params["gates"],
            runtime=params["runtime"],
            targets=params["targets"],
            image=arguments.image(params),
            calib_data=params["calib_data"],
            calib_samples=params["calib_samples"],
            progress=progress,
        )
    payload = schema.builtins(verb.to_schema(result))
    if params["html"]:
        drawings = {}
        if isinstance(result, verb.InspectResult):
            drawings = {b.output: report.block_svg(result.model, b) for b in result.census.blocks}
        files.write_text(params["html"], report.inspect_html(payload, drawings))
    table = [render.blocks(payload), *filter(None, [render.plans(payload)]), *render.reasons(payload)]
    if payload.get("advice"):
        table += render.advice(payload)
    failed = arguments.failed_gates(params, {"fusion": result.fusion_failures})
    say.finish(payload, warnings=result.warnings, table=table, failed=failed)


@click.command()
@options.talk
def doctor(**params: Any) -> None:
    """Say what this machine can build and run, with the command that installs what is missing.

    \b
    Example:
        se-deploy doctor
    """
    from se_deploy.cli import render
    from se_deploy.commands.doctor import diagnose

    found = diagnose()
    talk.of(params).finish(found, table=render.doctor(found))


@click.command()
@click.argument(
    "folders", type=click.Path(exists=True, file_okay=False, path_type=Path), nargs=-1, required=True
)
@click.option("-o", "--output", type=options.OUT_FILE, help="Write the comparison as one HTML page.")
@options.overwrite
@options.talk
def report(folders: tuple[Path, ...], output: Path | None, **params: Any) -> None:
    """Put the runs in FOLDERS side by side, from their report.json.

    \b
    Example:
        se-deploy report out-fp32 out-int8 -o compare.html
    """
    from se_deploy import files, schema
    from se_deploy import report as pages
    from se_deploy.cli import render
    from se_deploy.commands import report as verb

    if output:
        files.claim(output, overwrite=params["overwrite"])
    found = verb.report(folders)
    runs = [(str(run.folder), schema.builtins(run)) for run in found.runs]
    if output:
        files.write_text(output, pages.compare_html(runs))
    talk.of(params).finish(found, table=render.runs(runs))


@click.command()
@options.talk
def networks(**params: Any) -> None:
    """List the SE networks that ship, with parameters, multiply-accumulates, SE blocks and reference.

    \b
    Example:
        se-deploy networks
    """
    from se_deploy.cli import render
    from se_deploy.commands import networks as verb

    say = talk.of(params)
    with say.progress() as progress:
        found = verb.networks(progress=progress)
    say.finish(found, table=render.networks(found))
