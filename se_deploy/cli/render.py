"""Results as tables that a person likes to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from se_deploy.schema.results import Doctor, Networks

VERDICT_STYLE = {"fused": "green", "split": "yellow", "fallback": "red"}


def megabytes(size: float | None) -> str:
    """Bytes as megabytes (10^6), as plans are compared."""
    return "-" if size is None else f"{size / 1e6:.2f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where it was not measured."""
    return "-" if value is None else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share as percent."""
    return "-" if value is None else f"{100 * value:.2f} %"


def passed(value: bool | None) -> Text:
    """A verdict in colour; a dash where nothing was judged."""
    if value is None:
        return Text("-")
    return Text("pass", style="green") if value else Text("FAIL", style="bold red")


def _table(title: str, columns: Sequence[str], *, right: Sequence[int] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", header_style="bold", pad_edge=False, show_header=any(columns)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", overflow="fold")
    return table


def blocks(result: Mapping[str, Any]) -> Table:
    """Draw the census, with each plan's verdict beside its block."""
    plans = result.get("plans", [])
    verdicts = [{b["output"]: b for b in plan["blocks"]} for plan in plans]
    heads = ["#", "kind", "C", "R", "C/R", "activation", "gate", "form", "behind", "before", "params"]
    table = _table(
        f"{len(result['blocks'])} channel-attention blocks",
        [*heads, *(f"{plan['runtime']} {plan['target']}" for plan in plans), "output"],
        right=(0, 2, 3, 4, 10),
    )
    for i, block in enumerate(result["blocks"], 1):
        cells: list[str | Text] = [
            str(i), block["kind"], str(block["channels"]),
            "-" if block["reduced"] is None else str(block["reduced"]),
            "-" if block["ratio"] is None else f"{block['ratio']:.3g}",
            block["activation"], block["gate"], block["form"], block["placement"], block["followed_by"],
            f"{block['params']:,}",
        ]  # fmt: skip
        for verdict in verdicts:
            found = verdict.get(block["output"])
            word = "-" if found is None else f"{found['verdict']} ({found['kernels']} k)"
            cells.append(Text(word, style=VERDICT_STYLE.get(found["verdict"], "") if found else ""))
        table.add_row(*cells, block["output"])
    return table


def reasons(result: Mapping[str, Any]) -> list[Table]:
    """List why a block is split, and which candidates are no blocks."""
    tables = []
    for plan in result.get("plans", []):
        grouped: dict[str, list[str]] = {}
        for block in plan["blocks"]:
            for reason in block["reasons"] if block["verdict"] != "fused" else ():
                grouped.setdefault(reason, []).append(block["output"])
        if grouped:
            table = _table(
                f"Why blocks are not fused: {plan['runtime']} {plan['target']}", ["reason", "blocks"]
            )
            for reason, outputs in grouped.items():
                shown = ", ".join(outputs[:2]) + (f" and {len(outputs) - 2} more" if len(outputs) > 2 else "")  # noqa: PLR2004
                table.add_row(reason, shown)
            tables.append(table)
    if result.get("rejected"):
        table = _table("Not a block", ["candidate", "reason"])
        for no in result["rejected"]:
            table.add_row(no["output"], no["reason"])
        tables.append(table)
    return tables


def plans(result: Mapping[str, Any]) -> Table | None:
    """Draw the totals of each plan."""
    if not result.get("plans"):
        return None
    table = _table(
        "Plans: bytes are planned per image, not timed",
        ["compiler", "target", "precision", "kernels", "activations MB", "weights MB", "SE kernels", "SE MB"],
        right=(3, 4, 5, 6, 7),
    )
    for plan in result["plans"]:
        table.add_row(
            f"{plan['runtime']} {plan['version']}", plan["target"], plan["precision"], str(plan["kernels"]),
            megabytes(plan["activation_bytes"]), megabytes(plan["weight_bytes"]),
            str(sum(b["kernels"] for b in plan["blocks"])),
            megabytes(sum(b["activation_bytes"] for b in plan["blocks"])),
        )  # fmt: skip
    return table


