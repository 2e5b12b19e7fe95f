"""`predict`: an artifact classifies images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli import remote as elsewhere
from se_deploy.cli.parameters import argument, arguments, command, defaulted
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, Model

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.commands.remote import Remote
    from se_deploy.options import HostOptions, NetworkOptions


@command(
    "predict",
    argument("artifact", Model()),
    arguments("images", IN_FILE),
    defaulted("--top", click.IntRange(min=1), 5, "Classes to list for each image.", section=Section.OUTPUT),
    options.fed_network,
    options.host_engine,
    elsewhere.remote,
    options.reporter(),
)
def predict(
    artifact: str,
    images: tuple[Path, ...],
    top: int,
    network: NetworkOptions,
    host: HostOptions,
    remote: Remote | None,
    reporter: Reporter,
) -> None:
    """List the classes that ARTIFACT finds most probable in each of IMAGES.

    ARTIFACT: an ONNX file, an engine (on a machine with its GPU) or a network specification. How an image
    becomes the input is read from the artifact; a file that does not say needs --input-size, --mean, --std.

    \b
    Example:
        se-deploy predict net.onnx cat.jpg dog.jpg --top 3
    """
    from se_deploy.commands import predict as verb
    from se_deploy.tables import lists

    if remote is not None:
        _predict_there(remote, artifact, images, top=top, network=network, reporter=reporter)
        return
    with reporter.progress() as progress:
        result = verb.predict(artifact, images, top=top, host=host, network=network, progress=progress)
    reporter.finish(result, [lists.predicted(result)], warnings=result.warnings)


def _predict_there(
    remote: Remote,
    artifact: str,
    images: tuple[Path, ...],
    *,
    top: int,
    network: NetworkOptions,
    reporter: Reporter,
) -> None:
    """Predict on a device: by its se-deploy, or where it has none by the script that a bundle holds."""
    from pathlib import Path

    from se_deploy import schema
    from se_deploy.commands import artifacts
    from se_deploy.commands import remote as verb
    from se_deploy.tables import lists

    try:
        elsewhere.finish(remote, schema.results.Predict, lambda payload: [lists.predicted(payload)], reporter)
    except verb.NotInstalled as missing:
        if artifacts.kind_of(artifact) != "engine":
            raise
        result = verb.predict_by_script(
            remote, Path(artifact), images, top=top, image=network.image, missing=missing, talk=elsewhere.talk
        )
        reporter.finish(result, [lists.predicted(result)], warnings=result.warnings)
