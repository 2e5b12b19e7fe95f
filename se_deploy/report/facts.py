"""What the pages show, read from the JSON objects of the contract: rows and series, no markup.

A report may be old, cut short or from another machine, so every key but `schema` may be missing or null:
what is not there becomes None here and "not measured" on the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

GATES = ("parity", "fusion", "precision", "latency")

_RUNNABLE = (".onnx", ".engine", ".plan", ".pt2")
_STAGES = ("export", "inspect", "quantize", "parity", "profile")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate and its state; None where it was not judged."""

    gate: str
    passed: bool | None


@dataclass(frozen=True, slots=True)
class BlockVerdict:
    """What one plan makes of one SE block; the numbers are per image."""

    plan: str
    verdict: str  # "fused" | "split" | "fallback"
    kernels: int | None
    activation_bytes: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BlockRow:
    """An SE block of the census and its verdict per plan, in the plans' order; None where it has none."""

    output: str
    kind: str
    channels: int | None
    reduced: int | None
    ratio: float | None
    activation: str | None
    gate: str | None
    form: str | None
    spelling: tuple[str, ...]
    placement: str | None
    followed_by: str | None
    params: int | None
    verdicts: tuple[BlockVerdict | None, ...]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One compiler's plan in total, per image, with the verdicts counted."""

    label: str
    kernels: int | None
    activation_bytes: int | None
    weight_bytes: int | None
    verdicts: tuple[tuple[str, int], ...]  # ("fused", 9), ("split", 0), ("fallback", 0)


@dataclass(frozen=True, slots=True)
class TaxRow:
    """What the SE blocks cost in one plan: the network, their share, and the network without its gates."""

    label: str
    kernels: int | None
    activation_bytes: int | None
    se_kernels: int | None
    se_bytes: int | None
    bare_kernels: int | None
    bare_bytes: int | None


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
class WidthRow:
    """What calibration data says of one block's hidden units and gates (`inspect --calib-data`)."""

    output: str
    hidden: int | None
    effective_rank: float | None
    idle: int  # hidden units that never move: they can go exactly
    gates_shut: int | None
    gates_open: int | None
    gates_constant: int | None
    suggested: int | None
    mean_gate_error: float | None  # of the suggested width
    max_gate_error: float | None


@dataclass(frozen=True, slots=True)
class Note:
    """A warning, or something that stood in for what could not be run, and where it was said."""

    source: str
    text: str


def at(value: object, *path: str) -> Any:  # noqa: ANN401 - a value of a JSON object
    """Walk into nested objects; None where a key is missing or leads nowhere."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def number(value: object) -> float | None:
    """Give a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def count(value: object) -> int | None:
    """Give a whole number, else None."""
    found = number(value)
    return None if found is None else round(found)


def objects(value: object) -> tuple[Json, ...]:
    """Give the objects in a list; () where there is none."""
    return tuple(entry for entry in _sequence(value) if isinstance(entry, Mapping))


def texts(value: object) -> tuple[str, ...]:
    """Give the entries of a list as text; () where there is none."""
    return tuple(str(entry) for entry in _sequence(value))


def verdicts(report: Json) -> tuple[Verdict, ...]:
    """Give every gate in its usual order."""
    return tuple(Verdict(gate, _flag(at(report, "verdicts", gate))) for gate in GATES)


def plans(report: Json) -> tuple[Json, ...]:
    """Collect the plans of `inspect` and of the engines; each compiler, target and precision once."""
    found = [*objects(at(report, "inspect", "plans"))]
    found += [plan for engine in engines(report).values() if isinstance(plan := engine.get("plan"), Mapping)]
    return tuple({plan_label(plan): plan for plan in found}.values())


def plan_label(plan: Json) -> str:
    """Name a plan by what it was made with and for."""
    named = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}
    runtime = str(plan.get("runtime") or "unknown compiler")
    words = [named.get(runtime, runtime), *(plan.get(key) for key in ("version", "target", "precision"))]
    return " ".join(str(word) for word in words if word)


def plan_rows(plans: Sequence[Json]) -> tuple[PlanRow, ...]:
    """Sum up each plan."""
    return tuple(
        PlanRow(
            label=plan_label(plan),
            kernels=count(plan.get("kernels")),
            activation_bytes=count(plan.get("activation_bytes")),
            weight_bytes=count(plan.get("weight_bytes")),
            verdicts=tuple(
                (word, sum(block.get("verdict") == word for block in objects(plan.get("blocks"))))
                for word in ("fused", "split", "fallback")
            ),
        )
        for plan in plans
    )


