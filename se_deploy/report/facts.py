"""What a run measured, as rows and series for the page and the summary: no markup.

A report may be old or without a stage, so what is not there is None here and "not measured" on the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.backends import registry
from se_deploy.report import units
from se_deploy.report.tables import plan_label
from se_deploy.schema.common import WaterfallStep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from se_deploy.schema.common import Plan, Result, Worth
    from se_deploy.schema.results import (
        BuildEngine,
        Candidate,
        CurvePoint,
        OutputParity,
        Range,
        Run,
        Timing,
    )

GATES = ("parity", "fusion", "precision", "latency")

_RUNNABLE = (".onnx", ".engine", ".plan", ".pt2")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate and its state; None where it was not judged."""

    gate: str
    passed: bool | None


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One output of one candidate against the reference."""

    artifact: str
    measured: OutputParity


@dataclass(frozen=True, slots=True)
class Answer:
    """One sample that an artifact names another class of; `picture` is a PNG as data URI."""

    sample: int
    reference: str
    candidate: str
    picture: str | None


@dataclass(frozen=True, slots=True)
class Differing:
    """The samples that one artifact answers otherwise than the reference."""

    artifact: str
    samples: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that can be run, and everything known of it."""

    name: str
    precision: str | None
    size_bytes: int | None
    accuracy: float | None
    top1_agreement: float | None  # the least of its outputs
    sqnr_db: float | None  # the least of its outputs
    p50_ms: float | None  # None where it was not timed, or not steadily
    speedup: float | None
    unstable: bool  # timed, and no figure to rely on
    kernels: int | None
    activation_bytes: int | None
    passed: bool | None
    checked_as: str | None


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The planned cost after each of one artifact's rewrites; the first step is the graph as given."""

    artifact: str
    steps: tuple[WaterfallStep, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """A warning, or something that stood in for what could not be run, and which stages said so."""

    source: str
    text: str


def verdicts(report: Run) -> tuple[Verdict, ...]:
    """Return every gate in its usual order."""
    return tuple(Verdict(gate, getattr(report.verdicts, gate, None)) for gate in GATES)


def plans(report: Run) -> tuple[Plan, ...]:
    """Return the plans of the engines and of `inspect`; each compiler, target and precision once."""
    made = [engine.plan for engine in engines(report).values()]
    made += report.inspect.plans if report.inspect else ()
    return tuple({plan_label(plan): plan for plan in made}.values())


def engines(report: Run) -> Mapping[str, BuildEngine]:
    """Return the engines by precision; a lone `build-engine` object under the precision that it runs in."""
    if report.build_engines:
        return report.build_engines
    lone = report.build_engine
    return {lone.found_precision: lone} if lone else {}


def candidates(report: Run) -> tuple[Candidate, ...]:
    """Return every artifact that was compared."""
    return report.parity.candidates if report.parity else ()


def headline(report: Run) -> tuple[tuple[str, str], ...]:
    """Return what the run comes to, as labels and words: of the engine that its verdicts are of."""
    engine = report.build_engine
    found = next((row for row in artifacts(report) if engine and row.name == engine.engine), None)
    if engine is None or found is None:
        return ()
    verdict = {None: "not judged", True: "parity passed", False: "parity failed"}[found.passed]
    if found.p50_ms is not None:
        timing = next(t for t in timings(report) if t.path == found.name)
        time = ("Time", f"{units.milliseconds(found.p50_ms)} on {timing.device}")
    else:
        where = f"{registry.title(engine.plan.runtime)}, {engine.plan.target.replace('+', ', ')}"
        moved = f"{units.count(found.kernels, 'kernel')}, {units.size(found.activation_bytes)} per image"
        time = ("Planned, not timed", f"{moved} ({where})")
    return (
        ("Engine", found.name),
        ("Size", units.size(found.size_bytes)),
        ("Accuracy", _accuracy_change(found, report)),
        ("Verdict", verdict),
        time,
    )


def _accuracy_change(found: Artifact, report: Run) -> str:
    before = report.parity.reference_accuracy if report.parity else None
    if found.accuracy is not None and before is not None:
        points = 100 * (found.accuracy - before)
        return f"top-1 {units.percent(found.accuracy)} ({points:+.2f} points)"
    if found.top1_agreement is not None:
        return f"{units.percent(found.top1_agreement)} of the answers as before"
    return f"SQNR {units.decibel(found.sqnr_db)}"


def disagreements(report: Run) -> tuple[Differing, ...]:
    """Return, for each artifact, the samples that it answers otherwise than the reference, by class name."""
    spec = report.network.input if report.network else None
    names = spec.labels if spec else ()

    def named(index: int) -> str:
        return names[index] if 0 <= index < len(names) else str(index)

    return tuple(
        Differing(
            one.path,
            tuple(
                Answer(found.sample, named(found.reference), named(found.candidate), _png(found.picture))
                for found in one.disagreements
            ),
        )
        for one in candidates(report)
        if one.disagreements
    )


def _png(picture: str | None) -> str | None:
    """Return a picture of a report that may be anybody's only where it is nothing but a PNG."""
    return picture if picture and picture.startswith("data:image/png;base64,") else None


def errors(report: Run) -> tuple[ErrorRow, ...]:
    """Return every compared output of every candidate."""
    return tuple(ErrorRow(one.path, output) for one in candidates(report) for output in one.outputs)


def timings(report: Run) -> tuple[Timing, ...]:
    """Return every measured latency."""
    return report.profile.artifacts if report.profile else ()


def timing_label(timing: Timing) -> str:
    """Return what tells a timing from the others in a plot."""
    words = [timing.path, timing.runtime, f"batch {timing.batch}" if timing.batch else None]
    return " · ".join(word for word in words if word)


def artifacts(report: Run) -> tuple[Artifact, ...]:
    """Join what was written, compared, timed and planned, by path; the timed reference comes first."""
    named = [path for path in report.artifacts.values() if path.endswith(_RUNNABLE)]
    compared = {one.path: one for one in candidates(report)}
    timed: dict[str, Timing] = {}
    for timing in timings(report):
        timed.setdefault(timing.path, timing)
    built = {engine.engine: engine for engine in engines(report).values()}
    beside = {engine.onnx for engine in built.values()}  # what an engine was built from
    shown = [p for p in named if p not in beside or p in compared or p in timed]
    return tuple(
        _artifact(path, report, compared.get(path), built.get(path), timed.get(path), written=path in named)
        for path in dict.fromkeys([*(p for p in timed if p not in named), *compared, *shown, *built])
    )


def _artifact(
    path: str,
    report: Run,
    candidate: Candidate | None,
    engine: BuildEngine | None,
    timing: Timing | None,
    *,
    written: bool,
) -> Artifact:
    outputs = candidate.outputs if candidate else ()
    accuracy = candidate.accuracy if candidate else None
    if candidate is None and not written and report.parity:  # only the reference is timed and not written
        accuracy = report.parity.reference_accuracy
    return Artifact(
        name=path,
        precision=_precision(engine, candidate, timing),
        size_bytes=report.sizes.get(path),
        accuracy=accuracy,
        top1_agreement=_least(output.top1_agreement for output in outputs),
        sqnr_db=_least(output.sqnr_db for output in outputs),
        p50_ms=timing.p50_ms if timing and timing.stable else None,
        speedup=timing.speedup_vs_reference if timing and timing.stable else None,
        unstable=timing is not None and not timing.stable,
        kernels=engine.plan.kernels if engine else None,
        activation_bytes=engine.plan.activation_bytes if engine else None,
        passed=candidate.passed if candidate else None,
        checked_as=_checked_as(candidate) if candidate else None,
    )


def _checked_as(candidate: Candidate) -> str | None:
    """Return what stood in for an artifact, or else where its FP16 numbers were rounded."""
    if candidate.checked_as or not candidate.rounding:
        return candidate.checked_as
    return f"run by ONNX Runtime with optimizations off, {candidate.rounding}"


def rewrites(report: Run) -> tuple[tuple[str, int], ...]:
    """Return the passes of the export and how often each fired."""
    return report.export.rewrites if report.export else ()


def refused(report: Run) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return the export's rewrites that were not possible: name, reason, and the blocks that it holds for."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, block, reason in report.export.refused if report.export else ():
        grouped.setdefault((name, reason), []).append(block)
    return tuple((name, reason, tuple(blocks)) for (name, reason), blocks in grouped.items())


def waterfalls(report: Run) -> tuple[Waterfall, ...]:
    """Return the steps of the export and of each engine that has them.

    Rewrites are chosen before quantization: where the engine's own plan differs, one more step leads to it.
    """
    made = [Waterfall(report.export.onnx, report.export.waterfall)] if report.export else []
    made += [Waterfall(engine.engine, _steps(engine)) for engine in engines(report).values()]
    return tuple(one for one in made if one.steps)


def _steps(engine: BuildEngine) -> tuple[WaterfallStep, ...]:
    steps, plan = engine.waterfall, engine.plan
    if not steps or (plan.kernels, plan.activation_bytes) == (steps[-1].kernels, steps[-1].activation_bytes):
        return steps
    built = WaterfallStep(
        rewrite=f"built as {plan.precision}",
        block=None,
        kernels=plan.kernels,
        activation_bytes=plan.activation_bytes,
    )
    return (*steps, built)


def worth(report: Run) -> Worth | None:
    """Return INT8 against FP16, from the engine that was quantized for its target, or from `quantize`."""
    found = [engine.worth for engine in reversed(list(engines(report).values()))]
    found.append(report.quantize.worth if report.quantize else None)
    return next((entry for entry in found if entry), None)


@dataclass(frozen=True, slots=True)
class Form:
    """One form of INT8: what it costs by the plan, and how near it comes to the network."""

    path: str
    name: str
    int8_kernels: int
    int8_bytes: int
    int8_ms: float | None  # by the roofline of the device that is weighed on
    sqnr_db: float | None  # the least of its outputs, on the data of `parity`


def forms(report: Run) -> tuple[Form, ...]:
    """Return INT8's two forms, what is deployed first; () where not both were planned."""
    engine, portable = engines(report).get("int8"), report.quantize
    if engine is None or engine.worth is None or portable is None or portable.worth is None:
        return ()
    near = {row.name: row.sqnr_db for row in artifacts(report)}
    pairs = ((engine.engine, "deployed", engine.worth), (portable.onnx, "portable", portable.worth))
    return tuple(
        Form(path, name, cost.int8_kernels, cost.int8_bytes, cost.int8_ms, near.get(path))
        for path, name, cost in pairs
    )


def ranges(report: Run) -> tuple[Range, ...]:
    """Return the calibrated ranges in graph order."""
    return report.quantize.ranges if report.quantize else ()


def curve(report: Run) -> tuple[CurvePoint, ...]:
    """Return accuracy against cost, cheapest first, where it was measured."""
    points = report.quantize.curve if report.quantize else ()
    measured = [point for point in points if point.sqnr_db is not None]
    return tuple(sorted(measured, key=lambda point: (point.macs_fp16_fraction, point.sqnr_db)))


def notes(report: Run) -> tuple[Note, ...]:
    """Collect what was not judged, every stand-in and every warning, each once, with all that said it."""
    said: dict[str, list[str]] = {}
    for candidate in candidates(report):
        how = _checked_as(candidate)
        if how:
            said.setdefault(how, []).append(candidate.path)
    for stage, result in _stages(report).items():
        for text in result.warnings if result else ():
            said.setdefault(text, []).append(stage)
    for text in report.warnings:
        said.setdefault(text, [])
    for text, paths in list(said.items()):  # the same stand-in as a warning, its file in front
        for path in paths:
            said.pop(f"{path}: {text}", None)
    unjudged = [Note(v.gate, "this gate was not judged") for v in verdicts(report) if v.passed is None]
    found = [Note(", ".join(dict.fromkeys(sources)) or "run", text) for text, sources in said.items()]
    return (*unjudged, *found)


def _stages(report: Run) -> dict[str, Result | None]:
    return {
        "export": report.export,
        "inspect": report.inspect,
        "quantize": report.quantize,
        "parity": report.parity,
        "profile": report.profile,
        **{f"build-engine {name}": engine for name, engine in engines(report).items()},
    }


def input_text(report: Run) -> str | None:
    """Return what the network takes: name, size, mean and std; None where the report does not say."""
    spec = report.network.input if report.network else None
    if spec is None:
        return None
    words = [spec.name or "input", "x".join(map(str, spec.shape))]
    words += [
        f"{name} {', '.join(map(str, values))}" for name, values in (("mean", spec.mean), ("std", spec.std))
    ]
    return "; ".join(words)


def sqnr_text(report: Run) -> str | None:
    """Return `quantize`'s own figure for each output; None where it has none."""
    by_output = report.quantize.sqnr_db if report.quantize else {}
    return ", ".join(f"{name} {db:.1f} dB" for name, db in by_output.items() if db is not None) or None


def _precision(engine: BuildEngine | None, candidate: Candidate | None, timing: Timing | None) -> str | None:
    """Return what an engine was found to be, or the preset that an ONNX file is judged by."""
    if timing is not None and timing.runtime == registry.reference().name:
        return "reference"
    return engine.found_precision if engine else candidate.preset if candidate else None


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
