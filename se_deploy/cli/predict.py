"""`predict`: an artifact classifies images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli.parameters import argument, arguments, command, defaulted
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, Model

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.options import HostOptions, NetworkOptions


@command(
    "predict",
    argument("artifact", Model()),
    arguments("images", IN_FILE),
    defaulted("--top", click.IntRange(min=1), 5, "Classes to list for each image.", section=Section.OUTPUT),
    options.fed_network,
    options.host_cpu,
    options.reporter(),
)
def predict(
    artifact: str,
    images: tuple[Path, ...],
    top: int,
    network: NetworkOptions,
    host: HostOptions,
    reporter: Reporter,
) -> None:
    """List the classes that ARTIFACT finds most probable in each of IMAGES.

    ARTIFACT: an ONNX file, an engine (on a machine with its GPU) or a network specification. How an image
    becomes the input is read from the artifact; a file that does not say needs --input-size, --mean, --std.

    \b
    Example:
        se-deploy predict net.onnx cat.jpg dog.jpg --top 3
    """
    from se_deploy.cli.tables import lists
    from se_deploy.commands import predict as verb

    with reporter.progress() as progress:
        result = verb.predict(artifact, images, top=top, host=host, network=network, progress=progress)
    reporter.finish(result, [lists.predicted(result)], warnings=result.warnings)
