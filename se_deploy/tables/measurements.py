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


def costs(result: results.Profile) -> Grid:
    """Return one row per artifact: what its calls cost besides the device's time."""
    table = titled(
        "Around the device's time (ms per call)",
        ["artifact", "batch", "end to end", "launch", "copy in", "copy out", "CUDA graph", "SE blocks",
         "W", "mJ per image", "streams", "per second"],
        right=(1, 2, 3, 4, 5, 7, 8, 9, 10, 11),
        spare=(10, 11, 6, 4, 5),
    )  # fmt: skip
    for a in result.artifacts:
        recorded = None if a.cuda_graph is None else "yes" if a.cuda_graph else "no"
        add(table,
            a.path, str(a.batch), number(a.end_to_end_ms, 4), number(a.enqueue_ms, 3), number(a.h2d_ms, 3),
            number(a.d2h_ms, 3), recorded, percent(a.se_share), number(a.power_w, 3),
            number(a.energy_mj, 3), None if a.streams is None else str(a.streams),
            number(a.streams_throughput_per_s, 4),
        )  # fmt: skip
    return table


def profiled(result: results.Profile) -> list[Grid]:
    """Return the latencies, and what surrounds them."""
    return [profile(result), costs(result)]


def checked(result: results.Check) -> Grid:
    """Return a row per gate and file: what was measured, or why it failed."""
    table = titled(f"Gates of {result.config}", ["gate", "file", "", "measured"])
    for gate in result.gates:
        add(table, gate.gate, gate.name, passed(gate.passed), "\n".join(gate.details))
    return table
