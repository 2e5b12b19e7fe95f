"""What the user says of an output is written into the file, and every later step reads it there."""

from __future__ import annotations

import json

import numpy as np
import pytest
import use_graphs
from test_cli import run as call

from se_deploy import graph
from se_deploy.commands import source
from se_deploy.errors import BadInput, BadModel
from se_deploy.options import NetworkOptions
from se_deploy.schema import output_kinds


def kinds_seen(capsys, *words):
    code, out, err = call(capsys, "parity", *words, "--json")
    assert code in {0, None}, err
    return [one["kind"] for one in json.loads(out)["candidates"][0]["outputs"]]


def test_a_file_says_on_what_its_outputs_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    use_graphs.save(tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32))
    plain = ["net.onnx", "net.onnx", "--data", "x.npy"]
    assert kinds_seen(capsys, *plain) == ["logits"]
    made = source.read("net.onnx", options=NetworkOptions(kinds={"y": "embedding"}))
    assert made.verified.passed
    graph.save(made.model, tmp_path / "told.onnx")
    for pair in (["net.onnx", "told.onnx"], ["told.onnx", "net.onnx"]):
        assert kinds_seen(capsys, *pair, "--data", "x.npy") == ["embedding"]
    told = ["told.onnx", "net.onnx", "--data", "x.npy"]
    assert kinds_seen(capsys, *told, "--output", "y:values") == ["values"]
    code, _, err = call(capsys, "predict", "told.onnx", str(use_graphs.image(tmp_path / "a.png", (9, 9, 9))))
    assert (code, "no classifier" in err) == (1, True), err


def test_what_is_no_output_or_no_kind_is_refused(tmp_path):
    net = use_graphs.save(tmp_path / "net.onnx")
    with pytest.raises(BadInput, match="there is no output 'z' to take as mask") as found:
        source.read(str(net), options=NetworkOptions(kinds={"z": "mask"}))
    assert "the outputs are y" in found.value.hint
    with pytest.raises(BadInput, match="cannot be compared as mask"):
        source.read(str(net), options=NetworkOptions(kinds={"y": "mask"}))
    with pytest.raises(BadModel, match=r"se_deploy\.outputs"):
        output_kinds.read({output_kinds.METADATA_KEY: '{"y": "picture"}'})
    assert output_kinds.read({}) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name one folder to fill with -o."),
        (["-o", "a", "--output", "b"], "Name one folder to fill with -o."),
        (["-o", "a", "--output", "y:mask", "--output", "y:boxes"], "takes 'y' as mask and as boxes"),
        (["-o", "a", "--output", ":mask"], "is no NAME:KIND"),
    ],
)
def test_run_takes_one_folder_and_kinds(capsys, words, message):
    code, _, err = call(capsys, "run", "se_deploy:se_resnet20", *words)
    assert (code, message in err) == (2, True), err


def test_run_still_takes_its_folder_by_the_long_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    use_graphs.save(tmp_path / "net.onnx")
    (tmp_path / "taken").write_text("")
    for flag in ("-o", "--output"):
        code, _, err = call(capsys, "run", "net.onnx", flag, "taken", "--output", "y:embedding")
        assert (code, "'taken' is a file" in err) in {(1, True), (2, True)}, err
