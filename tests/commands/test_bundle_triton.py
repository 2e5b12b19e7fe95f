"""A model repository of Triton: what its configuration says, and what is not served."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import case_graphs
import pytest
import use_graphs
from bundle_files import contents, engine
from google.protobuf import descriptor_pool, message_factory, text_format

from se_deploy.backends import registry
from se_deploy.commands import bundle
from se_deploy.deploy import pbtxt
from se_deploy.errors import BadArtifact, BadInput, UnsupportedGraph
from se_deploy.options import ImageOptions
from se_deploy.schema.files import EngineFeatures, ShapeRange

FIXTURES = Path(__file__).parent.parent / "fixtures"


def triton_config():
    """Triton's own ModelConfig: a strict reader of the text format (see fixtures/README.md)."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile((FIXTURES / "triton_model_config.binpb").read_bytes())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def type_name(tensor):
    kinds = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type
    return kinds.values_by_number[tensor.data_type].name


def parsed(path):
    return text_format.Parse(path.read_text("utf-8"), triton_config()())


@pytest.fixture
def net(tmp_path):
    return use_graphs.save(tmp_path / "net.onnx")


def test_labels_of_a_served_model_belong_to_its_scores(tmp_path):
    given = case_graphs.save(case_graphs.frames(), tmp_path / "net.onnx")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcde"))
    bundle.bundle(given, tmp_path / "out", triton=True, image=ImageOptions(labels=labels))
    config = parsed(tmp_path / "out" / "net" / "config.pbtxt")
    assert [(o.name, o.label_filename) for o in config.output] == [("class", ""), ("prob", "labels.txt")]
    assert (type_name(config.input[0]), list(config.input[0].dims)) == ("TYPE_UINT8", [32, 32, 3])


