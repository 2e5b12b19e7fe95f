"""BF16: FP16's graph with another type, evaluated by the same rounding graph."""

import re

import ml_dtypes
import needs
import numpy as np
import onnx
import onnx_ir as ir
import plan_graphs
import pytest
from layer_graphs import model_of

from se_deploy import graph
from se_deploy.backends import precision_check
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.quantization import fp16_rounding, to_bf16, to_fp16
from se_deploy.quantization.fp16 import hard_swish_apart

BF16 = ir.DataType.BFLOAT16
SHAPE = (2, plan_graphs.C, plan_graphs.SIDE, plan_graphs.SIDE)


def run(model, x):
    with OrtRuntime(threads=1, optimize=False).open(model) as session:
        return session.run({"x": x})["y"]


def net():
    return to_bf16(plan_graphs.se_net()).model


def test_every_tensor_is_bf16_and_the_edges_are_fp32():
    model = net()
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    assert [node.op_type for node in model.graph].count("Cast") == 2
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    assert len(convolutions) == 3
    assert {value.dtype for node in convolutions for value in (*node.inputs, *node.outputs)} == {BF16}


def test_the_file_is_valid_onnx():
    proto = ir.to_proto(net())
    onnx.checker.check_model(proto, full_check=True)
    assert graph.opset(net()) >= 22


def test_weights_are_rounded_to_nearest_and_nothing_is_clipped():
    model = plan_graphs.se_net()
    wide = model.graph.initializers["w"].const_value.numpy() * np.float32(1e20)
    model.graph.initializers["w"].const_value = ir.tensor(wide, name="w")
    found = to_bf16(model).model.graph.initializers["w"].const_value.numpy()
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, wide.astype(ml_dtypes.bfloat16))
    assert to_fp16(model).warnings, "FP16 cannot hold them"


def test_rounding_is_bfloat16s_own():
    text = """<ir_version: 10, opset_import: ["" : 22]>
    g (float[N] x) => (float[N] y) {
        a = Cast<to = 16>(x)
        b = Add(a, a)
        y = Cast<to = 1>(b)
    }"""
    run_as = fp16_rounding.evaluation(graph.tidy(ir.from_onnx_text(text)))
    assert run_as.rounding == "rounded at every BF16 tensor"
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-30, 30, 10_000)).astype(np.float32)
    once = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    expected = (once + once).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(run(run_as.model, x), expected)


@needs.RTX
@pytest.mark.parametrize("act", ["HardSwish", "Mish", "Relu", "HardSigmoid"])
def test_activations_build_in_bf16(act):
    model = plan_graphs.se_net(act=act)
    brain = to_bf16(model).model
    planner = start_planner()
    try:
        assert precision_check.planned_precision(planner.plan(brain), brain).precision == "bf16"
    finally:
        planner.close()
    kept = [one.reason for one in to_bf16(model).kept]
    assert kept == (["TensorRT takes no Mish in BF16"] if act == "Mish" else [])
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    exact = run(model, x)
    assert np.abs(run(fp16_rounding.evaluation(brain).model, x) - exact).max() <= 0.05 * np.abs(exact).max()


def test_hard_swish_is_its_definition():
    text = """<ir_version: 10, opset_import: ["" : 22]>
    g (float[N,4] x) => (float[N,4] y) { y = HardSwish(x) }"""
    model = graph.tidy(ir.from_onnx_text(text))
    apart = graph.rewrite(model, hard_swish_apart)
    assert [node.op_type for node in apart.model.graph] == ["HardSigmoid", "Mul"]
    assert graph.rewrite(apart.model, hard_swish_apart).counts[0][1] == 0
    x = np.linspace(-6, 6, 400, dtype=np.float32).reshape(-1, 4)
    np.testing.assert_allclose(run(apart.model, x), run(model, x), rtol=1e-6, atol=1e-6)


def test_what_overflows_in_fp16_does_not_in_bf16():
    """A sum of 75,000 in a squeeze: FP16's range ends at 65,504."""
    model = plan_graphs.se_net()
    x = np.full(SHAPE, 3e5, np.float32)
    exact = run(model, x)
    half, brain = (
        run(fp16_rounding.evaluation(m).model, x) for m in (to_fp16(model, ranges=None).model, net())
    )
    assert not np.isfinite(half).all()
    assert np.isfinite(brain).all()
    assert np.abs(brain - exact).max() <= 0.05 * np.abs(exact).max()


