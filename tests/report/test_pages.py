import base64
import copy
import hashlib
import html as escapes
import re

import needs
import pytest
import sample
from msgspec.structs import replace
from page_reading import PLOTS, Page, empty, plots_in, sampled

from se_deploy import report
from se_deploy.report import facts, plots
from se_deploy.schema import results


def pages_of(given):
    """Every page that the package writes, with `given` in it."""
    run = sample.typed(given)
    inspection = replace(run.inspect, warnings=run.warnings)
    return [
        report.html(run),
        report.inspect_html(inspection, {}),
        report.compare_html([("first", run), ("second", run)]),
    ]


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
