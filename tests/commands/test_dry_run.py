"""--dry-run: refuses what the command refuses, says what it would do, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import needs
import onnx_ir as ir
import plan_graphs
import pytest

from se_deploy.cli import main

SPEC = ["--input-size", "32x14x14"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ir.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    (tmp_path / "empty").mkdir()
    return tmp_path


def dry(capsys, *words):
    before = sorted(Path().rglob("*"))
    code = main([*words, "--dry-run", "--json", "-q"], standalone_mode=False)
    assert sorted(Path().rglob("*")) == before
    return code, json.loads(capsys.readouterr().out)


@needs.RTX
@pytest.mark.parametrize(
    ("words", "steps", "writes"),
    [
        (["export", "net.onnx", "-o", "new/o.onnx"], ["SE block", "compare"], ["new/o.onnx"]),
        (
            ["build-engine", "net.onnx", "--fp16", "-o", "net.engine", "--search-plans", "7"],
            ["at most 7 plans", "lower to FP16", "build the FP16 engine", "compare"],
            ["net.engine", "net.engine.json", "net.engine.onnx"],
        ),
        (["quantize", "net.onnx", "--allow-random-calibration", "-o", "q.onnx"], ["INT8"], ["q.onnx"]),
        (
            ["run", "net.onnx", "--allow-random-calibration", "-o", "out"],
            ["build the FP16 engine", "build the INT8 engine", "1 s each", "report"],
            ["out/model.onnx", "out/model.int8.engine", "out/report.html"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_it_says_what_would_be_done_and_written(words, steps, writes, folder, capsys):
    code, found = dry(capsys, *words)
    assert code == 0
    assert (found["schema"], found["command"]) == ("se-deploy/dry-run/1", words[0])
    text = "\n".join(found["steps"])
    assert "net.onnx" in found["steps"][0]
    assert [step for step in steps if step not in text] == []
    assert set(writes) <= set(found["writes"])


@needs.RTX
def test_a_run_writes_what_its_dry_run_said(folder, capsys):
    words = ["build-engine", "net.onnx", "--fp16", "-o", "net.engine", "--no-rewrites", "--no-verify"]
    writes = set(dry(capsys, *words)[1]["writes"])
    before = set(folder.iterdir())
    assert main([*words, "-q", "--json"], standalone_mode=False) == 0
    assert {path.name for path in set(folder.iterdir()) - before} == writes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "net.onnx", "-o", "net.onnx"], "exists already"),
        (["run", "net.onnx", "-o", "out"], "no samples"),
        (["quantize", "net.onnx", "-o", "q.onnx"], "needs calibration data"),
        (["quantize", "net.onnx", "-o", "q.onnx", "--calib-data", "empty", *SPEC], "holds no images"),
    ],
)
def test_it_refuses_what_the_command_refuses(words, said, folder, capsys):
    code, found = dry(capsys, *words)
    assert code == 1
    assert said in found["error"]["message"]


@pytest.mark.parametrize(
    "words",
    [
        ["export", "net.onnx", "-o", "o.onnx"],
        ["quantize", "net.onnx", "-o", "q.onnx", "--allow-random-calibration"],
        ["build-engine", "net.onnx", "-o", "net.engine", "--no-rewrites"],
    ],
    ids=lambda words: words[0],
)
def test_it_refuses_a_cluster_that_nobody_can_join(words, folder, capsys):
    code, found = dry(capsys, *words, "--on", "ray://127.0.0.1:1")
    assert code == 1
    assert found["error"]["kind"] in {"BadInput", "MissingRuntime"}, "nobody answers, or Ray is not here"
    assert "--on ray://127.0.0.1:1" in found["error"]["message"]


@needs.RTX
def test_a_cluster_that_a_device_is_to_join_is_not_looked_for_here(folder, capsys):
    words = ["build-engine", "net.onnx", "-o", "net.engine", "--no-rewrites", "--remote", "me@device"]
    assert dry(capsys, *words, "--on", "ray://127.0.0.1:1")[0] == 0


@needs.TORCH
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--calib-data", "empty"], "holds no images"),
        (["--labels", "labels.json"], "labels.json"),
        (["--mean", "0.5,0.5"], "2 values for 1 channel"),
        (["--replay", "labels.json"], "labels.json"),
        (["--int8"], "needs calibration data"),
        (["--runtime", "onnxruntime", "--rewrites", "hoist-squeeze"], "is no rewrite"),
        (["--checkpoint", "labels.json"], "labels.json"),
        (["--exclude-nodes", "("], "no regular expression"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_is_found_before_the_export_starts(words, said, folder, capsys, monkeypatch):
    (folder / "labels.json").write_text('{"not": "a list"}')

    def started(*_given, **_options):
        pytest.fail("the export has started")

    monkeypatch.setattr("se_deploy.frontend.torch_export.export", started)
    code = main(["export", "se_deploy:se_resnet20", "-o", "o.onnx", "--json", *words], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert code in {1, 2}
    assert said in found["error"]["message"]


@needs.TORCH
def test_a_network_is_made_and_described(folder, capsys):
    code, found = dry(capsys, "export", "se_deploy:se_resnet20", "-o", "o.onnx", "--fp16")
    assert code == 0
    assert "1x32x32" in found["steps"][0]
    assert "operator set 20" in found["steps"][0]
    assert "noise" in "\n".join(found["steps"])
