import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from layer_graphs import conv, image, layer_for, model_of, run, weights

from se_deploy import graph, opsets
from se_deploy.quantization import QuantParams, qdq, to_qdq

REORDERED = {"rtol": 1e-4, "atol": 1e-4}  # the same float32 sums in another order


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize(
    "attributes",
    [
        "pads = [1,1,1,1]",
        "pads = [0,2,1,0], strides = [2,1]",
        'auto_pad = "SAME_UPPER", strides = [2,2]',
        "dilations = [2,2]",
    ],
)
def test_qdq_computes_the_quantized_layer(shift, divide, attributes):
    model = model_of(
        f"b = Relu(x) y = Conv<{attributes}>(b, w2)",
        [("w2", weights(6, 4, 3, 3, seed=2))],
        output="float[N,6,h,w] y",
    )
    x = image()
    params = QuantParams(
        0.05,
        np.linspace(0.5, 1.5, 4, dtype=np.float32) if shift else None,
        np.geomspace(0.5, 2, 4, dtype=np.float32) if divide else None,
    )
    done = to_qdq(model, [layer_for(model.graph[-1], params)]).model
    graph.check(done)
    assert qdq_zero_points(done) == {0}
    wanted = run(model, x=x)
    error = run(done, x=x) - wanted
    assert np.sqrt((error**2).mean()) < 0.08 * wanted.std()  # 8 bits on both sides


def qdq_zero_points(model):
    found = set()
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            found |= set(np.unique(graph.constant(node.inputs[2])).tolist())
    return found


@given(st.integers(0, 5))
@hypothesis_settings(deadline=None, max_examples=6)
def test_padding_with_a_shift_is_exact_at_the_borders(seed):
    """A grid that holds the input exactly gives the float result, borders included."""
    model = model_of(
        "y = Conv<pads = [1,1,1,1]>(x, w)",
        [("w", np.ones((2, 4, 3, 3), np.float32))],
        output="float[N,2,8,8] y",
    )
    x = np.random.default_rng(seed).integers(0, 200, (1, 4, 8, 8)).astype(np.float32)
    params = QuantParams(1.0, np.full(4, 128, np.float32))
    done = to_qdq(model, [layer_for(model.graph[0], params)]).model
    np.testing.assert_allclose(run(done, x=x), run(model, x=x), **REORDERED)


def test_readers_of_one_tensor_share_its_quantizer():
    model = model_of(
        "a = Conv(x, w1) b = Conv(x, w2) y = Add(a, b)",
        [("w1", weights(4, 4, 1, 1)), ("w2", weights(4, 4, 1, 1, seed=5))],
        output="float[N,4,8,8] y",
    )
    params = QuantParams(0.02)
    done = to_qdq(model, [layer_for(node, params) for node in list(model.graph)[:2]]).model
    assert graph.ops(done).count("QuantizeLinear") == 1


def test_an_old_operator_set_is_lifted():
    lifted = opsets.at_least(conv(11), opsets.FP16_SCALES)
    assert graph.opset(lifted) == 19
    np.testing.assert_allclose(run(lifted, x=image()), run(conv(11), x=image()), **REORDERED)


def test_auto_pad_with_a_free_size_is_a_reason_not_a_guess():
    model = model_of(
        'y = Conv<auto_pad = "SAME_UPPER">(x, w)',
        [("w", weights(4, 4, 3, 3))],
        inputs="float[N,4,H,W] x",
        output="float[N,4,h,w] y",
    )
    with pytest.raises(ValueError, match="auto_pad"):
        qdq.pads(model.graph[0])


def test_a_residual_add_reads_the_quantized_tensor_too():
    model = model_of(
        "a = Relu(x) b = Conv<pads = [1,1,1,1]>(a, w) y = Add(b, a)",
        [("w", weights(4, 4, 3, 3))],
        output="float[N,4,8,8] y",
    )
    conv_node = model.graph[1]
    once = layer_for(conv_node, QuantParams(0.03))
    shared = to_qdq(model, [dataclasses.replace(once, params=QuantParams(0.03, residual=True))]).model
    graph.check(shared)
    add = next(node for node in shared.graph if node.op_type == "Add")
    assert add.inputs[1].producer().op_type == "DequantizeLinear"
    assert graph.ops(shared).count("QuantizeLinear") == 1
    apart = to_qdq(model, [once]).model
    add = next(node for node in apart.graph if node.op_type == "Add")
    assert add.inputs[1].producer().op_type == "Relu"
    x = image()
    np.testing.assert_allclose(run(shared, x=x), run(apart, x=x), atol=0.03)  # one step of the grid


def test_trial_runs_as_the_written_graph():
    model = conv()
    layer = layer_for(model.graph[2], QuantParams(0.03))
    np.testing.assert_array_equal(
        run(qdq.trial(model, [layer]), x=image()), run(to_qdq(model, [layer]).model, x=image())
    )
