import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import plan_graphs
import pytest
from onnx import parser

from se_deploy import graph
from se_deploy.backends.onnxruntime import session as ort
from se_deploy.backends.tensorrt import cuda
from se_deploy.errors import BadArtifact, BadInput, BuildFailed, MissingRuntime

SEES = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(plan_graphs.__file__).parent), *sys.path])}


def has_gpu():
    try:
        cuda.Cuda().close()
    except MissingRuntime:
        return False
    return True


def has_wheels():
    try:
        return all(metadata.version(name) for name in ("nvidia-cublas", "nvidia-cudnn-cu13"))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(ort.CUDA not in onnxruntime.get_available_providers(), reason="a build without CUDA")
@pytest.mark.skipif(has_gpu(), reason="CUDA may work here")
def test_a_provider_that_does_not_start_is_an_error_and_no_slower_answer(capfd):
    runtime = ort.OrtRuntime(provider=ort.CUDA)
    with pytest.raises(MissingRuntime, match="fell back to CPUExecutionProvider") as caught:
        runtime.open(plan_graphs.se_net()).__enter__()
    assert "doctor" in caught.value.hint
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.skipif(ort.CUDA not in onnxruntime.get_available_providers(), reason="a build without CUDA")
@pytest.mark.skipif(has_gpu(), reason="the driver is here")
@pytest.mark.skipif(not has_wheels(), reason="NVIDIA's wheels for CUDA 13 are not here")
def test_the_cuda_provider_finds_the_libraries_of_nvidias_wheels_and_lacks_the_driver_alone():
    """In a process without PyTorch: it failed at cuBLAS, which was installed."""
    code = (
        "import sys, plan_graphs\n"
        "from se_deploy.backends.onnxruntime import session as ort\n"
        "try: ort.OrtRuntime(provider=ort.CUDA).open(plan_graphs.se_net()).__enter__()\n"
        "except ort.MissingRuntime as e: print(e.message, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=SEES)
    assert "libcuda.so.1" in done.stdout, done
    assert done.stdout.endswith("False\n")


def test_an_unknown_provider_is_refused():
    with (
        pytest.raises(MissingRuntime, match="has no NoSuch"),
        ort.OrtRuntime(provider="NoSuch").open(plan_graphs.se_net()),
    ):
        pass


def test_a_graph_that_it_cannot_run_is_refused_with_its_reason(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(BadArtifact, match=r"junk\.onnx"), ort.OrtRuntime().open(tmp_path / "junk.onnx"):
        pass
    model = plan_graphs.se_net()
    model.graph.node("n_m").op_type = "NoSuchOperator"
    with pytest.raises(BadArtifact, match="NoSuchOperator"), ort.OrtRuntime().open(model):
        pass
    with pytest.raises(BuildFailed, match="NoSuchOperator"):
        ort.plan(model)


def test_a_file_opens_as_its_model_does(tmp_path):
    model = plan_graphs.se_net()
    graph.save(model, tmp_path / "net.onnx")
    x = np.ones((1, 32, 14, 14), np.float32)
    with (
        ort.OrtRuntime(threads=1).open(model) as a,
        ort.OrtRuntime(threads=1).open(tmp_path / "net.onnx") as b,
    ):
        np.testing.assert_array_equal(a.run({"x": x})["y"], b.run({"x": x})["y"])


def test_large_weights_are_loaded_from_a_file_beside_the_graph(monkeypatch):
    model = plan_graphs.se_net()
    x = np.ones((1, 32, 14, 14), np.float32)
    with ort.OrtRuntime(threads=1).open(model) as session:
        wanted = session.run({"x": x})["y"]
    monkeypatch.setattr(ort, "_LARGE", 0)
    before = graph.to_bytes(model)
    with ort.OrtRuntime(threads=1, lean=True).open(model) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=1e-5)
    assert graph.to_bytes(model) == before


def test_nothing_is_left_to_the_cpu_on_the_cpu():
    with ort.OrtRuntime(threads=1).open(plan_graphs.se_net()) as session:
        assert session.on_cpu == ()


def test_calls_on_a_gpu_are_said_to_be_launched_one_by_one():
    feeds = {"x": np.ones((1, 32, 14, 14), np.float32)}
    with ort.OrtRuntime(threads=1).open(plan_graphs.se_net()) as session:
        assert session.cost(feeds, 1).cuda_graph is None
        there = ort.OrtSession(session._session, "cuda")  # the same, as if on a GPU
        assert there.cost(feeds, 1).cuda_graph is False


@pytest.mark.parametrize("pool", plan_graphs.POOLS)
@pytest.mark.parametrize("layers", plan_graphs.LAYERS)
@pytest.mark.parametrize("tail", plan_graphs.TAILS)
def test_every_node_is_in_a_kernel_and_every_tensor_has_a_size(pool, layers, tail):
    model = plan_graphs.se_net(pool, layers, tail)
    plan = ort.plan(model)
    placed = [node for layer in plan.layers for node in layer.onnx_nodes]
    folded = {"Shape", "Gather", "Unsqueeze", "Concat", "Transpose"}  # constant, or moved by its optimizer
    assert {n.name for n in model.graph if n.op_type not in folded} <= set(placed)
    assert all(tensor.dims for layer in plan.layers for tensor in (*layer.inputs, *layer.outputs))
    assert (plan.runtime, plan.target) == ("onnxruntime", "cpu")


@pytest.mark.parametrize("act", ["Relu", "HardSigmoid", "Tanh", "HardSwish", "Mish"])
def test_an_activation_is_placed_where_it_is_computed(act):
    model = plan_graphs.se_net(act=act)
    plan = ort.plan(model)
    (kernel,) = [layer for layer in plan.layers if "n_a" in layer.onnx_nodes]
    assert ("n_f1" in kernel.onnx_nodes) == (act != "Mish")
    assert kernel.outputs[0].dims[1:] == (plan_graphs.R, 1, 1)


@pytest.mark.parametrize("between", ["Relu(m) k = BatchNormalization(r, b, b, b, v)", "Gelu(m) k = Relu(r)"])
def test_nodes_that_keep_the_blocked_layout_are_known_and_sized(between):
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["":20]> g (float[N,32,14,14] x) => (float[N,32,14,14] y) '
        f"{{ m = Conv(x, w, b) r = {between} y = Conv(k, w, b) }}"
    )
    weights = {"w": np.ones((32, 32, 1, 1)), "b": np.ones(32), "v": np.ones(32)}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    plan = ort.plan(graph.tidy(ir.from_proto(proto)))
    assert {"n_m", "n_r", "n_k", "n_y"} == {node for layer in plan.layers for node in layer.onnx_nodes}
    assert all(tensor.dims for layer in plan.layers for tensor in (*layer.inputs, *layer.outputs))


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_graphs_are_read_in_the_types_that_run(dtype, per_channel):
    model = plan_graphs.quantized_net(per_channel=per_channel, dtype=dtype)
    plan = ort.plan(model)
    conv = next(layer for layer in plan.layers if "n_m" in layer.onnx_nodes)
    assert {tensor.dtype for tensor in conv.outputs} == {"float32"}
    quantize = next(layer for layer in plan.layers if "n_xq" in layer.onnx_nodes)
    assert quantize.outputs[0].dtype == "int8"


