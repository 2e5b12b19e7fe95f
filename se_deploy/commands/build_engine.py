"""`build-engine`: an ONNX file becomes an engine with its manifest and the ONNX that it was built from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import data, files, fusion, graph, verification
from se_deploy.backends import keeping, precision_check, registry
from se_deploy.backends import manifest as manifests
from se_deploy.backends.engine import BuildOptions
from se_deploy.commands import (
    as_schema,
    benefit,
    compilers,
    fastest,
    lowering,
    on_workers,
    reading,
    sampling,
    starting,
    verifying,
)
from se_deploy.commands import shapes as sizing
from se_deploy.errors import BadInput, counted
from se_deploy.options import CalibrationOptions, EngineOptions, ImageOptions, target_options
from se_deploy.protocols import silent
from se_deploy.quantization import fp16_rounding
from se_deploy.quantization.without_qdq import without_qdq
from se_deploy.schema import input_spec, relative, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.backends.backend import Backend
    from se_deploy.backends.engine import Engine
    from se_deploy.backends.precision_check import PlanPrecision
    from se_deploy.commands.benefit import Unweighed
    from se_deploy.commands.lowering import Lowered, Worth
    from se_deploy.commands.starting import Start
    from se_deploy.commands.verifying import Checker
    from se_deploy.fusion import Verdict
    from se_deploy.options import FloatType, Precision, TargetLike, TargetOptions
    from se_deploy.protocols import Progress
    from se_deploy.schema.files import ShapeRange
    from se_deploy.tables.base import Grid
    from se_deploy.verification import Verified


@dataclass(frozen=True, slots=True, repr=False)
class BuildResult(Shown):
    """An engine on disk, what its plan holds, and the verdicts."""

    engine: Path
    manifest: Path
    onnx: Path  # the rewritten graph that was built, beside the engine
    built: Engine
    verdicts: tuple[Verdict, ...]
    requested: Precision
    found: PlanPrecision
    lowered: Lowered
    worth: Worth | Unweighed | None  # INT8 against FP16; None where INT8 was not asked for
    verified: Verified  # the graph that was built against the file given
    warnings: tuple[str, ...]
    worked: on_workers.Worked = on_workers.ALONE

    @property
    def precision_failures(self) -> tuple[str, ...]:
        """Return why the plan is not in the precision asked for; empty where it is."""
        return self.found.failures(self.requested)

    @property
    def fusion_failures(self) -> tuple[str, ...]:
        """Name the blocks that are not fused."""
        return tuple(
            f"SE block '{v.output}' is {v.verdict}: {'; '.join(v.reasons)}"
            for v in self.verdicts
            if v.verdict != "fused"
        )

    def tables(self) -> Sequence[Grid]:
        """Return what the command line prints of it."""
        from se_deploy.tables import files  # noqa: PLC0415 - rich where something is shown

        return files.built(to_schema(self))


@data.kept()
@keeping.kept()
def build_engine(
    model: str | Path,
    output: str | Path,
    *,
    precision: Precision | None = None,
    target: TargetLike | None = None,
    image: ImageOptions | None = None,
    engine: EngineOptions | None = None,
    calibration: CalibrationOptions | None = None,
    fp16: lowering.Planned | None = None,
    verify: bool = True,
    timed: bool = False,
    on: str = on_workers.LOCAL,
    overwrite: bool = False,
    start: Start | None = None,
    progress: Progress = silent,
) -> BuildResult:
    """Rewrite an ONNX file for the target, lower it to `precision`, build it, and read the plan back.

    `precision` None keeps the file's own. A file that holds Q/DQ or FP16 tensors is built as it stands.
    `fp16`, of the same network, is what INT8 must beat where it is better than FP16 in INT8's own form.
    With `timed` a compiler that needs the device builds both precisions there once more, to time them.
    `on`: who plans rewrites and measures sensitivity, "local", "ray" or "ray://HOST:PORT".
    `start`: where another step started from with the same file and options.
    Raises: BuildFailed, MissingRuntime, BadInput, BadData, OutputExists.
    """
    engine, calibration = engine or EngineOptions(), calibration or CalibrationOptions()
    output = Path(output)
    on_workers.require(on)
    for path in files_of(output):
        files.claim(path, overwrite=overwrite)
    for kept in (calibration.cache, engine.timing_cache):
        files.claim_kept(kept)
    if start is None:
        progress("read", 0, 1)
        read = reading.converted(reading.load_onnx(Path(model), image or ImageOptions()), str(model))
        progress("read", 1, 1, counted(read.model.graph.num_nodes(), "node"))
    else:
        read = start.read
    given = read.model
    check_names(engine, sizing.names(given.graph.inputs), sizing.names(given.graph.outputs))
    stored = reading.precision_of(given)
    wanted: Precision = precision or stored
    notes = (*read.warnings, *_fitting(Path(model), stored, wanted, calibration, engine.io))
    if wanted == "int8" and stored == "fp32":
        sampling.require_data(calibration)
    to = lowering.destination(target_options(target))
    backend = compilers.compiler_for(to.backend, to.targets)
    compilers.engines_of(backend).check(engine.features)
    if wanted == "bf16":
        compilers.refuse_bf16(backend, to.targets)
    to = dataclasses.replace(to, backend=backend, sizes=tuned_for(engine.shapes))
    check = None
    with (
        on_workers.opened(on) as workers,
        lowering.planner_for(to := dataclasses.replace(to, workers=workers)) as planner,
    ):
        if stored == "fp32":
            if start is None:
                start = starting.start(
                    read,
                    calibration,
                    sampled=wanted == "int8" or calibration.data is not None,
                    sizes=tuned_for(engine.shapes),
                    verify=verify,
                    progress=progress,
                )
            form = start.form
            done = lowering.lowered(
                form.model,
                precision=wanted,
                to=to,
                calibration=calibration,
                planner=planner,
                check=form.checker,
                io=engine.io,
                planned=True,
                samples=start.samples,
                progress=progress,
            )
            check = form.checker
            verified, notes = form.verified.joined(done.verified), (*notes, *form.warnings)
        else:
            done = lowering.as_it_stands(given)
            verified = done.verified if verify else verification.skipped()
            if verify and fp16_rounding.has_fp16(given):  # what a device rounds may overflow, unlike its file
                check = verifying.checker(given, shapes=tuned_for(engine.shapes), seed=calibration.seed)
        worth = None
        if wanted == "int8":
            progress("weigh INT8 against FP16", 0, 1)
            worth = benefit.weighed(
                done.model,
                lowering.half(without_qdq(done.rewritten)),
                to=to,
                planner=planner,
                built=fp16,
                timed=timed,
                progress=progress,
            )
            progress("weigh INT8 against FP16", 1, 1)
        worked = workers.worked()
    made = finish(
        done,
        output,
        verified=verified,
        check=check,
        notes=(*notes, *worked.warnings),
        wanted=wanted,
        backend=backend,
        options=BuildOptions(
            targets=to.targets,
            shapes=engine.shapes,
            workspace_bytes=engine.workspace_bytes,
            timing_cache=engine.timing_cache,
            more_shapes=engine.more_shapes,
            features=engine.features,
        ),
        calibration=calibration,
        worth=worth,
        progress=progress,
    )
    return dataclasses.replace(made, worked=worked)


def require_buildable(asked: EngineOptions, target: TargetOptions, lowest: Precision) -> None:
    """Raise, before any work is done, where the engines down to `lowest` cannot be built as asked for.

    Raises: BadInput, MissingRuntime.
    """
    backend = compilers.compiler_for(registry.chosen(target.runtime), target.targets)
    compilers.engines_of(backend).check(asked.features)
    if lowest != "fp16":
        _refuse_fp16_io(asked.io)


def check_names(asked: EngineOptions, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise BadInput, before any work is done, for shapes and formats of what the network has not."""
    sizing.refuse_unknown(inputs, asked.shapes or {})
    for name in asked.features.io_formats:
        if name not in (*inputs, *outputs):
            raise BadInput(
                f"--io-format names '{name}', which is no input or output of the network",
                hint=f"it has {', '.join((*inputs, *outputs))}",
            )


