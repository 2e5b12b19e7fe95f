"""What `parity` and `quantize` say of data that does not look like the network's input."""

from __future__ import annotations

import json

import numpy as np
import use_graphs

from se_deploy.cli.main import main


def test_bytes_as_arrays_are_warned_of(tmp_path, capsys):
    net = use_graphs.save(tmp_path / "net.onnx", use_graphs.SE)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.float32)
    prepared = (pixels / 255 - 0.5) / 0.25
    for name, array, doubted in (("bytes", pixels, True), ("right", prepared, False)):
        np.save(tmp_path / f"{name}.npy", array)
        args = ("parity", net, net, "--data", tmp_path / f"{name}.npy", "--json")
        assert main([str(arg) for arg in args], standalone_mode=False) in {0, None}
        warnings = json.loads(capsys.readouterr().out)["warnings"]
        assert any("bytes from 0 to 255" in text for text in warnings) == doubted
    out = tmp_path / "int8.onnx"
    args = ("quantize", net, "--calib-data", tmp_path / "bytes.npy", "-o", out, "--json")
    assert main([str(arg) for arg in args], standalone_mode=False) in {0, None}
    assert "bytes from 0 to 255" in " ".join(json.loads(capsys.readouterr().out)["warnings"])
