import subprocess
import sys

import pytest
import sample
from page_reading import PLOTS, Page, draw_nothing, empty, plots_in, sampled

from se_deploy import report
from se_deploy.errors import BadInput


def without(*path):
    """The sample with one of its keys gone."""
    given = sample.report()
    inner = given
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return given


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


def test_an_empty_report_is_a_page_that_says_so():
    page = Page(report.html(empty()))
    assert plots_in(page) == set()
    for words in ("Latency was not measured", "Parity was not measured", "No SE block was found"):
        assert words in page.words
    assert "no runs" not in Page(report.compare_html([("a", empty())])).words
    bare = sample.head("inspect") | {"blocks": [], "rejected": [], "plans": []}
    assert "No SE block was found" in Page(report.inspect_html(sample.typed(bare, "inspect"), {})).words


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
