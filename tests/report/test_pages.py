import base64
import copy
import hashlib
import html as escapes
import re
import subprocess
import sys
from html.parser import HTMLParser

import needs
import pytest
import sample
from markupsafe import Markup
from msgspec.structs import replace

from se_deploy import comparison, report
from se_deploy.errors import BadInput
from se_deploy.report import facts, plots, tables, units
from se_deploy.schema import results
from se_deploy.schema.common import WaterfallStep

VOID = {"meta", "br", "link", "img", "input", "hr"}
PLOTS = {"latency", "errors", "ranges", "waterfall-0", "curve"}


class Page(HTMLParser):
    """A page's tags, ids and text; fails on markup that does not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.text, self.references = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        self.references += [v for k, v in attrs if k in {"src", "href", "data", "action", "srcset", "poster"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def full():
    return report.html(sampled())


@pytest.fixture(scope="module")
def page(full):
    return Page(full)


def pages_of(given):
    """Every page that the package writes, with `given` in it."""
    run = sample.typed(given)
    inspection = replace(run.inspect, warnings=run.warnings)
    return [
        report.html(run),
        report.inspect_html(inspection, {}),
        report.compare_html([("first", run), ("second", run)]),
    ]


def plots_in(page):
    return {
        attrs["aria-labelledby"].split()[0].removesuffix("-title") for t, attrs in page.tags if t == "svg"
    }


def without(*path):
    """The sample with one of its keys gone."""
    given = sample.report()
    inner = given
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return given


@needs.PLOTS
def test_a_whole_report_shows_every_plot_and_section(page):
    assert plots_in(page) == PLOTS
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == [
        "summary",
        "blocks",
        "latency",
        "parity",
        "rewrites",
        "int8",
        "unchecked",
        "reproduce",
    ]
    assert len(set(page.ids)) == len(page.ids)


@pytest.mark.parametrize(
    "words",
    [
        "parity: passed", "fusion: failed", "latency: not judged",
        "se_deploy:se_resnet20", "277 k", "1.90 MB", "99.10 %", "33.7 dB", "6.83 ms",
        "6.70\N{MULTIPLICATION SIGN}", "copy NHWC to NCHW before ReduceMean: respell the squeeze",
        "layer2.1.se.scaled", "7 fused", "2 split",
        "its gate has another source", "+157 %", "fold_batch_norm",
        "Why rewrites were not possible (1 reasons)", "no pooling",
        pytest.param("Bytes are planned, not timed", marks=needs.PLOTS), "mse, 128 samples", "99.81 %",
        "checked through its ONNX file model.int8.onnx", "no GPU on this machine: the engines were not timed",
        "se-deploy demo -o out/", "AMD EPYC 9R14", "2.14.1", "Deploy model.fp16.engine",
    ],
)  # fmt: skip
def test_a_whole_report_says(page, words):
    assert words in page.words


def sampled():
    return sample.typed(sample.report())


def draw_nothing(monkeypatch):
    """Keep which plots there are, without drawing each of hundreds."""

    def stub(name, title, caption, *_, **__):
        return plots.Plot(name, title, caption, Markup(f'<svg aria-labelledby="{name}-title"></svg>'))  # noqa: S704

    monkeypatch.setattr(plots, "_plot", stub)


@pytest.mark.parametrize(
    ("path", "gone", "said"),
    [
        (("profile",), {"latency"}, "Latency was not measured"),
        (("parity",), {"errors"}, "Parity was not measured"),
        (("quantize", "curve"), {"curve"}, ""),
        (("quantize", "ranges"), {"ranges"}, ""),
        (("quantize",), {"curve", "ranges"}, "The network was not quantized"),
        (("build-engines", "fp16", "waterfall"), {"waterfall-0"}, "brought in the plan was not measured"),
        (("verdicts",), set(), "fusion: not judged"),
        (("machine",), set(), "Processor not known"),
        (("network",), set(), "not known"),
        (("inspect",), set(), "9 fused"),
        (("sizes",), set(), "not measured"),
        (("export",), set(), "No rewrite was recorded"),
    ],
)
def test_what_is_missing_takes_its_plot_away_and_nothing_else(monkeypatch, path, gone, said):
    draw_nothing(monkeypatch)
    page = Page(report.html(sample.typed(without(*path))))
    assert plots_in(page) == PLOTS - gone
    assert said in page.words


def paths_of(value, depth=4):
    """Every key of nested objects, and of the first object of each list."""
    if isinstance(value, list) and value:
        yield [0]
        yield from ([0, *rest] for rest in paths_of(value[0], depth))
    if isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield [key]
            yield from ([key, *rest] for rest in paths_of(inner, depth - 1))


def read(given):
    """The report, or what is said of a file that is none."""
    try:
        return sample.typed(given), None
    except BadInput as e:
        return None, e.message


def test_a_key_that_is_gone_is_not_measured_or_named(monkeypatch):
    draw_nothing(monkeypatch)
    needed = set()
    for path in paths_of(sample.report(), depth=5):
        for value in ("missing", None) if len(path) < 3 else (None,):
            given = sample.report()
            inner = given
            for key in path[:-1]:
                inner = inner[key]
            if value is None:
                inner[path[-1]] = None
            elif isinstance(inner, dict):
                del inner[path[-1]]
            run, refusal = read(given)
            if run is None:
                needed.add(path[0])
                assert str(path[-1]) in refusal, path
                continue
            assert "</html>" in report.html(run), path
            assert report.markdown(run), path
            assert report.junit(run), path
    assert {"schema", "report", "artifacts"} < needed
    assert not {"command", "date", "recommendation"} & needed


STAGES = (
    "export",
    "inspect",
    "quantize",
    "build-engine",
    "parity",
    "profile",
    "verdicts",
    "network",
    "machine",
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_may_be_missing_or_null(monkeypatch, stage):
    draw_nothing(monkeypatch)
    for given in (without(stage), sample.report() | {stage: None}):
        assert "</html>" in report.html(sample.typed(given))


EMPTY = {"schema": "se-deploy/run/1", "tool_version": "0.1.0", "warnings": [], "report": "", "artifacts": {}}


def empty():
    return sample.typed(EMPTY, "run")


def test_an_empty_report_is_a_page_that_says_so():
    page = Page(report.html(empty()))
    assert plots_in(page) == set()
    for words in ("Latency was not measured", "Parity was not measured", "No SE block was found"):
        assert words in page.words
    assert "no runs" not in Page(report.compare_html([("a", empty())])).words
    bare = sample.head("inspect") | {"blocks": [], "rejected": [], "plans": []}
    assert "No SE block was found" in Page(report.inspect_html(sample.typed(bare, "inspect"), {})).words


HOSTILE = "</title><script>alert('x')</script>\"&$x^2$"


NAMES = {
    "schema", "verdict", "form", "precision", "requested_precision", "found_precision", "recommended",
}  # fmt: skip
"""Keys that hold one of a few words: another is refused before a page is made."""


def test_every_text_is_escaped():
    def poison(value):
        if isinstance(value, dict):
            return {key: inner if key in NAMES else poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) else value

    given = poison(sample.report())
    for text in pages_of(given):
        assert text.count("<script") == 1
        assert [tag for tag, _ in Page(text).tags].count("script") == 1
        assert escapes.escape(HOSTILE, quote=False)[:30] in text
    assert "<script" not in report.markdown(sample.typed(given))


@needs.PLOTS
def test_dollars_and_foreign_letters_in_names_are_no_markup():
    for name in ("$x^2$", r"$\frac$.onnx", "\N{CJK UNIFIED IDEOGRAPH-732B}.onnx"):
        row = facts.ErrorRow(
            name,
            results.OutputParity(
                name="output",
                max_abs=0.1,
                max_rel=0.1,
                cosine=0.9,
                sqnr_db=20.0,
                top1_agreement=None,
                passed=True,
            ),
        )
        assert name in plots.errors([row]).svg


def test_nothing_is_fetched_and_no_script_but_the_pages_own_runs(full):
    run = sampled()
    inspection, both = run.inspect, [("a", run), ("b", run)]
    for text in (full, report.inspect_html(inspection, {}), report.compare_html(both)):
        page = Page(text)
        links = [name for name in page.references if not name.startswith("data:image/png;base64,")]
        assert all(name.startswith("#") for name in links)
        assert {name[1:] for name in links} <= set(page.ids)
        assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
        assert all(
            attrs["src"].startswith("data:image/png;base64,") for tag, attrs in page.tags if tag == "img"
        )
        (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
        (policy,) = (attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
        assert re.search(r"url\((?!#)|@import|https?://", text) is None
        assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in page.tags)


def test_clip_paths_lead_somewhere(full):
    assert set(re.findall(r"url\(#([^)]*)\)", full)) <= set(Page(full).ids)


def test_the_same_report_gives_the_same_bytes(full):
    assert report.html(sampled()) == full


def test_pages_can_be_read_without_seeing_them(page):
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(attrs["role"] == "img" for attrs in drawings)
    for attrs in drawings:
        assert set(attrs["aria-labelledby"].split()) <= set(page.ids)
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


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


@needs.PLOTS
def test_runs_side_by_side():
    other = copy.deepcopy(sample.report())
    other["machine"]["packages"]["torch"] = "2.13.0"
    other["machine"]["cpu"] = "another"
    del other["artifacts"]["int8"]
    page = Page(report.compare_html([("out", sampled()), ("out-b", sample.typed(other))]))
    assert plots_in(page) == {"compare-latency", "compare-bytes"}
    assert "torch (differs)" in page.words
    assert "onnx (differs)" not in page.words
    assert "different machines" in page.words


def test_the_summary_is_a_table_with_the_verdicts():
    lines = report.markdown(sampled()).splitlines()
    assert "Verdicts: parity passed, fusion **failed**, precision passed, latency not judged" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert len({row.count("|") for row in rows}) == 1
    assert report.markdown(empty()).startswith("## se-deploy: not known")


def test_a_name_with_a_bar_stays_in_its_cell():
    given = sample.report()
    given["parity"]["candidates"][0]["path"] = "a|b.onnx"
    rows = [line for line in report.markdown(sample.typed(given)).splitlines() if line.startswith("|")]
    assert any("a\\|b.onnx" in row for row in rows)


def test_importing_the_package_draws_nothing():
    heavy = {"matplotlib", "torch", "onnx", "numpy"}
    code = f"import sys, se_deploy.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_the_pages_have_no_plots_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = Page(report.html(sampled()))
    both = Page(report.compare_html([("out", sampled()), ("b", sampled())]))
    for page in (run, both):
        assert plots_in(page) == set()
        assert "matplotlib is not installed: pip install 'se-deploy[report]'" in page.words
    for table in ("6.83 ms", "Every step", "Every range"):
        assert table in run.words
    assert "Neither latency" not in both.words


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
    assert units.milliseconds(14630.4) == "14\N{NARROW NO-BREAK SPACE}630 ms"
    assert units.milliseconds(0.0123456) == "0.0123 ms"
    assert (units.count(1, "kernel"), units.count(4, "kernel")) == ("1 kernel", "4 kernels")
