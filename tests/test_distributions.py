"""What is published installs and works: wheel and sdist, licences, bill of materials."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "supply_chain.py"


@pytest.mark.slow
def test_wheel_and_sdist_are_built_installed_and_tried(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--no-audit"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([p for p in tmp_path.iterdir() if p.name.endswith((".whl", ".tar.gz"))]) == 2
    assert "| onnx |" in (tmp_path / "licences.md").read_text("utf-8")
    names = {
        part["name"] for part in json.loads((tmp_path / "sbom.cdx.json").read_text("utf-8"))["components"]
    }
    assert {"numpy", "onnx", "onnxruntime", "se-deploy"} <= names
