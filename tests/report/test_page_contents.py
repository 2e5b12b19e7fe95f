import re
from pathlib import Path

import needs
import pytest
import sample
from msgspec.structs import replace
from page_reading import Page, draw_nothing, empty, sampled

from se_deploy import comparison, report
from se_deploy.report import facts, plots, tables, units
from se_deploy.schema import results
from se_deploy.schema.common import WaterfallStep


@pytest.mark.parametrize("tensors", [3, 24, 25, 400])
@pytest.mark.parametrize("clipped", [True, False])
@needs.PLOTS
def test_ranges_are_drawn_however_many_and_however_known(tensors, clipped):
    found = [
        results.Range(
            tensor=f"t{i}", low=-1.0 - i, high=900.0 if i == 2 else 2.0, threshold=1.5 if clipped else None
        )
        for i in range(tensors)
    ]
    plot = plots.ranges(found)
    assert ("t0" in plot.svg) is (tensors <= 24)
    assert ("clips" in plot.caption) is clipped
    assert "$" not in plot.svg


def test_taxes_come_from_each_plan_or_from_the_whole():
    inspection = sampled().inspect
    (whole,) = tables.tax_rows(inspection)
    assert (whole.label, whole.totals.without_se.kernels) == ("ONNX Runtime 1.31.1 cpu fp32", 23)
    plans = tuple(replace(plan, totals=inspection.totals) for plan in inspection.plans * 2)
    assert len(tables.tax_rows(replace(inspection, plans=plans))) == 2


def advice_of(output):
    return {
        "output": output,
        "hidden": 4,
        "effective_rank": 2.31,
        "dead": [3],
        "constant": (),
        "removable": [3],
        "gate_mean": 0.48,
        "gate_std": 0.11,
        "gates_shut": 0,
        "gates_open": 5,
        "gates_constant": 2,
        "widths": [
            {"hidden": 3, "mean_gate_error": 0.001, "max_gate_error": 0.02},
            {"hidden": 1, "mean_gate_error": 0.0137, "max_gate_error": 0.2},
        ],
        "suggested": 1,
    }


def test_what_the_data_says_of_widths_is_shown():
    advice = [advice_of("mul_35"), {"output": "mul_68"}]
    skipped = [{"output": "mul_70", "reason": "it has one learned layer: no hidden units"}]
    fields = sample.report()["inspect"] | {"advice": {"blocks": advice, "skipped": skipped}}
    given = sample.typed(fields, "inspect")
    first, second = tables.width_rows(given)
    assert (first.idle, first.suggested.hidden, first.suggested.mean_gate_error) == (1, 1, 0.0137)
    assert (second.advice.hidden, second.suggested) == (None, None)
    words = Page(report.inspect_html(given, {})).words
    assert "mul_35 4 1 2.31" in words
    assert "it has one learned layer" in words


def test_an_engine_shows_its_manifest():
    manifest = {
        "schema": "se-deploy/manifest/1",
        "engine": "net.engine",
        "engine_sha256": "eb41",
        "engine_bytes": 68,
        "onnx": "net.engine.onnx",
        "onnx_sha256": "0a",
        "precision": "fp16",
        "requested_precision": "fp16",
        "shapes": {"input": {"min": [1, 1, 32, 32], "opt": [1, 1, 32, 32], "max": [16, 1, 32, 32]}},
        "runtime": "tensorrt-rtx",
        "version": "1.7",
        "targets": ["sm80", "sm86"],
        "trtexec": "tensorrt_rtx",
        "host": {"machine": "x86_64"},
        "tool_version": "0.1.0",
        "calibration_sha256": None,
        "plan": sample.plan("tensorrt-rtx", "sm86", "fp16", kernels=3, megabytes=1),
    }
    fields = sample.head("inspect") | {"file": "net.engine", "manifest": manifest}
    fields |= {"blocks": [], "rejected": [], "plans": []}
    page = Page(report.inspect_html(sample.typed(fields, "inspect"), {}))
    assert "engine sha256 eb41" in page.words
    assert "input min 1x1x32x32; opt 1x1x32x32; max 16x1x32x32" in page.words
    assert "sm80, sm86" in page.words
    assert "calibration" not in page.words
    assert "No graph was drawn" not in page.words


def test_the_graph_behind_an_engine_is_no_artifact_of_its_own():
    given = sample.report()
    given["artifacts"]["fp16_engine_onnx"] = "model.fp16.engine.onnx"
    given["build-engines"]["fp16"]["onnx"] = "model.fp16.engine.onnx"
    assert [row.name for row in facts.artifacts(sample.typed(given))] == [
        row.name for row in facts.artifacts(sampled())
    ]