def tax_rows(inspection: Json) -> tuple[TaxRow, ...]:
    """Give the totals of each plan, or those of the whole object where the plans have none."""
    plans = objects(inspection.get("plans"))
    found = [(plan_label(plan), plan["totals"]) for plan in plans if isinstance(plan.get("totals"), Mapping)]
    if not found and isinstance(inspection.get("totals"), Mapping):
        found = [(plan_label(plans[0]) if plans else "network", inspection["totals"])]
    return tuple(
        TaxRow(
            label=label,
            kernels=count(totals.get("kernels")),
            activation_bytes=count(totals.get("activation_bytes")),
            se_kernels=count(totals.get("se_kernels")),
            se_bytes=count(totals.get("se_bytes")),
            bare_kernels=count(at(totals, "without_se", "kernels")),
            bare_bytes=count(at(totals, "without_se", "activation_bytes")),
        )
        for label, totals in found
    )


def block_rows(blocks: Sequence[Json], plans: Sequence[Json]) -> tuple[BlockRow, ...]:
    """Join the census with the plans by the block's output name; a plan's own blocks stay in."""
    judged = [{str(b.get("output")): b for b in objects(plan.get("blocks"))} for plan in plans]
    known = {str(block.get("output")): block for block in blocks}
    for by_output in judged:
        for output in by_output:
            known.setdefault(output, {})
    return tuple(
        BlockRow(
            output=output,
            kind=str(block.get("kind") or "se"),
            channels=count(block.get("channels")),
            reduced=count(block.get("reduced")),
            ratio=number(block.get("ratio")),
            activation=_text(block.get("activation")),
            gate=_text(block.get("gate")),
            form=_text(block.get("form")),
            spelling=texts(block.get("spelling")),
            placement=_text(block.get("placement")),
            followed_by=_text(block.get("followed_by")),
            params=count(block.get("params")),
            verdicts=tuple(
                _verdict(plan, by_output.get(output)) for plan, by_output in zip(plans, judged, strict=True)
            ),
        )
        for output, block in known.items()
    )


def width_rows(inspection: Json) -> tuple[WidthRow, ...]:
    """Give the advice on each block's width; () where no data was looked at."""
    advice = inspection.get("advice")
    rows = []
    for entry in objects(advice) or objects(at(advice, "blocks")):
        suggested = count(entry.get("suggested"))
        chosen = [w for w in objects(entry.get("widths")) if count(w.get("hidden")) == suggested]
        still = [entry.get("dead"), entry.get("constant")]
        rows.append(
            WidthRow(
                output=str(entry.get("output")),
                hidden=count(entry.get("hidden")),
                effective_rank=number(entry.get("effective_rank")),
                idle=sum(len(_sequence(units)) or count(units) or 0 for units in still),
                gates_shut=count(entry.get("gates_shut")),
                gates_open=count(entry.get("gates_open")),
                gates_constant=count(entry.get("gates_constant")),
                suggested=suggested,
                mean_gate_error=number(chosen[0].get("mean_gate_error")) if chosen else None,
                max_gate_error=number(chosen[0].get("max_gate_error")) if chosen else None,
            )
        )
    return tuple(rows)


def manifest_rows(inspection: Json) -> tuple[tuple[str, str], ...]:
    """Give an engine's provenance as the manifest has it, plan and blocks left out; () for an ONNX file."""
    manifest = inspection.get("manifest")
    if not isinstance(manifest, Mapping):
        return ()
    shown = {key: value for key, value in manifest.items() if key not in {"plan", "blocks", "schema"}}
    return tuple(
        (str(key).replace("_", " "), _flat(value)) for key, value in shown.items() if value is not None
    )


