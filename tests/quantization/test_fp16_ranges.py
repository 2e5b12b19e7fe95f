"""What FP16 cannot hold stays in FP32, with its reason, and the answers of the rounded graph stay right."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from layer_graphs import RUNTIME, model_of, run, weights

from se_deploy import graph
from se_deploy.quantization import fp16_ranges, to_bf16, to_fp16
from se_deploy.quantization.fp16_ranges import Ranges
from se_deploy.quantization.fp16_rounding import rounded

HALF = {"rtol": 4e-3, "atol": 4e-3}  # a few roundings of 2^-11
MAP = "float[N,4,112,112] x"


def ranges_of(model, *batches):
    return fp16_ranges.measure(model, [{"x": x} for x in batches], RUNTIME, kinds=["data"])


def kept(model, ranges=None):
    """The reasons by the name of the node's first output."""
    half = to_fp16(model, ranges=ranges)
    names = {node.name: node.outputs[0].name for node in model.graph}
    return {names[one.node]: one.reason for one in half.kept}


def squeeze():
    """A squeeze as a sum over 112 x 112 numbers up to 6, times their inverse count, and a gate."""
    return model_of(
        "r = Clip(x, low, high) s = ReduceSum(r, axes) p = Mul(s, inv) q = Conv(p, w1) a = Relu(q) "
        "e = Conv(a, w2) g = Sigmoid(e) y = Mul(r, g)",
        [("low", np.float32(0)), ("high", np.float32(6)), ("axes", np.array([2, 3])),
         ("inv", np.float32(1 / 112 / 112)), ("w1", weights(2, 4, 1, 1)), ("w2", weights(4, 2, 1, 1))],
        inputs=MAP, output="float[N,4,112,112] y",
    )  # fmt: skip


def test_a_sum_that_overflows_stays_in_fp32_with_what_reads_it():
    model, x = squeeze(), np.full((1, 4, 112, 112), 6, np.float32)
    assert not np.isfinite(run(rounded(to_fp16(model).model), x=x)).all()
    ranges = ranges_of(model, x)
    assert ranges.largest["s"] == pytest.approx(6 * 112 * 112)
    half = to_fp16(model, ranges=ranges)
    assert set(kept(model, ranges)) == {"s", "p"}
    assert all("'s' reaches 75,264" in one.reason for one in half.kept)
    assert any("stay in FP32: 's' reaches 75,264" in warning for warning in half.warnings)
    np.testing.assert_allclose(run(rounded(half.model), x=x), run(model, x=x), **HALF)


def test_the_largest_of_all_batches_counts_and_numbers_only():
    model = model_of("a = Mul(x, k) y = Relu(a)", [("k", np.float32(2))], inputs="float[N,3] x")
    found = ranges_of(
        model, np.float32([[1, -5, 2]]), np.float32([[3, 0, np.inf]]), np.float32([[np.nan, 0, 4]])
    )
    assert found.largest["x"] == 5
    assert found.largest["y"] == 4


def normalization(eps):
    """Normalize channels by their variance: the eps is all that is divided by where they are equal."""
    return model_of(
        "u = ReduceMean<keepdims = 1>(x, axes) d = Sub(x, u) q = Mul(d, d) "
        "v = ReduceMean<keepdims = 1>(q, axes) e = Add(v, eps) s = Sqrt(e) n = Div(d, s) y = Relu(n)",
        [("axes", np.array([1])), ("eps", np.float32(eps))],
        output="float[N,4,8,8] y",
    )  # fmt: skip


def test_an_eps_that_fp16_has_no_number_for_keeps_its_division_in_fp32():
    model, x = normalization(1e-12), np.full((1, 4, 8, 8), 0.5, np.float32)
    reasons = kept(model)
    assert set(reasons) == {"q", "v", "e", "s", "n"}
    assert all("1e-12, which is 0 in FP16" in reason for reason in reasons.values())
    half = to_fp16(model)
    np.testing.assert_array_equal(run(rounded(half.model), x=x), 0)
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32) * 1e-3  # squares are 1e-6
    np.testing.assert_allclose(run(rounded(half.model), x=x), run(model, x=x), rtol=2e-2, atol=2e-2)


def test_an_eps_that_fp16_holds_keeps_nothing():
    assert kept(normalization(1e-5)) == {}


