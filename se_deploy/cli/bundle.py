"""`bundle`: what goes to the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli.parameters import argument, command, optional, switch
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.options import ImageOptions


@command(
    "bundle",
    argument("artifact", IN_FILE),
    options.output_folder,
    switch("--triton", "Lay out a model repository for Triton Inference Server.", section=Section.OUTPUT),
    optional(
        "--name",
        click.STRING,
        "With --triton: the model's name; default: the file's.",
        section=Section.OUTPUT,
    ),
    options.image,
    options.overwrite,
    options.reporter(),
)
def bundle(
    artifact: Path,
    output: Path,
    triton: bool,
    name: str | None,
    image: ImageOptions,
    overwrite: bool,
    reporter: Reporter,
) -> None:
    """Gather what goes to the device: ARTIFACT, labels, input spec, checksums and how to run it.

    ARTIFACT: an engine, which takes its manifest and the ONNX file that it was built from along, or an
    ONNX file. With --triton the folder is a model repository instead, with a config.pbtxt, which
    `tritonserver --model-repository` takes.

    \b
    Examples:
        se-deploy bundle net.engine -o to-jetson
        se-deploy bundle net.onnx --triton -o models
    """
    from se_deploy.commands import bundle as verb
    from se_deploy.tables import files

    if name and not triton:
        raise click.UsageError("--name is for --triton: a plain bundle keeps the file's name")
    result = verb.bundle(artifact, output, triton=triton, name=name, image=image, overwrite=overwrite)
    reporter.finish(result, [files.bundled(result)], warnings=result.warnings)
