from dataclasses import replace

import numpy as np
import pytest
from layer_graphs import RUNTIME, layer_for, model_of, weights

from se_deploy import calibration, data, graph, quantization
from se_deploy.protocols import TensorSpec
from se_deploy.quantization import AccuracyGoal, QuantizeOptions, QuantParams, bias_correction, qdq
from se_deploy.quantization.qdq import QuantizedLayer

COARSE = QuantParams(0.23)  # so that a background's rounding error is plain to see
NETWORK = (
    "a = Conv<pads = [1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv<pads = [1,1,1,1]>(r, w2, b2) s = Add(c, r) "
    "t = Relu(s) d = Conv<strides = [2,2]>(t, w3) p = GlobalAveragePool(d) f = Flatten(p) y = Gemm(f, w4, b4)"
)
CONSTANTS = [
    ("w1", weights(6, 4, 3, 3)), ("b1", weights(6)), ("w2", weights(6, 6, 3, 3, seed=2)),
    ("b2", weights(6, seed=3)), ("w3", weights(5, 6, 1, 1, seed=4)), ("w4", weights(5, 3, seed=5)),
    ("b4", weights(3, seed=6)),
]  # fmt: skip


def network(batch="N"):
    return model_of(NETWORK, CONSTANTS, inputs=f"float[{batch},4,8,8] x", output=f"float[{batch},3] y")


def scenes(count, noise=0.02):
    """A dark, even background with a bright corner: one value at most positions, on all samples."""
    random = np.random.default_rng(0)
    x = np.full((count, 4, 8, 8), 0.31, np.float32)
    x[:, :, :2, :2] = 1.5
    return x + noise * random.standard_normal(x.shape).astype(np.float32)