def advice(result: Mapping[str, Any]) -> list[Table]:
    """Draw what the data says of each block's width, and of which blocks it cannot say anything."""
    found = result["advice"]
    table = _table(
        f"Widths that {found['samples']} samples ask for: the suggested one is the smallest that moves the "
        f"gates by {percent(found['tolerance'])} or less in the mean",
        [
            "block", "C", "R", "effective rank", "idle units", "gates at 0 / 1 / still", "gate",
            "suggested R", "C/R", "gate error", "others",
        ],
        right=(1, 2, 3, 5, 7, 8, 9),
    )  # fmt: skip
    for block in found["blocks"]:
        widths = {width["hidden"]: width for width in block["widths"]}
        chosen = widths.pop(block["suggested"], {})
        widths.pop(block["hidden"], None)
        table.add_row(
            block["output"], str(block["channels"]), _count(block["hidden"]),
            number(block["effective_rank"]), _idle(block),
            " / ".join(str(block[f"gates_{what}"]) for what in ("shut", "open", "constant")),
            f"{block['gate_mean']:.2f}±{block['gate_std']:.2f}", _count(block["suggested"]),
            number(chosen.get("ratio")), _error(chosen.get("mean_gate_error")),
            ", ".join(f"{hidden}: {_error(width['mean_gate_error'])}" for hidden, width in widths.items()),
        )  # fmt: skip
    if not found["skipped"]:
        return [table]
    without = _table("No advice on the width", ["block", "reason"])
    for block in found["skipped"]:
        without.add_row(block["output"], block["reason"])
    return [table, without]


def _idle(block: Mapping[str, Any]) -> str:
    """Say how many hidden units do nothing, those that are so for every input beside them."""
    words = [f"{len(block[what])} {what}" for what in ("dead", "constant") if block[what]]
    if block["removable"]:
        words.append(f"{len(block['removable'])} for every input")
    return ", ".join(words) or "-"


