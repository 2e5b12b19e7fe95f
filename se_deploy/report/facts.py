"""What a run found, read from its JSON: rows and series for the page and the summary, no markup.

A report may be old, cut short or from another machine, so every key but `schema` may be missing or null:
what is not there becomes None here and "not measured" on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from se_deploy.backends import registry
from se_deploy.report.tables import plan_label
from se_deploy.report.values import Json, at, count, flag, number, objects, sequence, texts, wording

GATES = ("parity", "fusion", "precision", "latency")

_RUNNABLE = (".onnx", ".engine", ".plan", ".pt2")
_STAGES = ("export", "inspect", "quantize", "parity", "profile")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate and its state; None where it was not judged."""

    gate: str
    passed: bool | None


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One output of one candidate against the reference."""

    artifact: str
    output: str
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    sqnr_db: float | None
    top1_agreement: float | None
    passed: bool | None


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one artifact on one runtime and batch; milliseconds per batch."""

    artifact: str
    runtime: str | None
    device: str | None
    batch: int | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float | None
    std_ms: float | None
    throughput_per_s: float | None
    samples: int | None
    stable: bool | None
    power_w: float | None
    energy_mj: float | None
    speedup: float | None

    @property
    def label(self) -> str:
        """What tells it from the others in a plot."""
        words = [self.artifact, self.runtime, f"batch {self.batch}" if self.batch else None]
        return " · ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that can be run, and everything known of it."""

    name: str
    precision: str | None
    size_bytes: int | None
    accuracy: float | None
    top1_agreement: float | None  # the least of its outputs
    sqnr_db: float | None  # the least of its outputs
    p50_ms: float | None
    speedup: float | None
    kernels: int | None
    activation_bytes: int | None
    passed: bool | None
    checked_as: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """The planned cost after a rewrite; the first of a list is the graph as given."""

    rewrite: str
    block: str | None
    kernels: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The steps of one artifact's rewrites."""

    artifact: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """What calibration saw of a tensor, and where quantization clips it on both sides of zero.

    Without a threshold, `low` and `high` are the ends of what INT8 covers.
    """

    tensor: str
    low: float
    high: float
    threshold: float | None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy bought with multiply-accumulates left in FP16."""

    macs_fp16_fraction: float
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Note:
    """A warning, or something that stood in for what could not be run, and where it was said."""

    source: str
    text: str


def verdicts(report: Json) -> tuple[Verdict, ...]:
    """Give every gate in its usual order."""
    return tuple(Verdict(gate, flag(at(report, "verdicts", gate))) for gate in GATES)


def plans(report: Json) -> tuple[Json, ...]:
    """Collect the plans of the engines and of `inspect`; each compiler, target and precision once."""
    found = [plan for engine in engines(report).values() if isinstance(plan := engine.get("plan"), Mapping)]
    found += objects(at(report, "inspect", "plans"))
    return tuple({plan_label(plan): plan for plan in found}.values())


def engines(report: Json) -> Mapping[str, Json]:
    """Give the engines by precision; a lone `build-engine` object under the precision that it found."""
    found = at(report, "build-engines")
    if isinstance(found, Mapping) and found:
        return {str(name): engine for name, engine in found.items() if isinstance(engine, Mapping)}
    lone = at(report, "build-engine")
    return {str(lone.get("found_precision") or "engine"): lone} if isinstance(lone, Mapping) else {}


def errors(report: Json) -> tuple[ErrorRow, ...]:
    """Give every compared output of every candidate."""
    return tuple(
        ErrorRow(
            artifact=str(candidate.get("path")),
            output=str(output.get("name")),
            max_abs=number(output.get("max_abs")),
            max_rel=number(output.get("max_rel")),
            cosine=number(output.get("cosine")),
            sqnr_db=number(output.get("sqnr_db")),
            top1_agreement=number(output.get("top1_agreement")),
            passed=flag(output.get("passed")),
        )
        for candidate in objects(at(report, "parity", "candidates"))
        for output in objects(candidate.get("outputs"))
    )


def timings(report: Json) -> tuple[Timing, ...]:
    """Give every measured latency."""
    return tuple(
        Timing(
            artifact=str(entry.get("path")),
            runtime=wording(entry.get("runtime")),
            device=wording(entry.get("device")),
            batch=count(entry.get("batch")),
            p50_ms=number(entry.get("p50_ms")),
            p90_ms=number(entry.get("p90_ms")),
            p99_ms=number(entry.get("p99_ms")),
            mean_ms=number(entry.get("mean_ms")),
            std_ms=number(entry.get("std_ms")),
            throughput_per_s=number(entry.get("throughput_per_s")),
            samples=count(entry.get("samples")),
            stable=flag(entry.get("stable")),
            power_w=number(entry.get("power_w")),
            energy_mj=number(entry.get("energy_mj")),
            speedup=number(entry.get("speedup_vs_reference")),
        )
        for entry in objects(at(report, "profile", "artifacts"))
    )


def artifacts(report: Json) -> tuple[Artifact, ...]:
    """Join what was written, compared, timed and planned, by path; the timed reference comes first.

    Sizes come from the optional key `sizes`: {path: bytes}.
    """
    named = [str(path) for path in (at(report, "artifacts") or {}).values() if _runnable(str(path))]
    candidates = {str(c.get("path")): c for c in objects(at(report, "parity", "candidates"))}
    timed: dict[str, Timing] = {}
    for timing in timings(report):
        timed.setdefault(timing.artifact, timing)
    built = {str(engine.get("engine")): engine for engine in engines(report).values()}
    beside = {str(engine.get("onnx")) for engine in built.values()}  # what an engine was built from
    shown = [p for p in named if p not in beside or p in candidates or p in timed]
    rows = []
    for path in dict.fromkeys([*(p for p in timed if p not in named), *candidates, *shown, *built]):
        candidate, engine, time = candidates.get(path, {}), built.get(path, {}), timed.get(path)
        compared = [row for row in errors(report) if row.artifact == path]
        rows.append(
            Artifact(
                name=path,
                precision=_precision(engine, candidate, time),
                size_bytes=count(at(report, "sizes", path)),
                accuracy=number(
                    candidate.get("accuracy") if candidate else _reference_accuracy(report, path, named)
                ),
                top1_agreement=_least(row.top1_agreement for row in compared),
                sqnr_db=_least(row.sqnr_db for row in compared),
                p50_ms=time.p50_ms if time else None,
                speedup=time.speedup if time else None,
                kernels=count(at(engine, "plan", "kernels")),
                activation_bytes=count(at(engine, "plan", "activation_bytes")),
                passed=flag(candidate.get("passed")),
                checked_as=_checked_as(candidate),
            )
        )
    return tuple(rows)


def _checked_as(candidate: Json) -> str | None:
    """Say what stood in for an artifact, or else where its FP16 numbers were rounded."""
    rounding = wording(candidate.get("rounding"))
    return wording(candidate.get("checked_as")) or (
        f"run by ONNX Runtime with optimizations off, {rounding}" if rounding else None
    )


def rewrites(report: Json) -> tuple[tuple[str, int], ...]:
    """Give the passes of the export and how often each fired."""
    pairs = [sequence(entry) for entry in sequence(at(report, "export", "rewrites"))]
    return tuple((str(pair[0]), count(pair[1]) or 0) for pair in pairs if len(pair) == 2)  # noqa: PLR2004


def refused(report: Json) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """The rewrites of the export that were not possible: name, reason, and the blocks that it holds for."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for entry in sequence(at(report, "export", "refused")):
        row = [str(cell) for cell in sequence(entry)]
        if len(row) == 3:  # noqa: PLR2004 - rewrite, block, reason
            grouped.setdefault((row[0], row[2]), []).append(row[1])
    return tuple((name, reason, tuple(blocks)) for (name, reason), blocks in grouped.items())


