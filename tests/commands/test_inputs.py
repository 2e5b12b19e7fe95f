"""Signals, clips and several inputs go all the way: export, plan, INT8, engine, parity and time."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from recordings import record
from test_cli import run as call
from torch_nets import NETS

from se_deploy import graph

RANGES = ["--min-shapes", "feats:1x16x20", "--opt-shapes", "feats:1x16x40", "--max-shapes", "feats:4x16x80"]
CASES = {
    "speech": ("Speech", ["--input", "feats:Nx16xT"], {"feats": (16, 40)}, RANGES),
    "clip": ("Clip", ["--input-size", "3x4x12x12"], {"input": (3, 4, 12, 12)}, []),
    "two": (
        "Two",
        ["--input", "image:Nx3x12x12", "--input", "meta:Nx7"],
        {"image": (3, 12, 12), "meta": (7,)},
        [],
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys, *words):
    code, out, err = call(capsys, *words, "--json")
    assert code in {0, None}, (words, err, out)
    return json.loads(out)


@pytest.mark.parametrize(
    "name", ["speech", *(pytest.param(one, marks=pytest.mark.slow) for one in ("two", "clip"))]
)
def test_what_is_no_image_goes_all_the_way(capsys, folder, name):
    net, declared, shapes, ranges = CASES[name]
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal((16, *shape), np.float32) for key, shape in shapes.items()}
    np.savez(folder / "x.npz", **arrays)
    exported = told(capsys, "export", f"nets.py:{net}", *declared, "-o", "net.onnx")
    assert len(exported["blocks"]) == 1
    assert exported["verified"]["passed"]
    checked = {(one["name"], tuple(one["dims"])) for one in exported["verified"]["inputs"]}
    assert {key for key, _ in checked} == set(shapes)
    if name == "speech":
        assert len({dims[2] for _, dims in checked}) >= 2, "a free size is checked at two values"
    data = ["--calib-data", "x.npz"]
    quantized = told(capsys, "quantize", "net.onnx", *data, "-o", "net.int8.onnx")
    assert quantized["macs_int8_fraction"] > 0.95
    for precision, more in (("--fp16", []), ("--int8", data)):
        built = told(
            capsys, "build-engine", "net.onnx", precision, *more, *ranges, "--no-rewrites",
            "-o", f"net{precision[1:]}.engine",
        )  # fmt: skip
        assert built["found_precision"] == precision[2:]
        assert built["plan"]["shapes"].keys() == set(shapes)
    engines = ["net-fp16.engine", "net-int8.engine"]
    parity = told(capsys, "parity", "net.onnx", "net.int8.onnx", *engines, "--data", "x.npz")
    assert [c["evaluated"] for c in parity["candidates"]] == ["onnxruntime", "plan-rounded", "plan-rounded"]
    sized = ["--opt-shapes", "feats:1x16x40"] if name == "speech" else []
    timed = told(capsys, "profile", "net.onnx", *sized, "--duration-s", "0.02", "--warmup-ms", "0")
    assert {k: tuple(v[1:]) for k, v in timed["artifacts"][0]["shapes"].items()} == shapes


def test_what_a_network_prints_and_warns_stays_out_of_the_result(folder):
    (folder / "loud.py").write_text(
        NETS.replace("        return self.b(self.se(torch.relu(self.a(feats)))).mean(2)", LOUD)
    )
    words = ["export", "loud.py:Speech", "--input", "feats:Nx16xT", "-o", "net.onnx", "--json"]
    code = f"from se_deploy.cli import main; main({words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["onnx"] == "net.onnx", "one object and nothing else"
    assert "a warning of the network" not in done.stderr


LOUD = """        import warnings
        print("the network prints")
        warnings.warn("a warning of the network")
        return self.b(self.se(torch.relu(self.a(feats)))).mean(2)"""


def test_a_size_that_nobody_named_is_asked_for_with_a_flag_that_helps(capsys, folder):
    del folder
    told(capsys, "export", "nets.py:Speech", "--input", "feats:Nx16xT", "-o", "net.onnx")
    for words in (
        ["inspect", "net.onnx", "--plan"],
        ["profile", "net.onnx"],
        ["build-engine", "net.onnx", "-o", "e"],
    ):
        code, _, err = call(capsys, *words)
        assert code == 1
        assert "--input-size 16x" in err or "--opt-shapes feats:" in err
    plan = told(capsys, "inspect", "net.onnx", "--plan", "--input-size", "16x40")["plans"][0]
    assert plan["shapes"]["feats"][1:] == [16, 40]


@pytest.mark.slow
def test_a_batch_that_is_asked_for_is_frozen_in_a_file_too(capsys, folder):
    del folder
    told(
        capsys, "export", "nets.py:Two", "--input", "image:Nx3x12x12", "--input", "meta:Nx7", "-o", "net.onnx"
    )
    frozen = told(capsys, "export", "net.onnx", "--batch", "4", "-o", "frozen.onnx")
    assert {one["dims"][0] for one in frozen["verified"]["inputs"]} == {4}
    made = graph.load(Path("frozen.onnx"))
    assert [graph.dims(value) for value in made.graph.inputs] == [(4, 3, 12, 12), (4, 7)]
    code, _, err = call(capsys, "export", "frozen.onnx", "--batch", "2", "-o", "other.onnx")
    assert (code, "is frozen at batch 4, not 2" in err) == (1, True), err


def test_a_declaration_settles_the_sizes_of_a_file(capsys, folder):
    del folder
    told(capsys, "export", "nets.py:Speech", "--input", "feats:Nx16xT", "-o", "net.onnx")
    fixed = told(capsys, "export", "net.onnx", "--input", "feats:Nx16x48", "-o", "fixed.onnx")
    assert {tuple(one["dims"][1:]) for one in fixed["verified"]["inputs"]} == {(16, 48)}
    for wrong, words in (("feats:Nx17x48", "which is not"), ("other:Nx16x48", "no input 'other'")):
        code, _, err = call(capsys, "export", "net.onnx", "--input", wrong, "-o", "wrong.onnx")
        assert (code, words in err) == (1, True), err
    code, _, err = call(capsys, "export", "nets.py:Speech", "--input", "feats:Nx16x", "-o", "wrong.onnx")
    assert code == 2


WAVE = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[n, 1, l] wave) => (float[n, 6] y) {
    c = Conv<strides = [4]>(wave, w)
    r = Relu(c)
    p = GlobalAveragePool(r)
    s = Conv(p, s1)
    t = Relu(s)
    u = Conv(t, s2)
    g = Sigmoid(u)
    m = Mul(r, g)
    z = GlobalAveragePool(m)
    y = Flatten(z)
}
"""


