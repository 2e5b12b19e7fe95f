"""`predict`: an artifact classifies images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from se_deploy.cli import options
from se_deploy.cli import remote as elsewhere
from se_deploy.cli.parameters import argument, arguments, command, defaulted, group
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_PATH, OUT_DIR, Model

if TYPE_CHECKING:
    from se_deploy.cli.output import Reporter
    from se_deploy.cli.parameters import Given
    from se_deploy.commands.predict import Shown
    from se_deploy.commands.remote import Remote
    from se_deploy.options import HostOptions, NetworkOptions

_top = defaulted(
    "--top", click.IntRange(min=1), 5, "Classes or boxes to list for each image.", section=Section.OUTPUT
)
_masks = defaulted("-o --masks masks", OUT_DIR, Path(), "Folder for masks (PNG).", section=Section.OUTPUT)


def _shown(given: Given) -> Shown:
    from se_deploy.commands.predict import Shown

    return Shown(_top.of(given), options.kinds.of(given), _masks.of(given), options.overwrite.of(given))


@command(
    "predict",
    argument("artifact", Model()),
    arguments("images", IN_PATH),
    group("shown", _shown, _top, _masks, options.kinds, options.overwrite),
    options.fed_network,
    options.host_engine,
    elsewhere.remote,
    options.reporter(),
    first="--top --masks --output --labels --input-size --mean --std --checkpoint --pretrained --remote",
)
def predict(
    artifact: str,
    images: tuple[Path, ...],
    shown: Shown,
    network: NetworkOptions,
    host: HostOptions,
    remote: Remote | None,
    reporter: Reporter,
) -> None:
    """Say what ARTIFACT finds in each of IMAGES: its most probable classes, a mask, or boxes and scores.

    ARTIFACT: an ONNX file, an engine (on a machine with its GPU) or a network specification. How an image
    becomes the input is read from the artifact; a file that does not say needs --input-size, --mean, --std.
    IMAGES: images or folders of them; for other networks .npy, .npz, WAV files, folders of frames. A mask is
    written as NAME.mask.png, its pixels the class indices.

    \b
    Example:
        se-deploy predict net.onnx cat.jpg dog.jpg --top 3
    """
    from se_deploy.commands import predict as verb
    from se_deploy.tables import lists

    if remote is not None:
        _predict_there(remote, artifact, images, shown=shown, network=network, reporter=reporter)
        return
    with reporter.progress() as progress:
        result = verb.predict(artifact, images, shown=shown, host=host, network=network, progress=progress)
    reporter.finish(result, [lists.predicted(result)], warnings=result.warnings)


def _predict_there(
    remote: Remote,
    artifact: str,
    images: tuple[Path, ...],
    *,
    shown: Shown,
    network: NetworkOptions,
    reporter: Reporter,
) -> None:
    """Predict on a device: by its se-deploy, or where it has none by the script that a bundle holds."""
    from se_deploy import schema
    from se_deploy.commands import reading
    from se_deploy.commands import remote as verb
    from se_deploy.commands.remote_files import Written
    from se_deploy.tables import lists

    default = [verb.Word("--masks=", Written(shown.folder, folder=True))] if shown.folder == Path() else []
    try:
        elsewhere.finish(
            remote,
            schema.results.Predict,
            lambda payload: [lists.predicted(payload)],
            reporter,
            also=default,  # where it was not typed masks are written here too, and come from there
        )
    except verb.NotInstalled as missing:
        if reading.kind_of(artifact) != "engine" or shown.folder != Path():  # the script draws no masks
            raise
        result = verb.predict_by_script(
            remote,
            Path(artifact),
            images,
            top=shown.top,
            image=network.image,
            missing=missing,
            talk=elsewhere.talk,
        )
        reporter.finish(result, [lists.predicted(result)], warnings=result.warnings)
