"""The fixtures are written by hand in the three forms of the inspector's JSON, for plan_graphs.se_net."""

import json
from pathlib import Path

import plan_graphs
import pytest

from se_deploy import fusion
from se_deploy.backends import precision_check, registry
from se_deploy.backends.tensorrt.inspector import plan_from_inspector
from se_deploy.errors import BadArtifact

FIXTURES = Path(__file__).parents[2] / "fixtures"
MAP = plan_graphs.C * plan_graphs.SIDE**2


def plan(name):
    text = (FIXTURES / name).read_text("utf-8")
    return plan_from_inspector(text, version=name, target="sm87")


@pytest.mark.parametrize(
    ("name", "kernels", "dtype"),
    [
        ("inspector_8_6.json", 7, "float16"),
        ("inspector_10.json", 7, "float16"),
        ("inspector_11.json", 6, "float32"),
    ],
)
def test_every_form_gives_kernels_types_and_nodes(name, kernels, dtype):
    read = plan(name)
    assert read.kernels == kernels
    fc1 = next(layer for layer in read.layers if "n_f1" in layer.onnx_nodes)
    assert fc1.onnx_nodes == ("n_f1", "n_a")
    assert {tensor.dtype for tensor in (*fc1.inputs, *fc1.outputs)} == {dtype}
    assert fc1.constants
    assert read.weight_bytes > 0


def test_layouts_are_named_where_the_form_says_them():
    old, new = plan("inspector_8_6.json").layers, plan("inspector_11.json").layers
    assert (old[0].inputs[0].layout, old[0].outputs[0].layout) == ("nchw", "nhwc")
    assert (new[0].inputs[0].layout, new[0].outputs[0].layout) == ("nchw", "nhwc")


@pytest.mark.parametrize(
    ("sentence", "dtype", "layout"),
    [
        ("Row major linear FP32", "float32", "nchw"),
        ("Row major Int8 format", "int8", "nchw"),
        ("Channel major FP16 format where channel % 4 == 0", "float16", "nhwc"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8", "nchw32"),
        ("Four wide channel vectorized row major Int8 format", "int8", "nchw4"),
        ("Two wide channel vectorized row major FP16 format", "float16", "nchw2"),
        ("Half", "float16", ""),
        ("Int64", "int64", ""),
    ],
)
def test_sentences_that_tensorrt_writes(sentence, dtype, layout):
    tensor = {"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": sentence}
    layer = {"Name": "n", "LayerType": "kgen", "Inputs": [tensor], "Outputs": [], "Metadata": ""}
    read = plan_from_inspector(json.dumps({"Layers": [layer]}), version="", target="")
    assert (read.layers[0].inputs[0].dtype, read.layers[0].inputs[0].layout) == (dtype, layout)


def test_names_stand_in_where_there_is_no_metadata():
    layer = {"Name": "PWN(PWN(sig_1), mul_2) + conv_3", "LayerType": "Mixed", "Inputs": [], "Outputs": []}
    read = plan_from_inspector(json.dumps({"Layers": [layer]}), version="", target="")
    assert read.layers[0].onnx_nodes == ("sig_1", "mul_2", "conv_3")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"Layers": ["conv + relu"]}'])
def test_what_says_nothing_about_layers_is_refused(text):
    with pytest.raises(BadArtifact) as caught:
        plan_from_inspector(text, version="", target="")
    assert "trtexec" in caught.value.hint or "detailed" in caught.value.hint


def judged(name, model):
    (verdict,) = fusion.verdicts(
        plan(name), [plan_graphs.block(model)], model, registry.get("tensorrt").form().fusion
    )
    return verdict


def test_four_kernels_are_fused_in_8_6_and_11():
    half, full = plan_graphs.se_net(dtype="float16"), plan_graphs.se_net()
    for verdict in (judged("inspector_8_6.json", half), judged("inspector_11.json", full)):
        assert (verdict.verdict, verdict.kernels, verdict.reasons) == ("fused", 4, ())


def test_the_copy_in_10_is_named():
    verdict = judged("inspector_10.json", plan_graphs.quantized_net(per_channel=False, dtype="float16"))
    assert (verdict.verdict, verdict.kernels) == ("split", 5)
    assert "copy before GlobalAveragePool: respell" in verdict.reasons[0]