def test_a_free_batch_leaves_the_dims_in_a_model_repository(net, tmp_path):
    result = bundle.bundle(net, tmp_path / "models", triton=True)
    assert set(contents(tmp_path / "models")) == set(result.files)
    assert set(result.files) == {"net/config.pbtxt", "net/labels.txt", "net/1/model.onnx"}
    config = parsed(tmp_path / "models/net/config.pbtxt")
    assert (config.name, config.platform, config.backend) == ("net", "onnxruntime_onnx", "onnxruntime")
    assert config.max_batch_size == 16
    assert config.HasField("dynamic_batching")
    (taken,), (given_,) = config.input, config.output
    assert (taken.name, list(taken.dims), type_name(taken)) == ("x", [3, 8, 8], "TYPE_FP32")
    assert (given_.name, list(given_.dims), given_.label_filename) == ("y", [3], "labels.txt")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert json.loads(parameters[pbtxt.PARAMETER])["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_frozen_batch_is_in_the_dims_and_not_batched(tmp_path, batch):
    net = use_graphs.save(tmp_path / "net.onnx", batch=batch)
    bundle.bundle(net, tmp_path / "models", triton=True)
    config = parsed(tmp_path / "models/net/config.pbtxt")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [batch, 3, 8, 8]
    assert list(config.output[0].dims) == [batch, 3]


@pytest.mark.parametrize(("low", "high", "expected"), [(1, 4, 4), (1, 1, 1), (2, 4, 0)])
def test_an_engine_is_batched_as_its_profile_allows(tmp_path, low, high, expected):
    shapes = {"x": ShapeRange((low, 3, 8, 8), (low, 3, 8, 8), (high, 3, 8, 8))}
    path = engine(tmp_path / "in", runtime="tensorrt", shapes=shapes)
    result = bundle.bundle(path, tmp_path / "models", triton=True, name="digits")
    assert (result.model, "digits/1/model.plan" in result.files) == ("digits", True)
    text = (tmp_path / "models/digits/config.pbtxt").read_text()
    config = parsed(tmp_path / "models/digits/config.pbtxt")
    assert (config.platform, config.backend) == ("tensorrt_plan", "tensorrt")
    assert config.max_batch_size == expected
    assert config.HasField("dynamic_batching") == (expected > 1)
    assert list(config.input[0].dims) == ([3, 8, 8] if expected else [-1, 3, 8, 8])
    assert "TensorRT 10.3.0" in text


def test_a_tensorrt_rtx_engine_is_not_for_triton(tmp_path):
    with pytest.raises(BadInput, match="TensorRT-RTX") as e:
        bundle.bundle(engine(tmp_path / "in"), tmp_path / "models", triton=True)
    assert "net.engine.onnx" in e.value.hint
    assert not (tmp_path / "models").exists()


def test_a_model_repository_needs_the_graph_s_inputs_and_outputs(tmp_path):
    path = engine(tmp_path / "in", runtime="tensorrt")
    (tmp_path / "in" / "net.engine.onnx").unlink()
    with pytest.raises(BadArtifact, match="inputs and outputs"):
        bundle.bundle(path, tmp_path / "models", triton=True)


def test_odd_names_and_shapes_stay_valid_text():
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float16[N,H,W] x, int64[N] n) => (int64[N] m, y) {{\n'
    )
    model = use_graphs.model(text + "    m = Neg(n)\n    y = Relu(x)\n}}", None, weights=False)
    model.graph.inputs[0].name = 'x"\\\n'
    made = pbtxt.config("odd", model, platform=registry.graphs().triton, spec=None, manifest=None, apart=True)
    config = text_format.Parse(made, triton_config()())
    assert config.input[0].name == 'x"\\\n'
    assert list(config.input[0].dims) == [-1, -1]
    assert type_name(config.input[0]) == "TYPE_FP16"
    assert list(config.input[1].dims) == [1]
    assert list(config.input[1].reshape.shape) == []
    assert config.input[1].HasField("reshape")
    assert not config.output[0].label_filename
    model.graph.outputs[1].shape = None
    with pytest.raises(UnsupportedGraph, match="'y'"):
        pbtxt.config("odd", model, platform=registry.graphs().triton, spec=None, manifest=None, apart=True)


def served(signature, *body):
    """The configuration of a graph with these inputs, outputs and nodes."""
    text = f'<ir_version: 8, opset_import: ["" : 17]>\ng {signature} {{{{ {chr(10).join(body)} }}}}'
    model = use_graphs.model(text, None, weights=False)
    made = pbtxt.config("net", model, platform=registry.graphs().triton, spec=None, manifest=None, apart=True)
    return text_format.Parse(made, triton_config()())


ROWS_THAT_ARE_NO_SAMPLES = {
    "found": (
        "(float[N,3] x) => (float[M,2] y)",
        ("n = NonZero(x)", "i = Transpose<perm=[1,0]>(n)", "y = Cast<to=1>(i)"),
    ),
    "flattened": (
        "(float[N,4] x) => (float[M,2] y)",
        ("s = Constant<value=int64[2] {{-1, 2}}>()", "y = Reshape(x, s)"),
    ),
    "flattened, unnamed": (
        "(float[?,4] x) => (float[?,2] y)",
        ("s = Constant<value=int64[2] {{-1, 2}}>()", "y = Reshape(x, s)"),
    ),
    "each with each": (
        "(float[N,3] x, float[M,3] q) => (float[N,M] y)",
        ("t = Transpose<perm=[1,0]>(q)", "y = MatMul(x, t)"),
    ),
    "itself with itself": (
        "(float[batch,3] x) => (float[batch,batch] y)",
        ("t = Transpose<perm=[1,0]>(x)", "y = MatMul(x, t)"),
    ),
    "time first": ("(float[T,N,8] x) => (float[T,N,8] y)", ("y = Relu(x)",)),
}


@pytest.mark.parametrize("case", ROWS_THAT_ARE_NO_SAMPLES)
def test_requests_are_put_together_only_along_the_samples(case):
    signature, body = ROWS_THAT_ARE_NO_SAMPLES[case]
    config = served(signature, *body)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert config.input[0].dims[0] == config.output[0].dims[0] == -1


@pytest.mark.parametrize(
    "signature",
    [
        "(float[?,3] x) => (float[?,3] y)",
        "(float[unk__1,3] x) => (float[unk__2,3] y)",
        "(float[N,3,H,W] x) => (float[N,3,H,W] y)",
        "(uint16[N,3] x) => (uint16[N,3] y)",
    ],
)
def test_a_free_batch_is_one_by_whatever_name(signature):
    config = served(signature, "y = Identity(x)")
    assert config.max_batch_size == 16
    assert set(config.input[0].dims) <= {3, -1}


def test_that_requests_are_not_put_together_is_said(tmp_path):
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[T,N,8] x) => (float[T,N,8] y) {{ y = Relu(x) }}'
    )
    net = use_graphs.save(tmp_path / "net.onnx", text, None)
    notes = bundle.bundle(net, tmp_path / "models", triton=True).warnings
    assert any("puts no requests together" in note for note in notes)


