"""What fails while an engine is in use is itself: no missing runtime, and no error of a context manager."""

import contextlib
import dataclasses
import types

import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.commands import artifacts
from se_deploy.errors import BadArtifact, BadInput, DeviceFailed, MissingRuntime
from se_deploy.targets import Device, Target


class Runtime:
    name, device = "tensorrt", "a GPU"

    def __init__(self, refuses=None):
        self.refuses = refuses

    @contextlib.contextmanager
    def open(self, _):
        if self.refuses is not None:
            raise self.refuses
        yield types.SimpleNamespace(inputs=(), outputs=())


@pytest.fixture
def engine(tmp_path, monkeypatch):
    manifest = types.SimpleNamespace(
        runtime="tensorrt", precision="fp16", input=None, features=None, targets=("sm86",)
    )
    monkeypatch.setattr(artifacts.manifests, "check", lambda _: types.SimpleNamespace(manifest=manifest))
    return tmp_path / "net.engine"


@pytest.mark.parametrize("stand_in", [False, True])
@pytest.mark.parametrize("error", [DeviceFailed, MissingRuntime, BadInput, ValueError])
def test_an_error_in_use_is_passed_on_as_it_is(engine, monkeypatch, error, stand_in):
    monkeypatch.setattr(registry, "engine_runtime", lambda *_: Runtime())
    raised = ValueError("memory") if error is ValueError else error("memory", hint="free it")
    with pytest.raises(error, match="memory") as caught, artifacts.opened(engine, stand_in=stand_in):
        raise raised
    assert caught.value is raised


def test_a_runtime_that_is_missing_is_said_where_nothing_stands_in(engine, monkeypatch):
    monkeypatch.setattr(registry, "engine_runtime", lambda *_: Runtime(MissingRuntime("no GPU", hint="")))
    with pytest.raises(MissingRuntime, match="no GPU"), artifacts.opened(engine):
        pass


def test_a_full_device_lets_no_file_stand_in(engine, monkeypatch):
    """The engine could not be opened for want of memory: its ONNX file must not answer for it."""
    monkeypatch.setattr(registry, "engine_runtime", lambda *_: Runtime(DeviceFailed("full", hint="")))
    with pytest.raises(DeviceFailed, match="full"), artifacts.opened(engine, stand_in=True):
        pass


H200 = Target("sm90", 90, Device("NVIDIA H200", "NVIDIA H200", 90, 4800.0))


@pytest.fixture
def h200(monkeypatch):
    """The GPU at hand is an H200; engines are opened as TensorRT-RTX does there, which refuses each."""
    get = registry.get
    backend = get("tensorrt-rtx")
    here = dataclasses.replace(backend.engines, here=lambda: H200)
    backend = dataclasses.replace(backend, engines=here)
    refusal = BadArtifact("The engine cannot run on this GPU, which has compute capability 9.0", hint="")
    monkeypatch.setattr(registry, "get", lambda name: backend if name == "tensorrt" else get(name))
    monkeypatch.setattr(registry, "engine_runtime", lambda *_: Runtime(refusal))


def test_an_engine_for_another_gpu_is_checked_through_its_file(h200, engine, monkeypatch, tmp_path):
    """Parity ended in an error on an H200, where the same engine passed on a machine without a GPU."""
    onnx = tmp_path / "net.onnx"
    graph.save(plan_graphs.se_net(), onnx)
    monkeypatch.setattr(artifacts.manifests, "stand_in", lambda *_: onnx)
    monkeypatch.setattr(artifacts, "_plan", lambda _: None)
    with artifacts.opened(engine, stand_in=True) as opened:
        assert opened.evaluated is None
        assert "was built for sm86, and this machine's GPU is NVIDIA H200 (sm90)" in opened.checked_as


def test_an_engine_for_another_gpu_is_not_timed(h200, engine):
    with pytest.raises(MissingRuntime, match="was built for sm86") as caught, artifacts.opened(engine):
        pass
    assert "sm90" in caught.value.hint


def test_an_engine_for_more_gpus_than_its_own_is_tried(h200, engine, monkeypatch):
    features = types.SimpleNamespace(version_compatible=False, hardware_compatibility="ampere-plus")
    manifest = types.SimpleNamespace(
        runtime="tensorrt", precision="fp16", input=None, features=features, targets=("sm86",)
    )
    monkeypatch.setattr(artifacts.manifests, "check", lambda _: types.SimpleNamespace(manifest=manifest))
    with pytest.raises(BadArtifact, match="compute capability"), artifacts.opened(engine, stand_in=True):
        pass