def test_twice_is_once_for_what_a_constant_keeps():
    once = to_fp16(normalization(1e-12))
    twice = to_fp16(once.model)
    assert graph.ops(twice.model) == graph.ops(once.model)
    assert dict(twice.counts)["fp32_to_fp16"] == 0


def test_the_reciprocal_of_an_eps_is_not_rounded_before_it_is_used():
    model = model_of(
        "n = ReduceL2(x, axes) e = Max(n, eps) r = Reciprocal(e) y = Mul(x, r)",
        [("axes", np.array([1])), ("eps", np.float32(1e-12))], output="float[N,4,8,8] y",
    )  # fmt: skip
    assert set(kept(model)) == {"n", "e", "r", "y"}
    x = np.zeros((1, 4, 8, 8), np.float32)
    np.testing.assert_array_equal(run(rounded(to_fp16(model).model), x=x), 0)


@pytest.mark.parametrize(
    ("body", "constant"),
    [
        ("a = Conv(x, w, b) y = Relu(a)", ("b", np.full(4, 1e-9, np.float32))),
        ("a = Clip(x, , b) y = Relu(a)", ("b", np.float32(3e38))),
        ("a = Add(x, b) y = Relu(a)", ("b", np.float32([1e-9, 1, 2, 3, 4, 5, 6, 7]))),
        ("a = Add(x, b) y = Relu(a)", ("b", np.float32(0))),
    ],
)
def test_constants_that_do_no_harm_keep_nothing(body, constant):
    assert kept(model_of(body, [("w", weights(4, 4, 1, 1)), constant] if "w" in body else [constant])) == {}


def test_a_factor_beyond_fp16_keeps_its_product():
    model = model_of(
        "a = Mul(x, k) b = Mul(a, k2) y = Relu(b)",
        [("k", np.float32(1e6)), ("k2", np.float32(1e-5))],
        output="float[N,4,8,8] y",
    )
    assert set(kept(model)) == {"a", "b"}
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(rounded(to_fp16(model).model), x=x), run(model, x=x), **HALF)


def test_sizes_stay_in_fp32_and_are_no_warning():
    model = model_of(
        "s = Shape(x) f = Cast<to = 1>(s) t = Mul(f, two) i = Cast<to = 7>(t) y = Expand(x, i)",
        [("two", np.float32([1, 1]))], inputs="float[N,2051] x", output="float[a,b] y",
    )  # fmt: skip
    half = to_fp16(model)
    assert set(kept(model)) == {"f", "t"}
    assert half.warnings == ()
    assert run(half.model, x=np.zeros((1, 2051), np.float32)).shape == (1, 2051)


def test_a_tensor_that_is_0_in_fp16_keeps_its_maker_and_its_readers():
    model = model_of("a = Mul(x, x) b = Sqrt(a) y = Div(x, b)", output="float[N,4,8,8] y")
    x = np.full((1, 4, 8, 8), 1e-4, np.float32)
    assert set(kept(model, ranges_of(model, x))) == {"a", "b"}
    half = to_fp16(model, ranges=ranges_of(model, x))
    np.testing.assert_allclose(run(rounded(half.model), x=x), 1, **HALF)


def test_an_input_beyond_fp16_is_read_in_fp32():
    model = model_of("a = Mul(x, k) y = Relu(a)", [("k", np.float32(1e-3))], output="float[N,4,8,8] y")
    x = np.full((1, 4, 8, 8), 1e5, np.float32)
    half = to_fp16(model, ranges=ranges_of(model, x))
    np.testing.assert_allclose(run(rounded(half.model), x=x), 100, rtol=1e-3)


def test_what_could_not_be_checked_is_said():
    model, x = squeeze(), np.ones((1, 4, 112, 112), np.float32)
    assert "no range was measured" in to_fp16(model).unchecked[0]
    ranges = ranges_of(model, x)
    assert to_fp16(model, ranges=ranges).unchecked == ()
    made_up = dataclasses.replace(ranges, kinds=("noise", "extremes"))
    assert "on real data" in to_fp16(model, ranges=made_up).unchecked[0]
    free = model_of("y = Relu(x)", inputs="float[N,4,h,w] x", output="float[N,4,h,w] y")
    made_up = dataclasses.replace(ranges_of(free, x[:, :, :7], x[:, :, :9]), kinds=("noise",))
    assert "on noise of 'x' 1x4x9x112 only" in to_fp16(free, ranges=made_up).unchecked[0]
    some = Ranges({k: v for k, v in ranges.largest.items() if k != "s"}, ("data",))
    assert "'s'" in to_fp16(model, ranges=some).unchecked[0]


