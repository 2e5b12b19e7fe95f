"""`inspect`: what is in an ONNX file or an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli.parameters import argument, command, defaulted, optional, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, IN_PATH, OUT_FILE
from se_deploy.options import ADVICE_SAMPLES

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.commands.inspect import EngineInspection, InspectResult
    from se_deploy.options import ImageOptions, TargetOptions
    from se_deploy.schema import results


@command(
    "inspect",
    argument("file", IN_FILE),
    switch("--plan", "Also ask each compiler at hand what it would run.", section=Section.TARGET),
    optional(
        "--html", OUT_FILE, "Write a page with the graph around each block drawn.", section=Section.OUTPUT
    ),
    optional(
        "--calib-data", IN_PATH, "Advise on each block's ratio from these samples.", section=Section.DATA
    ),
    defaulted(
        "--calib-samples",
        click.IntRange(min=2),
        ADVICE_SAMPLES,
        "Largest number of them to use.",
        section=Section.DATA,
    ),
    options.image,
    options.target,
    options.overwrite,
    options.reporter("fusion", "fused", "chain"),
    first="--plan --runtime --target --html --calib-data --input-size --opt-shapes --gate --json",
)
def inspect(
    file: Path,
    plan: bool,
    html: Path | None,
    calib_data: Path | None,
    calib_samples: int,
    image: ImageOptions,
    target: TargetOptions,
    overwrite: bool,
    reporter: Reporter,
) -> None:
    """Show the SE blocks of an ONNX file, with --plan whether they fuse; or what an engine holds.

    Of a file with Q/DQ, whatever wrote it: how far INT8 layers follow on each other, and what breaks them.

    Reading an engine needs no GPU: its manifest is checked against its bytes.

    \b
    Examples:
        se-deploy inspect net.onnx --plan
        se-deploy inspect net.onnx --plan --gate fused
        se-deploy inspect net.int8.onnx --gate chain
        se-deploy inspect net.onnx --calib-data photos/ --html widths.html
    """
    from se_deploy import files
    from se_deploy.commands import inspect as verb
    from se_deploy.tables import graphs

    if html:
        files.claim(html, overwrite=overwrite)
    with reporter.progress() as progress:
        result = verb.inspect(
            file,
            plan=plan or "fusion" in reporter.gates,
            target=target,
            image=image,
            calib_data=calib_data,
            calib_samples=calib_samples,
            progress=progress,
        )
    payload = verb.to_schema(result)
    if html:
        from se_deploy import report

        drawings = {}
        if isinstance(result, verb.InspectResult):
            drawings = {b.output: report.block_svg(result.model, b) for b in result.census.blocks}
        files.write_text(html, report.inspect_html(payload, drawings))
    reporter.finish(
        payload,
        graphs.inspected(payload),
        warnings=result.warnings,
        verdicts={"fusion": result.fusion_failures, "chain": result.chain_failures},
        unjudged=_unjudged(payload),
        then=_then(file, result),
    )


def _unjudged(payload: results.Inspect) -> dict[str, str]:
    """Return which verdicts nothing was there for, and why."""
    found = {}
    if not payload.plans:
        found["fusion"] = "there is no plan, see the warnings"
    elif not any(plan.blocks for plan in payload.plans):
        found["fusion"] = "there is no SE block"
    if payload.chain is None:
        found["chain"] = "the file holds no Q/DQ"
    return found


def _then(file: Path, result: InspectResult | EngineInspection) -> list[str | Path]:
    """Return what to type next."""
    from se_deploy.commands import inspect as verb
    from se_deploy.commands import reading

    if isinstance(result, verb.EngineInspection):
        return ["bundle", file, "-o", "to-the-device"]
    if not result.plans:
        return ["inspect", file, "--plan"]
    half = ["--fp16"] if reading.precision_of(result.model) == "fp32" else []
    return ["build-engine", file, *half, "-o", file.with_suffix(".engine")]
