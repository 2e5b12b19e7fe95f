"""Tables of a graph: its SE blocks, what compilers plan, what the data advises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from se_deploy.errors import counted
from se_deploy.tables.base import add, megabytes, number, percent, titled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.schema import results
    from se_deploy.schema.common import Plan
    from se_deploy.tables.base import Grid


VERDICT_STYLE = {"fused": "green", "split": "yellow", "fallback": "red"}


def inspected(result: results.Inspect) -> list[Grid]:
    """Return all that `inspect` shows."""
    tables = [blocks(result), *plans(result), *reasons(result), *chain(result.chain)]
    return [*tables, *advice(result.advice)] if result.advice else tables


def blocks(result: results.Inspect | results.Export) -> Grid:
    """Return the census, with each plan's verdict beside its block."""
    plans = result.plans
    verdicts = [{b.output: b for b in plan.blocks} for plan in plans]
    heads = ["#", "kind", "C", "R", "C/R", "activation", "gate", "form", "behind", "before", "params"]
    table = titled(
        counted(len(result.blocks), "channel-attention block"),
        [*heads, *(f"{plan.runtime} {plan.target}" for plan in plans), "output"],
        right=(0, 2, 3, 4, 10),
        spare=(7, 8, 9, 10, 6, 5, 4),
    )
    for i, block in enumerate(result.blocks, 1):
        cells: list[str | Text | None] = [
            str(i), block.kind, str(block.channels),
            "-" if block.reduced is None else str(block.reduced),
            "-" if block.ratio is None else f"{block.ratio:.3g}",
            block.activation, block.gate, block.form, block.placement, block.followed_by,
            f"{block.params:,}",
        ]  # fmt: skip
        for verdict in verdicts:
            found = verdict.get(block.output)
            word = "-" if found is None else f"{found.verdict}, {counted(found.kernels, 'kernel')}"
            cells.append(Text(word, style=VERDICT_STYLE.get(found.verdict, "") if found else ""))
        add(table, *cells, block.output)
    return table


def reasons(result: results.Inspect) -> list[Grid]:
    """List why a block is split, and which candidates are no blocks."""
    tables = unfused(result.plans)
    if result.rejected:
        table = titled("Not a block", ["candidate", "reason"])
        for no in result.rejected:
            add(table, no.output, no.reason)
        tables.append(table)
    return tables


def unfused(plans: Sequence[Plan]) -> list[Grid]:
    """List for each plan why blocks of it are not fused; nothing where all are."""
    tables = []
    for plan in plans:
        grouped: dict[str, list[str]] = {}
        for block in plan.blocks:
            for reason in block.reasons if block.verdict != "fused" else ():
                grouped.setdefault(reason, []).append(block.output)
        if grouped:
            table = titled(f"Why blocks are not fused: {plan.runtime} {plan.target}", ["reason", "blocks"])
            for reason, outputs in grouped.items():
                shown = ", ".join(outputs[:2]) + (f" and {len(outputs) - 2} more" if len(outputs) > 2 else "")  # noqa: PLR2004
                add(table, reason, shown)
            tables.append(table)
    return tables


def plans(result: results.Inspect) -> list[Grid]:
    """Return the totals of each plan; none where nothing was planned."""
    if not result.plans:
        return []
    table = titled(
        "Plans: bytes are planned per image, not timed",
        ["compiler", "target", "precision", "kernels", "activations MB", "weights MB", "SE kernels", "SE MB"],
        right=(3, 4, 5, 6, 7),
        spare=(5, 7, 2),
    )
    for plan in result.plans:
        add(table,
            f"{plan.runtime} {plan.version}", plan.target, plan.precision, str(plan.kernels),
            megabytes(plan.activation_bytes), megabytes(plan.weight_bytes),
            str(sum(b.kernels for b in plan.blocks)),
            megabytes(sum(b.activation_bytes for b in plan.blocks)),
        )  # fmt: skip
    return [table]