def _refuse_fp16_io(io: FloatType) -> None:
    """Raise BadInput where inputs and outputs in FP16 are asked for, and the network is not made FP16."""
    if io == "fp16":
        raise BadInput(
            "--io fp16 is for FP32 files that are built with --fp16",
            hint="leave it out, or export the file with `se-deploy export --fp16 --io fp16`",
        )


def _fitting(
    path: Path, stored: Precision, wanted: Precision, calibration: CalibrationOptions, io: FloatType
) -> tuple[str, ...]:
    """Return what to warn of where a file in `stored` precision is built in the one wanted.

    Raises: BadInput where the file would have to be undone first.
    """
    if stored not in {"fp32", wanted}:
        kind = "quantized already" if stored == "int8" else f"in {stored.upper()} already"
        raise BadInput(
            f"'{path}' is {kind}, {wanted.upper()} cannot be made from it",
            hint=f"start from the FP32 file, or build this one as it is: --precision {stored}",
        )
    if wanted != "fp16" or stored != "fp32":
        _refuse_fp16_io(io)
    if stored == "int8" and calibration.data is not None:
        return (f"'{path}' holds Q/DQ nodes already: the calibration data was not used",)
    return ()


def finish(
    done: Lowered,
    output: Path,
    *,
    verified: Verified,
    check: Checker | None = None,
    notes: tuple[str, ...] = (),
    wanted: Precision,
    backend: Backend,
    options: BuildOptions,
    calibration: CalibrationOptions,
    worth: Worth | Unweighed | None,
    progress: Progress = silent,
) -> BuildResult:
    """Build a lowered graph, judge the plan, and write engine, manifest and ONNX.

    `check` verifies the graph's precision, rounded to FP16 where the plan rounds; None does not.
    """
    engines = compilers.engines_of(backend)
    built_for = compilers.targets_for(backend, options.targets)
    elsewhere = () if options.targets else compilers.runs_elsewhere(backend, built_for)
    options = dataclasses.replace(options, targets=built_for)
    compiler = engines.compiler()
    step = f"build the {wanted.upper()} engine"
    progress(step, 0, 1)
    try:
        built = fastest.built(backend, compiler, done.model, options, progress=progress)
    finally:
        compiler.close()
    progress(step, 1, 1, f"{counted(built.plan.kernels, 'kernel')}, {len(built.data) / 1e6:.1f} MB")
    built, sizes_unknown = _counted(built, done.model)
    found = precision_check.planned_precision(built.plan, done.model)
    verdicts = fusion.verdicts(built.plan, done.blocks, done.model, backend.form().fusion)
    if check is not None:
        progress("compare with the source", 0, 1)
        run = fp16_rounding.evaluation(done.model, built.plan)
        verified = verified.joined(lowering.precision_verified(done.model, run, check, wanted))
        done = dataclasses.replace(done, rounding=run.rounding)
        progress("compare with the source", 1, 1, verified.summary)
    onnx = onnx_path(output)
    with files.together() as publish:  # the manifest last: it says what the others are
        stored = publish(onnx)
        stored.write_bytes(graph.file_bytes(done.model))
        publish(output).write_bytes(built.data)
        manifest = manifests.describe(
            output,
            onnx,
            built,
            precision=found.precision,
            requested=wanted,
            plan=fusion.to_schema(built.plan, verdicts, found.precision),
            blocks=tuple(map(as_schema.block, done.blocks)),
            calibration_sha256=done.samples.sha256 if done.samples else None,
            cache=calibration.cache,
            image=input_spec.read(done.model.metadata_props),
            stored=stored,
        )
        publish(manifests.path_of(output)).write_text(manifests.to_json(manifest), "utf-8")
    warnings = (
        *notes,
        *done.warnings,
        *built.warnings,
        *elsewhere,
        *engines.notes(done.model, done.blocks, options.features),
        *found.notes,
        *sizes_unknown,
        *(worth.warnings if worth else ()),
        *verified.warnings,
    )
    return BuildResult(
        output,
        manifests.path_of(output),
        onnx,
        built,
        verdicts,
        wanted,
        found,
        done,
        worth,
        verified,
        warnings,
    )


