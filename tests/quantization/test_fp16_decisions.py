"""What stays in FP32 and what does not, one decision at a time, and that each reader gets its own type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from layer_graphs import RUNTIME, image, model_of, run, weights

from se_deploy import graph
from se_deploy.quantization import fp16_ranges, to_bf16, to_fp16
from se_deploy.quantization.fp16_ranges import Ranges
from se_deploy.quantization.fp16_rounding import rounded

HALF = {"rtol": 5e-3, "atol": 5e-3}  # a few roundings of 2^-11
FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def kept(model, ranges=None):
    """The first outputs of the nodes that stay in FP32."""
    names = {node.name: node.outputs[0].name for node in model.graph}
    return {names[one.node] for one in to_fp16(model, ranges=ranges).kept}


def type_of(model, name):
    """The type of a tensor, or of the one that is cast to make it."""
    return graph.values(model)[name].dtype


def test_a_mask_below_the_end_of_fp16_becomes_its_end():
    model = model_of("a = Where(m, x, k) y = Relu(a) z = Neg(a)", [("k", np.float32(-1e9))],
                     inputs="float[N,4] x, bool[N,4] m", output="float[N,4] y, float[N,4] z")  # fmt: skip
    half = to_fp16(model)
    assert any("they became +-65504" in warning for warning in half.warnings)
    with RUNTIME.open(half.model) as session:
        found = session.run({"x": np.ones((1, 4), np.float32), "m": np.array([[True, False, True, False]])})
    np.testing.assert_array_equal(found["y"], [[1, 0, 1, 0]])
    np.testing.assert_array_equal(found["z"], [[-1, 65504, -1, 65504]])


@pytest.mark.parametrize("opset", [9, 10])
def test_weights_of_an_old_operator_set_are_fp16_and_the_scales_of_its_resize_are_not(opset):
    """Before operator set 11 the scales are a Resize's second input, where a layer has its weights."""
    op = "Upsample" if opset == 9 else "Resize"
    model = model_of(
        f'a = Conv(x, w) b = {op}<mode = "nearest">(a, s) y = Neg(b)',
        [("w", weights(4, 4, 1, 1)), ("s", np.float32([1, 1, 2, 2]))],
        opset=opset,
        output="float[N,4,16,16] y",
    )
    half = to_fp16(model).model
    given = {node.op_type: node.inputs[1].dtype for node in half.graph if len(node.inputs) > 1}
    assert given == {"Conv": FLOAT16, op: FLOAT}


def test_a_resize_of_today_has_its_scales_behind_its_region():
    model = model_of(
        'a = Relu(x) b = Resize<mode = "nearest">(a, r, s) y = Neg(b)',
        [("s", np.float32([1, 1, 2, 2])), ("r", np.float32([0, 0, 0, 0, 1, 1, 1, 1]))],
        output="float[N,4,16,16] y",
    )
    resize = next(node for node in to_fp16(model).model.graph if node.op_type == "Resize")
    assert [value.dtype for value in resize.inputs] == [FLOAT16, FLOAT, FLOAT]


FRAMES = (
    "f = Cast<to = 1>(x) t = Transpose<perm = [0, 3, 1, 2]>(f) u = Div(t, scale) v = Sub(u, mean) "
    "n = Mul(v, std) a = Conv(n, w) b = Mul(k1, k2) c = Add(a, n) d = Mul(c, b) y = Relu(d)"
)


def test_frames_are_prepared_in_fp32_up_to_the_first_operator_that_does_more():
    model = model_of(
        FRAMES,
        [("scale", np.float32(255)), ("mean", np.full((3, 1, 1), 0.5, np.float32)),
         ("std", np.full((3, 1, 1), 4, np.float32)), ("w", weights(3, 3, 1, 1))],
        inputs="uint8[N,8,8,3] x, float[3,1,1] k1, float[3,1,1] k2", output="float[N,3,8,8] y",
    )  # fmt: skip
    assert kept(model) == {"f", "t", "u", "v", "n"}
    half = to_fp16(model)
    assert half.warnings == (), "no number is in doubt"
    reasons = {one.reason for one in half.kept}
    assert reasons == {fp16_ranges.OF_FRAMES}


def test_a_product_of_two_tensors_in_front_of_an_eps_is_no_square():
    """Of a square all that is below 6e-8 is lost; what else is multiplied is as large as it is."""

    def body(factor):
        return (
            f"d = Relu(x) q = Mul(d, {factor}) v = ReduceMean<keepdims = 1>(q, axes) e = Add(v, eps) "
            "s = Sqrt(e) y = Div(x, s)"
        )

    constants = [("axes", np.array([1])), ("eps", np.float32(1e-12))]
    assert kept(model_of(body("d"), constants, output="float[N,4,8,8] y")) == {"q", "v", "e", "s", "y"}
    assert kept(model_of(body("x"), constants, output="float[N,4,8,8] y")) == {"v", "e", "s", "y"}


