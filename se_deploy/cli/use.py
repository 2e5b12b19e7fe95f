"""`predict`, `bundle`: what is made is put to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from se_deploy.cli import options, talk


@click.command()
@click.argument("artifact", type=options.Model())
@click.argument("images", type=options.IN_FILE, nargs=-1, required=True)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes an image.")
@options.weights
@options.image
@options.threads
@options.seed
@options.talk
def predict(artifact: str, images: tuple[Path, ...], **params: Any) -> None:
    """Say which classes ARTIFACT finds most probable in each of IMAGES.

    ARTIFACT: an ONNX file, an engine (on a machine with its GPU) or a network specification. How an image
    becomes the input is read from the artifact; a file that does not say needs --input-size, --mean, --std.

    \b
    Example:
        se-deploy predict net.onnx cat.jpg dog.jpg --top 3
    """
    from se_deploy.cli import arguments, render_use
    from se_deploy.commands import predict as verb

    say = talk.of(params)
    with say.progress() as progress:
        result = verb.predict(
            artifact,
            images,
            top=params["top"],
            threads=params["threads"],
            network=arguments.network(params),
            image=arguments.image(params),
            progress=progress,
        )
    say.finish(result, warnings=result.warnings, table=render_use.predicted(result))


@click.command()
@click.argument("artifact", type=options.IN_FILE)
@click.option("-o", "--output", type=options.OUT_DIR, required=True, help="The folder to fill.")
@click.option("--triton", is_flag=True, help="Lay out a model repository for Triton Inference Server.")
@click.option("--name", help="With --triton: the model's name; default: the file's.")
@options.image
@click.option("--input-size", type=options.Dims(), help="For a file that carries no input spec.")
@options.overwrite
@options.talk
def bundle(artifact: Path, output: Path, **params: Any) -> None:
    """Gather what goes to the device: ARTIFACT, labels, input spec, checksums and how to run it.

    ARTIFACT: an engine, which takes its manifest and the ONNX file that it was built from along, or an
    ONNX file. With --triton the folder is a model repository instead, with a config.pbtxt, which
    `tritonserver --model-repository` takes.

    \b
    Examples:
        se-deploy bundle net.engine -o to-jetson
        se-deploy bundle net.onnx --triton -o models
    """
    from se_deploy.cli import arguments, render_use
    from se_deploy.commands import bundle as verb

    if params["name"] and not params["triton"]:
        raise click.UsageError("--name is for --triton: a plain bundle keeps the file's name")
    say = talk.of(params)
    result = verb.bundle(
        artifact,
        output,
        triton=params["triton"],
        name=params["name"],
        image=arguments.image(params),
        overwrite=params["overwrite"],
    )
    say.finish(result, warnings=result.warnings, table=render_use.bundled(result))
