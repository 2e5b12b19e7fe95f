"""Networks that are no image classifiers go through `run` to engines, and pass the presets of both."""

from __future__ import annotations

import json

import needs
import numpy as np
import pytest
from test_cli import run as call
from torch_nets import NETS

pytestmark = [pytest.mark.slow, needs.TORCH, needs.RTX]

QUICK = ["--runtime", "tensorrt-rtx", "--target", "sm86", "--no-rewrites", "--duration-s", "0.02", "--warmup-ms", "0"]  # fmt: skip  # noqa: E501
RANGE = ["--min-shapes", "feats:1x{c}x20", "--opt-shapes", "feats:1x{c}x40", "--max-shapes", "feats:4x{c}x80"]


def ranged(channels):
    return [word.format(c=channels) for word in RANGE]


def arguments(**options):
    return [word for key, value in options.items() for word in ("--model-arg", f"{key}={value}")]


OLD = ["--opset", "17"]  # its exporter takes a quarter of the time
ECAPA = arguments(channels=64, squeezed=16, aggregated=96, attention=16, embedding=24)
# the network, its arguments, the arrays it is fed, the kinds of its outputs, and of its blocks
CASES = {
    "speech": (
        "nets.py:Speech", ["--input", "feats:Nx16xT", *ranged(16)], {"feats": (16, 40)}, "logits", "se",
    ),
    "video": (
        "nets.py:Clip",
        ["--input", "clip:Nx3xTxHxW", "--opt-shapes", "clip:1x3x4x12x12", "--max-shapes", "clip:2x3x8x16x16"],
        {"clip": (3, 4, 12, 12)}, "logits", "se",
    ),
    "two inputs": (
        "nets.py:Two", ["--input", "image:Nx3x12x12", "--input", "meta:Nx7"],
        {"image": (3, 12, 12), "meta": (7,)}, "logits", "se",
    ),
    "ecapa": (
        "se_deploy:ecapa_tdnn", [*ECAPA, *OLD, *ranged(80), "--output", "output:embedding"],
        {"feats": (80, 40)}, "embedding", "se",
    ),
    "unet": (
        "se_deploy:scse_unet",
        [*arguments(width=8, num_classes=3), *OLD, "--opt-shapes", "input:1x1x32x48"],
        {"input": (1, 32, 48)}, "mask", "scse",
    ),
    "res2net": (
        "se_deploy:se_res2net50",
        [*arguments(planes=8, width=32, num_classes=5, ratio=4), *OLD, "--input-size", "3x64x64"],
        {"input": (3, 64, 64)}, "logits", "se",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_becomes_engines_that_pass(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    network, words, shapes, kind, block = CASES[name]
    rng = np.random.default_rng(0)
    np.savez("x.npz", **{key: rng.standard_normal((12, *size), np.float32) for key, size in shapes.items()})
    code, out, err = call(
        capsys, "run", network, *words, *QUICK, "--calib-data", "x.npz", "-o", "out", "--json", "-q"
    )
    assert code in {0, None}, err
    said = json.loads(out)
    assert said["export"]["verified"]["passed"]
    assert {one["kind"] for one in said["export"]["blocks"]} == {block}
    built = said["build-engines"]
    assert {key: one["found_precision"] for key, one in built.items()} == {"fp16": "fp16", "int8": "int8"}
    for one in built.values():
        assert {key: tuple(dims[1:]) for key, dims in one["plan"]["shapes"].items()} == shapes
    candidates = {one["path"]: one for one in said["parity"]["candidates"]}
    engines = {"model.fp16.engine", "model.int8.engine"}
    assert engines < set(candidates)
    assert {path: one["failures"] for path, one in candidates.items() if not one["passed"]} == {}
    assert {one["kind"] for each in candidates.values() for one in each["outputs"]} == {kind}
    assert all(candidates[path]["evaluated"] in {"plan-rounded", "engine"} for path in engines)


HALF = """
from torch import nn

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3).half(), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.conv(x.half()).float().relu().mean((2, 3)))
"""


@pytest.mark.parametrize(("precision", "refused"), [("--fp16", None), ("--int8", "is in FP16 already")])
def test_a_network_with_fp16_weights_is_built_as_it_stands(precision, refused, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.py").write_text(HALF)
    np.savez("x.npz", input=np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32))
    words = (
        "half.py:Half",
        "--input-size",
        "3x16x16",
        precision,
        *QUICK,
        "--calib-data",
        "x.npz",
        "-o",
        "out",
    )
    code, out, err = call(capsys, "run", *words, "--json", "-q")
    if refused is None:
        assert code in {0, None}, err
        assert json.loads(out)["build-engines"]["fp16"]["found_precision"] == "fp16"
    else:
        assert code not in {0, None}
        assert refused in out + err