def waterfalls(report: Json) -> tuple[Waterfall, ...]:
    """Give the steps of the export and of each engine that has them.

    Rewrites are chosen before quantization: where the engine's own plan differs, one more step leads to it.
    """
    exported = at(report, "export")
    found = [_waterfall(at(exported, "onnx") or "export", exported, None)]
    for name, engine in engines(report).items():
        found.append(_waterfall(engine.get("engine") or name, engine, engine.get("plan")))
    return tuple(one for one in found if one.steps)


def _waterfall(artifact: object, result: object, plan: object) -> Waterfall:
    steps = [
        Step(str(entry.get("rewrite")), wording(entry.get("block")), kernels, size)
        for entry in objects(at(result, "waterfall"))
        if (kernels := count(entry.get("kernels"))) is not None
        and (size := count(entry.get("activation_bytes"))) is not None
    ]
    kernels, size = count(at(plan, "kernels")), count(at(plan, "activation_bytes"))
    if steps and kernels is not None and size is not None:
        built = Step(f"built as {at(plan, 'precision') or 'an engine'}", None, kernels, size)
        if (kernels, size) != (steps[-1].kernels, steps[-1].activation_bytes):
            steps.append(built)
    return Waterfall(str(artifact), tuple(steps))


def worth(report: Json) -> Json | None:
    """Give INT8 against FP16, from `quantize` or from the engine that was quantized for its target."""
    found = [at(report, "quantize", "worth"), *(engine.get("worth") for engine in engines(report).values())]
    return next((entry for entry in reversed(found) if isinstance(entry, Mapping)), None)