def test_a_tensor_that_is_0_on_all_data_is_not_kept():
    model = model_of("a = Mul(x, x) b = Relu(a) y = Neg(b)", output="float[N,4,8,8] y")
    assert kept(model, Ranges(dict.fromkeys("xaby", 0.0), ("data",))) == set()
    small = Ranges({"x": 1.0, "a": 1e-9, "b": 1.0, "y": 1.0}, ("data",))
    assert kept(model, small) == {"a", "b"}


@pytest.mark.parametrize(("most", "wanted"), [(65504.0, False), (65505.0, True)])
def test_the_end_of_fp16_is_its_largest_number(most, wanted):
    model = model_of("a = Mul(x, x) y = Relu(a)", output="float[N,4,8,8] y")
    found = Ranges({"x": 1.0, "a": most, "y": 1.0}, ("data",))
    assert kept(model, found) == ({"a", "y"} if wanted else set())


@pytest.mark.parametrize(("value", "wanted"), [(5.97e-8, False), (5.9e-8, True), (0.0, False)])
def test_a_constant_below_the_smallest_number_of_fp16_keeps_what_adds_it(value, wanted):
    model = model_of("e = Add(x, k) y = Relu(e)", [("k", np.float32(value))], output="float[N,4,8,8] y")
    assert kept(model) == ({"e", "y"} if wanted else set())


def test_a_constant_that_both_precisions_read_is_there_in_both():
    model = model_of(
        "a = Mul(x, k) r = Relu(a) v = ReduceMean<keepdims = 1>(r, axes) e = Add(v, eps) s = Mul(e, k) "
        "y = Div(r, s)",
        [("k", np.float32(0.75)), ("axes", np.array([1])), ("eps", np.float32(1e-12))],
        output="float[N,4,8,8] y",
    )
    half = to_fp16(model).model
    graph.check(half)
    read = {node.outputs[0].name: node.inputs[1].dtype for node in half.graph if node.op_type == "Mul"}
    assert read == {"a": FLOAT16, "s": FLOAT}
    x = np.abs(image()) + 1
    np.testing.assert_allclose(run(half, x=x), run(model, x=x), **HALF)


STAYS = """h = Cast<to = 10>(x) c = RoiAlign<output_height = 2, output_width = 2>(h, r, i)
d = Cast<to = 1>(c) y = Relu(d)"""
BODY = """h = Cast<to = 10>(x)
z = If (c) <then_branch = t () => (float16[N,4,8,8] s) { s = Neg(h) },
            else_branch = e () => (float16[N,4,8,8] r) { r = Abs(h) }>
y = Cast<to = 1>(z)"""


@pytest.mark.parametrize("body", [STAYS, BODY], ids=["an operator that stays", "a body"])
def test_what_reads_fp16_already_goes_on_reading_it(body):
    """It was handed the FP32 tensor in front of the Cast, and the graph could not be loaded any more."""
    if body == STAYS:
        constants, inputs, feeds = [("r", np.float16([[0, 0, 4, 4]])), ("i", np.array([0]))], "", {}
    else:
        constants, inputs, feeds = [], ", bool c", {"c": np.array(True)}
    model = model_of(body, constants, inputs=f"float[N,4,8,8] x{inputs}", output="float[N,4,h,w] y")
    half = to_fp16(model).model
    graph.check(half)
    np.testing.assert_allclose(run(half, x=image(), **feeds), run(model, x=image(), **feeds), **HALF)


def test_integers_that_are_cast_are_read_in_the_type_that_each_reader_has():
    model = model_of(
        "f = Cast<to = 1>(i) a = Mul(x, f) c = CumSum(f, axis) b = Add(a, c) y = Relu(b)",
        [("axis", np.array(1, np.int64))],
        inputs="float[N,4] x, int32[N,4] i",
        output="float[N,4] y",
    )
    half = to_fp16(model).model
    graph.check(half)
    feeds = {"x": image()[:, :, 0, 0], "i": np.array([[1, -2, 3, 4], [5, 6, 0, -1]], np.int32)}
    np.testing.assert_allclose(run(half, **feeds), run(model, **feeds), **HALF)


