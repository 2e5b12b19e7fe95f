"""A sweep as its page gets it: two targets, a failed cell, names that would be markup."""

from __future__ import annotations

from se_deploy.commands import sweep_choice
from se_deploy.schema.sweep import Sweep, SweepArtifact, SweepCell, SweepNode, SweepStep


def artifact(precision, ms, accuracy, **rest):
    return SweepArtifact(
        path=f"model.{precision}.engine", precision=precision, ms=ms, accuracy=accuracy, sqnr_db=40.0,
        **{"kernels": 9, "ms_from": "planned", "passed": True, "activation_bytes": 28_000, **rest},
    )  # fmt: skip


def cell(model, precision, target, *artifacts, **rest):
    folder = f"cells/{model}/{precision}-{target}"
    steps = tuple(
        SweepStep(name=name, node=node, seconds=2.5, attempts=1)
        for name, node in (("export, quantize", "desk"), ("build-engine, profile", target))
    )
    known = {
        "state": "done", "reason": None, "report": f"{folder}/report.html", "steps": steps,
        "warnings": ("not timed",),
    }  # fmt: skip
    return SweepCell(
        model=model, precision=precision, target=target, batch="dynamic", folder=folder, key="k",
        artifacts=artifacts, **(known | rest),
    )  # fmt: skip


CELLS = (
    cell("one", "fp16", "sm86", artifact("fp16", 1.0, 0.81)),
    cell(
        "one",
        "int8",
        "sm86",
        artifact("fp16", 1.0, 0.81),
        artifact("int8", 0.6, 0.805, ms_from="measured"),
        recommended="model.fp16.engine",
    ),
    cell("<b>two</b> & 'more'", "fp16", "sm86", artifact("fp16", 2.0, 0.85, passed=False)),
    cell("two", "fp16", "orin-nano", artifact("fp16", 3.0, 0.85)),
    cell("two", "int8", "orin-nano", state="failed", reason="no <data>", hint="give some", report=None),
)


def sweep(cells=CELLS):
    return Sweep(
        tool_version="0.1.0", warnings=(), cells=cells, report="report.html", csv="sweep.csv", on="ray",
        done=4, cached=0, failed=1, seconds=12.0, recommended=sweep_choice.choices(cells),
        nodes=(SweepNode(name="desk", tags=("sm86",)),), command="se-deploy sweep sweep.toml -o out",
        date="2026-11-27T12:00:00+00:00",
    )  # fmt: skip
