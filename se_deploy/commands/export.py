"""`export`: an ONNX file comes out, and what is known of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import convert

from se_deploy import data, files, graph, verification
from se_deploy.backends import registry
from se_deploy.commands import as_schema, compilers, lowering, on_workers, sampling, source
from se_deploy.options import CalibrationOptions, target_options
from se_deploy.passes import search
from se_deploy.protocols import silent
from se_deploy.schema import common, finite, relative, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.backends.backend import Backend
    from se_deploy.commands.lowering import Lowered
    from se_deploy.commands.source import Source
    from se_deploy.options import FloatType, NetworkOptions, Precision, TargetLike, TargetOptions
    from se_deploy.protocols import Progress
    from se_deploy.tables.base import Grid
    from se_deploy.verification import Verified


@dataclass(frozen=True, slots=True, repr=False)
class ExportResult(Shown):
    """A written ONNX file and how it came about."""

    onnx: Path
    source: Source
    lowered: Lowered
    precision: Precision
    runtime: str
    verified: Verified  # the written file against the source
    warnings: tuple[str, ...]
    worked: on_workers.Worked = on_workers.ALONE

    def tables(self) -> Sequence[Grid]:
        """Return what the command line prints of it."""
        from se_deploy.tables import files, graphs  # noqa: PLC0415 - rich where something is shown

        made = to_schema(self)
        return [files.exported(made), graphs.blocks(made)]


@data.kept()
def export(
    model: str | Path,
    output: str | Path,
    *,
    precision: Precision = "fp32",
    io: FloatType = "fp32",
    target: TargetLike | None = None,
    network: NetworkOptions | None = None,
    calibration: CalibrationOptions | None = None,
    verify: bool = True,
    on: str = on_workers.LOCAL,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ExportResult:
    """Write a network as ONNX: canonical, or in the form that `target` likes best, in `precision`.

    `model`: a network specification ("timm:seresnet50") or an ONNX file. `io`: the type of the inputs and
    outputs of an FP16 file.
    What is written is compared with its source unless `verify` is False. `on`: who plans the rewrites,
    "local", "ray" or "ray://HOST:PORT".
    Raises: BadModel, ExportFailed, BadInput, BadData, MissingRuntime, OutputExists, CannotWrite.
    """
    output = Path(output)
    calibration = calibration or CalibrationOptions()
    options = target_options(target)
    on_workers.require(on)
    files.claim(output, overwrite=overwrite)
    replayed = replays_its_own(output, options)
    files.claim(choices_path(output), overwrite=overwrite or replayed)
    files.claim_kept(calibration.cache)
    to = lowering.destination(options)
    if to.targets and to.backend is None:
        to = dataclasses.replace(to, backend=compilers.compiler_for(None, to.targets))
    if precision == "int8":
        sampling.require_data(calibration)
    taken = source.read(
        str(model), options=network, calibration=calibration, verify=verify, progress=progress
    )
    with (
        on_workers.opened(on) as workers,
        lowering.planner_for(to := dataclasses.replace(to, workers=workers)) as planner,
    ):
        done = lowering.lowered(
            taken.model,
            precision=precision,
            to=to,
            calibration=calibration,
            io=io,
            planner=planner,
            check=taken.check,
            samples=taken.samples,
            progress=progress,
        )
        worked = workers.worked()
    with files.together() as publish:
        publish(output).write_bytes(graph.file_bytes(done.model))
        if done.found is not None and done.found.choices:
            publish(choices_path(output)).write_text(search.to_json(done.found.choices), "utf-8")
    chosen = done.found is not None and done.found.choices
    if not chosen and not replayed:  # a list left beside the file would be taken for its own
        choices_path(output).unlink(missing_ok=True)
    verified = taken.verified.joined(done.verified)
    warnings = (*taken.warnings, *done.warnings, *verified.warnings, *worked.warnings)
    return ExportResult(output, taken, done, precision, _name(to.backend), verified, warnings, worked)


def _name(backend: Backend | None) -> str:
    return backend.name if backend else registry.AUTO


def choices_path(output: Path) -> Path:
    """OUT.rewrites.json: the choice of rewrites, replayable."""
    return output.with_suffix(".rewrites.json")


def replays_its_own(output: Path, options: TargetOptions) -> bool:
    """Return whether the choices that are replayed are those beside `output`, which are written again."""
    replay, own = options.rewrites.replay, choices_path(output)
    return replay is not None and replay.exists() and own.exists() and replay.samefile(own)


def to_schema(result: ExportResult) -> results.Export:
    """Return what `export --json` prints."""
    taken, search = result.source, result.lowered.found
    frozen = () if taken.network is None else taken.network.frozen
    return results.Export(
        tool_version=tool_version(),
        warnings=result.warnings,
        **as_schema.census(taken.census),
        plans=(),
        onnx=relative(result.onnx, result.onnx.parent),
        exporter=taken.exporter,
        precision=result.precision,
        runtime=result.runtime,
        opset=graph.opset(result.lowered.model),
        nodes_before=taken.nodes_before,
        nodes_after=result.lowered.model.graph.num_nodes(),
        rewrites=(*taken.counts, *(search.counts if search else ())),
        max_abs_error=finite(result.verified.max_abs_error),
        frozen=tuple(convert(one, common.FrozenRatio, from_attributes=True) for one in frozen),
        verified=verification.to_schema(result.verified),
        **on_workers.to_schema(result.worked),
        **as_schema.search(search),
        **as_schema.fp16(result.lowered.kept_fp32, result.lowered.unchecked, result.lowered.rounding),
    )
