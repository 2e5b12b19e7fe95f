"""Which backend builds: the one asked for, else the first here that builds for the targets."""

import importlib.util

import needs
import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.commands import lowering
from se_deploy.commands.build_engine import build_engine
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.targets import resolve_target


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch):
    for module in ("tensorrt", "tensorrt_rtx"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{module}'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_mistyped_target_is_no_missing_compiler(nothing_installed, tmp_path):
    graph.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    with pytest.raises(BadInput, match="'smm86' is no target"):
        build_engine(tmp_path / "net.onnx", tmp_path / "net.engine", target="smm86")


def test_where_nothing_is_installed_each_is_named_with_its_command(nothing_installed):
    with pytest.raises(MissingRuntime) as caught:
        lowering.compiler_for(None, [resolve_target("sm86")])
    assert "TensorRT-RTX is not installed here; TensorRT is not installed here" in caught.value.message
    assert "No module named" not in caught.value.message
    assert "pip install" in caught.value.hint


@needs.RTX
def test_a_target_that_no_compiler_here_builds_for_is_said_with_what_they_build_for():
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("full TensorRT is installed here, which may build for it")
    with pytest.raises(BadInput, match="no target of TensorRT-RTX") as caught:
        lowering.compiler_for(None, [resolve_target("orin-nano")])
    assert "nothing here builds an engine for orin-nano" in caught.value.message
    assert "--runtime tensorrt" in caught.value.hint


@needs.RTX
def test_the_first_that_builds_for_the_targets_is_taken():
    assert (
        lowering.compiler_for(None, [resolve_target("sm86"), resolve_target("rtx-4090")]).name
        == "tensorrt-rtx"
    )
    asked = registry.get("tensorrt")
    assert lowering.compiler_for(asked, [resolve_target("sm86")]) is asked


def test_what_builds_nothing_says_what_does():
    with pytest.raises(BadInput, match="ONNX Runtime builds no engine") as caught:
        lowering.compiler_for(registry.get("onnxruntime"), [])
    assert "tensorrt-rtx or tensorrt" in caught.value.hint