@pytest.mark.parametrize(("count", "folded"), [(20, False), (21, True)])
def test_a_long_block_table_is_folded(count, folded):
    given = sample.head("inspect") | {"blocks": sample.blocks(count), "rejected": [], "plans": []}
    given = sample.typed(given, "inspect")
    assert (f"SE blocks ({count})" in Page(report.inspect_html(given, {})).words) is folded


def test_a_block_that_only_a_plan_knows_is_shown():
    plan = sample.plan("tensorrt-rtx", "sm86", "fp16", kernels=9, megabytes=1)
    given = sample.head("inspect") | {"blocks": sample.blocks(2), "rejected": [], "plans": [plan]}
    given = sample.typed(given, "inspect")
    rows = tables.block_rows(given.blocks, given.plans)
    assert len(rows) == 9
    assert rows[8].block is None
    assert "not in the census" in Page(report.inspect_html(given, {})).words


def test_a_warning_that_two_stages_repeat_is_one_note():
    notes = [note for note in facts.notes(sampled()) if note.text.startswith("power was not measured")]
    assert [note.source for note in notes] == ["profile"]


def test_a_stand_in_that_is_also_a_warning_is_one_note():
    given = sample.report()
    said = given["parity"]["candidates"][3]["checked_as"]
    given["parity"]["warnings"] = given["warnings"] = [f"model.fp16.engine: {said}"]
    assert [note.source for note in facts.notes(sample.typed(given)) if said in note.text] == [
        "model.fp16.engine"
    ]


def test_where_an_fp16_file_is_rounded_is_a_note():
    given = sample.report()
    before = report.html(sample.typed(given)).count("see note")
    given["parity"]["candidates"][1]["rounding"] = "rounded at every FP16 tensor"
    assert report.html(sample.typed(given)).count("see note") == before + 1
    notes = [note for note in facts.notes(sample.typed(given)) if "rounded at every FP16 tensor" in note.text]
    assert [note.source for note in notes] == ["model.fp16.onnx"]


def test_a_gate_that_was_not_judged_is_a_note():
    assert [
        note.source for note in facts.notes(replace(empty(), verdicts=results.Verdicts(parity=True)))
    ] == list(facts.GATES[1:])


def test_a_waterfall_ends_at_the_engine_that_was_built():
    given = sample.report()
    given["build-engines"]["int8"]["waterfall"] = given["build-engines"]["fp16"]["waterfall"]
    half, whole = facts.waterfalls(sample.typed(given))
    assert half.steps[-1].rewrite == "built as fp16"
    assert whole.steps[-1] == WaterfallStep(
        rewrite="built as int8", block=None, kernels=78, activation_bytes=1_921_000
    )
    given["build-engines"]["fp16"]["plan"] |= {
        "kernels": 59,
        "activation_bytes": half.steps[-2].activation_bytes,
    }
    assert facts.waterfalls(sample.typed(given))[0].steps[-1].rewrite == "input as NHWC"


@pytest.mark.parametrize("where", ["quantize", "engine"])
def test_whether_int8_is_worth_it_is_said_wherever_it_was_found(monkeypatch, where):
    draw_nothing(monkeypatch)
    given = sample.report()
    found = given["quantize"].pop("worth")
    if where == "quantize":
        given["quantize"]["worth"] = found
    else:
        given["build-engines"]["int8"]["worth"] = found
    assert (
        "FP16 is recommended: the INT8 plan moves 34 % more bytes"
        in Page(report.html(sample.typed(given))).words
    )


def test_both_forms_of_int8_stand_beside_each_other_where_both_were_planned(monkeypatch):
    draw_nothing(monkeypatch)
    given = sample.report()
    alone = facts.forms(sample.typed(given))
    given["build-engines"]["int8"]["worth"] = {
        **given["quantize"]["worth"],
        "int8_kernels": 66,
        "int8_bytes": 1_390_000,
        "int8_ms": 0.067,
    }
    typed = sample.typed(given)
    near = {row.name: row.sqnr_db for row in facts.artifacts(typed)}
    deployed, portable = facts.forms(typed)
    assert alone == (), "the deployed form was not weighed"
    assert (deployed.name, deployed.path) == ("deployed", given["build-engines"]["int8"]["engine"])
    assert (deployed.int8_kernels, deployed.int8_bytes, deployed.int8_ms) == (66, 1_390_000, 0.067)
    assert (portable.name, portable.path) == ("portable", given["quantize"]["onnx"])
    assert (portable.int8_kernels, portable.int8_ms) == (78, None)
    assert [form.sqnr_db for form in (deployed, portable)] == [near.get(f.path) for f in (deployed, portable)]
    words = Page(report.html(typed)).words
    assert "Form File SQNR Kernels Bytes per image Roofline" in words
    assert f"portable {portable.path}" in words