def test_float_kernels_under_an_fp16_graph_are_a_fallback():
    verdict = judged("inspector_11.json", plan_graphs.se_net(dtype="float16"))
    assert verdict.verdict == "fallback"
    assert "works on float32, the graph asks for float16" in verdict.reasons[0]


def tensor(name, dtype, dims):
    return {"Name": name, "Dimensions": dims, "Format/Datatype": f"Row major linear {dtype}"}


def node_layer(name, kind, dtype, metadata=None):
    given, made = ([tensor(f"{name}.{edge}", dtype, [1, 32, 14, 14])] for edge in "xy")
    layer = {"Name": name, "LayerType": kind, "Inputs": given, "Outputs": made}
    return layer if metadata is None else layer | {"Metadata": metadata}


@pytest.mark.parametrize(
    "subgraph",
    [
        node_layer("{ForeignNode[n_m...n_y]}", "Myelin", "FP32"),
        node_layer(
            "{ForeignNode[n_m...n_y]}",
            "Myelin",
            "FP32",
            "\x1f".join(f"[ONNX Layer: {n}]" for n in ("n_m", "n_p", "n_f1", "n_f2", "n_y")),
        ),
        node_layer("{ForeignNode[n_m + n_y]}", "kgen", "FP32"),
    ],
    ids=["named", "with metadata", "of another kind"],
)
@pytest.mark.parametrize("dtype", ["float16", "float"])
def test_a_subgraph_that_shows_its_edges_only_is_not_visible(subgraph, dtype):
    """Its FP32 edges say nothing of its inside: no false verdict either way, and the layer is named."""
    model = plan_graphs.se_net(dtype=dtype)
    read = plan_from_inspector(json.dumps({"Layers": [subgraph]}), version="10.3", target="sm87")
    found = precision_check.planned_precision(read, model)
    asked = "fp16" if dtype == "float16" else "fp32"
    assert (found.precision, found.failures(asked), found.fallen) == (asked, (), ())
    (said,) = found.notes
    assert "precision of 100% of the multiply-accumulates is not visible: it is inside '{ForeignNode[" in said
    (verdict,) = fusion.verdicts(
        read, [plan_graphs.block(model)], model, registry.get("tensorrt").form().fusion
    )
    assert verdict.verdict != "fallback"


def test_what_is_visible_is_judged_beside_what_is_not():
    """The convolution outside of the subgraph fell back: that is seen."""
    fell = node_layer("n_m", "CaskConvolution", "FP32", "[ONNX Layer: n_m]")
    inside = "[ONNX Layer: n_f1]\x1f[ONNX Layer: n_f2]"
    rest = node_layer("{ForeignNode[n_p...n_y]}", "Myelin", "FP32", inside)
    read = plan_from_inspector(json.dumps({"Layers": [fell, rest]}), version="10.3", target="sm87")
    found = precision_check.planned_precision(read, plan_graphs.se_net(dtype="float16"))
    assert (found.precision, found.fallen) == ("fp32", ("n_m",))
    assert found.hidden == ("{ForeignNode[n_p...n_y]}",)
    assert 0 < found.hidden_share < 0.1


def test_of_several_profiles_the_plan_is_the_first_ones():
    layers = [node_layer(name, "kgen", "FP32", "[ONNX Layer: n_m]") for name in ("n_m", "n_m [profile 1]")]
    read = plan_from_inspector(json.dumps({"Layers": layers}), version="10.3", target="sm87")
    assert [layer.name for layer in read.layers] == ["n_m"]


def test_found_precision_of_every_form():
    quantized = plan_graphs.quantized_net(per_channel=False, dtype="float16")
    half = plan_graphs.se_net(dtype="float16")
    assert precision_check.planned_precision(plan("inspector_8_6.json"), half).precision == "fp16"
    assert precision_check.planned_precision(plan("inspector_10.json"), quantized).precision == "int8"
    fell = precision_check.planned_precision(plan("inspector_11.json"), half)
    assert fell.precision == "fp32"
    assert set(fell.fallen) == {"n_m", "n_f1", "n_f2"}
    (said,) = fell.failures("fp16")
    assert "fp16 was asked for, but the plan runs in fp32" in said
