"""What a command shows while it works and when it is done: steps, heartbeats, tables that fit."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import onnx_ir as ir
import plan_graphs
import pytest
import sample
from msgspec.structs import replace
from rich.console import Console

from se_deploy.cli import progress
from se_deploy.cli.main import main
from se_deploy.protocols import OVERALL
from se_deploy.tables import base, files, graphs, measurements, runs

PATIENCE_S = 30  # for a thread on a busy machine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(report):
    """Two steps, the first with parts, as verbs report them."""
    report(OVERALL, 0, 2)
    report("quantize", 0, 1)
    report("calibrate", 0, 8)
    report("calibrate", 8, 8)
    report("weights", 1, 3)  # ends with its parent
    report("quantize", 1, 1, "96.0 % in INT8")
    report(OVERALL, 1, 2)
    report("build", 0, 1)
    report("build", 1, 1, "53 kernels")


def wait_for(text, stream):
    """Wait until another thread has written it."""
    end = time.monotonic() + PATIENCE_S
    while text not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    assert text in stream.getvalue()


def said(monkeypatch, stream, *, verbose=False, doing=work):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.shown(verbose=verbose) as report:
        doing(report)
    return stream.getvalue()


def test_a_log_has_one_line_per_step_with_its_time_and_what_it_found(monkeypatch):
    lines = said(monkeypatch, io.StringIO()).splitlines()
    assert [line.split()[0] for line in lines] == ["quantize", "build"]
    assert lines[0].endswith(" s  96.0 % in INT8")
    assert lines[1].endswith("53 kernels")


def test_verbose_has_the_parts_and_the_beginnings(monkeypatch):
    lines = said(monkeypatch, io.StringIO(), verbose=True).splitlines()
    assert [line.split()[0] for line in lines if "..." not in line] == [
        "calibrate", "weights", "quantize", "build",
    ]  # fmt: skip
    assert lines[0] == "quantize ..."
    assert lines[1] == "  calibrate ..."


def test_a_terminal_keeps_a_line_per_step_within_80_columns_and_guesses_no_end(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def seen(report):
        work(report)
        report(OVERALL, 1, 2)
        report("build", 0, 1)
        wait_for("[1/2] build", stream)
        report("build", 1, 1)

    text = said(monkeypatch, stream, doing=seen)
    assert "-:--:--" not in text
    assert "96.0 % in INT8" in text
    assert max(map(len, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines())) <= 80


def test_a_silent_step_is_heard_of_even_where_stderr_is_redirected(monkeypatch):
    monkeypatch.setattr(progress, "SILENCE_S", 0.02)
    stream = io.StringIO()

    def slow(report):
        report("export", 0, 1)
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # as exporters' own talk is caught
        wait_for("export ...", stream)
        report("export", 1, 1)

    assert "export ... 0." in said(monkeypatch, stream, doing=slow)


def test_a_step_that_fails_leaves_no_line_that_it_was_done(monkeypatch):
    stream = io.StringIO()

    def fails(report):
        report("export", 0, 1)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - as it was raised
        said(monkeypatch, stream, doing=fails)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.3, "12 s"), (200.4, "3 min 20 s")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (14631.2, 4, "14,631"), (0.05312, 3, "0.0531"), (1.19e-6, 3, "1.19e-06"), (0.0, 3, "0"),
        (98.84, 3, "98.8"), (-12.0, 3, "-12"), (float("inf"), 3, "inf"), (None, 3, "-"),
    ],
)  # fmt: skip
def test_numbers_have_no_exponent_where_a_reader_needs_none(value, digits, text):
    assert base.number(value, digits) == text


def tables():
    """Every kind of table, of a whole run and its parts."""
    run = sample.typed(sample.report())
    return {
        "run": runs.run(run, Path("out")),
        "export": [graphs.blocks(run.export)],
        "inspect": graphs.inspected(run.inspect),
        "parity": [measurements.parity(run.parity)],
        "profile": [measurements.profile(run.profile)],
    }


def drawn(parts, width):
    out = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    for part in parts:
        out.print(part if isinstance(part, str) else part.fitted(out))
    return out.file.getvalue()


def test_a_run_and_a_build_say_why_blocks_are_not_fused():
    run = sample.typed(sample.report())
    plan = run.build_engine.plan
    split = replace(plan.blocks[0], verdict="split", reasons=("a copy of the whole map",))
    built = replace(run.build_engine, plan=replace(plan, blocks=(split, *plan.blocks[1:])))
    for parts in (runs.run(replace(run, build_engine=built), Path("out")), files.built(built)):
        text = drawn(parts, 120)
        assert "Why blocks are not fused" in text
        assert "a copy of the whole map" in text
        assert split.output in text


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("kind", ["run", "export", "inspect", "parity", "profile"])
def test_tables_fit(kind, width):
    text = drawn(tables()[kind], width)
    assert max(map(len, text.splitlines())) <= width


def test_columns_that_do_not_fit_are_named():
    grid = base.titled("T", ["name", "wide", "spare"], spare=(2,))
    grid.add("a", "b" * 30, "c" * 30)
    assert "not shown for want of width: spare" in " ".join(drawn([grid], 50).split())
    assert "c" * 30 in drawn([grid], 120)


def test_the_recommendation_comes_first():
    assert drawn(tables()["run"], 80).startswith("Recommendation: ")


def test_kernels_are_written_out():
    text = drawn(tables()["inspect"], 160)
    assert " kernels" in text
    assert " k)" not in text


def test_a_command_ends_with_what_to_type_next(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ir.save(plan_graphs.se_net(), "net.onnx")
    assert main(["inspect", "net.onnx"], standalone_mode=False) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "next: se-deploy inspect net.onnx --plan"
    main(["inspect", "net.onnx", "-q"], standalone_mode=False)
    assert capsys.readouterr().err == ""
