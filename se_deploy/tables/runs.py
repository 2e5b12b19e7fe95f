"""Tables of whole runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.schema import results
from se_deploy.tables.base import add, megabytes, number, passed, percent, titled
from se_deploy.tables.graphs import unfused

if TYPE_CHECKING:
    from pathlib import Path

    from se_deploy.tables.base import Grid


def run(result: results.Run, folder: Path) -> list[Grid | str]:
    """Return the summary of a run: what to deploy, then an artifact a row, the verdicts, the report.

    Blocks that the deployed engine does not fuse are listed with their cause.
    """
    v = result.verdicts or results.Verdicts()
    verdicts = {"parity": v.parity, "fusion": v.fusion, "precision": v.precision, "latency": v.latency}
    said = ", ".join(f"{name} {_verdict(value)}" for name, value in verdicts.items())
    recommended = result.recommendation or "none"
    return [
        f"Recommendation: {recommended}",
        _artifacts(result),
        f"Verdicts: {said}",
        *(unfused([result.build_engine.plan]) if result.build_engine else ()),
        f"Report: {folder / result.report}",
    ]


def _verdict(value: bool | None) -> str:
    return "not judged" if value is None else "pass" if value else "FAIL"


def _artifacts(result: results.Run) -> Grid:
    network = result.network or results.Network(spec="")
    table = titled(
        f"{network.spec} ({network.weights})",
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
        spare=(2, 7, 5),
    )
    timed = _timed(result)
    engines = {e.engine: e for e in result.build_engines.values()}
    parity = result.parity
    if parity is None:
        return table
    add(table,
        "PyTorch (reference)", "", "", "", percent(parity.reference_accuracy), "", "",
        _p50(timed, parity.reference), "",
    )  # fmt: skip
    for candidate in parity.candidates:
        name = candidate.path
        output = candidate.outputs[0]
        plan = engines[name].plan if name in engines else None
        fused = "" if plan is None else f"{sum(b.verdict == 'fused' for b in plan.blocks)}/{len(plan.blocks)}"
        add(table,
            name, "" if plan is None else str(plan.kernels),
            "" if plan is None else megabytes(plan.activation_bytes), fused,
            percent(candidate.accuracy), percent(output.top1_agreement), number(output.sqnr_db),
            _p50(timed, name), passed(candidate.passed),
        )  # fmt: skip
    return table


def side_by_side(report: results.Report) -> Grid:
    """Return several runs, an artifact a row."""
    table = titled("Runs", ["run", "artifact", "top-1", "SQNR dB", "p50 ms", "parity"], right=(2, 3, 4))
    for run in report.runs:
        timed = _timed(run)
        for candidate in run.parity.candidates if run.parity else ():
            add(table,
                str(run.folder), candidate.path, percent(candidate.accuracy),
                number(candidate.outputs[0].sqnr_db), _p50(timed, candidate.path), passed(candidate.passed),
            )  # fmt: skip
    return table


def _timed(run: results.Run) -> dict[str, results.Timing]:
    return {timing.path: timing for timing in run.profile.artifacts} if run.profile else {}


def _p50(timed: dict[str, results.Timing], path: str | None) -> str:
    """Return the median; an unstable timing is no figure to rely on."""
    if path not in timed:
        return "-"
    return number(timed[path].p50_ms, 4) if timed[path].stable else "unstable"