def test_fp16_runs_in_fp32_behind_casts():
    plan = ort.plan(plan_graphs.se_net(dtype="float16"))
    casts = [layer for layer in plan.layers if layer.kind == "Cast" and not layer.onnx_nodes]
    assert casts
    assert any((c.inputs[0].dtype, c.outputs[0].dtype) == ("float16", "float32") for c in casts if c.inputs)
    conv = next(layer for layer in plan.layers if "n_f1" in layer.onnx_nodes)
    assert {tensor.dtype for tensor in (*conv.inputs, *conv.outputs)} == {"float32"}


FAILING = {
    "node 'mm' \\(MatMul\\) cannot run on 'x' 2x3, 'w' 4x5: MatMul dimension mismatch": (
        "y = MatMul(x, w)",
        "mm",
    ),
    "node 'cat' \\(Concat\\) cannot run on 'x' 2x3, 'w' 4x5: Non concat axis dimensions must match": (
        "y = Concat <axis = 0> (x, w)",
        "cat",
    ),
}


@pytest.mark.parametrize("said", FAILING)
@pytest.mark.parametrize("timed", [False, True])
def test_a_node_that_fails_is_named_with_the_shapes_and_nothing_reaches_the_terminal(said, timed, capfd):
    line, name = FAILING[said]
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        f"g (float[N,M] x, float[K,L] w) => (float[A,B] y) {{ {line} }}"
    )
    proto.graph.node[0].name = name
    given = {"x": np.ones((2, 3), np.float32), "w": np.ones((4, 5), np.float32)}
    with (
        ort.OrtRuntime(threads=1).open(ir.from_proto(proto)) as session,
        pytest.raises(BadInput, match=f"^{said}"),
    ):
        session.time(given, 1) if timed else session.run(given)
    assert capfd.readouterr() == ("", "")
