"""What only a GPU shows: `pytest -m gpu` runs these, with whichever TensorRT is there."""

import contextlib
import importlib.util

import numpy as np
import plan_graphs
import pytest

from se_deploy.backends.engine import BuildOptions
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt import cuda, gpu
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.backends.tensorrt.session import TrtRuntime
from se_deploy.errors import BadInput, DeviceFailed, MissingRuntime
from se_deploy.profiling import latency, power
from se_deploy.targets import resolve_target

pytestmark = pytest.mark.gpu

TF32 = {"rtol": 1e-3, "atol": 1e-3}  # a GPU may round what FP32 layers read
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@pytest.fixture
def device():
    try:
        opened = cuda.Cuda()
    except MissingRuntime as e:
        pytest.skip(e.message)
    yield opened
    opened.close()


@pytest.fixture(params=MODULES)
def engine(request, device, tmp_path):
    """An engine of the block of plan_graphs, batch 1 to 16, and the runtime that runs it."""
    if importlib.util.find_spec(MODULES[request.param]) is None:
        pytest.skip(f"{request.param} is not installed")
    target = resolve_target(f"sm{gpu.here().sm}")
    try:
        compiler = Compiler(request.param)
        compiler.check_target(target)  # not all of them run on all devices
    except (MissingRuntime, BadInput) as e:
        pytest.skip(e.message)
    with contextlib.closing(compiler):
        options = BuildOptions(targets=(target,) if compiler.targets else ())
        built = compiler.build(plan_graphs.se_net(tail="none"), options)
    path = tmp_path / "net.engine"
    path.write_bytes(built.data)
    return request.param, path


def x(batch):
    return np.random.default_rng(batch).standard_normal((batch, 32, 14, 14)).astype(np.float32)


def expected(batch):
    with OrtRuntime(threads=1, optimize=False).open(plan_graphs.se_net(tail="none")) as exact:
        return exact.run({"x": x(batch)})["y"]


def test_copies_arrive(device):
    source = np.arange(1 << 16, dtype=np.float32)
    target = np.zeros_like(source)
    pointer = device.take(source.nbytes)
    device.upload(source, pointer)
    device.download(pointer, target)
    device.synchronize()
    np.testing.assert_array_equal(target, source)


def test_a_recorded_call_is_replayed(device):
    target = np.ones(1 << 10, np.float32)
    pointer = device.take(target.nbytes)
    device.upload(target, pointer)
    device.synchronize()
    graph = device.capture(lambda: device.call("cudaMemsetAsync", pointer, 0, target.nbytes, device.stream))
    device.download(pointer, target)
    device.synchronize()
    assert target.all()  # recording runs nothing
    device.call("cudaGraphLaunch", graph, device.stream)
    device.download(pointer, target)
    device.synchronize()
    assert not target.any()


def test_a_recording_that_fails_leaves_the_stream_of_use(device):
    with pytest.raises(DeviceFailed):
        device.capture(device.synchronize)  # a stream that is recorded is not to be waited for
    test_copies_arrive(device)
    test_a_recorded_call_is_replayed(device)


def test_full_memory_is_an_error_and_no_end(device):
    with pytest.raises(DeviceFailed, match="cudaErrorMemoryAllocation"):
        device.take(1 << 50)
    test_copies_arrive(device)


def test_gaps_between_queued_calls_add_up_to_the_time_of_all(device):
    size = 1 << 26
    pointer = device.take(size)

    def work():
        device.call("cudaMemsetAsync", pointer, 0, size, device.stream)

    gaps = device.gaps_ms(work, 50)
    together = device.elapsed_ms(lambda: [work() for _ in range(50)])
    assert len(gaps) == 50
    assert sum(gaps) == pytest.approx(together, rel=0.25)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_engine_computes_the_graph(engine, batch):
    runtime, path = engine
    with TrtRuntime(runtime).open(path) as session:
        np.testing.assert_allclose(session.run({"x": x(batch)})["y"], expected(batch), **TF32)


@pytest.mark.parametrize("cuda_graph", [None, True, False])
def test_timed_calls_leave_the_numbers_alone(engine, cuda_graph):
    runtime, path = engine
    with TrtRuntime(runtime, cuda_graph=cuda_graph).open(path) as session:
        for batch in (1, 4, 1):
            assert (session.time({"x": x(batch)}, 20) > 0).all()
            np.testing.assert_allclose(session.run({"x": x(batch)})["y"], expected(batch), **TF32)


def test_the_parts_of_a_call_are_told(engine):
    runtime, path = engine
    with TrtRuntime(runtime).open(path) as session:
        found = latency.measure(session, {"x": x(4)}, duration_s=0.3)
        cost = session.cost({"x": x(4)}, 10)
    assert cost.end_to_end_ms > found.p50_ms
    assert min(cost.enqueue_ms, cost.h2d_ms, cost.d2h_ms) > 0
    assert cost.layers or cost.notes
    assert all(ms >= 0 for _, ms in cost.layers)


def test_two_streams_share_the_device(engine):
    runtime, path = engine
    with TrtRuntime(runtime).open(path) as one, TrtRuntime(runtime).open(path) as two:
        queues = [session.queue({"x": x(1)}) for session in (one, two)]
        assert latency.throughput_per_s(queues, 1, 0.2) > 0
        np.testing.assert_allclose(two.run({"x": x(1)})["y"], expected(1), **TF32)


def test_power_is_read_while_the_device_works(engine):
    runtime, path = engine
    with power.meter() as watts, TrtRuntime(runtime).open(path) as session:
        if watts is None:
            pytest.skip("nothing here reads the power")
        found = latency.measure(session, {"x": x(4)}, duration_s=0.5, watts=watts)
    assert found.power_w > 0
