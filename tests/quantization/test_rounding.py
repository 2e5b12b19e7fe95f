import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from layer_graphs import model_of, weights

from se_deploy import calibration, quantization, se_blocks
from se_deploy.quantization import QuantParams, layers, rounding

QUICK = hypothesis_settings(deadline=None, max_examples=25)


def conv(array, bias=None):
    body, given = "y = Conv(x, w)", [("w", array)]
    if bias is not None:
        body, given = "y = Conv(x, w, b)", [*given, ("b", bias)]
    model = model_of(body, given)
    return layers.collect(model, se_blocks.detect(model), quantization.PORTABLE).quantizable[0]


def moments(mean, variance):
    zeros = np.zeros(len(mean))
    return calibration.Statistics(zeros, zeros, np.array(mean), np.array(variance), zeros, zeros, zeros)


def test_offset_and_equalization_are_taken_back_by_weights_and_bias():
    array, bias = weights(6, 4, 1, 1), weights(6)
    offset, factor = np.float32([1, -2, 0.5, 0]), np.float32([0.5, 1, 0.25, 1])
    matrix, folded = rounding.fold_into_weights(conv(array, bias), QuantParams(0.1, offset, factor))
    x = np.random.default_rng(0).standard_normal((50, 4))
    wanted = x @ array[:, :, 0, 0].T + bias
    np.testing.assert_allclose(((x - offset) / factor) @ matrix[0, :, :, 0].T + folded, wanted, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_keep_their_full_range_where_nothing_is_known_of_the_input(per_channel):
    matrix = np.random.default_rng(0).standard_normal((1, 5, 4, 9))
    scale = rounding.weight_scale(matrix, np.zeros((1, 1, 4, 9)), per_channel=per_channel)
    assert (np.abs(matrix) <= scale.values * (127 * 1.001)).all()


def test_weights_of_channels_that_were_0_are_not_clipped_away():
    random = np.random.default_rng(0)
    matrix = random.uniform(-1, 1, (1, 1, 33, 1))
    matrix[0, 0, 32] = 1.3
    importance = np.ones((1, 1, 33, 1))
    importance[0, 0, 32] = 0
    scale = rounding.weight_scale(matrix, importance, per_channel=True).values
    assert scale[0, 0, 0, 0] * 127 >= 1.3 * 0.99


def test_a_scale_per_tensor_is_one_scale():
    matrix = np.random.default_rng(0).standard_normal((2, 5, 4, 9)) * np.geomspace(0.1, 1, 5)[:, None, None]
    importance = np.ones((2, 1, 4, 9))
    assert len(np.unique(rounding.weight_scale(matrix, importance, per_channel=False).values)) == 1
    assert len(np.unique(rounding.weight_scale(matrix, importance, per_channel=True).values)) == 10


@QUICK
@given(
    bias=st.floats(-1e8, 1e8), weight=st.floats(1e-6, 1e3), input_scale=st.floats(2**-24, 100),
    per_channel=st.booleans(),
)  # fmt: skip
def test_a_bias_in_steps_of_the_product_fits_int32(bias, weight, input_scale, per_channel):
    matrix = np.array([weight, weight / 3]).reshape(1, 2, 1, 1)
    before = rounding.weight_scale(matrix, np.ones((1, 1, 1, 1)), per_channel=per_channel)
    after = rounding.raised_for_bias(before, np.array([bias, 0.0]), input_scale)
    steps = np.abs(bias) / (input_scale * after.values[0, 0, 0, 0])
    assert steps < 2**31 - 1 or after.values.max() == 65504
    assert (after.values >= before.values).all()
    assert after.raised_for_bias is bool((after.values > before.values).any())
    if not after.raised_for_bias:
        np.testing.assert_array_equal(after.values, before.values)


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_bias_takes_back_the_mean_error_of_the_rounding(per_channel):
    array, mean = weights(6, 4, 1, 1), [3.0, -1.0, 0.5, 2.0]
    layer = conv(array)
    made = rounding.round_nearest(layer, QuantParams(0.1), moments(mean, [1e-6] * 4), per_channel=per_channel)
    rounded = made.weight[:, :, 0, 0] * made.weight_scale.reshape(-1, 1)
    np.testing.assert_allclose(rounded @ mean + made.bias, array[:, :, 0, 0] @ mean, atol=1e-5)
    assert made.weight_scale.shape == ((6,) if per_channel else ())


def test_a_layer_without_bias_and_without_error_gets_none():
    made = rounding.round_nearest(
        conv(np.full((4, 4, 1, 1), 127 * 2**-7, np.float32)),
        QuantParams(0.1), moments([1.0] * 4, [1.0] * 4), per_channel=True,
    )  # fmt: skip
    assert made.bias is None
