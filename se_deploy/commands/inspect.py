"""`inspect`: the census of an ONNX file, the plan of each compiler at hand, or what an engine holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import convert

from se_deploy import advice, fusion, graph, se_blocks
from se_deploy.backends import manifest as manifests
from se_deploy.backends import registry
from se_deploy.commands import artifacts, as_schema, lowering, shapes, source
from se_deploy.errors import BadInput, BuildFailed, MissingRuntime
from se_deploy.options import ADVICE_SAMPLES, CalibrationOptions, ImageOptions, target_options
from se_deploy.protocols import silent
from se_deploy.quantization import chain as chains
from se_deploy.schema import results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from se_deploy.backends.backend import Backend
    from se_deploy.fusion import Totals, Verdict
    from se_deploy.options import Precision, TargetLike, TargetOptions
    from se_deploy.plan import Plan
    from se_deploy.protocols import Planner, Progress
    from se_deploy.schema.files import Manifest
    from se_deploy.tables.base import Grid


@dataclass(frozen=True, slots=True)
class Planned:
    """One compiler's plan of the graph, a verdict per block, and what SE costs in it."""

    plan: Plan
    verdicts: tuple[Verdict, ...]
    totals: Totals
    precision: Precision


@dataclass(frozen=True, slots=True, repr=False)
class InspectResult(Shown):
    """What is in an ONNX file."""

    file: str
    model: ir.Model
    census: se_blocks.Census
    plans: tuple[Planned, ...]
    warnings: tuple[str, ...]
    advice: advice.AdviceResult | None = None  # None where no data was given
    chain: chains.Chain | None = None  # of INT8 layers; None where nothing is quantized

    @property
    def fusion_failures(self) -> tuple[str, ...]:
        """Name the blocks that are not fused, by compiler."""
        return tuple(
            f"{p.plan.runtime}: SE block '{v.output}' is {v.verdict}: {'; '.join(v.reasons)}"
            for p in self.plans
            for v in p.verdicts
            if v.verdict != "fused"
        )

    @property
    def chain_failures(self) -> tuple[str, ...]:
        """Name what breaks the chain of INT8 layers."""
        return tuple(f"the INT8 chain breaks at '{b.node}': {b.cause}" for b in self._breaks)

    @property
    def _breaks(self) -> tuple[chains.Break, ...]:
        return self.chain.breaks if self.chain else ()

    def tables(self) -> Sequence[Grid | str]:
        """Return what the command line prints of it."""
        from se_deploy.tables import graphs  # noqa: PLC0415 - rich where something is shown

        return graphs.inspected(to_schema(self))


@dataclass(frozen=True, slots=True)
class EngineInspection:
    """What an engine's manifest says, checked against the engine's bytes; needs no GPU."""

    file: str
    manifest: Manifest
    warnings: tuple[str, ...]

    @property
    def fusion_failures(self) -> tuple[str, ...]:
        """Name the blocks that are not fused."""
        return tuple(
            f"SE block '{b.output}' is {b.verdict}: {'; '.join(b.reasons)}"
            for b in (self.manifest.plan.blocks if self.manifest.plan else ())
            if b.verdict != "fused"
        )

    @property
    def chain_failures(self) -> tuple[str, ...]:
        """An engine has no Q/DQ left to judge: its plan says what runs in INT8."""
        return ()