def _counted(built: Engine, model: ir.Model) -> tuple[Engine, tuple[str, ...]]:
    """Count the plan per image, at the shapes that the engine is tuned for; say of what no size is known."""
    opt = {name: profile.opt for name, profile in built.shapes.items()}
    plan, notes = built.plan, []
    if sizing.are_free(sizing.tensor_specs(model)):
        one = {name: (1, *dims[1:]) if dims else () for name, dims in opt.items()}
        done = fusion.filled(plan, sizing.at(model, one, batch=True))
        plan = done.plan
        if done.unknown:
            what = f"{counted(len(done.unknown), 'tensor')} whose size the plan does not say"
            notes.append(f"planned bytes leave out {what}, among them '{done.unknown[0]}'")
    one_size = all(profile.min == profile.max for profile in built.shapes.values())
    launched = sizing.images(sizing.at(model, opt, batch=True) if one_size else model)
    return dataclasses.replace(built, plan=plan.per_image(opt, launched)), tuple(notes)


def tuned_for(shapes: Mapping[str, ShapeRange] | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes to tune for: those that a check should use too."""
    return {name: profile.opt for name, profile in (shapes or {}).items()}


def onnx_path(output: Path) -> Path:
    """OUT.engine.onnx, beside the engine."""
    return output.with_name(f"{output.name}.onnx")


def files_of(output: Path) -> tuple[Path, ...]:
    """Return what is written for an engine: itself, its manifest, the graph that it was built from."""
    return (output, manifests.path_of(output), onnx_path(output))


def to_schema(result: BuildResult) -> results.BuildEngine:
    """Return what `build-engine --json` prints."""
    folder = result.engine.parent
    search = result.lowered.found
    return results.BuildEngine(
        tool_version=tool_version(),
        warnings=result.warnings,
        engine=relative(result.engine, folder),
        manifest=relative(result.manifest, folder),
        onnx=relative(result.onnx, folder),
        plan=fusion.to_schema(result.built.plan, result.verdicts, result.found.precision),
        requested_precision=result.requested,
        found_precision=result.found.precision,
        seconds=result.built.seconds,
        skipped_tactics=result.built.skipped_tactics,
        kept=result.built.kept,
        rewrites=tuple((choice.rewrite, choice.site) for choice in search.choices) if search else (),
        worth=benefit.to_schema(result.worth),
        worth_unknown=benefit.unknown(result.worth),
        verified=verification.to_schema(result.verified),
        **on_workers.to_schema(result.worked),
        **as_schema.search(search),
        **as_schema.fp16(result.lowered.kept_fp32, result.lowered.unchecked, result.lowered.rounding),
    )