@needs.PLOTS
def test_energy_has_a_column_where_one_artifact_has_it(monkeypatch, page):
    draw_nothing(monkeypatch)
    assert "Power and energy were not measured" in page.words
    given = sample.report()
    given["profile"]["artifacts"][2] |= {"power_w": 11.25, "energy_mj": 20.4}
    words = Page(report.html(sample.typed(given))).words
    assert "11.2 W 20.4 mJ" in words
    assert "Power and energy were not measured" not in words


def test_an_unstable_timing_is_no_headline_and_no_speed_up():
    given = sample.report()
    given["profile"]["artifacts"][1]["stable"] = False
    row = next(a for a in facts.artifacts(sample.typed(given)) if a.name == "model.onnx")
    assert (row.unstable, row.p50_ms, row.speedup) == (True, None, None)
    headline = report.html(sample.typed(given)).split('id="summary"')[1].split("</table>")[0]
    assert headline.count("unstable") == 2
    assert "6.7\N{MULTIPLICATION SIGN}" not in headline


@needs.PLOTS
def test_an_unstable_timing_says_so_beside_its_bar():
    given = sample.report()
    given["profile"]["artifacts"][1]["stable"] = False
    assert plots.latency(facts.timings(sample.typed(given))).svg.count("unstable") == 1


def test_numbers_that_are_none_are_never_shown_as_numbers():
    for name, write in units.FILTERS.items():
        for value in (None, float("nan"), float("inf")) if name != "word" else (None, ""):
            assert write(value) in {units.MISSING, "not known"}


def test_identical_is_said_where_the_comparison_stops_counting():
    assert comparison.IDENTICAL_DB == units.IDENTICAL_DB
    assert units.decibel(comparison.IDENTICAL_DB) == "identical"


def deployed(**fields):
    """A report whose verdicts are of the FP16 engine; `fields` of its candidate."""
    given = sample.report()
    engine = given["build-engine"]["engine"]
    for one in given["parity"]["candidates"]:
        if one["path"] == engine:
            one.update(fields)
    return given


def test_the_page_begins_with_what_the_run_comes_to():
    said = dict(facts.headline(sample.typed(deployed(accuracy=0.982))))
    plan = sample.report()["build-engine"]["plan"]
    assert said["Engine"] == "model.fp16.engine"
    assert said["Accuracy"] == "top-1 98.20 % (-1.00 points)"
    assert said["Verdict"] == "parity passed"
    assert said["Planned, not timed"].startswith(f"{plan['kernels']} kernels, ")
    assert dict(facts.headline(sample.typed(deployed(passed=False))))["Verdict"] == "parity failed"
    unlabelled = facts.headline(sample.typed(deployed(accuracy=None)))
    assert dict(unlabelled)["Accuracy"] == "100.00 % of the answers as before"
    assert facts.headline(empty()) == ()


def test_samples_that_are_answered_otherwise_are_shown():
    picture = "data:image/png;base64,AAAA"
    given = deployed(
        disagreements=[
            {"sample": 7, "reference": 1, "candidate": 9, "margin": 2.5, "picture": picture},
            {"sample": 3, "reference": 0, "candidate": 1, "picture": "data:text/html,x"},
        ]
    )
    given["network"]["input"]["labels"] = ["zero", "one"]
    page = Page(report.html(sample.typed(given)))
    assert "sample 7: one, here 9" in page.words
    assert "sample 3: zero, here one" in page.words
    assert [attrs["src"] for tag, attrs in page.tags if tag == "img"] == [picture]


def test_long_times_are_written_out():
    written = [
        f"{path.name}: {line.strip()}"
        for path in Path(units.__file__).parents[1].rglob("*.py")
        if path != Path(units.__file__)
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"\.\dg\} ?ms\b", line)
    ]
    assert not written, "1.463e+04 ms is no time that people read: units.milliseconds writes it"
    assert units.milliseconds(14630.4) == "14\N{NARROW NO-BREAK SPACE}630 ms"
    assert units.milliseconds(0.0123456) == "0.0123 ms"
    assert (units.count(1, "kernel"), units.count(4, "kernel")) == ("1 kernel", "4 kernels")
