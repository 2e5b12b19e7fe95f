"""`export`, `quantize`, `build-engine`: a file comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_deploy.cli import options, talk


@click.command()
@click.argument("model", type=options.Model())
@click.option("-o", "--output", type=options.OUT_FILE, required=True, help="The ONNX file to write.")
@options.network
@options.image
@options.precision
@click.option("--io", type=click.Choice(["fp32", "fp16"]), default="fp32", help="Inputs and outputs' type.")
@options.runtime
@options.target
@options.rewriting
@options.calibration
@options.verify
@options.gate
@options.seed
@options.overwrite
@options.talk
def export(model: str, output: Path, **params: Any) -> None:
    """Write MODEL as ONNX with every SE block in one spelling.

    MODEL: timm:NAME, torchvision:NAME, se_deploy:NAME, package.module:callable, path/to/file.py:callable,
    path/to/model.pt2 or an ONNX file. The result is checked against PyTorch (or the file given).

    \b
    Examples:
        se-deploy export timm:seresnet50 --pretrained -o seresnet50.onnx
        se-deploy export net.onnx --fp16 --runtime tensorrt-rtx --batch 1 -o net.fp16.onnx
    """
    from se_deploy import schema
    from se_deploy.cli import arguments, render
    from se_deploy.commands import export as verb

    say = talk.of(params)
    with say.progress() as progress:
        result = verb.export(
            model,
            output,
            precision=options.chosen_precision(params["precision"], params["short"]) or "fp32",
            io=params["io"],
            runtime=params["runtime"],
            targets=params["targets"],
            network=arguments.network(params),
            image=arguments.image(params),
            rewrites=arguments.rewrites(params),
            calibration=arguments.calibration(params),
            verify=params["verify"],
            overwrite=params["overwrite"],
            progress=progress,
        )
    payload = schema.builtins(verb.to_schema(result))
    failed = [*arguments.wrong(params, result.verified), *arguments.failed_gates(params, {"parity": ()})]
    say.finish(
        payload,
        warnings=result.warnings,
        table=[
            *render.exported(payload),
            render.blocks(payload),
            *(render.refused(payload) if say.verbose else ()),
        ],
        failed=failed,
    )


@click.command()
@click.argument("model", type=options.IN_FILE)
@click.option("-o", "--output", type=options.OUT_FILE, required=True, help="The ONNX file to write.")
@options.image
@click.option("--fp16", "short", flag_value="fp16", help="The rest of the graph in FP16.")
@click.option("--input-size", type=options.Dims(), help="For a file that carries no input spec.")
@options.runtime
@options.target
@options.calibration
@click.option("--require-benefit", is_flag=True, help="Exit with 3 where FP16 is planned to be no dearer.")
@options.verify
@options.gate
@options.seed
@options.overwrite
@options.talk
def quantize(model: Path, output: Path, **params: Any) -> None:
    """Write MODEL.onnx with explicit INT8 Q/DQ nodes: symmetric, SE-aware, from calibration data.

    \b
    Example:
        se-deploy quantize net.onnx --calib-data photos/ -o net.int8.onnx
    """
    from se_deploy import schema
    from se_deploy.cli import arguments, render
    from se_deploy.commands import quantize as verb

    say = talk.of(params)
    with say.progress() as progress:
        result = verb.quantize(
            model,
            output,
            base="fp16" if params["short"] else "fp32",
            runtime=params["runtime"],
            targets=params["targets"],
            image=arguments.image(params),
            calibration=arguments.calibration(params),
            verify=params["verify"],
            overwrite=params["overwrite"],
            progress=progress,
        )
    payload = schema.builtins(verb.to_schema(result))
    failed = [*arguments.wrong(params, result.verified), *arguments.failed_gates(params, {"parity": ()})]
    if (
        (params["require_benefit"] or params["strict"])
        and result.worth is not None
        and not result.worth.worth_it
    ):
        failed.append(f"INT8 brings nothing here: {result.worth.reason}")
    say.finish(payload, warnings=result.warnings, table=render.quantized(payload), failed=failed)


@click.command(name="build-engine")
@click.argument("model", type=options.IN_FILE)
@click.option("-o", "--output", type=options.OUT_FILE, required=True, help="The engine to write.")
@options.image
@click.option("--input-size", type=options.Dims(), help="For a file that carries no input spec.")
@options.precision
@options.runtime
@options.target
@options.shapes
@options.builder
@options.rewriting
@options.calibration
@click.option("--require-benefit", is_flag=True, help="Exit with 3 where FP16 is planned to be no dearer.")
@options.verify
@options.gate
@options.seed
@options.overwrite
@options.talk
def build_engine(model: Path, output: Path, **params: Any) -> None:
    """Build a TensorRT engine from MODEL.onnx, with a manifest, and check its precision.

    --int8 quantizes first, from --calib-data, unless the file holds Q/DQ nodes already. The rewritten ONNX
    is kept beside the engine. Exits with 3 where the plan does not run in the precision asked for.

    \b
    Example:
        se-deploy build-engine net.onnx --int8 --calib-data photos/ -o net.engine
    """
    from se_deploy import schema
    from se_deploy.cli import arguments, render
    from se_deploy.commands import build_engine as verb

    say = talk.of(params)
    with say.progress() as progress:
        result = verb.build_engine(
            model,
            output,
            precision=options.chosen_precision(params["precision"], params["short"]),
            runtime=params["runtime"],
            targets=params["targets"],
            image=arguments.image(params),
            shapes=arguments.shapes(params),
            workspace_bytes=params["workspace"],
            timing_cache=params["timing_cache"],
            rewrites=arguments.rewrites(params),
            calibration=arguments.calibration(params),
            verify=params["verify"],
            overwrite=params["overwrite"],
            progress=progress,
        )
    payload = schema.builtins(verb.to_schema(result))
    failed = [*arguments.wrong(params, result.verified), *result.precision_failures]
    failed += arguments.failed_gates(params, {"fusion": result.fusion_failures, "parity": ()})
    if (
        (params["require_benefit"] or params["strict"])
        and result.worth is not None
        and not result.worth.worth_it
    ):
        failed.append(f"INT8 brings nothing here: {result.worth.reason}")
    say.finish(payload, warnings=result.warnings, table=render.built(payload), failed=failed)
