"""What only a machine with an NVIDIA GPU can prove: `pytest -m gpu`. Each runtime that is not here skips."""

import os

import numpy as np
import onnx_ir as ir
import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends.engine import BuildOptions
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt import cuda, gpu
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.backends.tensorrt.session import TrtRuntime, kernel_cache
from se_deploy.commands import parity
from se_deploy.commands.build_engine import build_engine
from se_deploy.errors import BadInput, DeviceFailed, MissingRuntime, SeDeployError
from se_deploy.options import EngineFeatures, EngineOptions, RewriteOptions, TargetOptions
from se_deploy.schema.files import ShapeRange
from se_deploy.targets import resolve_target

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpu.here() is None, reason="no NVIDIA device")]

DIMS = (plan_graphs.C, plan_graphs.SIDE, plan_graphs.SIDE)
FP32 = {"rtol": 1e-4, "atol": 1e-5}  # sums in another order, without TF32: that would be 1e-3
HALF = {"rtol": 3e-2, "atol": 3e-2}
KINDS = ("tensorrt", "tensorrt-rtx")


@pytest.fixture
def device():
    made = cuda.Cuda()
    yield made
    made.close()


@pytest.fixture(scope="module", params=KINDS)
def compiler(request):
    """A compiler whose engines run on this GPU."""
    try:
        made = Compiler(request.param)
        made.check_target(resolve_target(f"sm{gpu.here().sm}"))
    except (MissingRuntime, BadInput) as e:  # it is not here, or not for this GPU
        pytest.skip(e.message)
    yield made
    made.close()


def full_only(compiler):
    if compiler.runtime != "tensorrt":
        pytest.skip("TensorRT-RTX refuses it")


def here(compiler, **options):
    targets = (resolve_target(f"sm{gpu.here().sm}"),)
    return BuildOptions(targets=targets if compiler.targets else (), **options)


def engine(compiler, folder, model=None, **asked):
    path = folder / "net.engine"
    more = {key: asked.pop(key) for key in ("shapes", "more_shapes", "timing_cache") if key in asked}
    made = compiler.build(
        model or plan_graphs.se_net(), here(compiler, features=EngineFeatures(**asked), **more)
    )
    path.write_bytes(made.data)
    return path, made


def x(batch, dtype=np.float32):
    return np.random.default_rng(batch).standard_normal((batch, *DIMS)).astype(dtype)


def expected(array, model=None):
    with OrtRuntime(threads=1, optimize=False).open(model or plan_graphs.se_net()) as exact:
        return exact.run({"x": array})["y"]


def test_the_gpu_says_what_it_is():
    found = gpu.here()
    assert found.name
    assert found.sm >= 50
    assert found.memory_gb_s is None or found.memory_gb_s > 10


def test_memory_comes_goes_and_ends(device):
    array = np.arange(1 << 20, dtype=np.float32)
    pointer, back = device.take(array.nbytes), np.empty_like(array)
    device.upload(array, pointer)
    device.download(pointer, back)
    device.synchronize()
    np.testing.assert_array_equal(back, array)
    with pytest.raises(DeviceFailed, match="cudaErrorMemoryAllocation"):
        device.take(1 << 50)
    device.give(pointer)
    assert device.take(1 << 20)


def test_events_time_what_is_between_them(device):
    array = np.zeros(1 << 24, np.float32)
    pointer = device.take(array.nbytes)
    copied = device.elapsed_ms(lambda: device.upload(array, pointer))
    assert copied > device.elapsed_ms(lambda: None) >= 0


def test_a_recording_replays_and_a_failed_one_leaves_the_stream_usable(device):
    pointer = device.take(4)
    set_memory = lambda: device.call("cudaMemsetAsync", pointer, 7, 4, device.stream)  # noqa: E731
    graph_of_it = device.capture(set_memory)
    device.call("cudaGraphLaunch", graph_of_it, device.stream)
    found = np.zeros(4, np.uint8)
    device.download(pointer, found)
    device.synchronize()
    assert found.tolist() == [7] * 4
    with pytest.raises(DeviceFailed):
        device.capture(device.synchronize)  # which a recording forbids
    device.call("cudaGraphExecDestroy", graph_of_it)
    device.call("cudaGraphExecDestroy", device.capture(set_memory))
    device.synchronize()


@pytest.mark.parametrize("batch", [1, 5])
def test_an_fp32_engine_computes_in_fp32(compiler, tmp_path, batch):
    """TF32 would not keep this tolerance."""
    path, _ = engine(compiler, tmp_path)
    with TrtRuntime(compiler.runtime).open(path) as session:
        np.testing.assert_allclose(session.run({"x": x(batch)})["y"], expected(x(batch)), **FP32)


def test_half_and_tf32_engines_compute_the_graph(compiler, tmp_path):
    path, _ = engine(compiler, tmp_path, tf32=True)
    with TrtRuntime(compiler.runtime).open(path) as session:
        np.testing.assert_allclose(session.run({"x": x(2)})["y"], expected(x(2)), **HALF)
    path, _ = engine(compiler, tmp_path, plan_graphs.se_net(dtype="float16"))
    with TrtRuntime(compiler.runtime).open(path) as session:
        found = session.run({"x": x(2, np.float16)})["y"].astype(np.float32)
    np.testing.assert_allclose(found, expected(x(2)), **HALF)


def test_the_plan_names_the_graphs_nodes(compiler):
    plan = compiler.plan(plan_graphs.se_net(), here(compiler))
    assert plan.kernels > 0
    named = {node for kernel in plan.layers for node in kernel.onnx_nodes}
    assert named & {"n_m", "n_f1", "n_f2"} or any(kernel.opaque for kernel in plan.layers)


