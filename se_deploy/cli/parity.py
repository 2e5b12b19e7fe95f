"""`parity`: outputs are compared and held to a tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.cli import options
from se_deploy.cli import remote as elsewhere
from se_deploy.cli.output import judging
from se_deploy.cli.parameters import argument, arguments, command, required
from se_deploy.cli.sections import Section
from se_deploy.cli.types import IN_FILE, IN_PATH, Model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from se_deploy.cli.output import Reporter
    from se_deploy.commands.remote import Remote
    from se_deploy.options import HostOptions, Limits, NetworkOptions, SampleOptions
    from se_deploy.schema.common import OutputKind


@command(
    "parity",
    argument("reference", Model()),
    arguments("candidates", IN_FILE),
    required(
        "--data",
        IN_PATH,
        "Samples: images, .npy/.npz, WAV files, folders of frames, ...",
        section=Section.DATA,
    ),
    options.sampled,
    options.kinds,
    options.limits,
    options.fed_network,
    options.host,
    options.junit,
    options.overwrite,
    elsewhere.remote,
    options.reporter(),
    first="--data --preset --atol --min-top1 --output "
    "--pretrained --checkpoint --input-size --samples --junit",
    inert=options.of_export,
)
def parity(
    reference: str,
    candidates: tuple[Path, ...],
    data: Path,
    samples: SampleOptions,
    kinds: Mapping[str, OutputKind],
    limits: Limits,
    network: NetworkOptions,
    host: HostOptions,
    junit: Path | None,
    overwrite: bool,
    remote: Remote | None,
    reporter: Reporter,
) -> None:
    """Compare each of CANDIDATES with REFERENCE on the same data; exits with 3 where one fails.

    REFERENCE is a network specification or an ONNX file, CANDIDATES are ONNX files and engines. Without
    --preset each candidate is held to the tolerances of its own precision. Every output is compared by what
    it is: classes by top-1 and top-5, masks by IoU, boxes and their scores as sets.

    \b
    Example:
        se-deploy parity timm:seresnet50 net.onnx net.fp16.onnx --pretrained --data photos/
    """
    from se_deploy import files, report
    from se_deploy.commands import parity as verb
    from se_deploy.schema import results
    from se_deploy.tables import measurements

    if remote is not None:
        elsewhere.finish(
            remote,
            results.Parity,
            lambda payload: [measurements.parity(payload)],
            reporter,
            junit=junit,
        )
        return
    with judging("parity", junit, overwrite=overwrite), reporter.progress() as progress:
        result = verb.parity(
            reference,
            candidates,
            data=data,
            kinds=kinds,
            limits=limits,
            samples=samples,
            host=host,
            network=network,
            progress=progress,
        )
    payload = verb.to_schema(result)
    graphs = [path for path in candidates if path.suffix == ".onnx"]
    if junit:
        files.write_text(junit, report.junit(payload))
    reporter.finish(
        payload,
        [measurements.parity(payload)],
        warnings=result.warnings,
        failed=[f"{c.path}: {text}" for c in result.candidates for text in c.failures],
        then=["profile", *graphs] if graphs else (),
    )
