"""What quantization chooses, one decision at a time: ranges, scales, offsets, layers, groups, pads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from layer_graphs import RUNTIME, image, layer_for, model_of, run, weights
from test_bias_correction import network, planned_for, samples_of, scenes, with_own_biases
from test_equalization import BACK, FRONT, REORDERED, drawn, tensors
from test_equalization import network as equalized_network
from test_layers import collected, reason
from test_qparams import (
    EVERYTHING,
    METHODS,
    NOTHING,
    choose,
    dequantized,
    observed,
    positive,
    reader,
    subject,
)
from test_residual import network as residual_network

from se_deploy import calibration, graph
from se_deploy.calibration import ranges
from se_deploy.quantization import (
    QuantParams,
    bias_correction,
    equalization,
    placement,
    qdq,
    qparams,
    residual,
    rounding,
    scales,
    to_qdq,
)
from se_deploy.quantization.im2col import ConvWindow


def test_a_channel_has_its_own_range_where_each_is_divided_and_the_tensors_where_none_is():
    """By squared error: where each is divided by a factor of its own, what the others hold says nothing."""
    x = np.random.default_rng(0).standard_normal((2, 8192)) * np.array([[1.0], [0.01]])
    seen = observed(x)
    error = calibration.ClipError(seen)
    own = calibration.choose_ranges(error, ("mse",))["mse"]
    free, tied = (qparams._range(error, [reader(2)], "mse", allowed) for allowed in (EVERYTHING, NOTHING))
    np.testing.assert_array_equal(free, own)
    merged = seen.per_tensor()
    low, high = calibration.choose_ranges(calibration.ClipError(merged), ("mse",))["mse"]
    assert tied[0].min() >= low[0]
    assert tied[1].max() <= high[0]


def test_trial_strengths_and_ranges_go_from_nothing_to_all():
    assert qparams.POWERS[0] == 0
    assert qparams.POWERS[-1] == 1
    assert list(qparams.POWERS) == sorted(set(qparams.POWERS))
    assert 0 < qparams._RANGE_SHARES.min() < qparams._RANGE_SHARES.max() == 1
    assert (ranges._CLIPS > 0).all()
    assert ranges._CLIPS.max() == 1


def test_a_guessed_scale_reaches_what_stands_behind_a_normalization():
    assert 7.5 < scales.UNSEEN_SCALE * 127 < 8.5


@pytest.mark.parametrize(
    ("low", "high", "step", "wanted"),
    [
        (0.0, 2.0, 2 / 255, (0.0, 2.0)),  # the whole range, from its low end
        (0.0, 2.0, 1 / 255, (0.0, 1.0)),  # one-sided: only the far end is clipped
        (1.0, 2.0, 0.5 / 255, (1.0, 1.5)),
        (-0.4, 2.0, 1 / 255, (-0.4, 0.6)),  # nearly
        (-0.6, 2.0, 1 / 255, (0.2, 1.2)),  # two-sided: both are, around the middle
        (-1.0, 1.0, 1 / 255, (-0.5, 0.5)),
        (-1.0, 1.0, 2 / 255, (-1.0, 1.0)),
        (-4.0, -2.0, 1 / 255, (-3.5, -2.5)),
    ],
)
@pytest.mark.parametrize("usual", [-0.37, 0.0, 0.93])
def test_where_the_levels_of_a_channel_lie(low, high, step, wanted, usual):
    offset = qparams._offset(*(np.array([number]) for number in (low, high, step, usual)))
    ends = offset + np.array([qdq.LOWEST_LEVEL, qdq.HIGHEST_LEVEL]) * step
    np.testing.assert_allclose(ends, wanted, atol=step)
    level = (usual - offset) / step
    np.testing.assert_allclose(level, np.round(level), atol=1e-9)


def test_the_ends_of_a_quantizer_are_those_of_its_levels():
    plain = QuantParams(0.5)
    assert (plain.low, plain.high) == (-64, 63.5)
    moved = QuantParams(0.5, np.float32([1, -2]), np.float32([1, 4]))
    assert (moved.low, moved.high) == (-128 * 0.5 * 4 - 2, 127 * 0.5 * 4 - 2)


def one_by_one(array):
    """A layer of a 1x1 convolution with weights (O, C)."""
    (layer,) = collected(
        model_of(
            "y = Conv(x, w)",
            [("w", np.float32(array)[:, :, None, None])],
            inputs=f"float[N,{len(array[0])},8,8] x",
            output="float[N,O,8,8] y",
        )
    ).quantizable
    return layer


@pytest.mark.parametrize("divided", [False, True])
def test_the_predicted_error_is_what_rounding_makes(divided):
    """Coarse steps of the input, so that next to nothing comes of the weights."""
    x = np.random.default_rng(0).uniform(-4, 4, (3, 400_000))
    array = np.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]])
    factor = np.float32([0.5, 1.0, 2.0]) if divided else None
    params = QuantParams(0.25, equalization=factor)
    predicted = qparams.predicted_noise(one_by_one(array), params, observed(x), per_channel=True)
    wanted, got = array @ x, array @ dequantized(x, params)
    measured = ((got - wanted) ** 2).sum() / (wanted - wanted.mean(axis=1, keepdims=True)).var(axis=1).sum()
    assert predicted == pytest.approx(measured / x.shape[1], rel=0.03)


def test_the_predicted_error_of_weights_grows_with_their_step_and_with_the_taps():
    variance, ones = np.array([2.0, 0.5]), np.ones(2)
    even = one_by_one([[1.0, 1.0], [1.0, 1.0]])
    uneven = one_by_one([[1.0, 1.0], [0.25, 0.25]])
    assert qparams._weight_noise(even, ones, variance, per_channel=True) == pytest.approx(
        0.4 * 2 * (1 / 127) ** 2 / 12 * 2.5
    )
    apart, tied = (
        qparams._weight_noise(uneven, ones, variance, per_channel=per_channel)
        for per_channel in (True, False)
    )
    assert apart == pytest.approx(tied * (1 + 1 / 16) / 2)
    nine = reader(2, array=np.ones((2, 2, 3, 3), np.float32))
    assert qparams._weight_noise(nine, ones, variance, per_channel=True) == pytest.approx(
        9 * qparams._weight_noise(even, ones, variance, per_channel=True)
    )


def test_an_output_that_never_moves_has_a_finite_error():
    still = observed(np.full((4, 64), 3.0))
    assert np.isfinite(qparams.predicted_noise(reader(), QuantParams(0.1), still, per_channel=True))
    assert np.isfinite(qparams.importance(still, [reader()])).all()


@pytest.mark.parametrize("method", METHODS)
def test_of_all_trial_scales_the_one_of_least_error_is_chosen(method):
    """But for minmax, which clips nothing; what a percentile leaves of these values is best as a whole."""
    x = np.random.default_rng(0).standard_normal((4, 1 << 15)) ** 3
    seen = observed(x)
    made = choose(seen, [reader()], [method], NOTHING)[method]
    one = subject(seen, [reader()])
    error = qparams._Error.of(one, method, calibration.ClipError(one.seen_by(method)))
    full = float(qparams._sizes(error.low, error.high, NOTHING).max())
    (tried,) = error(np.ones((1, 4)), scales.representable(qparams._RANGE_SHARES * full)[None])
    wanted = tried[-1] if method == "minmax" else tried.min()
    assert made.noise == pytest.approx(wanted)
    if method != "percentile":
        assert tried.argmin() < len(tried) - 1, "the whole range is not the best: the test shows something"


def test_a_group_of_one_tensor_behind_a_relu_is_divided():
    """A low end of exactly 0 says nothing against it; a tensor of zeros alone does."""
    x = np.maximum(positive(sizes=[0.01, 0.1, 1, 10]) - 1e-3, 0)
    assert (x.min(axis=1) == 0).all()
    factor = qparams.group_factor([subject(observed(x), [reader()], EVERYTHING)])
    assert factor is not None
    assert factor[0] < factor[3] == 1
    assert qparams.group_factor([subject(observed(np.zeros((4, 64))), [reader()])]) is None


@pytest.mark.parametrize(("dispersion", "samples"), [(0.0, 128), (10.0, 8)])
def test_who_doubts_pays_a_premium_and_divides_less(dispersion, samples):
    """Samples that agree are believed; where they differ, the quiet channels are not taken at their word."""
    seen = observed(positive(sizes=[0.02, 1, 1, 1]))
    tails = dataclasses.replace(seen.tails, samples=samples, dispersion=dispersion)
    factor = qparams.group_factor([subject(dataclasses.replace(seen, tails=tails), [reader()], EVERYTHING)])
    least = 1.0 if factor is None else factor[0] / factor.max()
    assert least < 0.3 if dispersion == 0 else least > 0.5


def test_the_scale_of_a_whole_tensor_reaches_its_further_end():
    for low, high, wanted in ((-10, 1, 10 / 128), (-1, 10, 10 / 127), (0, 5, 5 / 127), (-5, 0, 5 / 128)):
        x = np.random.default_rng(0).uniform(low, high, (2, 8192))
        assert placement._scale(observed(x), "minmax") == pytest.approx(wanted, rel=2e-3)
    assert placement._scale(observed(np.zeros((2, 64))), "minmax") == scales.UNSEEN_SCALE


@pytest.mark.parametrize(
    ("body", "shape", "outputs", "channels", "depthwise"),
    [
        ("y = Conv(x, w)", (6, 4, 3, 3), 6, 4, False),
        ("y = Conv<group = 2>(x, w)", (6, 2, 3, 3), 6, 4, False),
        ("y = Conv<group = 2>(x, w)", (2, 2, 3, 3), 2, 4, False),
        ("y = Conv<group = 4>(x, w)", (4, 1, 3, 3), 4, 4, True),
        ("y = Conv<group = 4>(x, w)", (8, 1, 3, 3), 8, 4, True),
        ("y = ConvTranspose<group = 2>(x, w)", (4, 3, 3, 3), 6, 4, False),
    ],
)
def test_what_a_layer_reads_and_writes(body, shape, outputs, channels, depthwise):
    model = model_of(body, [("w", weights(*shape))], output="float[N,O,H,W] y")
    (layer,) = collected(model).quantizable
    assert (layer.outputs, layer.channels, layer.depthwise) == (outputs, channels, depthwise)
    assert layer.column_power.shape == (channels,)


@pytest.mark.parametrize(
    ("body", "inputs", "axis"),
    [
        ("y = MatMul(x, w)", "float[N,8] x", 1),
        ("y = MatMul(x, w)", "float[N,5,8] x", 2),
        ("y = MatMul(x, w)", "float[N,3,5,8] x", 3),
        ("y = Gemm(x, w)", "float[N,8] x", 1),
    ],
)
def test_a_matrix_product_folds_an_offset_along_the_axis_that_it_sums(body, inputs, axis):
    model = model_of(body, [("w", weights(8, 3))], inputs=inputs, output="float y")
    (layer,) = collected(model).quantizable
    assert (layer.can_fold_offset, layer.padded, layer.channel_axis) == (True, False, axis)
    assert layer.window == ConvWindow((), (), (), (), axis=axis)


def test_a_transposed_convolution_folds_none():
    model = model_of("y = ConvTranspose(x, w)", [("w", weights(4, 3, 2, 2))], output="float[N,3,h,w] y")
    (layer,) = collected(model).quantizable
    assert (layer.can_fold_offset, layer.window) == (False, None)


@pytest.mark.parametrize("attribute", ["alpha = 2.0", "beta = 0.5", "transA = 1"])
def test_a_gemm_that_is_more_than_a_product_and_a_sum_is_a_reason(attribute):
    said = reason(
        f"y = Gemm<{attribute}>(x, w)", ("w", weights(4, 4)), inputs="float[4,4] x", output="float y"
    )
    assert said == "Gemm with alpha, beta or transA"


@pytest.mark.parametrize(("size", "fits"), [(1, True), (4, True), (2, False), (3, False)])
def test_a_bias_has_one_value_or_one_for_each_output(size, fits):
    given = [("w", weights(8, 4)), ("b", weights(size))]
    if not fits:
        given[1] = ("b", weights(size, 1))
    shape = {"inputs": f"float[{1 if fits else size},8] x", "output": "float y"}
    found = collected(model_of("y = Gemm(x, w, b)", given, **shape))
    assert bool(found.quantizable) is fits
    if fits:
        assert found.quantizable[0].bias.shape == (4,)


def test_a_stack_of_matrices_is_a_reason():
    assert reason("y = MatMul(x, w)", ("w", weights(2, 4, 3)), inputs="float[2,5,4] x", output="float y") == (
        "its weights are a stack of matrices"
    )


def convolution(attributes, kernel=3, size=8):
    return model_of(
        f"y = Conv<{attributes}>(x, w)", [("w", weights(4, 4, kernel, kernel))],
        inputs=f"float[N,4,{size},{size}] x", output="float[N,4,h,w] y",
    ).graph[0]  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ('auto_pad = "VALID"', None),
        ("pads = [0,0,0,0]", None),
        ("pads = [0,1,2,3]", (0, 1, 2, 3)),
        ('auto_pad = "SAME_UPPER"', (1, 1, 1, 1)),
        ('auto_pad = "SAME_UPPER", strides = [2,2]', (0, 0, 1, 1)),
        ('auto_pad = "SAME_LOWER", strides = [2,2]', (1, 1, 0, 0)),
        ('auto_pad = "SAME_UPPER", dilations = [2,2]', (2, 2, 2, 2)),
        ('auto_pad = "SAME_UPPER", strides = [3,3], dilations = [2,2]', (1, 1, 2, 2)),
        ('auto_pad = "SAME_UPPER", strides = [4,4]', None),
    ],
)
def test_pads_are_those_of_the_specification(attributes, wanted):
    assert qdq.pads(convolution(attributes)) == wanted


def test_pads_of_weights_without_a_shape_are_no_guess():
    for slot in (0, 1):
        node = convolution("pads = [1,1,1,1]")
        value = node.inputs[slot]
        value.const_value = None
        value.shape = None
        with pytest.raises(ValueError, match="no known shape"):
            qdq.pads(node)


@pytest.mark.parametrize(
    "body",
    [
        "least = ReduceMin<keepdims = 0>(a) t = Clip(a, least)",
        "r = Relu(a) t = Div(column, r)",
        "t = Relu(a) m = ReduceMean<keepdims = 1>(t, ax) n = Conv(m, k)",
    ],
)
def test_what_factors_do_not_pass_is_left_alone(body):
    constants = [
        ("column", weights(6, 1, 1) + 2), ("ax", np.array([1])),
        ("k", weights(6, 1, 1, 1)), ("w", weights(6, 4, 3, 3)), ("b", weights(6)), ("v", weights(5, 6, 1, 1)),
    ]  # fmt: skip
    output = "float[N,5,h,k] y" + (", float[N,6,h,k] n" if "n =" in body else "")
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split()) | {"w", "b", "v"}
    model = model_of(FRONT + body + BACK, [c for c in constants if c[0] in used], output=output)
    assert "t" not in tensors(equalization.groups(model, ["t"], pointwise=True))


def test_a_squeeze_that_is_flattened_passes_its_factors_to_a_matrix():
    model = model_of(
        "a = Conv(x, w) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)",
        [("w", weights(6, 4, 1, 1)), ("v", weights(6, 5))], output="float[N,5] y",
    )  # fmt: skip
    (group,) = equalization.groups(model, ["r"], pointwise=False)
    assert set(group.tensors) == {"a", "r", "p", "f"}
    folded = equalization.fold(model, drawn([group])).model
    np.testing.assert_allclose(run(folded, x=image()), run(model, x=image()), **REORDERED)


def test_the_branches_of_an_add_share_their_factors_whatever_the_size_of_the_map():
    model = model_of(
        "a = Conv(x, w) r = Relu(a) c = Conv(r, u) s = Add(c, r) t = Relu(s) y = Conv(t, v)",
        [("w", weights(6, 4, 1, 1)), ("u", weights(6, 6, 1, 1)), ("v", weights(5, 6, 1, 1))],
        inputs="float[N,4,5,9] x", output="float[N,5,5,9] y",
    )  # fmt: skip
    (group,) = equalization.groups(model, ["t"], pointwise=False)
    assert set(group.tensors) == {"a", "r", "c", "s", "t"}


def test_a_pooling_of_unknown_shape_passes_no_factors():
    model = equalized_network(FRONT + "r = Relu(a) t = MaxPool<kernel_shape = [2,2]>(r)" + BACK)
    graph.values(model)["t"].shape = None
    assert "t" not in tensors(equalization.groups(model, ["t", "r"], pointwise=True))


def test_only_a_tensor_itself_is_not_followed_through_its_own_activation():
    found = residual.behind_adds(residual_network(), ["r", "s", "t", "q", "z"])
    assert found["r"] == {"s", "t", "q", "z"}
    assert found["t"] == {"q", "z"}


@pytest.mark.parametrize("inputs", ["float[N,8] x", "float[N,5,8] x", "float[N,3,5,8] x"])
def test_a_matrix_product_is_quantized_along_its_last_axis(inputs):
    model = model_of("y = MatMul(x, w)", [("w", weights(8, 3))], inputs=inputs, output="float y")
    (layer,) = collected(model).quantizable
    params = QuantParams(0.06, np.linspace(-1, 1, 8).astype(np.float32), np.geomspace(0.5, 2, 8).astype("f4"))
    moments = observed(np.random.default_rng(0).standard_normal((8, 1024)))
    done = to_qdq(model, [rounding.round_nearest(layer, params, moments, per_channel=True)]).model
    graph.check(done)
    x = np.random.default_rng(1).standard_normal([d or 2 for d in graph.dims(model.graph.inputs[0])])
    x = x.astype(np.float32)
    wanted = run(model, x=x)
    assert np.sqrt(((run(done, x=x) - wanted) ** 2).mean()) < 0.05 * wanted.std()


def test_a_pair_that_a_layer_has_serves_the_others_too():
    model = model_of(
        "a = Relu(x) b = Conv(a, w) m = MaxPool<kernel_shape = [1,1]>(a) y = Add(b, m)",
        [("w", weights(4, 4, 1, 1))], output="float[N,4,8,8] y",
    )  # fmt: skip
    names = {node.outputs[0].name: node.name for node in model.graph}
    conv = next(node for node in model.graph if node.op_type == "Conv")
    for scale, pairs in ((0.03, 1), (0.05, 2)):
        beside = (qdq.Beside("a", scale, (names["m"],)),)
        layer = dataclasses.replace(
            layer_for(conv, QuantParams(0.03)), params=QuantParams(0.03, beside=beside)
        )
        done = to_qdq(model, [layer]).model
        graph.check(done)
        assert graph.ops(done).count("QuantizeLinear") == pairs
        pool = next(node for node in done.graph if node.op_type == "MaxPool")
        assert pool.inputs[0].producer().op_type == "DequantizeLinear"
        assert float(graph.constant(pool.inputs[0].producer().inputs[1])) == pytest.approx(scale)


def test_a_scale_is_raised_by_no_more_than_a_bias_asks_for():
    matrix = np.array([1.0, 1.0]).reshape(1, 2, 1, 1)
    before = rounding.weight_scale(matrix, np.ones((1, 1, 1, 1)), per_channel=True)
    assert not before.raised_for_bias
    small = rounding.raised_for_bias(before, np.array([100.0, 0.0]), 0.01)
    np.testing.assert_array_equal(small.values, before.values)
    assert not small.raised_for_bias
    large = rounding.raised_for_bias(before, np.array([1e6, 0.0]), 0.01)
    assert large.raised_for_bias
    np.testing.assert_allclose(
        large.values.ravel(), [1e6 / 0.01 / 2**30, before.values[0, 1, 0, 0]], rtol=2e-3
    )


def test_a_mean_without_error_or_doubt_is_left_as_it_is():
    zeros = np.zeros((4, 3))
    np.testing.assert_array_equal(bias_correction._mean_error(zeros, [zeros]), [0, 0, 0])


def test_samples_are_compared_channel_by_channel():
    """The second channel's samples do not agree; the first is taken back all the same."""
    wanted = np.column_stack([np.full(6, 0.5), np.array([9.0, -9, 9, -9, 9, -8])])
    found = bias_correction._mean_error(wanted, [np.zeros((6, 2))])
    assert found[0] == pytest.approx(0.5)
    assert abs(found[1]) < 0.01


def test_one_batch_is_enough_to_correct_biases_and_each_layer_is_told(tmp_path):
    model, steps = network(), []
    planned = with_own_biases(model, planned_for(model))
    done = bias_correction.correct(
        model, planned, samples_of(tmp_path, scenes(2)), runtime=RUNTIME, fast=RUNTIME,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert len(done) == 3
    assert steps == [("biases", i, 3) for i in (1, 2, 3)]


def test_the_scale_of_a_pair_is_that_of_least_error_where_it_is_read():
    x = np.random.default_rng(0).standard_normal((2, 8192)) * np.array([[1.0], [100.0]])
    seen = observed(x)
    own, quiet, loud = (
        placement._scale(seen, "mse", None if weight is None else np.array(weight))
        for weight in (None, [1.0, 0.0], [0.0, 1.0])
    )
    assert quiet < own / 20
    assert loud == pytest.approx(own, rel=0.5)
    assert placement._scale(seen, "mse", np.zeros(2)) == own, "nothing is known of what the error does"
    assert placement._scale(seen, "minmax", np.array([1.0, 0.0])) == placement._scale(seen, "minmax")