def inspect(
    file: str | Path,
    *,
    plan: bool = False,
    target: TargetLike | None = None,
    image: ImageOptions | None = None,
    calib_data: str | Path | None = None,
    calib_samples: int = ADVICE_SAMPLES,
    progress: Progress = silent,
) -> InspectResult | EngineInspection:
    """Read an ONNX file's SE blocks, with `plan` also what each compiler makes of them; or an engine.

    `target.sizes` are shapes by input to plan at, for what the file leaves free. With `calib_data`, at most
    `calib_samples` of them say what width each block needs.
    Raises: BadModel, BadArtifact (an engine that does not match its manifest), BadInput, BadData.
    """
    path = Path(file)
    if artifacts.kind_of(str(file)) == "engine":
        if calib_data is not None:
            raise BadInput(
                f"'{file}' is an engine: its inner tensors cannot be looked at",
                hint="give the FP32 ONNX file that it was built from",
            )
        return EngineInspection(str(file), *manifests.check(path))
    read = source.load_onnx if calib_data is None else source.load_fp32
    lifted = source.converted(read(path, image or ImageOptions()), str(file))
    model = lifted.model
    census = se_blocks.detect(model)
    plans, notes = planned(model, census, target_options(target), progress) if plan else ((), ())
    advised = None
    if calib_data is not None:
        samples = lowering.calibration_samples(model, CalibrationOptions(Path(calib_data), calib_samples))
        advised = advice.advise(model, samples, registry.graph_runtime(), progress=progress)
        notes = (*notes, *samples.warnings, *advised.warnings)
    warnings = (*lifted.warnings, *notes)
    return InspectResult(str(file), model, census, plans, warnings, advised, chains.lint(model))


def planned(
    model: ir.Model,
    census: se_blocks.Census,
    target: TargetOptions,
    progress: Progress = silent,
) -> tuple[tuple[Planned, ...], tuple[str, ...]]:
    """Plan a graph with every backend that can plan without a device.

    One that is missing or refuses is a warning, unless it was asked for by name.
    """
    plans: list[Planned] = []
    notes: list[str] = []
    one = registry.chosen(target.runtime)
    names = registry.names() if one is None else (one.name,)
    for done, name in enumerate(names):
        progress("plan", done, len(names))
        try:
            plans += _plans(model, census, registry.get(name), target, asked=one is not None)
        except (MissingRuntime, BuildFailed) as e:
            if one is not None:
                raise
            notes.append(f"no plan from {name}: {e.message}")
    progress("plan", len(names), len(names))
    return tuple(plans), tuple(notes)


def _plans(
    model: ir.Model, census: se_blocks.Census, backend: Backend, target: TargetOptions, *, asked: bool
) -> Iterator[Planned]:
    """Yield the plan for each target; none from a backend that plans nothing and was not asked for."""
    planning = backend.planning
    if planning is None or not (asked or planning.without_device):
        if asked:
            raise BadInput(
                f"{backend.title} does not say what it would run", hint="leave --runtime out, or name another"
            )
        return
    for device in target.targets or (None,) if planning.targets else (None,):
        with planning.open(device) as planner:
            yield _planned(model, census, shapes.SizedPlanner(planner, target.sizes), backend)


def _planned(model: ir.Model, census: se_blocks.Census, planner: Planner, backend: Backend) -> Planned:
    plan = planner.plan(model)
    verdicts = fusion.verdicts(plan, census.se, model, backend.form().fusion)
    plain = planner.plan(fusion.without_gates(model, census.se)) if census.se else None
    return Planned(plan, verdicts, fusion.totals(plan, verdicts, plain), artifacts.precision_of(model))


def to_schema(result: InspectResult | EngineInspection) -> results.Inspect:
    """Return what `inspect --json` prints."""
    if isinstance(result, EngineInspection):
        manifest = result.manifest
        return results.Inspect(
            tool_version=tool_version(),
            warnings=result.warnings,
            file=result.file,
            blocks=manifest.blocks,
            rejected=(),
            plans=() if manifest.plan is None else (manifest.plan,),
            manifest=manifest,
        )
    se = result.census.se
    advised = None
    if result.advice is not None:
        advised = convert(result.advice, results.Advice, from_attributes=True)
    plans = tuple(fusion.to_schema(p.plan, p.verdicts, p.precision, p.totals) for p in result.plans)
    return results.Inspect(
        tool_version=tool_version(),
        warnings=result.warnings,
        file=result.file,
        nodes=result.model.graph.num_nodes(),
        opset=graph.opset(result.model),
        **as_schema.census(result.census),
        se_params=results.SEParams(
            counted=sum(block.params for block in se), formula=se_blocks.formula_params(se)
        ),
        plans=plans,
        totals=plans[0].totals if plans else None,
        advice=advised,
        chain=as_schema.chain(result.chain),
    )
