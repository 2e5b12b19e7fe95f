"""Limits of single outputs: the verdict of each output, of the candidate and the exit code say the same."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import parser

from se_deploy.cli.main import main
from se_deploy.errors import BadInput
from se_deploy.options import Limits


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two networks with outputs a and b, of which b is 0.01 apart."""
    monkeypatch.chdir(tmp_path)
    for name, shift, outputs in (("one", 0.0, "ab"), ("two", 0.01, "ab"), ("renamed", 0.0, "cd")):
        a, b = outputs
        text = f"""<ir_version: 9, opset_import: ["": 18]>
            g (float[N,4] x) => (float[N,4] {a}, float[N,4] {b}) <float s = {{{shift}}}>
            {{ {a} = Relu(x)  m = Exp(x)  {b} = Add(m, s) }}"""
        onnx.save(parser.parse_model(text), f"{name}.onnx")
    np.save("x.npy", np.random.default_rng(0).standard_normal((16, 4), np.float32))


def parity(capsys, *words):
    code = main(["parity", *words, "--data", "x.npy", "--json"], standalone_mode=False)
    return code or 0, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("limit", "passes"), [("b:1", [True, True]), ("a:1", [True, False]), ("1", [True, True])]
)
@pytest.mark.usefixtures("pair")
def test_each_output_is_told_what_it_is_held_to(limit, passes, capsys):
    code, said = parity(capsys, "one.onnx", "two.onnx", "--atol", limit, "--min-cosine", "0.9")
    [candidate] = said["candidates"]
    assert [output["passed"] for output in candidate["outputs"]] == passes
    assert candidate["passed"] == said["passed"] == all(passes) == (code == 0)


@pytest.mark.parametrize("flag", ["--atol", "--rtol"])
@pytest.mark.usefixtures("pair")
def test_a_limit_of_what_is_no_output_is_refused(flag, capsys):
    code, said = parity(capsys, "one.onnx", "one.onnx", flag, "bb:1e-6")
    assert code == 1
    assert "'bb'" in said["error"]["message"]
    assert "a, b" in said["error"]["hint"]


@pytest.mark.parametrize(
    "limits",
    [
        {"atol": (("", float("nan")),)},
        {"atol": (("y", -1.0),)},
        {"rtol": (("", float("nan")),)},
        {"min_cosine": float("nan")},
        {"min_top1": 99.0},
        {"min_iou": -2.0},
    ],
)
def test_a_limit_without_sense_is_refused(limits):
    with pytest.raises(BadInput, match=next(iter(limits))):
        Limits(**limits)


@pytest.mark.usefixtures("pair")
def test_what_was_matched_by_its_place_is_said(capsys):
    assert "by position: 'c' with 'a', 'd' with 'b'" in " ".join(
        parity(capsys, "one.onnx", "renamed.onnx")[1]["warnings"]
    )
    assert "by position" not in " ".join(parity(capsys, "one.onnx", "two.onnx")[1]["warnings"])