def test_it_is_less_exact_than_fp16_and_within_its_preset():
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    exact = run(plan_graphs.se_net(), x)
    errors = [
        np.abs(run(fp16_rounding.evaluation(m).model, x) - exact).max()
        for m in (to_fp16(plan_graphs.se_net()).model, net())
    ]
    assert errors[0] < errors[1] < 0.05 * np.abs(exact).max()


@needs.RTX
def test_the_plan_is_in_bf16_and_rounds_where_kernels_end():
    planner = start_planner()
    try:
        plan = planner.plan(net())
    finally:
        planner.close()
    found = precision_check.planned_precision(plan, net())
    assert (found.precision, found.failures("bf16"), found.fallen) == ("bf16", (), ())
    assert found.failures("fp16")
    run_as = fp16_rounding.evaluation(net(), plan)
    assert run_as.rounding == fp16_rounding.AT_BOUNDARIES
    casts = [n.attributes["to"].value for n in run_as.model.graph if n.op_type == "Cast"]
    fewer = fp16_rounding.evaluation(net()).model
    assert (
        0
        < casts.count(BF16)
        < [n.attributes["to"].value for n in fewer.graph if n.op_type == "Cast"].count(BF16)
    )


@pytest.mark.parametrize("twice", [False, True])
def test_the_graph_given_is_left_alone(twice):
    model = plan_graphs.se_net()
    before = ir.to_proto(model).SerializeToString()
    to_bf16(model)
    assert ir.to_proto(model).SerializeToString() == before


NARROW_ONLY_IN_FP16 = {
    "Einsum": 'b = Einsum<equation = "nc,cd->nd">(a, w)',
    "TopK": "b, i = TopK(a, k)",
    "OneHot": "m = ArgMax<axis = 1, keepdims = 0>(a) b = OneHot(m, four, v)",
    "Shrink": "b = Shrink<lambd = 0.25>(a)",
    "ReverseSequence": "b = ReverseSequence<batch_axis = 1, time_axis = 0>(a, long)",
    "Compress": "b = Compress<axis = 1>(a, chosen)",
    "Celu": "b = Celu(a)",
}


@pytest.mark.parametrize("operator", NARROW_ONLY_IN_FP16)
@pytest.mark.parametrize("opset", [20, 22])
def test_what_onnx_does_not_allow_in_bf16_stays_in_fp32_and_is_told(operator, opset):
    """The file was one that onnx's checker refuses, and nothing said so."""
    rng = np.random.default_rng(0)
    constants = [
        ("w", rng.standard_normal((4, 4)).astype(np.float32)), ("k", np.array([4])), ("four", np.array(4)),
        ("v", np.float32([-1, 2])), ("long", np.array([2, 1, 2, 2])), ("chosen", np.ones(4, bool)),
    ]  # fmt: skip
    body = NARROW_ONLY_IN_FP16[operator]
    used = [(name, array) for name, array in constants if name in re.findall(r"\w+", body)]
    model = model_of(f"a = Relu(x) {body} y = Neg(b)", used, opset=opset,
                     inputs="float[2,4] x", output="float[2,4] y")  # fmt: skip
    brain = to_bf16(model)
    onnx.checker.check_model(ir.to_proto(brain.model), full_check=True)
    (node,) = [node for node in brain.model.graph if node.op_type == operator]
    assert [(one.node, operator in one.reason) for one in brain.kept] == [(node.name, True)]
    assert any("stays in FP32" in warning and operator in warning for warning in brain.warnings)
    kinds = {n.op_type: n.outputs[0].dtype for n in brain.model.graph if n.op_type in {"Relu", "Neg"}}
    assert kinds == {"Relu": BF16, "Neg": BF16}, "the others are not kept with it"
    x = rng.standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(
        run(fp16_rounding.evaluation(brain.model).model, x), run(model, x), rtol=2e-2, atol=2e-2
    )


def test_what_is_of_other_types_there_is_nobodys_concern():
    """TopK of integers has no float to keep, and the scales of a Resize are FP32 in any precision."""
    model = model_of(
        'i, j = TopK(n, k) f = Cast<to = 1>(i) a = Add(x, f) y = Resize<mode = "nearest">(a, , s)',
        [("k", np.array([4])), ("s", np.float32([1, 2]))],
        inputs="float[2,4] x, int64[2,4] n", output="float[2,8] y", opset=22,
    )  # fmt: skip
    brain = to_bf16(model)
    onnx.checker.check_model(ir.to_proto(brain.model), full_check=True)
    assert brain.kept == ()
