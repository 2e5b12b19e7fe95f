"""What fails while an engine is in use is itself: no missing runtime, and no error of a context manager."""

import contextlib
import types

import pytest

from se_deploy.backends import registry
from se_deploy.commands import artifacts
from se_deploy.errors import BadInput, DeviceFailed, MissingRuntime


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
    manifest = types.SimpleNamespace(runtime="tensorrt", precision="fp16", input=None, features=None)
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
