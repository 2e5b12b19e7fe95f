"""A run in a few lines of Markdown: for a pull request's comment or a CI job's summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.report import facts, tables, units

if TYPE_CHECKING:
    from se_deploy.schema.results import Run

_STATES = {True: "passed", False: "**failed**", None: "not judged"}


def markdown(report: Run) -> str:
    """Write the network, the verdicts, a table of the artifacts, the advice and the warnings."""
    lines = [f"## se-deploy: {_cell(units.word(report.network.spec if report.network else None))}", ""]
    lines += ["Verdicts: " + ", ".join(f"{v.gate} {_STATES[v.passed]}" for v in facts.verdicts(report)), ""]
    blocks = report.inspect.blocks if report.inspect else ()
    lines += [f"SE blocks: {len(blocks)}" if blocks else "SE blocks: none found", ""]
    for plan in tables.plan_rows(facts.plans(report)):
        counted = ", ".join(f"{times} {verdict}" for verdict, times in plan.verdicts if times)
        lines.append(
            f"- {_cell(plan.label)}: {units.count(plan.kernels, 'kernel')}, "
            f"{units.size(plan.activation_bytes)} planned per image; {counted or 'no block judged'}"
        )
    artifacts = facts.artifacts(report)
    if artifacts:
        head = ("artifact", "precision", "size", "top-1 accuracy", "SQNR", "p50", "speed-up")
        lines += ["", _row(head), _row(["---"] * len(head))]
        lines += [
            _row(
                [
                    row.name,
                    units.word(row.precision),
                    units.size(row.size_bytes),
                    units.percent(row.accuracy),
                    units.decibel(row.sqnr_db),
                    units.UNSTABLE if row.unstable else units.milliseconds(row.p50_ms),
                    units.UNSTABLE if row.unstable else units.factor(row.speedup),
                ]
            )
            for row in artifacts
        ]
    if report.recommendation:
        lines += ["", f"Recommendation: {_cell(report.recommendation)}"]
    notes = facts.notes(report)
    if notes:
        lines += ["", "What could not be checked, and warnings:", ""]
        lines += [f"- {_cell(note.source)}: {_cell(note.text)}" for note in notes]
    return "\n".join(lines) + "\n"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Keep a name from ending a cell or starting a tag."""
    for plain, safe in (("\\", "\\\\"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(plain, safe)
    for mark in "|`*[":
        text = text.replace(mark, f"\\{mark}")
    return text