ROWS_THAT_HANG_TOGETHER = {
    "a sequence": (
        "(float[T,1,4] x, float[1,8,4] w, float[1,8,2] r) => (float[T,1,1,2] y)",
        "y = LSTM<hidden_size = 2>(x, w, r)",
    ),
    "a running sum": (
        "(float[time,4] x) => (float[time,4] y)",
        "z = Constant<value = int64 {{0}}>() y = CumSum(x, z)",
    ),
    "attention": ("(float[L,4] x) => (float[L,4] y)", "y = Softmax<axis = 0>(x)"),
    "a batch that is averaged": (
        "(float[N,3,8,8] x) => (float[N,3,8,8] y)",
        "m = ReduceMean<axes = [0, 2, 3]>(x) y = Sub(x, m)",
    ),
    "of one sample": (
        "(float[N,4] x) => (float[N,4] y)",
        "s = Constant<value = int64[2] {{1, 4}}>() r = Reshape(x, s) k = Shape(x) y = Reshape(r, k)",
    ),
    "not to be run": ("(float[N,4] x) => (float[N,4] y)", "y = com.example.Unknown(x)"),
}


@pytest.mark.parametrize("case", ROWS_THAT_HANG_TOGETHER)
def test_a_graph_whose_rows_hang_together_is_not_batched_whatever_its_first_axis_is_called(tmp_path, case):
    """Requests would be joined along it, and each answered by what the others hold."""
    signature, body = ROWS_THAT_HANG_TOGETHER[case]
    text = f'<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>\ng {signature} {{{{ {body} }}}}'
    net = use_graphs.save(tmp_path / "net.onnx", text, None)
    notes = bundle.bundle(net, tmp_path / "models", triton=True).warnings
    config = parsed(tmp_path / "models/net/config.pbtxt")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert config.input[0].dims[0] == -1
    assert any("puts no requests together" in note for note in notes)


def test_where_no_graph_can_be_run_requests_are_not_put_together_and_it_is_said(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "se_deploy.backends.onnxruntime.session", raising=False)
    (note,) = bundle.bundle(net, tmp_path / "models", triton=True).warnings
    assert "answered each by itself is not known" in note
    assert "puts no requests together" in note
    assert parsed(tmp_path / "models/net/config.pbtxt").max_batch_size == 0


@pytest.mark.parametrize("first", ["N", "T", "time"])
def test_a_graph_whose_rows_are_apart_is_batched_whatever_its_first_axis_is_called(tmp_path, first):
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]>\n'
        f"g (float[{first},T2,4] x) => (float[{first},T2,4] y) {{{{ y = Softmax<axis = 1>(x) }}}}"
    )
    net = use_graphs.save(tmp_path / "net.onnx", text, None)
    bundle.bundle(net, tmp_path / "models", triton=True)
    assert parsed(tmp_path / "models/net/config.pbtxt").max_batch_size == 16


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("(float[N,3] x, float s) => (float[N,3] y)", "y = Mul(x, s)"),
        ("(float[N,3] x) => (float y)", "y = ReduceMean<keepdims=0>(x)"),
        ("(float[N,0] x) => (float[N,0] y)", "y = Relu(x)"),
    ],
)
def test_what_triton_does_not_serve_is_refused(signature, body):
    with pytest.raises(UnsupportedGraph, match="Triton serves no tensor"):
        served(signature, body)


@pytest.mark.parametrize("features", [{"strip_weights": True}, {"io_formats": {"x": "HWC8"}}])
def test_an_engine_that_takes_more_than_its_file_is_not_served(tmp_path, features):
    path = engine(tmp_path / "in", runtime="tensorrt", features=EngineFeatures(**features))
    with pytest.raises(BadArtifact, match="Triton does not expect"):
        bundle.bundle(path, tmp_path / "models", triton=True)
    assert not (tmp_path / "models").exists()


def test_how_an_unusual_engine_is_served_is_a_comment(tmp_path):
    features = EngineFeatures(version_compatible=True, plugins={"lib.so": "0" * 64})
    path = engine(tmp_path / "in", runtime="tensorrt", features=features)
    bundle.bundle(path, tmp_path / "models", triton=True)
    text = (tmp_path / "models/net/config.pbtxt").read_text()
    assert "version-compatible=true" in text
    assert "(LD_PRELOAD): lib.so" in text


@pytest.mark.parametrize(("stem", "name"), [("net", "net"), ("net.int8", "net_int8"), ("é", "model")])
def test_a_model_s_name_is_made_of_the_file_s(stem, name):
    assert pbtxt.model_name(stem, None) == name


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_folder_s_is_refused(net, tmp_path, name):
    with pytest.raises(BadInput, match="no name"):
        bundle.bundle(net, tmp_path / "models", triton=True, name=name)
