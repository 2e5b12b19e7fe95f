"""`check`: every gate of a configuration is judged, so that one command guards a repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import data
from se_deploy.backends import manifest as manifests
from se_deploy.commands import inspect, reading, sweep_gate
from se_deploy.commands import parity as comparing
from se_deploy.commands import profile as timing
from se_deploy.commands.gates import Gates, read
from se_deploy.errors import BadArtifact, BadInput, MissingRuntime, counted
from se_deploy.options import ImageOptions
from se_deploy.protocols import silent
from se_deploy.quantization import chain
from se_deploy.report import units
from se_deploy.schema import results, tool_version
from se_deploy.schema.results import Gate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from se_deploy.commands.gates import ChainGate, FusionGate, LatencyGate, ParityGate, PrecisionGate
    from se_deploy.commands.parity import ParityResult
    from se_deploy.commands.profile import ProfileResult, Timed
    from se_deploy.protocols import Progress
    from se_deploy.schema.common import Plan

__all__ = ["CheckResult", "check", "read", "to_schema"]

_SHOWN = 5  # blocks, or breaks, that are named one by one in a failed gate


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Every verdict, and the measurements behind them."""

    config: str
    outcomes: tuple[Gate, ...]
    parity: tuple[ParityResult, ...]
    profile: tuple[ProfileResult, ...]
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def failures(self) -> list[str]:
        """Return what failed."""
        return [
            f"{outcome.gate} of {outcome.name}: {detail}"
            for outcome in self.outcomes
            if not outcome.passed
            for detail in outcome.details
        ]


@data.kept()
def check(gates: Gates, *, progress: Progress = silent) -> CheckResult:
    """Judge every gate, cheap ones first; a failed one does not keep the others from being judged.

    Raises: what parity, inspect and profile raise: a gate that cannot be judged is an error, not a pass.
    """
    every = (gates.sweep, gates.precision, gates.chain, gates.fusion, gates.parity, gates.latency)
    total = sum(map(len, every))
    done = 0
    outcomes: list[Gate] = []
    warnings: list[str] = []
    for later in gates.sweep:
        progress("gates", done, total)
        outcomes += sweep_gate.judged(later)
        done += 1
    for required in gates.precision:
        progress("gates", done, total)
        outcomes.append(_precision(required, warnings))
        done += 1
    for whole in gates.chain:
        progress("gates", done, total)
        outcomes += [_chain(whole, file) for file in whole.files]
        done += 1
    for fusion in gates.fusion:
        progress("gates", done, total)
        outcomes += [_fusion(fusion, file, warnings, progress) for file in fusion.files]
        done += 1
    parities: list[ParityResult] = []
    profiles: list[ProfileResult] = []
    for same in gates.parity:
        progress("gates", done, total)
        parities.append(_measured_parity(same, progress))
        outcomes += map(_parity, comparing.to_schema(parities[-1]).candidates)
        done += 1
    for fast in gates.latency:
        progress("gates", done, total)
        profiles.append(_measured_latency(fast, progress))
        outcomes += [_latency(timed, fast) for timed in profiles[-1].artifacts if not timed.reference]
        done += 1
    progress("gates", total, total)
    warnings += [text for one in parities for text in one.warnings]
    warnings += [text for profile in profiles for text in profile.warnings]
    return CheckResult(
        str(gates.config),
        tuple(outcomes),
        tuple(parities),
        tuple(profiles),
        tuple(dict.fromkeys(warnings)),
    )


def to_schema(result: CheckResult) -> results.Check:
    """Return what `check --json` prints; `parity` and `profile` have one object for each table."""
    return results.Check(
        tool_version=tool_version(),
        warnings=result.warnings,
        config=result.config,
        passed=result.passed,
        gates=result.outcomes,
        parity=tuple(map(comparing.to_schema, result.parity)),
        profile=tuple(map(timing.to_schema, result.profile)),
    )


def _precision(gate: PrecisionGate, warnings: list[str]) -> Gate:
    """Hold what a file runs in against what is required: an engine's plan, a graph's tensors."""
    if reading.kind_of(str(gate.file)) == "engine":
        checked = manifests.check(gate.file)
        warnings += checked.warnings
        found, where = checked.manifest.precision, "its plan runs"
    else:
        found = reading.precision_of(reading.load_onnx(gate.file, ImageOptions()))
        where = "its tensors are"
    return Gate(
        gate="precision",
        name=str(gate.file),
        passed=found == gate.precision,
        details=(f"{where} in {found.upper()}, {gate.precision.upper()} is required",),
    )


