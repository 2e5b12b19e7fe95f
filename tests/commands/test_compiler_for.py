"""Which backend builds: the one asked for, else the first here that builds for the targets."""

import dataclasses
import importlib.util

import needs
import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.backends.tensorrt import gpu
from se_deploy.commands import compilers
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
        compilers.compiler_for(None, [resolve_target("sm86")])
    assert "TensorRT-RTX is not installed here; TensorRT is not installed here" in caught.value.message
    assert "No module named" not in caught.value.message
    assert "pip install" in caught.value.hint


@needs.RTX
def test_a_target_that_no_compiler_here_builds_for_is_said_with_what_they_build_for():
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("full TensorRT is installed here, which may build for it")
    with pytest.raises(BadInput, match="no target of TensorRT-RTX") as caught:
        compilers.compiler_for(None, [resolve_target("orin-nano")])
    assert "nothing here builds an engine for orin-nano" in caught.value.message
    assert "--runtime tensorrt" in caught.value.hint


@needs.RTX
def test_the_first_that_builds_for_the_targets_is_taken():
    assert (
        compilers.compiler_for(None, [resolve_target("sm86"), resolve_target("rtx-4090")]).name
        == "tensorrt-rtx"
    )
    asked = registry.get("tensorrt")
    assert compilers.compiler_for(asked, [resolve_target("sm86")]) is asked


def gpu_at_hand(monkeypatch, sm):
    found = None if sm is None else gpu.Gpu(f"GPU of sm{sm}", sm, 100.0)
    monkeypatch.setattr(gpu, "here", lambda: found)


@needs.RTX
@pytest.mark.parametrize(
    ("sm", "built_for"),
    [
        (None, ["sm80", "sm86", "sm89", "sm120"]), (86, ["sm80", "sm86", "sm89", "sm120"]),
        (75, ["sm75"]), (121, ["sm121"]), (90, ["sm80", "sm86", "sm89", "sm120"]),
    ],
)  # fmt: skip
def test_an_engine_is_built_for_the_gpu_at_hand_where_it_can_be(monkeypatch, sm, built_for):
    gpu_at_hand(monkeypatch, sm)
    backend = registry.get("tensorrt-rtx")
    targets = compilers.targets_for(backend, [])
    assert [target.name for target in targets] == built_for
    notes = compilers.runs_elsewhere(backend, targets)
    assert bool(notes) == (sm == 90)
    assert all("will not run on this machine's GPU of sm90" in note for note in notes)
    assert compilers.targets_for(backend, [resolve_target("sm89")]) == (resolve_target("sm89"),)


class Stub:
    """A compiler for some targets, whose engines run where they were built."""

    def __init__(self, *targets):
        self.targets = targets

    def check_target(self, target):
        if target.name not in self.targets:
            raise BadInput(f"{target.called} is no target", hint="")

    def close(self):
        pass


@pytest.mark.parametrize(
    ("sm", "full", "taken"),
    [
        (86, ["sm86"], "tensorrt-rtx"), (None, ["sm86"], "tensorrt-rtx"), (90, ["sm90"], "tensorrt"),
        (87, ["sm87"], "tensorrt"), (90, [], "tensorrt-rtx"),
    ],
)  # fmt: skip
def test_auto_takes_what_runs_on_the_gpu_at_hand(monkeypatch, sm, full, taken):
    gpu_at_hand(monkeypatch, sm)
    for name, targets in (("tensorrt-rtx", ["sm75", "sm86"]), ("tensorrt", full)):
        made = dataclasses.replace(
            registry.get(name),
            engines=dataclasses.replace(registry.get(name).engines, compiler=lambda t=targets: Stub(*t)),
        )
        known = compilers.registry.get
        monkeypatch.setattr(
            compilers.registry, "get", lambda n, made=made, known=known: made if n == made.name else known(n)
        )
    assert compilers.compiler_for(None, []).name == taken


def test_what_builds_nothing_says_what_does():
    with pytest.raises(BadInput, match="ONNX Runtime builds no engine") as caught:
        compilers.compiler_for(registry.get("onnxruntime"), [])
    assert "tensorrt-rtx or tensorrt" in caught.value.hint