def test_recordings_of_any_length_calibrate_and_compare(capsys, folder):
    proto = onnx.parser.parse_model(WAVE)
    rng = np.random.default_rng(0)
    for name, shape in {"w": (6, 1, 9), "s1": (2, 6, 1), "s2": (6, 2, 1)}.items():
        array = rng.standard_normal(shape, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, "net.onnx")
    for i, length in enumerate((400, 400, 300, 500, 500)):
        record(folder / "speech" / f"{i}.wav", rng.integers(-20_000, 20_000, length))
    told(capsys, "quantize", "net.onnx", "--calib-data", "speech", "-o", "int8.onnx")
    found = told(capsys, "parity", "net.onnx", "int8.onnx", "--data", "speech", "--min-top1", "0")
    (candidate,) = found["candidates"]
    assert (candidate["samples"], candidate["passed"]) == (5, True)
    one = told(capsys, "parity", "net.onnx", "int8.onnx", "--data", "speech/3.wav", "--min-top1", "0")
    assert one["candidates"][0]["shapes"] == {"wave": [1, 1, 500]}
    code, _, err = call(capsys, "parity", "net.onnx", "int8.onnx", "--data", "speech", "--samples", "0")
    assert code == 2, err


def test_features_are_the_users(capsys, folder):
    told(capsys, "export", "nets.py:Speech", "--input", "feats:Nx16xT", "-o", "net.onnx", "--opset", "17")
    record(folder / "speech" / "a.wav", np.zeros(400))
    code, _, err = call(capsys, "quantize", "net.onnx", "--calib-data", "speech", "-o", "int8.onnx")
    assert (code, "takes (N, 16, ?) of float32, no waveform" in err) == (1, True), err
    assert "compute the network's own features" in err
    (folder / "feats").mkdir()
    for i, frames in enumerate((30, 30, 50)):
        np.save(folder / "feats" / f"{i}.npy", np.random.default_rng(i).standard_normal((16, frames)))
    made = told(capsys, "quantize", "net.onnx", "--calib-data", "feats", "-o", "int8.onnx")
    assert made["samples"] + 1 >= 3, "one may be held back"


@pytest.mark.slow
def test_folders_of_frames_are_clips(capsys, folder):
    sized = ["--input", "clip:Nx3x4x12x12", "--opset", "17"]
    told(capsys, "export", "nets.py:Clip", *sized, "-o", "net.onnx")
    rng = np.random.default_rng(0)
    for clip in ("a", "b", "c"):
        (folder / "film" / clip).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(f"film/{clip}/{i}.jpg")
    half = told(capsys, "export", "net.onnx", "--fp16", "-o", "half.onnx")
    assert half["verified"]["passed"]
    found = told(capsys, "parity", "net.onnx", "half.onnx", "--data", "film")
    (candidate,) = found["candidates"]
    assert (candidate["samples"], candidate["shapes"]) == (3, {"clip": [3, 3, 4, 12, 12]})
    assert any("pixels in [0, 1]" in text for text in found["warnings"])
