import numpy as np
import pytest
from layer_graphs import model_of, weights
from ptq_graphs import network
from se_graphs import written

from se_deploy import quantization, se_blocks
from se_deploy.backends.tensorrt import policies
from se_deploy.quantization import layers


def collected(model, policy=quantization.PORTABLE):
    return layers.collect(model, se_blocks.detect(model), policy)


def reason(body, *constants, **kw):
    (one,) = collected(model_of(body, constants, **kw)).in_float
    return one.reason


def test_gates_stay_in_float_and_everything_else_is_quantizable():
    found = collected(network())
    assert len(found.quantizable) == 4
    assert [one.reason for one in found.in_float] == ["gate of SE block 'e'"] * 2


def test_depthwise_layers_stay_in_float_where_the_policy_says_so():
    found = collected(network(), policies.TENSORRT_RTX)
    assert len(found.quantizable) == 3
    assert sum("depthwise: TensorRT-RTX" in one.reason for one in found.in_float) == 1


@pytest.mark.parametrize(
    ("weight", "bias", "said"),
    [
        (np.full((4, 4, 1, 1), np.nan), np.zeros(4), "weights are not finite"),
        (np.full((4, 4, 1, 1), 1e8), np.zeros(4), "magnitude of its weights reaches 1e+08"),
        (np.full((4, 4, 1, 1), 1e-7), np.zeros(4), "magnitude of its weights is never larger than 1e-07"),
        (np.ones((4, 4, 1, 1)), np.full(4, np.inf), "bias is not finite"),
    ],
)
def test_numbers_that_int8_cannot_stand_for_are_a_reason(weight, bias, said):
    given = (("w", weight.astype(np.float32)), ("b", bias.astype(np.float32)))
    assert said in reason("y = Conv(x, w, b)", *given)


def test_weights_that_are_all_0_are_quantized():
    model = model_of("y = Conv(x, w)", [("w", np.zeros((4, 4, 1, 1), np.float32))])
    assert len(collected(model).quantizable) == 1


def test_a_bias_that_is_no_vector_is_a_reason_not_a_traceback():
    given = (("w", weights(8, 4)), ("b", weights(3, 4)))
    said = reason("y = Gemm(x, w, b)", *given, inputs="float[3,8] x", output="float[3,4] y")
    assert said == "its bias is not one value for each output"


def test_more_products_than_int32_holds_are_a_reason():
    columns = layers._MOST_COLUMNS
    assert (columns + 1) * 128 * 127 > 2**31 - 1 >= columns * 128 * 127
    shape = {"inputs": f"float[N,{columns + 1}] x", "output": "float[N,1] y"}
    assert "more than int32 holds" in reason("y = MatMul(x, w)", ("w", weights(columns + 1, 1)), **shape)
    shape = {"inputs": f"float[N,{columns}] x", "output": "float[N,1] y"}
    assert collected(model_of("y = MatMul(x, w)", [("w", weights(columns, 1))], **shape)).quantizable


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_auto_pad_with_a_free_size_forbids_an_offset_only(auto_pad):
    body = f'y = Conv<auto_pad = "{auto_pad}">(x, w)'
    free = {"inputs": "float[N,4,H,W] x", "output": "float[N,4,h,w] y"}
    (layer,) = collected(model_of(body, [("w", weights(4, 4, 3, 3))], **free)).quantizable
    assert (layer.padded, layer.can_fold_offset, layer.window.auto_pad) == (True, False, auto_pad)
    (layer,) = collected(model_of(body, [("w", weights(4, 4, 3, 3))])).quantizable
    assert (layer.padded, layer.can_fold_offset, layer.window.pads) == (True, True, (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("body", "shape", "matrix"),
    [
        ("y = Conv<group = 2>(x, w)", (6, 2, 3, 3), (2, 3, 2, 9)),
        ("y = ConvTranspose<group = 2>(x, w)", (4, 3, 3, 3), (2, 3, 2, 9)),
    ],
)
def test_weights_as_matrices_go_back_to_where_they_were(body, shape, matrix):
    array = weights(*shape)
    (layer,) = collected(model_of(body, [("w", array)], output="float[N,6,h,w] y")).quantizable
    assert layer.matrix.shape == matrix
    np.testing.assert_array_equal(layer.as_stored(layer.matrix), array)


BRANCHES = """
    y = If (t) <then_branch = one () => (float[N,4,6,6] a) { a = Conv(x, full) },
                else_branch = other () => (float[N,4,6,6] b) { b = Neg(x) }>"""


def test_layers_inside_of_an_if_are_named_and_left():
    found = collected(in_branches())
    assert not found.quantizable
    (one,) = found.in_float
    assert "inside of If 'y_if', which is left as it is" in one.reason
    assert one.macs == 4 * 4 * 6 * 6


def test_an_if_stays_in_fp32_and_says_so():
    (one,) = quantization.to_fp16(in_branches()).kept
    assert (one.node, one.reason) == ("y_if", "what is inside of it is left as it is")


def in_branches():
    model = written(BRANCHES, x="float[N,4,6,6] x, bool t")
    next(node for node in model.graph if node.op_type == "If").name = "y_if"
    return model


@pytest.mark.parametrize(
    ("body", "shape", "inputs", "axis", "outputs"),
    [
        ("y = Conv(x, w)", (6, 4, 3, 3), "float[N,4,8,8] x", 0, 6),
        ("y = Conv<group = 4>(x, w)", (8, 1, 3, 3), "float[N,4,8,8] x", 0, 8),
        ("y = ConvTranspose(x, w)", (4, 6, 2, 2), "float[N,4,8,8] x", 1, 6),
        ("y = Gemm<transB = 1>(x, w)", (6, 4), "float[N,4] x", 0, 6),
        ("y = Gemm(x, w)", (4, 6), "float[N,4] x", 1, 6),
        ("y = MatMul(x, w)", (4, 6), "float[N,4] x", 1, 6),
    ],
)
def test_the_matrix_of_a_layer_goes_back_to_where_it_was(body, shape, inputs, axis, outputs):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1
    model = model_of(body, [("w", array)], inputs=inputs, output="float[N,O,H,W] y")
    (layer,) = collected(model).quantizable
    assert layer.output_axis == axis
    assert layer.matrix.shape[0] * layer.matrix.shape[1] == outputs
    np.testing.assert_array_equal(layer.as_stored(layer.matrix), array)
    rows = layer.matrix.reshape(outputs, -1)
    stored = np.moveaxis(array, axis, 0).reshape(outputs, -1)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.sort(stored, axis=1))