def test_what_comes_close_is_a_warning():
    model = model_of("a = Mul(x, x) y = Relu(a)", output="float[N,4,8,8] y")
    half = to_fp16(model, ranges=ranges_of(model, np.full((1, 4, 8, 8), 200, np.float32)))
    assert half.kept == ()
    assert any("close to FP16's end" in w and "40,000" in w for w in half.warnings)


def test_measuring_leaves_the_graph_alone_and_skips_what_may_be_empty():
    model = model_of(
        "n = NonZero(x) c = Cast<to = 1>(n) y = Relu(x)",
        inputs="float[2,3] x",
        output="float[2,3] y, float[2,k] c",
    )
    before = ir.to_proto(model).SerializeToString()
    found = ranges_of(model, np.zeros((2, 3), np.float32))
    assert ir.to_proto(model).SerializeToString() == before
    assert set(found.largest) == {"x", "y"}


def test_a_normalization_by_uncentred_squares_computes_in_fp32():
    """ONNX defines it by E[x^2] - E[x]^2 and an eps of 1e-9: a device that spells it out overflows at 256."""
    model = model_of(
        "a = Relu(x) n = MeanVarianceNormalization<axes = [2, 3]>(a) y = Neg(n)", output="float[N,4,8,8] y"
    )
    x = (300 + np.random.default_rng(0).random((1, 4, 8, 8)) * 10).astype(np.float16).astype(np.float32)
    for narrow, called in ((to_fp16(model), "FP16"), (to_bf16(model), "BF16")):
        types = {node.op_type: node.outputs[0].dtype for node in narrow.model.graph if node.op_type != "Cast"}
        assert types["MeanVarianceNormalization"] == ir.DataType.FLOAT
        assert types["Relu"] != ir.DataType.FLOAT
        assert any(f"{called} cannot hold the squares" in warning for warning in narrow.warnings)
    np.testing.assert_allclose(run(rounded(to_fp16(model).model), x=x), run(model, x=x), **HALF)


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("n, m = LayerNormalization<axis = 1>(a, w) y = Sub(n, m)", "LayerNormalization"),
        ("n = Celu(a) y = Neg(n)", "Celu"),
        ("q = QuantizeLinear(a, s) p = QLinearMatMul(q, s, z, q, s, z, s, z) y = DequantizeLinear(p, s)",
         "QLinearMatMul"),
    ],
)  # fmt: skip
def test_what_has_no_fp16_form_is_told(body, operator):
    """The statistics of a LayerNormalization are FP32 by its schema, and scales of old operator sets are."""
    constants = [("w", np.ones(8, np.float32)), ("s", np.float32(0.05)), ("z", np.uint8(0))]
    used = [(name, array) for name, array in constants if f" {name}" in body]
    model = model_of(f"a = Relu(x) {body}", used, inputs="float[8,8] x", output="float[8,8] y", opset=19)
    half = to_fp16(model)
    onnx.checker.check_model(ir.to_proto(half.model), full_check=True)
    (node,) = [node for node in half.model.graph if node.op_type == operator]
    assert [one.node for one in half.kept] == [node.name]
    assert any("stays in FP32" in warning and operator in warning for warning in half.warnings)
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(rounded(half.model), x=x), run(model, x=x), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize(
    ("body", "value", "wanted"),
    [
        ("n = ReduceL2(a, axes)", 40.0, {"n"}),  # 320, the root of 102,400
        ("n = ReduceL2(a, axes)", 30.0, set()),
        ("n = GlobalLpPool(a)", 40.0, {"n"}),
        ("n = GlobalLpPool<p = 1>(a)", 40.0, set()),
        ("n = LpPool<kernel_shape = [8, 8]>(a)", 40.0, {"n"}),
        ("n = ReduceLogSumExp(a, axes)", 8.0, {"n"}),  # 12.2, the logarithm of 191,000
        ("n = ReduceLogSumExp(a, axes)", 6.0, set()),
        ("n = ReduceLogSumExp(a, axes)", 2000.0, {"n"}),
        ("n = ReduceLogSum(a, axes)", 2000.0, {"n"}),
        ("n = ReduceL1(a, axes)", 40.0, set()),
        ("n = GlobalLpPool<p = 3>(a)", 12.0, {"n"}),  # 48, and 48^3 is 110,592
        ("n = GlobalLpPool<p = 3>(a)", 10.0, set()),  # 40, and 40^3 is 64,000
        ("n = GlobalLpPool<p = 30>(a)", 10.0, {"n"}),
        ("n = Mean(a, a, a)", 22000.0, {"n"}),
        ("n = Mean(a, a, a)", 21000.0, set()),
        ("n = Mean(a)", 40000.0, set()),
    ],
)
def test_a_sum_that_an_operator_keeps_to_itself_counts_too(body, value, wanted):
    """Nothing that is measured is beyond FP16, and the sum that this is the root of is."""
    axes = [("axes", np.array([2, 3]))] if "axes" in body else []
    model = model_of(f"a = Relu(x) {body} y = Neg(n)", axes, output="float[N,4,h,w] y")
    x = np.full((1, 4, 8, 8), value, np.float32)
    found = kept(model, ranges_of(model, x))
    assert set(found) == wanted
    assert all("sums up to more than 65,504" in reason for reason in found.values())


