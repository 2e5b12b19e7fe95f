"""The session's own work, followed on a device that is none: see fake_nvidia."""

import fake_nvidia
import numpy as np
import pytest

from se_deploy.backends.tensorrt import cuda, loading
from se_deploy.backends.tensorrt.session import TrtRuntime, kernel_cache
from se_deploy.errors import BadArtifact, BadInput, CannotWrite, DeviceFailed, MissingRuntime


@pytest.fixture
def machine(monkeypatch):
    cudart = fake_nvidia.Cudart()
    monkeypatch.setattr(cuda, "api", lambda: cudart)
    return cudart


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def module(request, machine, monkeypatch):
    made = fake_nvidia.tensorrt(rtx=request.param == "tensorrt-rtx", cudart=machine)
    made.runtime = request.param
    monkeypatch.setattr(loading, "module", lambda _: made)
    return made


@pytest.fixture
def opened(machine, monkeypatch, path):
    """Open an engine of full TensorRT that is as described."""

    def opening(*, cuda_graph=False, **engine_is):
        made = fake_nvidia.tensorrt(cudart=machine, **engine_is)
        monkeypatch.setattr(loading, "module", lambda _: made)
        return made, TrtRuntime("tensorrt", cuda_graph=cuda_graph).open(path)

    return opening


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
    with TrtRuntime(module.runtime, cuda_graph=False).open(path) as session:
        session.run({"x": x(2)})
        before = module.contexts[0]._enqueued
        copies = []
        monkeypatch.setattr(
            machine, "cudaMemcpyAsync", lambda *args: copies.append(args) or (fake_nvidia.Error(0),)
        )
        assert session.time({"x": x(2)}, 5).tolist() == [1.5] * 5
        assert module.contexts[0]._enqueued == before + 6  # one before the first event fills the queue
        assert session.time({"x": x(2)}, 1).tolist() == [1.5]
        assert module.contexts[0]._enqueued == before + 7
        assert len(copies) == 2  # the input, before the clock starts


def test_events_of_timed_calls_are_given_back(opened, machine, monkeypatch):
    events = []
    monkeypatch.setattr(machine, "cudaEventCreate", lambda: events.append(1) or (fake_nvidia.Error(0), 1))
    monkeypatch.setattr(machine, "cudaEventDestroy", lambda _: events.pop() and (fake_nvidia.Error(0),))
    _, opening = opened()
    with opening as session:
        session.time({"x": x(2)}, 5)
    assert not events


@pytest.mark.parametrize("cuda_graph", [None, True])
def test_a_recorded_graph_is_replayed_and_dropped_when_memory_moves(module, machine, path, cuda_graph):
    with TrtRuntime(module.runtime, cuda_graph=cuda_graph).open(path) as session:
        session.time({"x": x(1)}, 3)
        session.time({"x": x(4)}, 3)  # larger: memory moves
        session.time({"x": x(1)}, 3)
        np.testing.assert_array_equal(session.run({"x": x(1)})["y"], 2 * x(1))
        replayed = len(machine.launches)
    assert replayed == (12 if module.runtime == "tensorrt" else 0)  # TensorRT-RTX records by itself
    assert not machine.graphs


def test_what_cannot_be_recorded_is_launched_and_said_unless_a_graph_was_asked_for(
    opened, machine, monkeypatch
):
    refused = (fake_nvidia.Error.cudaErrorIllegalAddress, None)
    monkeypatch.setattr(machine, "cudaGraphInstantiate", lambda *_: refused)
    _, opening = opened(cuda_graph=None)
    with opening as session:
        assert session.time({"x": x(1)}, 3).shape == (3,)
        cost = session.cost({"x": x(1)}, 2)
    assert cost.cuda_graph is False
    assert "no CUDA graph can be made" in cost.notes[0]
    _, opening = opened(cuda_graph=True)
    with opening as session, pytest.raises(DeviceFailed, match="cudaGraphInstantiate"):
        session.time({"x": x(1)}, 3)


def test_a_call_s_cost_is_told_part_by_part(module, machine, path):
    with TrtRuntime(module.runtime).open(path) as session:
        cost = session.cost({"x": x(2)}, 3)
        assert (cost.h2d_ms, cost.d2h_ms) == (1.5, 1.5)  # as the fake's events have it
        assert cost.end_to_end_ms > 0
        assert cost.enqueue_ms > 0
        assert cost.layers == (("conv", 0.25), ("fc", 0.75))
        assert (cost.cuda_graph, cost.notes) == (True, ())
        assert [context.profiler is None for context in module.contexts] == [True, False]
        np.testing.assert_array_equal(session.run({"x": x(3)})["y"], 2 * x(3))


