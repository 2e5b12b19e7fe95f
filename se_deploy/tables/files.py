"""Tables of the commands that write files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.errors import counted
from se_deploy.tables.base import add, megabytes, number, percent, titled
from se_deploy.tables.graphs import unfused

if TYPE_CHECKING:
    from se_deploy.schema import results
    from se_deploy.tables.base import Grid


def exported(result: results.Export) -> Grid:
    """Return what `export` did."""
    table = titled(f"Exported {result.onnx}", ["", ""])
    rows = {
        "precision": result.precision,
        "opset": str(result.opset),
        "nodes": f"{result.nodes_before} -> {result.nodes_after}",
        "SE blocks": str(len(result.blocks)),
        "rewrites": ", ".join(f"{name} x{count}" for name, count in result.rewrites if count) or "none",
        "largest error against the source": number(result.max_abs_error),
    }
    for name, value in rows.items():
        add(table, name, value)
    return table


def quantized(result: results.Quantize) -> Grid:
    """Return what `quantize` did."""
    table = titled(f"Quantized {result.onnx}", ["", ""])
    sqnr = result.sqnr_db
    rows = {
        "policy": result.policy,
        "method": result.method,
        "calibration samples": str(result.samples),
        "tensors in INT8": str(len(result.quantized)),
        "layers kept": str(len(result.kept)),
        "multiply-accumulates in INT8": percent(result.macs_int8_fraction),
        "INT8 chain by TensorRT's published rules": _chain(result.chain),
        "INT8 against FP16": result.worth.reason if result.worth else f"not known: {result.worth_unknown}",
        **_reconstructed(result.reconstruction),
        "SQNR on samples held back": ", ".join(f"{k}: {number(v)} dB" for k, v in sqnr.items()),
    }
    for name, value in rows.items():
        add(table, name, value)
    return table


def _reconstructed(found: results.Reconstruction | None) -> dict[str, str]:
    if found is None:
        return {}
    blocks = f"{sum(block.kept for block in found.blocks)} of {counted(len(found.blocks), 'block')} better"
    change = f"{number(found.before_db)} -> {number(found.after_db)} dB"
    reasons = dict.fromkeys(block.reason for block in found.blocks if block.reason is not None)
    untried = sum(block.reason is not None for block in found.blocks)
    why = f"; {untried} not tried: {'; '.join(reasons)}" if untried else ""
    return {"reconstruction": f"{blocks}, {change}, {'kept' if found.kept else 'not kept'}{why}"}


def _chain(found: results.Chain | None) -> str:
    if found is None:
        return "-"
    whole = f"{found.unbroken} of {counted(found.int8_layers, 'layer')} unbroken"
    share = found.int8_bytes_fraction
    return whole if share is None else f"{whole}, {percent(share)} of activation bytes in INT8"


def built(result: results.BuildEngine) -> list[Grid]:
    """Return what `build-engine` built, and why blocks are not fused."""
    plan = result.plan
    table = titled(f"Built {result.engine}", ["", ""])
    fused = sum(b.verdict == "fused" for b in plan.blocks)
    rows = {
        "compiler": f"{plan.runtime} {plan.version} for {plan.target}",
        "precision": f"{result.found_precision} (asked for: {result.requested_precision})",
        "kernels": str(plan.kernels),
        "activations": f"{megabytes(plan.activation_bytes)} MB per image (planned, not timed)",
        "SE blocks fused": f"{fused} of {len(plan.blocks)}",
        "built in": f"{result.seconds:.1f} s",
        "manifest": result.manifest,
    }
    for name, value in rows.items():
        add(table, name, value)
    return [table, *unfused([plan])]


def bundled(result: results.Bundle) -> Grid:
    """Return the files of a bundle."""
    table = titled(f"{counted(len(result.files), 'file')} in {result.folder}", ["file"])
    for name in result.files:
        add(table, name)
    return table


def dry_run(result: results.DryRun) -> list[Grid]:
    """Return the steps that a command would take, and what it would write."""
    steps = titled(f"{result.command} would", ["", ""], right=(0,))
    for n, step in enumerate(result.steps, 1):
        add(steps, str(n), step)
    writes = titled("and write", [""])
    for path in result.writes:
        add(writes, path)
    return [steps, writes]