def _chain(gate: ChainGate, file: Path) -> Gate:
    """Hold the breaks of a Q/DQ file's INT8 chain against how many are allowed."""
    found = chain.lint(reading.load_onnx(file, ImageOptions()))
    if found is None:
        raise BadInput(f"nothing in '{file}' is quantized", hint="give the file that `quantize` wrote")
    breaks = counted(len(found.breaks), "break")
    summary = (
        f"{found.unbroken} of {counted(len(found.int8), 'INT8 layer')} unbroken, {breaks} "
        f"({gate.allow_breaks} are allowed; published rules, nothing was built)"
    )
    passed = len(found.breaks) <= gate.allow_breaks
    shown = [f"'{one.node}': {one.cause} ({one.rule.source})" for one in found.breaks[:_SHOWN]]
    if len(found.breaks) > _SHOWN:
        shown.append(f"and {len(found.breaks) - _SHOWN} more")
    return Gate(gate="chain", name=str(file), passed=passed, details=(summary, *([] if passed else shown)))


def _fusion(gate: FusionGate, file: Path, warnings: list[str], progress: Progress) -> Gate:
    result = inspect.inspect(file, plan=True, target=gate.target, progress=progress)
    warnings += result.warnings
    plans = inspect.to_schema(result).plans
    if not plans and isinstance(result, inspect.EngineInspection):
        raise BadArtifact(f"the manifest of '{file}' holds no plan", hint="build the engine again")
    if not plans:
        raise MissingRuntime(
            f"no compiler here can plan '{file}': {'; '.join(result.warnings)}",
            hint="`se-deploy doctor` says what is missing",
        )
    if not any(plan.blocks for plan in plans):
        warnings.append(f"'{file}' has no SE block: its fusion gate had nothing to judge")
    failures = [text for plan in plans for text in _unfused(plan, gate.allow_split)]
    details = tuple(failures or map(_counted, plans))
    return Gate(gate="fusion", name=str(file), passed=not failures, details=details)


def _unfused(plan: Plan, allow_split: int) -> list[str]:
    """Return which blocks fail the gate; empty where the plan passes."""
    split = [block for block in plan.blocks if block.verdict == "split"]
    bad = [block for block in plan.blocks if block.verdict == "fallback"]
    bad += split if len(split) > allow_split else []
    if not bad:
        return []
    texts = [f"'{b.output}' is {b.verdict}: {'; '.join(b.reasons)}" for b in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        texts.append(f"and {counted(len(bad) - _SHOWN, 'more block')}")
    return [f"{_counted(plan)}, {allow_split} split are allowed", *texts]


def _counted(plan: Plan) -> str:
    fused = sum(block.verdict == "fused" for block in plan.blocks)
    return f"{plan.runtime} {plan.target}: {fused} of {counted(len(plan.blocks), 'SE block')} fused"


def _measured_parity(gate: ParityGate, progress: Progress) -> ParityResult:
    return comparing.parity(
        gate.reference,
        gate.candidates,
        data=gate.data,
        kinds=gate.kinds,
        limits=gate.limits,
        samples=gate.samples,
        host=gate.host,
        network=gate.network,
        progress=progress,
    )


def _parity(candidate: results.Candidate) -> Gate:
    measured = (*_measures(candidate), *filter(None, [candidate.checked_as]))
    return Gate(
        gate="parity",
        name=candidate.path,
        passed=candidate.passed,
        details=candidate.failures or measured,
    )


def _measures(candidate: results.Candidate) -> Sequence[str]:
    return [f"'{output.name}': {', '.join(_words(output))}" for output in candidate.outputs]


def _words(output: results.OutputParity) -> Sequence[str]:
    numbers = [f"largest error {units.plain(output.max_abs)}", f"cosine {units.cosine(output.cosine)}"]
    return [*(numbers if output.cosine is not None else ()), *units.agreements(output)]


def _measured_latency(gate: LatencyGate, progress: Progress) -> ProfileResult:
    return timing.profile(
        gate.files,
        reference=gate.reference,
        batch=gate.batch,
        host=gate.host,
        timing=gate.timing,
        network=gate.network,
        progress=progress,
    )


def _latency(timed: Timed, gate: LatencyGate) -> Gate:
    failures = timed.failures(max_p50_ms=gate.max_p50_ms, min_speedup=gate.min_speedup)
    speedup = "" if timed.speedup is None else f", {timed.speedup:.2f} times as fast as the reference"
    measured = f"p50 {units.milliseconds(timed.latency.p50_ms)}{speedup}"
    return Gate(gate="latency", name=timed.path, passed=not failures, details=failures or (measured,))
