"""A gate that is asked for by name and has nothing to judge is no pass."""

from __future__ import annotations

import onnx
import pytest
import use_graphs
from onnx import parser

from se_deploy.cli.main import main

PLAIN = """<ir_version: 9, opset_import: ["": 18]>
    g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }"""
FAST = ("--duration-s", "0", "--warmup-ms", "0", "--iterations", "1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", "plain.onnx", "--gate", "chain"), "chain was not judged"),
        (
            ("export", "se.onnx", "-o", "o.onnx", "--overwrite", "--no-verify", "--gate", "parity"),
            "parity was not judged",
        ),
        (("profile", "se.onnx", "--input-size", "3x8x8", *FAST, "--gate", "latency"), "--max-p50-ms"),
    ],
)
def test_a_gate_without_anything_to_judge_does_not_pass(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(parser.parse_model(PLAIN), "plain.onnx")
    use_graphs.save(tmp_path / "se.onnx", use_graphs.SE)
    assert main(list(words), standalone_mode=False) == 3
    assert said in capsys.readouterr().err
    assert main([*words[:-2]], standalone_mode=False) == 0


def test_no_block_is_no_fused_block(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    onnx.save(parser.parse_model(PLAIN), "plain.onnx")
    assert main(["inspect", "plain.onnx", "--plan", "--gate", "fused"], standalone_mode=False) == 3
    assert "there is no SE block" in capsys.readouterr().err