@pytest.mark.parametrize("form", ["LINEAR", "HWC8", "CHW32"])
def test_formats_change_no_answer(compiler, tmp_path, form):
    path, _ = engine(
        compiler, tmp_path, plan_graphs.se_net(dtype="float16"), io_formats={"x": form, "y": form}
    )
    with TrtRuntime(compiler.runtime).open(path) as session:
        found = session.run({"x": x(3, np.float16)})["y"].astype(np.float32)
    np.testing.assert_allclose(found, expected(x(3)), **HALF)


def test_profiles_are_changed_by_the_shape(compiler, tmp_path):
    ranges = [{"x": ShapeRange(*((n, *DIMS),) * 3)} for n in (1, 8)]
    path, _ = engine(compiler, tmp_path, shapes=ranges[0], more_shapes=(ranges[1],))
    with TrtRuntime(compiler.runtime).open(path) as session:
        for batch in (8, 1, 8):
            np.testing.assert_allclose(session.run({"x": x(batch)})["y"], expected(x(batch)), **FP32)
        with pytest.raises(BadInput, match="outside the engine's range"):
            session.run({"x": x(4)})


def test_outputs_that_size_themselves(compiler, tmp_path):
    full_only(compiler)  # which has NonZero as a plug-in
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x) => (int64[2,M] y) { y = NonZero(x) }"""
    ranges = {"x": ShapeRange((1, 4), (2, 4), (8, 4))}
    path, _ = engine(compiler, tmp_path, graph.tidy(ir.from_onnx_text(text)), shapes=ranges)
    with TrtRuntime(compiler.runtime).open(path) as session:
        for array in (np.eye(4, dtype=np.float32), np.ones((8, 4), np.float32), np.zeros((1, 4), np.float32)):
            np.testing.assert_array_equal(session.run({"x": array})["y"], np.stack(np.nonzero(array)))


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_times_are_those_of_the_device(compiler, tmp_path, cuda_graph):
    path, _ = engine(compiler, tmp_path)
    with TrtRuntime(compiler.runtime, cuda_graph=cuda_graph).open(path) as session:
        times = session.time({"x": x(4)}, 20)
        np.testing.assert_allclose(session.run({"x": x(4)})["y"], expected(x(4)), **FP32)
    assert times.shape == (20,)
    assert (times > 0).all()
    assert np.median(times) < 50  # ms, of a network of a few thousand multiply-accumulates


def test_what_rtx_compiled_is_read_again(compiler, tmp_path):
    if compiler.runtime != "tensorrt-rtx":
        pytest.skip("full TensorRT compiles when it builds")
    path, _ = engine(compiler, tmp_path)
    for _ in range(2):
        with TrtRuntime(compiler.runtime).open(path) as session:
            np.testing.assert_allclose(session.run({"x": x(1)})["y"], expected(x(1)), **FP32)
        assert kernel_cache(path).stat().st_size > 0


def test_a_timing_cache_is_kept_and_a_broken_one_replaced(compiler, tmp_path):
    full_only(compiler)
    cache = tmp_path / "timing.cache"
    for _ in range(2):
        engine(compiler, tmp_path, timing_cache=cache)
        assert cache.stat().st_size > 0
    cache.write_bytes(os.urandom(64))
    _, made = engine(compiler, tmp_path, timing_cache=cache)
    assert any("timing cache" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    "asked",
    [{"weight_streaming": True}, {"sparsity": True}, {"optimization_level": 0}, {"refit": True},
     {"strip_weights": True}],
)  # fmt: skip
def test_options_change_no_answer(compiler, tmp_path, asked):
    model = plan_graphs.se_net()
    path, _ = engine(compiler, tmp_path, model, **asked)
    graph.save(model, path.with_name(f"{path.name}.onnx"))
    with TrtRuntime(compiler.runtime).open(path) as session:
        np.testing.assert_allclose(session.run({"x": x(2)})["y"], expected(x(2)), **FP32)


@pytest.mark.parametrize("asked", [{"version_compatible": True}, {"hardware_compatibility": "ampere-plus"}])
def test_portable_engines_load_and_compute(compiler, tmp_path, asked):
    full_only(compiler)
    path, _ = engine(compiler, tmp_path, **asked)
    runtime = TrtRuntime(compiler.runtime, host_code="version_compatible" in asked)
    with runtime.open(path) as session:
        np.testing.assert_allclose(session.run({"x": x(1)})["y"], expected(x(1)), **FP32)


def test_an_engine_that_is_no_engine_gives_the_modules_own_reason(compiler, tmp_path):
    path, made = engine(compiler, tmp_path)
    path.write_bytes(made.data[: len(made.data) // 2])
    with pytest.raises(SeDeployError, match="cannot be loaded"), TrtRuntime(compiler.runtime).open(path):
        pass


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_from_the_file_to_a_verdict_on_the_engine_itself(compiler, tmp_path, precision):
    """build-engine and parity, on the device: the engine is what is compared, no stand-in."""
    onnx, out = tmp_path / "net.onnx", tmp_path / "net.engine"
    graph.save(plan_graphs.se_net(), onnx)
    np.savez(tmp_path / "data.npz", x=x(8))
    target = TargetOptions(compiler.runtime, rewrites=RewriteOptions(names=()))
    best_of = 2 if compiler.runtime == "tensorrt" else 1
    asked = EngineOptions(features=EngineFeatures(best_of=best_of))
    made = build_engine(onnx, out, precision=precision, target=target, engine=asked)
    assert made.precision_failures == ()
    found = parity.to_schema(parity.parity(onnx, [out], data=tmp_path / "data.npz"))
    (candidate,) = found.candidates
    assert (candidate.evaluated, candidate.checked_as, candidate.passed) == ("engine", None, True)