def test_layers_that_cannot_be_timed_say_why(opened):
    _, opening = opened(profiles=[((1, 3), (1, 3), (2, 3)), ((3, 3), (3, 3), (4, 3))])
    with opening as session:
        cost = session.cost({"x": x(1)}, 2)
    assert cost.layers == ()
    assert "layers were not timed" in cost.notes[0]


def test_queued_calls_are_launched_without_waiting(opened, machine, monkeypatch):
    made, opening = opened()
    with opening as session:
        queue = session.queue({"x": x(2)})
        waits = []
        monkeypatch.setattr(
            machine, "cudaStreamSynchronize", lambda _: waits.append(1) or (fake_nvidia.Error(0),)
        )
        before = made.contexts[0]._enqueued
        for _ in range(4):
            queue.launch()
        assert (made.contexts[0]._enqueued, waits) == (before + 4, [])
        queue.wait()
        assert waits == [1]


@pytest.fixture
def rtx(machine, monkeypatch):
    made = fake_nvidia.tensorrt("1.7.1", rtx=True, cudart=machine)
    monkeypatch.setattr(loading, "module", lambda _: made)
    return made


def test_rtx_compiles_before_the_first_call(rtx, path):
    with TrtRuntime("tensorrt-rtx", cuda_graph=True).open(path):
        (config,) = rtx.configs
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"


@pytest.mark.parametrize(("before", "used"), [(None, b""), (b"kernels 1", b"kernels 1"), (b"old", b"")])
def test_what_rtx_compiled_is_kept_beside_the_engine(rtx, path, before, used):
    cache = kernel_cache(path)
    if before is not None:
        cache.write_bytes(before)
    with TrtRuntime("tensorrt-rtx").open(path) as session:
        session.run({"x": x(1)})
    assert rtx.configs[0]._cache._known == used
    assert cache.read_bytes() == (used or b"kernels")


def test_a_folder_that_cannot_be_written_keeps_no_kernels(rtx, path, monkeypatch):
    def refuse(*_):
        raise CannotWrite("read only", hint="")

    monkeypatch.setattr(loading.files, "write_bytes", refuse)
    with TrtRuntime("tensorrt-rtx").open(path) as session:
        np.testing.assert_array_equal(session.run({"x": x(1)})["y"], 2 * x(1))


def test_outputs_that_size_themselves_grow_and_are_read_whole(opened, machine):
    _, opening = opened(grows=True, cuda_graph=True)
    with opening as session:
        for batch in (1, 4, 2):
            np.testing.assert_array_equal(session.run({"x": x(batch)})["y"], 2 * x(batch))
        session.time({"x": x(2)}, 2)
        assert not machine.launches, "a recording has fixed sizes"
    assert not machine.taken


def test_a_full_device_within_a_run_is_the_devices_error(opened, machine):
    _, opening = opened(grows=True)
    with opening as session:
        machine.memory = 20
        with pytest.raises(DeviceFailed, match="cudaMalloc failed with cudaErrorMemoryAllocation"):
            session.run({"x": x(2)})


@pytest.mark.parametrize(
    ("engine_is", "said"),
    [
        ("deaf", "takes no memory for 'x'"),
        ("breaks", "does not run on this device"),
        ("full", "no execution"),
    ],
)
def test_what_an_engine_refuses_is_an_error(opened, machine, engine_is, said):
    _, opening = opened(**{engine_is: True})
    with pytest.raises(DeviceFailed, match=said), opening as session:
        session.run({"x": x(1)})
    assert not machine.taken


def test_the_profile_that_fits_is_the_active_one(opened):
    profiles = [((1, 3), (1, 3), (4, 3)), ((5, 3), (8, 3), (8, 3))]
    made, opening = opened(profiles=profiles)
    with opening as session:
        for batch, profile in ((2, 0), (8, 1), (5, 1), (4, 0)):
            np.testing.assert_array_equal(session.run({"x": x(batch)})["y"], 2 * x(batch))
            assert made.contexts[0].active_optimization_profile == profile
        with pytest.raises(BadInput, match="range, 1x3 to 4x3 or 5x3 to 8x3"):
            session.run({"x": x(9)})


