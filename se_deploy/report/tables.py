"""SE blocks, plans and what they cost, read from JSON: what the tables about fusion show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from se_deploy.backends import registry
from se_deploy.report.values import Json, at, count, number, objects, sequence, texts, wording


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
class WidthRow:
    """What calibration data says of one block's hidden units and gates (`inspect --calib-data`)."""

    output: str
    hidden: int | None
    effective_rank: float | None
    idle: int  # hidden units that never move: they can go exactly
    gates_shut: int | None
    gates_open: int | None
    gates_constant: int | None
    gate_mean: float | None
    gate_std: float | None  # over samples and channels
    suggested: int | None
    mean_gate_error: float | None  # of the suggested width
    max_gate_error: float | None


def plan_label(plan: Json) -> str:
    """Name a plan by what it was made with and for."""
    runtime = str(plan.get("runtime") or "unknown compiler")
    words = [registry.title(runtime), *(plan.get(key) for key in ("version", "target", "precision"))]
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
            activation=wording(block.get("activation")),
            gate=wording(block.get("gate")),
            form=wording(block.get("form")),
            spelling=texts(block.get("spelling")),
            placement=wording(block.get("placement")),
            followed_by=wording(block.get("followed_by")),
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
        idle = {unit for key in ("dead", "constant", "removable") for unit in sequence(entry.get(key))}
        rows.append(
            WidthRow(
                output=str(entry.get("output")),
                hidden=count(entry.get("hidden")),
                effective_rank=number(entry.get("effective_rank")),
                idle=len(idle),
                gates_shut=count(entry.get("gates_shut")),
                gates_open=count(entry.get("gates_open")),
                gates_constant=count(entry.get("gates_constant")),
                gate_mean=number(entry.get("gate_mean")),
                gate_std=number(entry.get("gate_std")),
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
    if entries := sequence(value):
        whole = all(isinstance(entry, int) for entry in entries)
        return ("x" if whole else ", ").join(_flat(entry) for entry in entries)
    return str(value)


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
