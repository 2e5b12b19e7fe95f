"""Tables of what was measured and held to a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.report.units import agreements
from se_deploy.tables.base import add, number, passed, percent, titled

if TYPE_CHECKING:
    from se_deploy.schema import results
    from se_deploy.tables.base import Grid


def parity(result: results.Parity) -> Grid:
    """Return one row per candidate and output."""
    table = titled(
        f"Parity with {result.reference}",
        [
            "candidate",
            "preset",
            "output",
            "max abs",
            "max rel",
            "cosine",
            "SQNR dB",
            "same",
            "accuracy",
            "verdict",
        ],
        right=(3, 4, 5, 6, 7, 8),
        spare=(4, 5, 1, 2),
    )
    for candidate in result.candidates:
        for output in candidate.outputs:
            add(table,
                candidate.path, candidate.preset, output.name, number(output.max_abs),
                number(output.max_rel), number(output.cosine, 6), number(output.sqnr_db),
                "\n".join(agreements(output)), percent(candidate.accuracy), passed(output.passed),
            )  # fmt: skip
    rounded = [f"{c.path}: {c.rounding}" for c in result.candidates if c.rounding]
    table.caption = "\n".join(rounded)
    return table


def profile(result: results.Profile) -> Grid:
    """Return one row per artifact."""
    table = titled(
        "Latency (ms per call)",
        ["artifact", "runtime", "device", "batch", "p50", "p90", "p99", "per second", "speed-up", "stable"],
        right=(3, 4, 5, 6, 7, 8),
        spare=(2, 5, 6, 1),
    )
    for a in result.artifacts:
        add(table,
            a.path, a.runtime, a.device, str(a.batch), number(a.p50_ms, 4),
            number(a.p90_ms, 4), number(a.p99_ms, 4), number(a.throughput_per_s, 4),
            "-" if a.speedup_vs_reference is None else f"{a.speedup_vs_reference:.2f}x",
            "yes" if a.stable else "no",
        )  # fmt: skip
    return table


def checked(result: results.Check) -> Grid:
    """Return a row per gate and file: what was measured, or why it failed."""
    table = titled(f"Gates of {result.config}", ["gate", "file", "", "measured"])
    for gate in result.gates:
        add(table, gate.gate, gate.name, passed(gate.passed), "\n".join(gate.details))
    return table
