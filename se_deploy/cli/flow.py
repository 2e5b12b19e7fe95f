"""`run` and `demo`: everything, into one directory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from se_deploy.cli import options, talk

if TYPE_CHECKING:
    from se_deploy.cli.talk import Talk
    from se_deploy.commands.run import RunResult


@click.command()
@click.argument("model", type=options.Model())
@click.option("-o", "--output", type=options.OUT_DIR, required=True, help="The folder to fill.")
@click.option("--data", type=options.IN_PATH, help="What parity is judged on; default: the calibration data.")
@options.network
@options.image
@options.precision
@options.runtime
@options.target
@options.shapes
@options.builder
@options.rewriting
@options.calibration
@options.timing
@options.threads
@options.verify
@options.gate
@options.seed
@options.overwrite
@options.talk
def run(model: str, output: Path, **params: Any) -> None:
    """Export, inspect, quantize, build, compare and time MODEL; leave it all in one folder.

    Writes model.onnx, model.fp16.onnx, model.int8.onnx, an FP16 and an INT8 engine with their manifests,
    report.json and report.html. --fp16 leaves INT8 out.

    \b
    Example:
        se-deploy run timm:mobilenetv3_small_100 --calib-data photos/ -o out
    """
    from se_deploy.cli import arguments
    from se_deploy.commands import run as verb

    say = talk.of(params)
    with say.progress() as progress:
        result = verb.run(
            model,
            output,
            calibration=arguments.calibration(params),
            data=params["data"],
            precision=options.chosen_precision(params["precision"], params["short"]) or "int8",
            runtime=params["runtime"],
            targets=params["targets"],
            network=arguments.network(params),
            image=arguments.image(params),
            shapes=arguments.shapes(params),
            workspace_bytes=params["workspace"],
            timing_cache=params["timing_cache"],
            rewrites=arguments.rewrites(params),
            threads=params["threads"],
            warmup_ms=params["warmup_ms"],
            duration_s=params["duration_s"],
            iterations=params["iterations"],
            verify=params["verify"],
            overwrite=params["overwrite"],
            command=_command(),
            progress=progress,
        )
    _finish(say, result, params)


@click.command()
@click.option("-o", "--output", type=options.OUT_DIR, default=Path("out"), show_default=True, help="Folder.")
@options.runtime
@options.target
@options.rewriting
@options.timing
@options.threads
@options.verify
@options.gate
@options.overwrite
@options.talk
def demo(output: Path, **params: Any) -> None:
    """`run` on the shipped SE-ResNet-20, its checkpoint and the shipped digits: nothing else is needed.

    \b
    Example:
        se-deploy demo -o out
    """
    from se_deploy.cli import arguments
    from se_deploy.commands import demo as verb

    say = talk.of(params)
    with say.progress() as progress:
        result = verb.demo(
            output,
            runtime=params["runtime"],
            targets=params["targets"],
            rewrites=arguments.rewrites(params),
            threads=params["threads"],
            warmup_ms=params["warmup_ms"],
            duration_s=params["duration_s"],
            iterations=params["iterations"],
            verify=params["verify"],
            overwrite=params["overwrite"],
            command=_command(),
            progress=progress,
        )
    _finish(say, result, params)


def _finish(say: Talk, result: RunResult, params: dict[str, Any]) -> None:
    from se_deploy import schema
    from se_deploy.cli import arguments, render
    from se_deploy.commands import run as verb

    payload = schema.builtins(verb.to_schema(result))
    say.finish(
        payload,
        warnings=result.warnings,
        table=render.run(payload, result.folder),
        failed=[*result.not_finite, *arguments.failed_gates(params, result.failures)],
    )


def _command() -> str:
    """Give the command as it was typed, for the report's section on how to reproduce it."""
    return shlex.join(["se-deploy", *click.get_current_context().obj])
