"""Every backend keeps the same promises; what this machine cannot open is skipped, and says so."""

import contextlib

import numpy as np
import onnx_ir as ir
import plan_graphs
import pytest

from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.backends.onnxruntime.session import CUDA, OrtRuntime
from se_deploy.backends.tensorrt.compiler import Compiler
from se_deploy.backends.tensorrt.session import TrtRuntime
from se_deploy.errors import BadInput, MissingRuntime

MODEL = plan_graphs.se_net(tail="none")
ARRAYS = {name: value.const_value.numpy().copy() for name, value in MODEL.graph.initializers.items()}


def network():
    """The same function as plan_graphs.se_net("gap", "conv", "none")."""
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, array in ARRAYS.items():
                self.register_buffer(name, torch.from_numpy(array))

        def forward(self, x):
            conv = torch.nn.functional.conv2d
            m = conv(x, self.w, self.b)
            a = conv(m.mean((2, 3), keepdim=True), self.v1, self.b1).relu()
            return m * conv(a, self.v2, self.b2).sigmoid()

    return Net()


@contextlib.contextmanager
def torch_session(threads=1):
    torch = pytest.importorskip("torch")
    from se_deploy.backends.pytorch.session import TorchSession  # noqa: PLC0415 - it imports torch

    yield TorchSession(network(), ["x"], ["y"], examples=[torch.zeros(2, 32, 14, 14)], threads=threads)


@contextlib.contextmanager
def engine_session(runtime, folder):
    _ = TrtRuntime(runtime).device  # without one, there is nothing to build for
    compiler = Compiler(runtime)
    path = folder / "net.engine"
    path.write_bytes(compiler.build(MODEL).data)
    compiler.close()
    with TrtRuntime(runtime).open(path) as session:
        yield session


BACKENDS = ["torch", "ort", "ort-exact", "ort-cuda", "tensorrt-rtx", "tensorrt"]


@pytest.fixture(params=BACKENDS)
def session(request, tmp_path):
    opened = {
        "torch": torch_session,
        "ort": lambda: OrtRuntime(threads=1).open(MODEL),
        "ort-exact": lambda: OrtRuntime(threads=1, optimize=False).open(MODEL),
        "ort-cuda": lambda: OrtRuntime(provider=CUDA).open(MODEL),
        "tensorrt-rtx": lambda: engine_session("tensorrt-rtx", tmp_path),
        "tensorrt": lambda: engine_session("tensorrt", tmp_path),
    }[request.param]
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(opened())
        except MissingRuntime as e:
            pytest.skip(e.message)


def feeds(batch, seed=0):
    x = np.random.default_rng(seed).standard_normal((batch, 32, 14, 14))
    return {"x": x.astype(np.float32)}


def expected(x):
    with OrtRuntime(threads=1, optimize=False).open(MODEL) as exact:
        return exact.run({"x": x})["y"]


def test_it_says_what_it_takes_and_gives(session):
    (x,), (y,) = session.inputs, session.outputs
    assert (x.name, x.dtype, x.dims) == ("x", np.float32, (None, 32, 14, 14))
    assert (y.name, y.dtype, y.dims[1:]) == ("y", np.float32, (32, 14, 14))


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_the_graph(session, batch):
    given = feeds(batch)
    result = session.run(given)["y"]
    np.testing.assert_allclose(result, expected(given["x"]), rtol=1e-3, atol=1e-3)  # TF32 on a GPU


def test_outputs_are_the_callers_to_keep(session):
    first = session.run(feeds(1))["y"]
    kept = first.copy()
    session.run(feeds(1, seed=1))
    first += 0  # writable
    np.testing.assert_array_equal(first, kept)


def test_feeds_are_left_alone_and_need_not_be_contiguous(session):
    given = feeds(2)["x"]
    turned = given.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(session.run({"x": turned})["y"], session.run({"x": given})["y"])
    np.testing.assert_array_equal(given, feeds(2)["x"])


def test_a_scalar_is_fed_as_a_scalar():
    text = "<ir_version: 10, opset_import: ['' : 20]> g (float s) => (float[1] y) "
    model = ir.from_onnx_text(
        text.replace("'", '"') + "{ o = Constant<value = int64[1] {0}>() y = Unsqueeze(s, o) }"
    )
    with OrtRuntime(threads=1).open(model) as opened:
        given = np.array(2.5, np.float32)
        np.testing.assert_array_equal(opened.run({"s": given})["y"], given[None])


def test_times_are_one_for_each_call(session):
    times = session.time(feeds(1), 4)
    assert times.shape == (4,)
    assert (times > 0).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "was fed nothing"),
        ({"z": np.zeros((1, 32, 14, 14), np.float32)}, "'z'"),
        ({"x": np.zeros((1, 32, 14, 14), np.float64)}, "float64"),
        ({"x": np.zeros((1, 31, 14, 14), np.float32)}, "1x31x14x14"),
        ({"x": np.zeros((32, 14, 14), np.float32)}, "32x14x14"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(session, given, said):
    for call in (session.run, lambda f: session.time(f, 1)):
        with pytest.raises(BadInput, match=said):
            call(given)


def test_torch_runs_modules_only(tmp_path):
    session = registry.network_session(network(), SessionOptions(threads=1))
    assert session.run({"input": feeds(1)["x"]})["output"].shape == (1, 32, 14, 14)
    for other in (tmp_path / "net.onnx", MODEL):
        with pytest.raises(BadInput, match="PyTorch runs modules"):
            registry.network_session(other)


def test_torch_puts_its_threads_back():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with torch_session(threads=1 if before > 1 else 2) as session:
        session.time(feeds(1), 1)
    assert torch.get_num_threads() == before


def test_torch_gives_every_output_of_a_nested_result():
    torch = pytest.importorskip("torch")
    from se_deploy.backends.pytorch.session import TorchSession  # noqa: PLC0415 - it imports torch

    class Several(torch.nn.Module):
        def forward(self, x):
            return {"a": x, "b": (x + 1, [x + 2])}

    session = TorchSession(Several(), ["x"], ["a", "b", "c"], examples=[torch.zeros(2, 3)])
    results = session.run({"x": np.zeros((1, 3), np.float32)})
    assert [float(results[name][0, 0]) for name in "abc"] == [0.0, 1.0, 2.0]


def test_a_network_that_writes_into_its_input_leaves_the_callers_array():
    torch = pytest.importorskip("torch")
    from se_deploy.backends.pytorch.session import TorchSession  # noqa: PLC0415 - it imports torch

    class Doubling(torch.nn.Module):
        def forward(self, x):
            return x.mul_(2)

    x = np.ones((2, 3), np.float32)
    session = TorchSession(Doubling(), ["x"], ["y"])
    for _ in range(2):
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.full((2, 3), 2))
        session.time({"x": x}, 1)
    np.testing.assert_array_equal(x, 1)
