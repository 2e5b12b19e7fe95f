"""`inspect`: the census of an ONNX file, the plan of each compiler at hand, or what an engine holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from msgspec import convert

from se_deploy import graph, se_blocks
from se_deploy.backends import manifest as manifests
from se_deploy.backends import registry
from se_deploy.commands import as_schema, reading
from se_deploy.errors import BadInput
from se_deploy.options import ADVICE_SAMPLES, CalibrationOptions, ImageOptions, target_options
from se_deploy.protocols import silent
from se_deploy.schema import common, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy import advice
    from se_deploy.commands.plans import Planned
    from se_deploy.options import TargetLike
    from se_deploy.protocols import Progress
    from se_deploy.quantization import chain as chains
    from se_deploy.schema.files import Manifest
    from se_deploy.tables.base import Grid


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
    if reading.kind_of(str(file)) == "engine":
        if calib_data is not None:
            raise BadInput(
                f"'{file}' is an engine: its inner tensors cannot be looked at",
                hint="give the FP32 ONNX file that it was built from",
            )
        return EngineInspection(str(file), *manifests.check(path))
    read = reading.load_onnx if calib_data is None else reading.load_fp32
    lifted = reading.converted(read(path, image or ImageOptions()), str(file))
    model = lifted.model
    census = se_blocks.detect(model)
    made: tuple[Planned, ...] = ()
    notes: tuple[str, ...] = ()
    if plan:
        from se_deploy.commands import plans  # noqa: PLC0415 - a look at a file needs no plan

        made, notes = plans.planned(model, census, target_options(target), progress)
    advised = None
    if calib_data is not None:
        samples = CalibrationOptions(Path(calib_data), calib_samples)
        advised, said = _advised(model, samples, progress)
        notes = (*notes, *said)
    warnings = (*lifted.warnings, *census.warnings, *notes, *_inside(model))
    return InspectResult(str(file), model, census, made, warnings, advised, _chain(model))


def _advised(
    model: ir.Model, calibration: CalibrationOptions, progress: Progress
) -> tuple[advice.AdviceResult, tuple[str, ...]]:
    """Return what the data says of each block's width, and what must be said of the data."""
    from se_deploy import advice  # noqa: PLC0415 - what it runs on: most looks at a file have no data
    from se_deploy.commands import sampling  # noqa: PLC0415 - and what reads the data

    samples = sampling.calibration_samples(model, calibration)
    found = advice.advise(model, samples, registry.graph_runtime(), progress=progress)
    return found, (*samples.warnings, *found.warnings)


def _chain(model: ir.Model) -> chains.Chain | None:
    """Return the chain of INT8 layers; None where nothing is quantized."""
    from se_deploy.quantization import chain as chains  # noqa: PLC0415 - an engine has none

    return chains.lint(model)


def _inside(model: ir.Model) -> tuple[str, ...]:
    """Return what to say of Q/DQ nodes inside of other nodes' graphs, of which no chain is judged."""
    holders = [
        node
        for node in model.graph
        for one in node.attributes.values()
        if one.type == ir.AttributeType.GRAPH
        and any("quantize" in n.op_type.lower() for n in one.as_graph().all_nodes())
    ]
    if not holders:
        return ()
    names = ", ".join(f"'{node.name}' ({node.op_type})" for node in dict.fromkeys(holders))
    return (f"Q/DQ nodes inside of {names} are not judged",)


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
    made: tuple[common.Plan, ...] = ()
    if result.plans:
        from se_deploy.commands import plans  # noqa: PLC0415 - loaded already: it made them

        made = tuple(map(plans.to_schema, result.plans))
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
        plans=made,
        totals=made[0].totals if made else None,
        advice=advised,
        chain=as_schema.chain(result.chain),
    )