def test_a_fill_is_of_the_narrow_type():
    """Without a value ONNX fills with zeros of FP32; integers stay what they are."""
    body = (
        "k = ConstantOfShape<value = float[1] {2.5}>(d) z = ConstantOfShape(d) "
        "i = ConstantOfShape<value = int64[1] {3}>(d) f = Cast<to = 1>(i) a = Add(x, k) b = Add(a, z) "
        "y = Add(b, f)"
    )
    model = model_of(body, inputs="float[N,4] x, int64[2] d", output="float[N,4] y")
    half = to_fp16(model).model
    graph.check(half)
    fills = [node.attributes["value"].as_tensor() for node in half.graph if node.op_type == "ConstantOfShape"]
    assert [fill.dtype for fill in fills] == [FLOAT16, FLOAT16, ir.DataType.INT64]
    x = image()[:, :, 0, 0]
    np.testing.assert_allclose(run(half, x=x, d=np.array(x.shape)), x + 5.5, **HALF)


@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_outputs_and_inputs_that_are_no_floats_keep_their_type(io):
    model = model_of(
        "a = Relu(x) m = ArgMax<axis = 1, keepdims = 0>(a) y = Gather<axis = 1>(a, i)",
        inputs="float[N,4] x, int64[2] i",
        output="float[N,2] y, int64[N] m",
    )
    half = to_fp16(model, io=io).model
    graph.check(half)
    float_type = FLOAT if io == "fp32" else FLOAT16
    assert [v.dtype for v in half.graph.inputs] == [float_type, ir.DataType.INT64]
    assert [v.dtype for v in half.graph.outputs] == [float_type, ir.DataType.INT64]


def test_what_fp16_changed_is_counted_and_nothing_the_second_time():
    model = model_of("a = Relu(x) y = Neg(a)", output="float[N,4,8,8] y")
    once = to_fp16(model)
    assert dict(once.counts)["fp32_to_fp16"] > 0
    assert dict(to_fp16(once.model).counts)["fp32_to_fp16"] == 0


def test_hard_swish_is_apart_in_bf16_and_keeps_types_and_shapes():
    model = model_of("y = HardSwish(x)", output="float[N,4,8,8] y")
    brain = to_bf16(model).model
    graph.check(brain)
    (gate,) = [node for node in brain.graph if node.op_type == "HardSigmoid"]
    assert gate.outputs[0].dtype == ir.DataType.BFLOAT16
    x = image()
    wide = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    wanted = wide * np.clip(wide / 6 + 0.5, 0, 1)
    np.testing.assert_allclose(run(rounded(brain), x=x), wanted, rtol=2e-2, atol=2e-2)


def test_ranges_of_the_whole_graph_are_those_of_every_batch():
    model = model_of("a = Mul(x, x) b = Neg(a) y = Relu(b)", inputs="float[N,3] x", output="float[N,3] y")
    batches = [{"x": np.float32([[1, -3, 2]])}, {"x": np.float32([[0.5, 2, 0]] * 2)}]
    found = fp16_ranges.measure(model, batches, RUNTIME, kinds=["noise", "data", "noise"])
    assert found.largest == {"x": 3, "a": 9, "b": 9, "y": 0}
    assert (found.kinds, found.shapes) == (("noise", "data"), {"x": (2, 3)})


def test_what_is_not_known_is_said_of_the_first_tensor_and_how_many():
    model = model_of("a = Mul(x, x) y = Relu(a)", inputs="float[N,3] x", output="float[N,3] y")
    whole = Ranges({"x": 1.0, "a": 1.0, "y": 1.0}, ("data",))
    assert fp16_ranges.unmeasured(model, whole) == ()
    (said,) = fp16_ranges.unmeasured(model, Ranges({"x": 1.0}, ("data",)))
    assert said == "whether 'a' overflows FP16 (2 tensors without a range)"
    (said,) = fp16_ranges.unmeasured(model, None)
    assert said == "whether one of 3 tensors overflows FP16: no range was measured"
    assert fp16_ranges.close(model, None) == {}
    ends = {"x": 0.5 * 65504, "a": 0.51 * 65504, "y": 65504.0}
    assert set(fp16_ranges.close(model, Ranges(ends, ("data",)))) == {"a", "y"}


def test_the_type_of_a_cast_is_looked_at_not_its_place():
    model = model_of("a = Relu(x) b = CumSum(a, i) c = Relu(b) y = Neg(c)", [("i", np.array(1, np.int64))],
                     inputs="float[N,4] x", output="float[N,4] y")  # fmt: skip
    half = to_fp16(model).model
    assert (type_of(half, "a"), type_of(half, "b"), type_of(half, "c")) == (FLOAT16, FLOAT, FLOAT16)
    casts = [(n.inputs[0].dtype, n.outputs[0].dtype) for n in half.graph if n.op_type == "Cast"]
    assert casts == [(FLOAT, FLOAT16), (FLOAT16, FLOAT)] * 2
