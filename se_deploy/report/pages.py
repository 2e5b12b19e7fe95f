"""The HTML pages: one file each, nothing fetched, readable without script, in light and dark, on a phone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from markupsafe import Markup

from se_deploy import extras
from se_deploy.report import facts, plots, tables, units
from se_deploy.report.templating import render
from se_deploy.schema.results import Machine, Network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from se_deploy.report.tables import BlockRow
    from se_deploy.schema.results import Inspect, Run

_NOTHING_DRAWN = "Neither latency nor planned bytes were measured."


def html(report: Run, network_drawing: str | None = None) -> str:
    """Write the page of a `run` or `demo`; what the report does not hold is called not measured.

    `network_drawing` is SVG from `network_svg`; it goes into the page as it is.
    """
    plans = facts.plans(report)
    blocks = tables.block_rows(report.inspect.blocks if report.inspect else (), plans)
    drawn = [plots.waterfall(found, i) for i, found in enumerate(facts.waterfalls(report))]
    return render(
        "run.html.j2",
        {
            "report": report,
            "network": report.network or Network(),
            "machine": report.machine or Machine(),
            "verdicts": facts.verdicts(report),
            "headline": facts.headline(report),
            "disagreements": facts.disagreements(report),
            "network_drawing": None if network_drawing is None else Markup(network_drawing),  # noqa: S704 - made by drawing.py
            "artifacts": facts.artifacts(report),
            "plans": tables.plan_rows(plans),
            "blocks": blocks,
            "reasons": _reasons(blocks),
            "rejected": report.inspect.rejected if report.inspect else (),
            "taxes": tables.tax_rows(report.inspect),
            "timings": facts.timings(report),
            "errors": facts.errors(report),
            "quantize": report.quantize,
            "candidates": facts.candidates(report),
            "worth": facts.worth(report),
            "forms": facts.forms(report),
            "sqnr": facts.sqnr_text(report),
            "input": facts.input_text(report),
            "ranges": facts.ranges(report),
            "rewrites": facts.rewrites(report),
            "refused": facts.refused(report),
            "waterfalls": facts.waterfalls(report),
            "engines": facts.engines(report),
            "notes": (*facts.notes(report), *_left_out()),
            "latency_plot": plots.latency(facts.timings(report)),
            "error_plot": plots.errors(facts.errors(report)),
            "range_plot": plots.ranges(facts.ranges(report)),
            "curve_plot": plots.curve(facts.curve(report)),
            "waterfall_plots": drawn,
        },
    )


def inspect_html(inspection: Inspect, drawings: Mapping[str, str]) -> str:
    """Write the page of `inspect`: its tables, and the graph around each block.

    `drawings` gives SVG from `drawing.block_svg` by the block's output; it goes into the page as it is.
    """
    plans = inspection.plans
    blocks = tables.block_rows(inspection.blocks, plans)
    return render(
        "inspect.html.j2",
        {
            "inspection": inspection,
            "plans": tables.plan_rows(plans),
            "blocks": blocks,
            "reasons": _reasons(blocks),
            "rejected": inspection.rejected,
            "taxes": tables.tax_rows(inspection),
            "widths": tables.width_rows(inspection),
            "skipped": inspection.advice.skipped if inspection.advice else (),
            "manifest": tables.manifest_rows(inspection),
            "drawings": {output: Markup(svg) for output, svg in drawings.items()},  # noqa: S704 - made by drawing.py
            "notes": [facts.Note("inspect", text) for text in inspection.warnings],
        },
    )


def compare_html(reports: Sequence[tuple[str, Run]]) -> str:
    """Write several runs side by side; each is a name, mostly its folder, and its report."""
    names = [name for name, _ in reports]
    artifacts = [{row.name: row for row in facts.artifacts(report)} for _, report in reports]
    rows = list(dict.fromkeys(path for run in artifacts for path in run))
    timed = [{facts.timing_label(t): t.p50_ms for t in facts.timings(report)} for _, report in reports]
    planned = [{p.label: p for p in tables.plan_rows(facts.plans(report))} for _, report in reports]
    labels = list(dict.fromkeys(label for run in timed for label in run))
    plans = list(dict.fromkeys(label for run in planned for label in run))
    machines = {
        (report.machine.cpu, report.machine.platform) if report.machine else None for _, report in reports
    }
    versions = [report.machine.packages if report.machine else {} for _, report in reports]
    packages = sorted({name for run in versions for name in run})
    return render(
        "compare.html.j2",
        {
            "names": names,
            "facts": _facts([report for _, report in reports]),
            "gates": facts.GATES,
            "verdicts": [{v.gate: v.passed for v in facts.verdicts(report)} for _, report in reports],
            "artifacts": artifacts,
            "paths": rows,
            "planned": planned,
            "plan_labels": plans,
            "versions": versions,
            "differing": [name for name in packages if len({run.get(name) for run in versions}) > 1],
            "notes": [(*facts.notes(report), *_left_out()) for _, report in reports],
            "several_machines": len(machines) > 1,
            "no_plots": _NOTHING_DRAWN if plots.available() else _left_out()[0].text,
            "plots": [
                plots.groups(
                    "compare-latency",
                    "Latency, p50",
                    "Fewer milliseconds are better.",
                    "ms per batch",
                    {
                        label: {n: run.get(label) for n, run in zip(names, timed, strict=True)}
                        for label in labels
                    },
                ),
                plots.groups(
                    "compare-bytes",
                    "Planned activation bytes",
                    "Bytes are planned, not timed: what each compiler's plan reads and writes per image.",
                    "MB per image",
                    {
                        label: {
                            n: units.mega(run[label].activation_bytes) if label in run else None
                            for n, run in zip(names, planned, strict=True)
                        }
                        for label in plans
                    },
                ),
            ],
        },
    )


def _left_out() -> tuple[facts.Note, ...]:
    """Return the note of a page without plots; none where they were drawn."""
    if plots.available():
        return ()
    hint = extras.INSTALL["matplotlib"]
    return (facts.Note("report", f"the plots were left out, matplotlib is not installed: {hint}"),)


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return what each run was of and on, a row for each fact, a text for each run."""
    networks = [run.network or Network() for run in runs]
    machines = [run.machine or Machine() for run in runs]
    words: list[tuple[str, list[str | None]]] = [
        ("Network", [network.spec for network in networks]),
        ("Weights", [network.weights for network in networks]),
        ("Date", [run.date for run in runs]),
        ("Tool version", [run.tool_version for run in runs]),
        ("Command", [run.command for run in runs]),
        ("Processor", [machine.cpu for machine in machines]),
        ("Machine", [machine.platform for machine in machines]),
        ("Recommendation", [run.recommendation for run in runs]),
    ]
    return [
        *((label, [units.word(text) for text in texts]) for label, texts in words),
        ("Parameters", [units.amount(network.params) for network in networks]),
        ("SE blocks", [str(len(run.inspect.blocks)) if run.inspect else "0" for run in runs]),
    ]


def _reasons(blocks: Sequence[BlockRow]) -> list[tuple[str, str, int]]:
    """Count each reason of each plan over the blocks: (plan, reason, blocks), the most frequent first."""
    counts = Counter(
        (verdict.plan, reason)
        for block in blocks
        for verdict in block.verdicts
        if verdict is not None and verdict.found.verdict != "fused"
        for reason in dict.fromkeys(verdict.found.reasons)
    )
    return [(plan, reason, times) for (plan, reason), times in counts.most_common()]