def ranges(report: Json) -> tuple[Range, ...]:
    """Give the calibrated ranges in graph order."""
    return tuple(
        Range(str(entry.get("tensor")), low, high, number(entry.get("threshold")))
        for entry in objects(at(report, "quantize", "ranges"))
        if (low := number(entry.get("low"))) is not None and (high := number(entry.get("high"))) is not None
    )


def curve(report: Json) -> tuple[CurvePoint, ...]:
    """Give accuracy against cost, cheapest first."""
    points = [
        CurvePoint(fraction, sqnr)
        for entry in objects(at(report, "quantize", "curve"))
        if (fraction := number(entry.get("macs_fp16_fraction"))) is not None
        and (sqnr := number(entry.get("sqnr_db"))) is not None
    ]
    return tuple(sorted(points, key=lambda point: (point.macs_fp16_fraction, point.sqnr_db)))


def notes(report: Json) -> tuple[Note, ...]:
    """Collect what was not judged, every stand-in and every warning, each once, with all that said it."""
    said: dict[str, list[str]] = {}
    for candidate in objects(at(report, "parity", "candidates")):
        how = _checked_as(candidate)
        if how:
            said.setdefault(how, []).append(str(candidate.get("path")))
    stages = {stage: report.get(stage) for stage in _STAGES}
    stages |= {f"build-engine {name}": engine for name, engine in engines(report).items()}
    for stage, result in stages.items():
        for text in texts(at(result, "warnings")):
            said.setdefault(text, []).append(stage)
    for text in texts(report.get("warnings")):
        said.setdefault(text, [])
    for text, paths in list(said.items()):  # the same stand-in as a warning, its file in front
        for path in paths:
            said.pop(f"{path}: {text}", None)
    unjudged = [Note(v.gate, "this gate was not judged") for v in verdicts(report) if v.passed is None]
    found = [Note(", ".join(dict.fromkeys(sources)) or "run", text) for text, sources in said.items()]
    return (*unjudged, *found)


def input_text(report: Json) -> str | None:
    """Say what the network takes: size, mean and std; None where the report does not."""
    spec = at(report, "network", "input")
    if not isinstance(spec, Mapping):
        return None
    sides = [count(spec.get(key)) for key in ("channels", "height", "width")]
    words = [str(spec.get("name") or "input")]
    if None not in sides:
        words.append("x".join(str(side) for side in sides))
    words += [f"{key} {', '.join(texts(spec[key]))}" for key in ("mean", "std") if texts(spec.get(key))]
    return "; ".join(words)


def sqnr_text(report: Json) -> str | None:
    """Give `quantize`'s own figure for each output; None where it has none."""
    found = at(report, "quantize", "sqnr_db")
    by_output = found if isinstance(found, Mapping) else {"output": found}
    parts = [f"{name} {db:.1f} dB" for name, value in by_output.items() if (db := number(value)) is not None]
    return ", ".join(parts) or None


def _precision(engine: Json, candidate: Json, timing: Timing | None) -> str | None:
    """What an engine was found to be, or the preset that an ONNX file is judged by."""
    if timing is not None and timing.runtime == registry.reference().name:
        return "reference"
    return wording(engine.get("found_precision") or candidate.get("preset"))


def _reference_accuracy(report: Json, path: str, named: Sequence[str]) -> object:
    """Only what is timed without being written or compared is the reference."""
    return None if path in named else at(report, "parity", "reference_accuracy")


def _least(values: Any) -> float | None:  # noqa: ANN401 - a generator of numbers or None
    return min((value for value in values if value is not None), default=None)


def _runnable(path: str) -> bool:
    return path.endswith(_RUNNABLE)
