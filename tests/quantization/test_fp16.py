import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layer_graphs import RUNTIME, conv, image, layer_for, model_of, run, weights

from se_deploy import graph
from se_deploy.quantization import QuantParams, fp16_ranges, to_fp16, to_qdq

HALF = {"rtol": 5e-3, "atol": 5e-3}  # a few roundings of 2^-11


@pytest.mark.parametrize("opset", range(11, 22))
def test_fp16_has_two_casts_and_the_same_answers(opset):
    model = conv(opset)
    half = to_fp16(model).model
    graph.check(half)
    assert graph.ops(half) == ["Cast", "Conv", "Relu", "Conv", "Cast"]
    np.testing.assert_allclose(run(half, x=image()), run(model, x=image()), **HALF)


def test_fp16_leaves_its_argument_alone_and_twice_is_once():
    model = conv()
    before = ir.to_proto(model).SerializeToString()
    once = to_fp16(model)
    assert ir.to_proto(model).SerializeToString() == before
    twice = to_fp16(once.model)
    assert dict(twice.counts)["fp32_to_fp16"] == 0
    assert graph.ops(twice.model) == graph.ops(once.model)


def test_fp16_at_the_edges_on_request():
    half = to_fp16(conv(), io="fp16").model
    assert "Cast" not in graph.ops(half)
    assert half.graph.inputs[0].dtype == half.graph.outputs[0].dtype == ir.DataType.FLOAT16


def test_a_resize_keeps_float32_scales():
    model = model_of(
        'a = Relu(x) b = Resize<mode = "nearest">(a, , s) y = Neg(b)',
        [("s", np.array([1, 1, 2, 2], np.float32))],
        output="float[N,4,16,16] y",
    )
    half = to_fp16(model).model
    graph.check(half)
    assert graph.ops(half).count("Cast") == 2
    np.testing.assert_allclose(run(half, x=image()), run(model, x=image()), **HALF)


@pytest.mark.parametrize(
    "body",
    [
        "a = Neg(x) b = Celu(a) y = Neg(b)",
        "a = Neg(x) b = IsInf(a) c = Cast<to = 1>(b) y = Add(a, c)",
        "s = SplitToSequence<axis = 1>(x) a = ConcatFromSequence<axis = 1>(s) y = Neg(a)",
    ],
    ids=["celu", "inf", "a sequence"],
)
def test_what_onnx_has_no_fp16_for_is_kept_in_float32(body):
    model = model_of(body, output="float[N,4,8,8] y", opset=17)
    half = to_fp16(model, ranges=fp16_ranges.measure(model, [{"x": image()}], RUNTIME)).model
    onnx.shape_inference.infer_shapes(ir.to_proto(half), check_type=True, strict_mode=True)
    np.testing.assert_allclose(run(half, x=image()), run(model, x=image()), **HALF)


def test_weights_that_are_an_output_too_stay_float32_there():
    model = conv()
    weights_of = model.graph[0].inputs[1]
    model.graph.outputs.append(weights_of)
    half = to_fp16(model).model
    onnx.shape_inference.infer_shapes(ir.to_proto(half), check_type=True, strict_mode=True)
    assert half.graph.outputs[1].name == weights_of.name
    assert half.graph.outputs[1].dtype == ir.DataType.FLOAT
    np.testing.assert_allclose(run(half, x=image()), run(model, x=image()), **HALF)


def test_an_operator_without_fp16_stands_between_casts():
    model = model_of(
        "a = Relu(x) b = CumSum(a, axis) y = Neg(b)",
        [("axis", np.array(1, np.int64))],
        output="float[N,4,8,8] y",
    )
    half = to_fp16(model)
    graph.check(half.model)
    assert dict(to_fp16(half.model).counts)["fp32_to_fp16"] == 0
    np.testing.assert_allclose(run(half.model, x=image()), run(model, x=image()), rtol=1e-2, atol=1e-2)


def test_integers_stay_integers():
    model = model_of(
        "s = Shape(x) c = Cast<to = 1>(s) m = ReduceMean(x) n = Mul(c, m) y = Relu(n)",
        output="float[1,1,1,4] y",
    )
    half = to_fp16(model).model
    np.testing.assert_allclose(run(half, x=image()), run(model, x=image()), **HALF)


def test_a_bound_that_fp16_cannot_hold_is_a_warning_and_so_is_a_weight_that_becomes_0():
    model = model_of(
        "a = Clip(x, , big) y = Mul(a, small)",
        [("big", np.float32(1e6)), ("small", np.float32([1, 1e-9, 1, 1, 1, 1, 1, 1]))],
        output="float[N,4,8,8] y",
    )
    half = to_fp16(model)
    assert half.kept == ()
    assert any("cannot reach" in w and "big" in w for w in half.warnings)
    assert any("rounds to 0" in w and "small" in w for w in half.warnings)


def test_a_batch_norm_whose_variance_leaves_fp16_is_folded_first():
    model = model_of(
        "a = Conv(x, w) y = BatchNormalization(a, g, b, m, v)",
        [("w", weights(4, 4, 1, 1) * 1e3), ("g", np.ones(4, np.float32)), ("b", np.zeros(4, np.float32)),
         ("m", np.zeros(4, np.float32)), ("v", np.full(4, 1e6, np.float32))],
        output="float[N,4,8,8] y",
    )  # fmt: skip
    half = to_fp16(model)
    assert half.warnings == ()
    np.testing.assert_allclose(run(half.model, x=image()), run(model, x=image()), **HALF)


def test_fp16_quantizers_have_fp16_scales_that_are_no_zeros():
    model = conv()
    layer = layer_for(model.graph[2], QuantParams(1e-9))
    half = to_fp16(to_qdq(model, [layer]).model)
    graph.check(half.model)
    for node in half.model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            scale = graph.constant(node.inputs[1])
            assert scale.dtype == np.float16
            assert (scale > 0).all()


def test_small_scales_are_not_floored_to_larger_ones():
    model = model_of("y = Conv(x, w)", [("w", weights(4, 4, 1, 1) * 1e-3)], output="float[N,4,8,8] y")
    done = to_qdq(model, [layer_for(model.graph[0], QuantParams(0.03))]).model
    half = to_fp16(done).model
    np.testing.assert_allclose(run(half, x=image()), run(done, x=image()), rtol=0.05, atol=3e-5)


def test_no_cast_is_left_that_changes_nothing():
    model = graph.tidy(
        ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]>\n'
            "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { h = Cast<to = 10>(x) r = Relu(h) "
            "f = Cast<to = 1>(r) s = Sigmoid(f) t = Cast<to = 10>(s) u = Relu(t) y = Cast<to = 1>(u) "
            "z = Neg(f) }"
        )
    )
    made = to_fp16(model).model
    graph.check(made)
    casts = [node for node in made.graph if node.op_type == "Cast"]
    assert all(node.inputs[0].dtype != node.outputs[0].dtype for node in casts)
    assert len(casts) == 3  # of the input, and of each output