def _flat(value: object) -> str:
    """Write nested JSON on one line, as a reader would say it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_flat(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list):
        whole = all(isinstance(entry, int) for entry in value)
        return ("x" if whole else ", ").join(_flat(entry) for entry in value)
    return str(value)


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
            passed=_flag(output.get("passed")),
        )
        for candidate in objects(at(report, "parity", "candidates"))
        for output in objects(candidate.get("outputs"))
    )


def timings(report: Json) -> tuple[Timing, ...]:
    """Give every measured latency."""
    return tuple(
        Timing(
            artifact=str(entry.get("path")),
            runtime=_text(entry.get("runtime")),
            device=_text(entry.get("device")),
            batch=count(entry.get("batch")),
            p50_ms=number(entry.get("p50_ms")),
            p90_ms=number(entry.get("p90_ms")),
            p99_ms=number(entry.get("p99_ms")),
            mean_ms=number(entry.get("mean_ms")),
            std_ms=number(entry.get("std_ms")),
            throughput_per_s=number(entry.get("throughput_per_s")),
            samples=count(entry.get("samples")),
            stable=_flag(entry.get("stable")),
            power_w=number(entry.get("power_w")),
            energy_mj=number(entry.get("energy_mj")),
            speedup=number(entry.get("speedup_vs_reference")),
        )
        for entry in objects(at(report, "profile", "artifacts"))
    )


def artifacts(report: Json) -> tuple[Artifact, ...]:
    """Join what was written, compared, timed and planned, by path; the timed reference comes first.

    Sizes come from the optional key `sizes`: {artifact name: bytes}.
    """
    named = {str(p): str(n) for n, p in (at(report, "artifacts") or {}).items() if _runnable(str(p))}
    candidates = {str(c.get("path")): c for c in objects(at(report, "parity", "candidates"))}
    timed: dict[str, Timing] = {}
    for timing in timings(report):
        timed.setdefault(timing.artifact, timing)
    built = {str(engine.get("engine")): engine for engine in engines(report).values()}
    beside = {str(engine.get("onnx")) for engine in built.values()}  # what an engine was built from
    shown = [p for p in named if p not in beside or p in candidates or p in timed]
    rows = []
    for path in dict.fromkeys([*(p for p in timed if p not in named), *shown, *candidates, *built]):
        candidate, engine, time = candidates.get(path, {}), built.get(path, {}), timed.get(path)
        compared = [row for row in errors(report) if row.artifact == path]
        rows.append(
            Artifact(
                name=path,
                precision=_precision(engine, candidate, time),
                size_bytes=count(at(report, "sizes", named.get(path, path))),
                accuracy=number(
                    candidate.get("accuracy") if candidate else _reference_accuracy(report, path, named)
                ),
                top1_agreement=_least(row.top1_agreement for row in compared),
                sqnr_db=_least(row.sqnr_db for row in compared),
                p50_ms=time.p50_ms if time else None,
                speedup=time.speedup if time else None,
                kernels=count(at(engine, "plan", "kernels")),
                activation_bytes=count(at(engine, "plan", "activation_bytes")),
                passed=_flag(candidate.get("passed")),
                checked_as=_text(candidate.get("checked_as")),
            )
        )
    return tuple(rows)


def rewrites(report: Json) -> tuple[tuple[str, int], ...]:
    """Give the passes of the export and how often each fired."""
    pairs = [_sequence(entry) for entry in _sequence(at(report, "export", "rewrites"))]
    return tuple((str(pair[0]), count(pair[1]) or 0) for pair in pairs if len(pair) == 2)  # noqa: PLR2004


def waterfalls(report: Json) -> tuple[Waterfall, ...]:
    """Give the steps of the export and of each engine that has them."""
    sources = [(at(report, "export", "onnx") or "export", at(report, "export", "waterfall"))]
    sources += [(e.get("engine") or name, e.get("waterfall")) for name, e in engines(report).items()]
    found = []
    for artifact, entries in sources:
        steps = tuple(
            Step(str(entry.get("rewrite")), _text(entry.get("block")), kernels, size)
            for entry in objects(entries)
            if (kernels := count(entry.get("kernels"))) is not None
            and (size := count(entry.get("activation_bytes"))) is not None
        )
        if steps:
            found.append(Waterfall(str(artifact), steps))
    return tuple(found)


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
        if candidate.get("checked_as"):
            said.setdefault(str(candidate["checked_as"]), []).append(str(candidate.get("path")))
    stages = {stage: report.get(stage) for stage in _STAGES}
    stages |= {f"build-engine {name}": engine for name, engine in engines(report).items()}
    for stage, result in stages.items():
        for text in texts(at(result, "warnings")):
            said.setdefault(text, []).append(stage)
    for text in texts(report.get("warnings")):
        said.setdefault(text, [])
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


def change(value: object, base: object) -> float | None:
    """Give the relative change from `base`; None where either is unknown or the base is zero."""
    now, before = number(value), number(base)
    return now / before - 1 if now is not None and before else None


def _verdict(plan: Json, block: Json | None) -> BlockVerdict | None:
    if block is None:
        return None
    return BlockVerdict(
        plan=plan_label(plan),
        verdict=str(block.get("verdict") or "not judged"),
        kernels=count(block.get("kernels")),
        activation_bytes=count(block.get("activation_bytes")),
        reasons=texts(block.get("reasons")),
    )


def _precision(engine: Json, candidate: Json, timing: Timing | None) -> str | None:
    """What an engine was found to be, or the preset that an ONNX file is judged by."""
    if timing is not None and timing.runtime == "torch":
        return "reference"
    return _text(engine.get("found_precision") or candidate.get("preset"))


def _reference_accuracy(report: Json, path: str, named: Mapping[str, str]) -> object:
    """Only what is timed without being written or compared is the reference."""
    return None if path in named else at(report, "parity", "reference_accuracy")


def _least(values: Any) -> float | None:  # noqa: ANN401 - a generator of numbers or None
    return min((value for value in values if value is not None), default=None)


def _runnable(path: str) -> bool:
    return path.endswith(_RUNNABLE)


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return str(value) if value not in (None, "") else None


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()
