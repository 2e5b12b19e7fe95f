"""The session's own work, followed on a device that is none: see fake_nvidia."""

import fake_nvidia
import numpy as np
import pytest

from se_deploy.backends.tensorrt import cuda
from se_deploy.backends.tensorrt import session as trt
from se_deploy.backends.tensorrt.session import TrtRuntime
from se_deploy.errors import BadArtifact, BadInput, MissingRuntime


@pytest.fixture
def machine(monkeypatch):
    cudart = fake_nvidia.Cudart()
    monkeypatch.setattr(cuda, "api", lambda: cudart)
    return cudart


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def module(request, machine, monkeypatch):
    made = fake_nvidia.tensorrt(rtx=request.param == "tensorrt-rtx", cudart=machine)
    made.runtime = request.param
    monkeypatch.setattr(trt, "_module", lambda _: made)
    return made


@pytest.fixture
def path(tmp_path):
    (tmp_path / "net.engine").write_bytes(b"vtrt")
    return tmp_path / "net.engine"


def x(batch):
    return np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)


def test_it_computes_and_gives_its_memory_back(module, machine, path):
    with TrtRuntime(module.runtime).open(path) as session:
        assert [spec.dims for spec in (*session.inputs, *session.outputs)] == [(None, 3)] * 2
        np.testing.assert_array_equal(session.run({"x": x(2)})["y"], 2 * x(2))
        assert machine.taken
    assert not machine.taken


def test_batches_grow_and_shrink(module, path):
    with TrtRuntime(module.runtime).open(path) as session:
        for batch in (1, 4, 2, 3):
            np.testing.assert_array_equal(session.run({"x": x(batch)})["y"], 2 * x(batch))


def test_memory_is_taken_once_for_the_largest(module, machine, path):
    with TrtRuntime(module.runtime).open(path) as session:
        session.run({"x": x(4)})
        kept = set(machine.taken)
        session.run({"x": x(1)})
        assert set(machine.taken) == kept


def test_outside_the_engines_range_is_refused_with_the_range(module, path):
    with TrtRuntime(module.runtime).open(path) as session:
        with pytest.raises(BadInput, match="outside the engine's range, 1x3 to 4x3"):
            session.run({"x": x(5)})
        np.testing.assert_array_equal(session.run({"x": x(1)})["y"], 2 * x(1))


def test_timed_calls_copy_nothing(module, machine, path, monkeypatch):
    with TrtRuntime(module.runtime).open(path) as session:
        session.run({"x": x(2)})
        before = module.contexts[0].enqueued
        copies = []
        monkeypatch.setattr(
            machine, "cudaMemcpyAsync", lambda *args: copies.append(args) or (fake_nvidia.Error(0),)
        )
        assert session.time({"x": x(2)}, 5).tolist() == [1.5] * 5
        assert module.contexts[0].enqueued == before + 5
        assert len(copies) == 1  # the input, before the clock starts


def test_a_recorded_graph_is_replayed_and_dropped_when_memory_moves(module, machine, path):
    with TrtRuntime(module.runtime, cuda_graph=True).open(path) as session:
        session.time({"x": x(1)}, 3)
        session.time({"x": x(4)}, 3)  # larger: memory moves
        session.time({"x": x(1)}, 3)
        np.testing.assert_array_equal(session.run({"x": x(1)})["y"], 2 * x(1))
        replayed = len(machine.launches)
    assert replayed == (9 if module.runtime == "tensorrt" else 0)  # TensorRT-RTX records by itself
    assert not machine.graphs


def test_rtx_compiles_before_the_first_call(machine, monkeypatch, path):
    made = fake_nvidia.tensorrt(rtx=True, cudart=machine)
    engine = fake_nvidia.Doubler(made, machine)
    monkeypatch.setattr(trt, "_module", lambda _: made)
    monkeypatch.setattr(trt, "_load", lambda *_: engine)
    with TrtRuntime("tensorrt-rtx", cuda_graph=True).open(path):
        (config,) = engine.config
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"


def test_an_engine_of_another_version_says_so(module, machine, path):
    path.write_bytes(b"vtrt stale")
    with (
        pytest.raises(BadArtifact, match="Version tag does not match"),
        TrtRuntime(module.runtime).open(path),
    ):
        pass
    assert not machine.taken


def test_the_device_has_a_name(machine):
    assert TrtRuntime().device == "Fake GPU"


@pytest.mark.parametrize(
    ("machine_is", "said"),
    [
        ({"count": 0}, "no NVIDIA device"),
        ({"error": fake_nvidia.Error.cudaErrorNoDevice, "count": None}, "no NVIDIA device"),
        (
            {"error": fake_nvidia.Error.cudaErrorInsufficientDriver, "count": None, "driver": 0},
            "no CUDA driver",
        ),
        (
            {"error": fake_nvidia.Error.cudaErrorInsufficientDriver, "count": None, "driver": 12060},
            r"knows CUDA up to 12\.6, they are of CUDA 13\.5",
        ),
    ],
)
def test_a_machine_that_cannot_says_why(monkeypatch, machine_is, said):
    monkeypatch.setattr(cuda, "api", lambda: fake_nvidia.Cudart(**machine_is))
    with pytest.raises(MissingRuntime, match=said):
        cuda.Cuda()


def test_a_full_device_is_an_error_that_names_the_call(monkeypatch):
    monkeypatch.setattr(cuda, "api", lambda: fake_nvidia.Cudart(memory=10))
    device = cuda.Cuda()
    with pytest.raises(MissingRuntime, match="cudaMalloc failed with cudaErrorMemoryAllocation"):
        device.take(11)
    device.close()


def test_without_bindings_the_command_is_given(monkeypatch):
    monkeypatch.setattr(
        cuda.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    with pytest.raises(MissingRuntime, match=r"cuda\.bindings") as caught:
        cuda.api()
    assert "pip install" in caught.value.hint
