"""`report` says where its figures are of files that are not there any more as they were."""

from __future__ import annotations

import pytest
import use_graphs

from se_deploy.backends import manifest as manifests
from se_deploy.commands import report
from se_deploy.schema import encode

EMPTY = {"schema": "se-deploy/run/1", "tool_version": "0.1.0", "warnings": [], "report": ""}
ARTIFACTS = {name: f"net.{name}" for name in ("engine", "engine.json", "engine.onnx")}


@pytest.fixture
def run(tmp_path):
    """What a run of one engine left."""
    onnx = use_graphs.save(tmp_path / "net.engine.onnx")
    engine = tmp_path / "net.engine"
    engine.write_bytes(b"a plan")
    manifests.write(use_graphs.manifest(engine, onnx, runtime="tensorrt"), manifests.path_of(engine))
    (tmp_path / "report.json").write_text(encode({**EMPTY, "artifacts": ARTIFACTS}))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("net.engine", lambda path: path.write_bytes(b"another"), "is not the engine"),
        ("net.engine", lambda path: path.unlink(), "net.engine' is gone"),
        (
            "net.engine.json",
            lambda path: path.write_text(path.read_text().replace("fp16", "int8")),
            "changed",
        ),
        ("net.engine.onnx", lambda path: path.write_bytes(b"another"), "no longer the file"),
    ],
)
def test_what_is_another_file_now_is_warned_of(run, name, damage, said):
    assert report.report([run]).warnings == ()
    damage(run / name)
    (warning,) = report.report([run]).warnings
    assert said in warning
