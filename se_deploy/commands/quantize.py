"""`quantize`: explicit INT8 Q/DQ from calibration data, and what it costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import convert

from se_deploy import data, files, graph, verification
from se_deploy.commands import as_schema, benefit, lowering, on_workers, reading, starting
from se_deploy.errors import counted
from se_deploy.options import CalibrationOptions, ImageOptions, RewriteOptions, target_options
from se_deploy.protocols import silent
from se_deploy.quantization import chain
from se_deploy.schema import common, finite, relative, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.commands.benefit import Unweighed
    from se_deploy.commands.lowering import Lowered, Worth
    from se_deploy.commands.starting import Start
    from se_deploy.options import FloatType, TargetLike
    from se_deploy.protocols import Progress
    from se_deploy.tables.base import Grid
    from se_deploy.verification import Verified


@dataclass(frozen=True, slots=True, repr=False)
class QuantizeResult(Shown):
    """A written Q/DQ file, what is INT8 in it and what it costs."""

    onnx: Path
    lowered: Lowered
    worth: Worth | Unweighed  # INT8 against FP16 on the target, or why that is not known
    verified: Verified  # the written file against the one given
    warnings: tuple[str, ...]
    worked: on_workers.Worked = on_workers.ALONE

    def tables(self) -> Sequence[Grid]:
        """Return what the command line prints of it."""
        from se_deploy.tables import files  # noqa: PLC0415 - rich where something is shown

        made = to_schema(self)
        return [files.quantized(made)]


@data.kept()
def quantize(
    model: str | Path,
    output: str | Path,
    *,
    base: FloatType = "fp32",
    target: TargetLike | None = None,
    image: ImageOptions | None = None,
    calibration: CalibrationOptions | None = None,
    verify: bool = True,
    timed: bool = False,
    on: str = on_workers.LOCAL,
    overwrite: bool = False,
    start: Start | None = None,
    progress: Progress = silent,
) -> QuantizeResult:
    """Write explicit INT8 Q/DQ into an FP32 ONNX file, from calibration data.

    Without `target` the portable form; `base` is the precision of the rest. What is written is compared
    with the file given unless `verify` is False. With `timed` a compiler that needs the device builds both
    precisions there, to time them. `on`: who measures the layers' sensitivity, "local", "ray" or
    "ray://HOST:PORT". `start`: where another step started from with the same file and options. Imports no
    torch.
    Raises: BadData, BadModel, UnsupportedGraph, OutputExists, CannotWrite.
    """
    output = Path(output)
    calibration = calibration or CalibrationOptions()
    on_workers.require(on)
    files.claim(output, overwrite=overwrite)
    files.claim_kept(calibration.cache)
    if start is None:
        progress("read", 0, 1)
        read = reading.converted(reading.load_fp32(Path(model), image or ImageOptions()), str(model))
        progress("read", 1, 1, counted(read.model.graph.num_nodes(), "node"))
        start = starting.start(
            read,
            calibration,
            sampled=True,
            sizes=target_options(target).sizes,
            verify=verify,
            progress=progress,
        )
    form = start.form
    to = lowering.destination(dataclasses.replace(target_options(target), rewrites=RewriteOptions(names=())))
    with (
        on_workers.opened(on) as workers,
        lowering.planner_for(to := dataclasses.replace(to, workers=workers)) as planner,
    ):
        done = lowering.lowered(
            form.model,
            precision="int8",
            to=to,
            calibration=calibration,
            base="fp16" if base == "fp16" else None,
            planner=planner,
            check=form.checker,
            samples=start.samples,
            progress=progress,
        )
        worth = benefit.weighed(
            done.model, lowering.half(form.model), to=to, planner=planner, timed=timed, progress=progress
        )
        worked = workers.worked()
    graph.save(done.model, output)
    verified = form.verified.joined(done.verified)
    notes = (*start.read.warnings, *form.warnings, *done.warnings, *verified.warnings, *worked.warnings)
    return QuantizeResult(output, done, worth, verified, notes, worked)


def to_schema(result: QuantizeResult) -> results.Quantize:
    """Return what `quantize --json` prints."""
    made = result.lowered.quantized
    assert made is not None  # noqa: S101 - quantize() always quantizes
    return results.Quantize(
        tool_version=tool_version(),
        warnings=result.warnings,
        onnx=relative(result.onnx, result.onnx.parent),
        policy=made.policy,
        method=made.method,
        samples=made.samples,
        quantized=made.quantized,
        kept=tuple(convert(one, common.KeptNode, from_attributes=True) for one in made.float_layers),
        **as_schema.fp16(made.kept_fp32, made.unchecked, made.rounding),
        sqnr_db={name: finite(value) for name, value in made.sqnr_db.items()},
        macs_int8_fraction=made.macs_int8_fraction,
        worth=benefit.to_schema(result.worth),
        reconstruction=None
        if made.reconstruction is None
        else convert(made.reconstruction, results.Reconstruction, from_attributes=True),
        worth_unknown=benefit.unknown(result.worth),
        chain=as_schema.chain(chain.lint(result.lowered.model)),
        curve=tuple(
            results.CurvePoint(
                macs_fp16_fraction=1 - point.macs_int8_fraction,
                added_ms=point.added_ms,
                sqnr_db=finite(point.sqnr_db),
                accuracy=point.accuracy,
                kept=point.float_layers,
            )
            for point in made.curve
        ),
        ranges=tuple(
            results.Range(tensor=name, low=float(params.low), high=float(params.high), reason=params.reason)
            for name, params in made.params.items()
        ),
        verified=verification.to_schema(result.verified),
        **on_workers.to_schema(result.worked),
    )
