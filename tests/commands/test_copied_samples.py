"""Calibration on copies of one sample is warned of by every command that counts them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ptq_graphs import network

from se_deploy import graph
from se_deploy.cli import main

ALL = "all 32 samples are copies of one"
HELD = "8 of 8 samples held back are copies of samples that were calibrated on"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("copies")
    graph.save(network(), made / "net.onnx")
    x = np.random.default_rng(1).standard_normal((32, 3, 16, 16)).astype(np.float32)
    np.save(made / "copies.npy", np.repeat(x[:1], 32, axis=0))
    np.save(made / "differ.npy", x)
    return made


def warned(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words), "--json", "--overwrite"])
    assert caught.value.code == 0
    return json.loads(capsys.readouterr().out)["warnings"]


def quantized(capsys, folder, calibration):
    return warned(
        capsys, "quantize", folder / "net.onnx", "-o", folder / "q.onnx", "--calib-data", folder / calibration
    )


def test_quantize_says_that_its_evidence_is_one_sample(folder, capsys):
    said = quantized(capsys, folder, "copies.npy")
    assert [text.startswith(ALL) for text in said].count(True) == 1
    assert [text.startswith(HELD) for text in said].count(True) == 1


def test_quantize_says_nothing_of_samples_that_differ(folder, capsys):
    assert not [text for text in quantized(capsys, folder, "differ.npy") if "cop" in text]


def test_parity_says_on_how_many_samples_it_compared(folder, capsys):
    words = ["parity", folder / "net.onnx", folder / "net.onnx", "--data", folder / "copies.npy"]
    with pytest.raises(SystemExit) as caught:
        main([*map(str, words), "--json"])
    assert caught.value.code == 0
    said = json.loads(capsys.readouterr().out)["warnings"]
    assert [text.startswith(ALL) for text in said].count(True) == 1
