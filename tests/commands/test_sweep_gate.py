"""`check` on a sweep against an earlier one."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace
from test_cli import run

from se_deploy.commands import check
from se_deploy.errors import BadInput
from se_deploy.schema import encode
from se_deploy.schema.sweep import Sweep, SweepArtifact, SweepCell

ENGINE = SweepArtifact(
    path="model.fp16.engine", precision="fp16", ms=1.0, ms_from="planned", accuracy=0.9, passed=True
)
CELL = SweepCell(
    model="a", precision="fp16", target="sm86", batch="dynamic", state="done", folder="cells/a/fp16-sm86",
    reason=None, key="k", artifacts=(ENGINE,), verdicts={"parity": True, "fusion": False, "latency": None},
)  # fmt: skip
OTHER = replace(CELL, folder="cells/b/fp16-sm86")
LOST = replace(CELL, folder="cells/c/fp16-sm86", state="failed", reason="it was killed", artifacts=())
FAILED = replace(CELL, state="failed", reason="it was killed", artifacts=())


def saved(folder, *cells):
    made = Sweep(
        tool_version="", warnings=(), cells=cells, report="report.html", csv="sweep.csv", on="local", done=0,
        cached=0, failed=0, seconds=0.0,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(encode(made))


def judged(tmp_path, before, now, limits=""):
    saved(tmp_path / "before", *before)
    saved(tmp_path / "now", *now)
    config = tmp_path / "se-deploy.toml"
    config.write_text(f'[sweep]\nfolder = "now"\nagainst = "before"\n{limits}')
    return check.check(check.read(config))


def test_the_same_passes_and_a_new_cell_is_no_matter(tmp_path):
    result = judged(tmp_path, [CELL, LOST], [CELL, OTHER, LOST])
    assert [(one.gate, one.passed) for one in result.outcomes] == [("sweep", True)]


def with_engine(**changes):
    return replace(CELL, artifacts=(replace(ENGINE, **changes),))


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([OTHER], "not in the sweep any more"),
        ([FAILED], "it was killed"),
        ([replace(CELL, verdicts={"parity": False}, failures={"parity": ("SQNR",)})], "parity passed before"),
        ([with_engine(path="model.int8.engine")], "model.fp16.engine is not there"),
        ([with_engine(passed=False)], "model.fp16.engine passed its verdicts before, and fails"),
        ([with_engine(passed=None)], "has none now"),
        ([with_engine(accuracy=0.899)], "top-1 was 90.00 % and is 89.90 %"),
        ([with_engine(accuracy=None)], "is not known"),
        ([with_engine(ms=1.01)], "1 ms per image have become 1.01 ms"),
    ],
)
def test_what_is_worse_fails(tmp_path, now, words):
    result = judged(tmp_path, [CELL], now)
    assert not result.passed
    assert words in result.failures[0]


def test_limits_allow_so_much(tmp_path):
    now = [with_engine(accuracy=0.896, ms=1.09)]
    assert judged(tmp_path, [CELL], now, "max_accuracy_drop = 0.005\nmax_slowdown = 0.1\n").passed
    assert not judged(tmp_path, [CELL], now, "max_accuracy_drop = 0.005\n").passed


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (CELL, with_engine(ms=5.0, ms_from="measured"), "it was planned and is measured"),
        (CELL, with_engine(ms=None, ms_from=None), "it was planned and is not known"),
        (with_engine(accuracy=None), CELL, "top-1 was not compared"),
        (CELL, replace(CELL, verdicts={"parity": None}), "parity was not compared"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, before, now, words):
    """A measured time is not held against a planned one, and the like."""
    result = judged(tmp_path, [before], [now])
    assert result.passed
    assert any(words in text for text in result.outcomes[0].details)


def test_what_was_compared_is_not_said_to_be_missing(tmp_path):
    assert len(judged(tmp_path, [CELL], [CELL]).outcomes[0].details) == 1


def test_the_command_exits_with_3(tmp_path, capsys):
    judged(tmp_path, [CELL], [OTHER])
    code, out, _ = run(capsys, "check", "--config", tmp_path / "se-deploy.toml", "--json")
    assert code == 3
    assert json.loads(out)["gates"][0]["gate"] == "sweep"


@pytest.mark.parametrize("before", [[], [LOST]])
def test_a_sweep_without_a_result_is_held_against_nothing(tmp_path, before):
    with pytest.raises(BadInput, match="no cell of"):
        judged(tmp_path, before, [CELL])


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    saved(tmp_path / "now", CELL)
    (tmp_path / "before").mkdir()
    (tmp_path / "se-deploy.toml").write_text('[sweep]\nfolder = "now"\nagainst = "before"\n')
    with pytest.raises(BadInput, match=r"sweep\.json"):
        check.check(check.read(tmp_path / "se-deploy.toml"))