@pytest.mark.parametrize("opset", [17, 18, 22])
@pytest.mark.parametrize(
    ("body", "value", "wanted"),
    [
        ("n = LpNormalization<axis = 1>(a)", 130.0, {"n"}),  # 4 x 130^2 is 67,600
        ("n = LpNormalization<axis = 1>(a)", 120.0, set()),
        ("n = LpNormalization<axis = 1, p = 2>(a)", 300.0, {"n"}),
        ("n = LpNormalization<axis = -1, p = 1>(a)", 9000.0, {"n"}),  # 8 x 9,000
        ("n = LpNormalization<axis = 1, p = 1>(a)", 9000.0, set()),
        ("n = LpNormalization<p = 1>(a)", 9000.0, {"n"}),  # over the last axis
    ],
)
def test_a_norm_that_is_divided_by_is_measured(body, value, wanted, opset):
    """Its input and its result are within FP16, and TensorRT's parser makes a tensor of the sum."""
    model = model_of(f"a = Relu(x) {body} y = Neg(n)", output="float[N,4,8,8] y", opset=opset)
    before = ir.to_proto(model).SerializeToString()
    x = np.full((1, 4, 8, 8), value, np.float32)
    ranges = ranges_of(model, x / 2, x, x / 3)
    assert ir.to_proto(model).SerializeToString() == before
    assert set(ranges.largest) == {"x", "a", "n", "y"}
    found = kept(model, ranges)
    assert set(found) == wanted
    assert all("LpNormalization 'n' sums up to more than 65,504" in reason for reason in found.values())


@pytest.mark.parametrize(
    ("body", "value", "wanted"),
    [
        ("n = ReduceL2<keepdims = 1>(a, axes)", 2e-5, {"n"}),  # 8 x 2e-5, whose square is 2.6e-8
        ("n = ReduceL2<keepdims = 1>(a, axes)", 1e-4, set()),
        ("n = LpNormalization<axis = 1>(a)", 1e-4, {"n"}),  # 4 x 1e-8
        ("n = LpNormalization<axis = 1>(a)", 3e-4, set()),
        ("n = LpNormalization<axis = 1, p = 1>(a)", 1e-4, set()),
    ],
)
def test_a_sum_of_squares_that_fp16_takes_for_0_counts_too(body, value, wanted):
    """What is divided by it is not normalized, then: the parser divides by 1 where the norm is 0."""
    axes = [("axes", np.array([2, 3]))] if "axes" in body else []
    model = model_of(f"a = Relu(x) {body} y = Neg(n)", axes, output="float[N,4,h,w] y")
    found = kept(model, ranges_of(model, np.full((1, 4, 8, 8), value, np.float32)))
    assert set(found) == wanted
    assert all("which is 0 in FP16" in reason for reason in found.values())


def test_a_norm_is_measured_and_no_bound_of_it():
    """One large number beside small ones: the largest times the axis' length would be 4 x 160^2."""
    model = model_of("a = Relu(x) n = LpNormalization<axis = 1>(a) y = Neg(n)", output="float[N,4,8,8] y")
    x = np.ones((1, 4, 8, 8), np.float32)
    x[:, 0] = 160
    assert kept(model, ranges_of(model, x)) == {}