def test_a_runtime_that_does_not_start_says_why(opened):
    _, opening = opened(starts=False)
    with pytest.raises(MissingRuntime, match="does not start here: CUDA initialization failure"), opening:
        pass


def test_plug_ins_are_loaded_before_the_engine(module, path, tmp_path):
    good, bad = tmp_path / "libboxes.so", tmp_path / "readme.txt"
    with TrtRuntime(module.runtime, plugins=(good,)).open(path):
        assert module.libraries == [str(good)]
    with TrtRuntime(module.runtime, plugins=(good,)).open(path):  # once is enough for a process
        assert module.libraries == [str(good)]
    with (
        pytest.raises(BadInput, match=r"readme\.txt' cannot be loaded as plug-ins"),
        TrtRuntime(module.runtime, plugins=(bad,)).open(path),
    ):
        pass


@pytest.mark.parametrize("form", ["LINEAR", "HWC"])
def test_tensors_are_laid_out_as_the_engine_takes_them(opened, form):
    _, opening = opened(form=form)
    with opening as session:
        np.testing.assert_array_equal(session.run({"x": x(2)})["y"], 2 * x(2))


def test_a_format_that_cannot_be_packed_is_refused(opened):
    _, opening = opened(form="DLA_LINEAR")
    with pytest.raises(BadArtifact, match="lies in memory as DLA_LINEAR"), opening:
        pass


def test_an_engine_without_weights_takes_them_from_the_onnx_file_beside_it(opened, path):
    made, opening = opened(stripped=True)
    with (
        pytest.raises(BadArtifact, match=r"without weights, and '.*net\.engine\.onnx' does not give them"),
        opening,
    ):
        pass
    onnx = path.with_name("net.engine.onnx")
    onnx.write_bytes(b"weights")
    made, opening = opened(stripped=True)
    with opening as session:
        np.testing.assert_array_equal(session.run({"x": x(1)})["y"], 2 * x(1))
    assert made.refitted == [str(onnx)]


@pytest.mark.parametrize(("streamable", "budget"), [(0, None), (1 << 20, 77)])
def test_weights_that_stream_get_the_librarys_own_budget(opened, streamable, budget):
    made, opening = opened(streamable=streamable)
    with opening:
        assert made.engines[0].weight_streaming_budget_v2 == budget


@pytest.mark.parametrize("host_code", [False, True])
def test_an_engines_own_code_runs_only_where_it_may(module, path, host_code):
    with TrtRuntime(module.runtime, host_code=host_code).open(path):
        assert module.runtimes[0].engine_host_code_allowed is host_code


def test_an_error_of_the_device_is_itself_and_no_missing_runtime(module, machine, path, monkeypatch):
    broken = (fake_nvidia.Error.cudaErrorIllegalAddress,)
    monkeypatch.setattr(machine, "cudaMemcpyAsync", lambda *_: broken)
    with (
        pytest.raises(DeviceFailed, match="cudaMemcpyAsync"),
        TrtRuntime(module.runtime).open(path) as session,
    ):
        session.run({"x": x(1)})
    assert not issubclass(DeviceFailed, MissingRuntime)


def test_a_failed_recording_ends(module, machine, path):
    device = cuda.Cuda()

    def fail():
        raise BadInput("no", hint="")

    with pytest.raises(BadInput):
        device.capture(fail)
    assert machine.recording is None
    assert device.capture(lambda: None) in machine.graphs


def test_closing_after_an_error_hides_nothing(machine, monkeypatch):
    device = cuda.Cuda()
    device.take(8)
    monkeypatch.setattr(
        machine,
        "cudaStreamSynchronize",
        lambda *_: (fake_nvidia.Error.cudaErrorIllegalAddress,),
        raising=False,
    )
    device.close()
    assert not machine.taken


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
    with pytest.raises(DeviceFailed, match="cudaMalloc failed with cudaErrorMemoryAllocation") as caught:
        device.take(11)
    assert "free memory" in caught.value.hint
    device.close()


def test_without_bindings_the_command_is_given(monkeypatch):
    monkeypatch.setattr(
        cuda.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    with pytest.raises(MissingRuntime, match=r"cuda\.bindings") as caught:
        cuda.api()
    assert "pip install" in caught.value.hint
