"""SE blocks, plans and what they cost: what the tables about fusion show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from msgspec.structs import asdict

from se_deploy.backends import registry
from se_deploy.schema import builtins
from se_deploy.schema.common import FusionVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.schema.common import Block, Plan, PlanBlock, Totals
    from se_deploy.schema.results import BlockAdvice, Inspect, Width


@dataclass(frozen=True, slots=True)
class BlockVerdict:
    """What one plan makes of one SE block; the numbers are per image."""

    plan: str
    found: PlanBlock


@dataclass(frozen=True, slots=True)
class BlockRow:
    """An SE block and its verdict per plan, in the plans' order; `block` None where only a plan knows it."""

    output: str
    block: Block | None
    verdicts: tuple[BlockVerdict | None, ...]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One compiler's plan in total, per image, with the verdicts counted."""

    label: str
    kernels: int
    activation_bytes: int
    weight_bytes: int
    verdicts: tuple[tuple[str, int], ...]  # ("fused", 9), ("split", 0), ("fallback", 0)


@dataclass(frozen=True, slots=True)
class TaxRow:
    """What the SE blocks cost in one plan: the network, their share, and the network without its gates."""

    label: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class WidthRow:
    """What calibration data says of one block's hidden units and gates (`inspect --calib-data`)."""

    advice: BlockAdvice
    idle: int  # hidden units that never move: they can go exactly
    suggested: Width | None


def plan_label(plan: Plan) -> str:
    """Return what a plan was made with and for."""
    return " ".join((registry.title(plan.runtime), plan.version, plan.target, plan.precision))


def plan_rows(plans: Sequence[Plan]) -> tuple[PlanRow, ...]:
    """Sum up each plan."""
    return tuple(
        PlanRow(
            label=plan_label(plan),
            kernels=plan.kernels,
            activation_bytes=plan.activation_bytes,
            weight_bytes=plan.weight_bytes,
            verdicts=tuple(
                (word, sum(block.verdict == word for block in plan.blocks))
                for word in get_args(FusionVerdict)
            ),
        )
        for plan in plans
    )


def tax_rows(inspection: Inspect | None) -> tuple[TaxRow, ...]:
    """Return the totals of each plan, or those of the whole object where the plans have none."""
    if inspection is None:
        return ()
    plans = inspection.plans
    found = tuple(TaxRow(plan_label(plan), plan.totals) for plan in plans if plan.totals is not None)
    if found or inspection.totals is None:
        return found
    return (TaxRow(plan_label(plans[0]) if plans else "network", inspection.totals),)


def block_rows(blocks: Sequence[Block], plans: Sequence[Plan]) -> tuple[BlockRow, ...]:
    """Join the census with the plans by the block's output name; a plan's own blocks stay in."""
    judged = [{block.output: block for block in plan.blocks} for plan in plans]
    known: dict[str, Block | None] = {block.output: block for block in blocks}
    for by_output in judged:
        for output in by_output:
            known.setdefault(output, None)
    return tuple(
        BlockRow(
            output=output,
            block=block,
            verdicts=tuple(
                BlockVerdict(plan_label(plan), by_output[output]) if output in by_output else None
                for plan, by_output in zip(plans, judged, strict=True)
            ),
        )
        for output, block in known.items()
    )


def width_rows(inspection: Inspect) -> tuple[WidthRow, ...]:
    """Return the advice on each block's width; () where no data was given."""
    return tuple(
        WidthRow(
            advice=one,
            idle=len({*one.dead, *one.constant, *one.removable}),
            suggested=next((w for w in one.widths if w.hidden == one.suggested), None),
        )
        for one in (inspection.advice.blocks if inspection.advice else ())
    )


def manifest_rows(inspection: Inspect) -> tuple[tuple[str, str], ...]:
    """Return an engine's provenance as the manifest has it, plan and blocks left out; () for an ONNX file."""
    if inspection.manifest is None:
        return ()
    shown = {
        key: value for key, value in asdict(inspection.manifest).items() if key not in {"plan", "blocks"}
    }
    return tuple(
        (key.replace("_", " "), _flat(builtins(value))) for key, value in shown.items() if value is not None
    )


def _flat(value: Any) -> str:  # noqa: ANN401 - what JSON holds
    """Write nested JSON on one line, as a reader would say it."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {_flat(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, (list, tuple)):
        whole = all(isinstance(entry, int) for entry in value)
        return ("x" if whole else ", ").join(_flat(entry) for entry in value)
    return str(value)