def _error(value: float | None) -> str:
    return percent(None if value is None else round(value, 9))  # below that it is rounding


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def exported(result: Mapping[str, Any]) -> list[Table]:
    """Draw what `export` did."""
    table = _table(f"Exported {result['onnx']}", ["", ""])
    rows = {
        "precision": result["precision"],
        "opset": str(result["opset"]),
        "nodes": f"{result['nodes_before']} -> {result['nodes_after']}",
        "SE blocks": str(len(result["blocks"])),
        "rewrites": ", ".join(f"{name} x{count}" for name, count in result["rewrites"] if count) or "none",
        "largest error against the source": number(result["max_abs_error"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return [table]


def refused(result: Mapping[str, Any]) -> list[Table]:
    """List why a rewrite was not possible at a block, blocks of one reason in one row."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, block, reason in result["refused"]:
        grouped.setdefault((name, reason), []).append(block)
    if not grouped:
        return []
    table = _table("Why a rewrite was not possible", ["rewrite", "reason", "blocks"])
    for (name, reason), outputs in grouped.items():
        table.add_row(name, reason, ", ".join(outputs))
    return [table]


def parity(result: Mapping[str, Any]) -> Table:
    """Draw one row per candidate and output."""
    table = _table(
        f"Parity with {result['reference']}",
        [
            "candidate",
            "preset",
            "output",
            "max abs",
            "max rel",
            "cosine",
            "SQNR dB",
            "top-1 same",
            "accuracy",
            "",
        ],
        right=(3, 4, 5, 6, 7, 8),
    )
    for candidate in result["candidates"]:
        for output in candidate["outputs"]:
            table.add_row(
                candidate["path"], candidate["preset"], output["name"], number(output["max_abs"]),
                number(output["max_rel"]), number(output["cosine"], 6), number(output["sqnr_db"]),
                percent(output["top1_agreement"]), percent(candidate["accuracy"]), passed(output["passed"]),
            )  # fmt: skip
    rounded = [f"{c['path']}: {c['rounding']}" for c in result["candidates"] if c["rounding"]]
    table.caption = "\n".join(rounded) or None
    return table


def profile(result: Mapping[str, Any]) -> Table:
    """Draw one row per artifact."""
    table = _table(
        "Latency (ms per call)",
        ["artifact", "runtime", "device", "batch", "p50", "p90", "p99", "per second", "speed-up", "stable"],
        right=(3, 4, 5, 6, 7, 8),
    )
    for a in result["artifacts"]:
        table.add_row(
            a["path"], a["runtime"], a["device"], str(a["batch"]), number(a["p50_ms"], 4),
            number(a["p90_ms"], 4), number(a["p99_ms"], 4), number(a["throughput_per_s"], 4),
            "-" if a["speedup_vs_reference"] is None else f"{a['speedup_vs_reference']:.2f}x",
            "yes" if a["stable"] else "no",
        )  # fmt: skip
    return table


def built(result: Mapping[str, Any]) -> Table:
    """Draw what `build-engine` built."""
    plan = result["plan"]
    table = _table(f"Built {result['engine']}", ["", ""])
    fused = sum(b["verdict"] == "fused" for b in plan["blocks"])
    rows = {
        "compiler": f"{plan['runtime']} {plan['version']} for {plan['target']}",
        "precision": f"{result['found_precision']} (asked for: {result['requested_precision']})",
        "kernels": str(plan["kernels"]),
        "activations": f"{megabytes(plan['activation_bytes'])} MB per image (planned, not timed)",
        "SE blocks fused": f"{fused} of {len(plan['blocks'])}",
        "built in": f"{result['seconds']:.1f} s",
        "manifest": result["manifest"],
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def quantized(result: Mapping[str, Any]) -> Table:
    """Draw what `quantize` did."""
    table = _table(f"Quantized {result['onnx']}", ["", ""])
    sqnr = result["sqnr_db"]
    rows = {
        "policy": result["policy"],
        "method": result["method"],
        "calibration samples": str(result["samples"]),
        "tensors in INT8": str(len(result["quantized"])),
        "layers kept": str(len(result["kept"])),
        "multiply-accumulates in INT8": percent(result["macs_int8_fraction"]),
        "SQNR on samples held back": ", ".join(f"{k}: {number(v)} dB" for k, v in sqnr.items()),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def run(result: Mapping[str, Any], folder: Path) -> list[Table]:
    """Draw the summary of a run: an artifact a row, the verdicts, and where the report is."""
    table = _table(
        f"{result['network']['spec']} ({result['network']['weights']})",
        [
            "artifact",
            "kernels",
            "MB/image",
            "SE fused",
            "top-1",
            "same as PyTorch",
            "SQNR dB",
            "p50 ms",
            "parity",
        ],
        right=(1, 2, 4, 5, 6, 7),
    )
    timed = {a["path"]: a for a in result["profile"]["artifacts"]}
    engines = {e["engine"]: e for e in result["build-engines"].values()}
    reference = timed.get(result["parity"]["reference"])
    table.add_row(
        "PyTorch (reference)", "", "", "", percent(result["parity"]["reference_accuracy"]), "", "",
        number(reference["p50_ms"], 4) if reference else "-", "",
    )  # fmt: skip
    for candidate in result["parity"]["candidates"]:
        name = candidate["path"]
        output = candidate["outputs"][0]
        plan = engines[name]["plan"] if name in engines else None
        fused = (
            ""
            if plan is None
            else f"{sum(b['verdict'] == 'fused' for b in plan['blocks'])}/{len(plan['blocks'])}"
        )
        table.add_row(
            name, "" if plan is None else str(plan["kernels"]),
            "" if plan is None else megabytes(plan["activation_bytes"]), fused,
            percent(candidate["accuracy"]), percent(output["top1_agreement"]), number(output["sqnr_db"]),
            number(timed[name]["p50_ms"], 4) if name in timed else "-", passed(candidate["passed"]),
        )  # fmt: skip
    verdicts = _table("Verdicts", ["parity", "fusion", "precision", "latency", "recommendation"])
    v = result["verdicts"]
    verdicts.add_row(
        *(passed(v[name]) for name in ("parity", "fusion", "precision", "latency")), result["recommendation"]
    )
    files = _table("Files", ["report", "folder"])
    files.add_row(str(folder / result["report"]), str(folder))
    return [table, verdicts, files]


def runs(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Draw several runs side by side, an artifact a row."""
    table = _table("Runs", ["run", "artifact", "top-1", "SQNR dB", "p50 ms", "parity"], right=(2, 3, 4))
    for name, report in reports:
        timed = {a["path"]: a for a in report["profile"]["artifacts"]}
        for candidate in report["parity"]["candidates"]:
            path = candidate["path"]
            table.add_row(
                name, path, percent(candidate["accuracy"]), number(candidate["outputs"][0]["sqnr_db"]),
                number(timed[path]["p50_ms"], 4) if path in timed else "-", passed(candidate["passed"]),
            )  # fmt: skip
    return table


def networks(result: Networks) -> Table:
    """Draw the networks that ship."""
    table = _table(
        "SE networks that ship: se_deploy:NAME",
        ["name", "input", "params", "MACs", "SE blocks", "reference"],
        right=(2, 3, 4),
    )
    for row in result.networks:
        table.add_row(
            row.name, "x".join(map(str, row.input_size)), f"{row.params / 1e6:.2f} M",
            f"{row.macs / 1e6:,.0f} M", str(row.blocks), row.reference,
        )  # fmt: skip
    return table


def doctor(result: Doctor) -> list[Table]:
    """Draw what was looked at, and what follows from it."""
    table = _table("This machine", ["what", "state", "detail", "to mend it"])
    style = {"ok": "green", "missing": "yellow", "broken": "red"}
    for check in result.checks:
        state = Text(check.state, style=style[check.state])
        table.add_row(check.name, state, check.detail, check.fix or "")
    follows = _table("What follows", ["", ""])
    follows.add_row("builds", "\n".join(result.can_build) or "nothing")
    follows.add_row("runs", "\n".join(result.can_run) or "nothing")
    return [table, follows]