def refused(result: results.Export) -> list[Grid]:
    """Return why a rewrite was not possible at a block, blocks of one reason in one row."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, block, reason in result.refused:
        grouped.setdefault((name, reason), []).append(block)
    if not grouped:
        return []
    table = titled("Why a rewrite was not possible", ["rewrite", "reason", "blocks"])
    for (name, reason), outputs in grouped.items():
        add(table, name, reason, ", ".join(outputs))
    return [table]


def chain(found: results.Chain | None) -> list[Grid]:
    """Return how far INT8 layers follow on each other, what breaks them and where the network ends them."""
    if found is None:
        return []
    summary = titled("INT8 by TensorRT's published rules; nothing was built or timed", ["", ""])
    rows = {
        "layers in INT8": f"{found.int8_layers}, {len(found.float_layers)} in float",
        "unbroken": f"{found.unbroken} ({percent(found.unbroken_fraction)})",
        "multiply-accumulates in INT8": percent(found.int8_macs_fraction),
        "activation bytes in INT8": percent(found.int8_bytes_fraction),
        "breaks": str(len(found.breaks)),
    }
    for name, value in rows.items():
        add(summary, name, value)
    tables = [summary]
    if found.breaks:
        table = titled("What breaks the INT8 chain", ["node", "cause", "layers", "rule"])
        for one in found.breaks:
            add(table, one.node, one.cause, ", ".join(one.layers), one.rule)
        broken = titled("The rules", ["rule", "says", "source", "evidence"])
        for one in {one.rule: one for one in found.breaks}.values():
            add(broken, one.rule, one.says, one.source, one.evidence)
        tables += [table, broken]
    if found.ends:
        table = titled("Where the network itself ends it", ["cause", "nodes"])
        grouped: dict[str, list[str]] = {}
        for end in found.ends:
            grouped.setdefault(end.cause, []).append(end.node)
        for cause, nodes in grouped.items():
            add(table, cause, ", ".join(nodes))
        tables.append(table)
    return tables


def advice(found: results.Advice) -> list[Grid]:
    """Return what the data says of each block's width, and of which blocks it cannot say anything."""
    table = titled(
        f"Widths that {found.samples} samples ask for: the suggested one is the smallest that moves the "
        f"gates by {percent(found.tolerance)} or less in the mean",
        [
            "block", "C", "R", "effective rank", "idle units", "gates at 0 / 1 / still", "gate",
            "suggested R", "C/R", "gate error", "others",
        ],
        right=(1, 2, 3, 5, 7, 8, 9),
        spare=(10, 6, 3, 5, 4),
    )  # fmt: skip
    for block in found.blocks:
        widths: dict[int | None, results.Width] = {width.hidden: width for width in block.widths}
        chosen = widths.pop(block.suggested, None)
        widths.pop(block.hidden, None)
        add(table,
            block.output, _count(block.channels), _count(block.hidden),
            number(block.effective_rank), _idle(block),
            " / ".join(map(_count, (block.gates_shut, block.gates_open, block.gates_constant))),
            f"{number(block.gate_mean)}±{number(block.gate_std)}", _count(block.suggested),
            number(chosen.ratio if chosen else None), _error(chosen.mean_gate_error if chosen else None),
            ", ".join(f"{hidden}: {_error(width.mean_gate_error)}" for hidden, width in widths.items()),
        )  # fmt: skip
    if not found.skipped:
        return [table]
    without = titled("No advice on the width", ["block", "reason"])
    for no in found.skipped:
        add(without, no.output, no.reason)
    return [table, without]


def _idle(block: results.BlockAdvice) -> str:
    """Return how many hidden units do nothing, those that are so for every input beside them."""
    idle = {"dead": block.dead, "constant": block.constant}
    words = [f"{len(units)} {what}" for what, units in idle.items() if units]
    if block.removable:
        words.append(f"{len(block.removable)} for every input")
    return ", ".join(words) or "-"


def _error(value: float | None) -> str:
    return percent(None if value is None else round(value, 9))  # below that it is rounding


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)