def samples_of(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    return data.read(tmp_path / "x.npy", [TensorSpec("x", np.dtype(np.float32), (None, 4, 8, 8))])


def planned_for(model):
    return [layer_for(node, COARSE) for node in model.graph if node.op_type == "Conv"]


def with_own_biases(model, planned):
    """layer_for knows no biases: take the nodes' own."""
    own = {node.name: graph.constant(node.inputs[2]) for node in model.graph if len(node.inputs) > 2}
    return [replace(layer, bias=own.get(layer.node)) for layer in planned]


def means(model, tensors, x):
    with RUNTIME.open(calibration.with_outputs(model, tensors)) as session:
        made = session.run({"x": x})
    return {name: made[name].mean(axis=(0, 2, 3)) for name in tensors}


def mean_errors(model, planned, x):
    tensors = ["a", "c", "d"]
    wanted, got = means(model, tensors, x), means(qdq.trial(model, planned), tensors, x)
    return {name: float(np.abs(wanted[name] - got[name]).max()) for name in tensors}


def corrected(model, planned, samples):
    return bias_correction.correct(model, planned, samples, runtime=RUNTIME, fast=RUNTIME)


@pytest.mark.parametrize(("batch", "count"), [("N", 10), (1, 3), (4, 8), (4, 6)])
def test_each_layers_mean_is_that_of_the_float_network(tmp_path, batch, count):
    """Also behind a residual Add, whose error no layer makes itself, and with a last batch that is padded."""
    model, x = network(batch), scenes(count)
    planned = with_own_biases(model, planned_for(model))
    done = corrected(model, planned, samples_of(tmp_path, x))
    free = network()
    before, after = mean_errors(free, planned, x), mean_errors(free, done, x)
    assert min(before.values()) > 0.01, "nothing to correct: the test would prove nothing"
    assert all(after[name] < before[name] / 10 for name in before), (before, after)
    for old, new in zip(planned, done, strict=True):
        assert new.weight is old.weight
        assert new.params is old.params


def test_the_channels_of_a_matrix_product_are_its_last_axis(tmp_path):
    w = weights(8, 8)
    tokens = {"inputs": "float[N,6,8] x", "output": "float[N,6,8] y"}
    model = model_of("y = MatMul(x, w)", [("w", w)], **tokens)
    x = 0.31 + 0.02 * np.random.default_rng(0).standard_normal((8, 6, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    samples = data.read(tmp_path / "x.npy", [TensorSpec("x", np.dtype(np.float32), (None, 6, 8))])
    scale = np.abs(w).max(axis=0) / 127
    layer = QuantizedLayer(
        model.graph[0].name, COARSE, np.round(w / scale).astype(np.int8), scale, 1, np.zeros(8, np.float32)
    )

    def mean(net):
        with RUNTIME.open(net) as session:
            return session.run({"x": x})["y"].mean(axis=(0, 1))

    wanted = mean(model)
    before, after = (
        np.abs(mean(qdq.to_qdq(model, layers).model) - wanted).max()
        for layers in ([layer], corrected(model, [layer], samples))
    )
    assert before > 0.01, "nothing to correct: the test would prove nothing"
    assert after < before / 10


def test_a_later_layer_is_corrected_for_what_earlier_ones_still_do(tmp_path):
    """All at once each would be corrected for the others' error too: the second mean would be off again."""
    model, x = network(), scenes(8)
    planned = with_own_biases(model, planned_for(model))
    wanted, got = means(model, ["c"], x)["c"], means(qdq.trial(model, planned), ["c"], x)["c"]
    done = corrected(model, planned, samples_of(tmp_path, x))
    assert np.abs((done[1].bias - planned[1].bias) - (wanted - got)).max() > 0.01


def test_what_the_samples_do_not_agree_on_is_not_taken_back():
    random = np.random.default_rng(0)
    sure = bias_correction._mean_error(np.full((20, 1), 0.5), [np.zeros((20, 1))])
    np.testing.assert_allclose(sure, 0.5)
    scattered = random.standard_normal((20, 200))
    shrunk = bias_correction._mean_error(scattered, [np.zeros((20, 200))])
    assert (shrunk**2).mean() < 0.5 * (scattered.mean(axis=0) ** 2).mean()
    assert bias_correction._mean_error(None, [np.zeros((2, 1))]) is None
    assert bias_correction._mean_error(np.zeros((2, 1)), [None]) is None


def test_samples_are_left_out_where_they_would_hold_too_much(tmp_path, monkeypatch):
    model, x = network(), scenes(12, noise=0.0)
    planned = with_own_biases(model, planned_for(model))
    samples = samples_of(tmp_path, x)
    all_of_them = corrected(model, planned, samples)
    monkeypatch.setattr(bias_correction, "_HELD_BYTES", 1)
    one_batch = corrected(model, planned, samples)
    for few, many in zip(one_batch, all_of_them, strict=True):  # the samples are equal
        np.testing.assert_allclose(few.bias, many.bias, atol=1e-5)


def test_an_output_without_rows_for_each_sample_is_left_alone():
    assert bias_correction._means(np.zeros((7, 3)), 2, 1) is None
    assert bias_correction._means(np.zeros(6), 2, -1) is None
    stacked = np.arange(12.0).reshape(4, 3)  # two rows for each of two samples
    np.testing.assert_allclose(bias_correction._means(stacked, 2, -1), [[1.5, 2.5, 3.5], [7.5, 8.5, 9.5]])


def test_biases_are_those_of_the_layers_that_a_goal_leaves_in_int8(tmp_path):
    """With biases corrected for a layer that is in float by now, the third point lost 2 dB by them."""
    goal = AccuracyGoal(min_sqnr_db=45.0)
    options = QuantizeOptions(method="mse", gptq=False, float_macs=0.0, goal=goal)
    samples = samples_of(tmp_path, scenes(48))
    made, plain = (
        quantization.quantize(network(), samples, runtime=RUNTIME, options=one).curve
        for one in (options, replace(options, bias_correction=False))
    )
    assert len(made) == len(plain) > 3
    assert all(point.sqnr_db > other.sqnr_db - 0.5 for point, other in zip(made, plain, strict=True))
