import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from se_deploy import graph
from se_deploy.precision import Grid, QuantizedLayer, opsets, qdq, to_fp16, to_qdq
from se_deploy.runtimes.ort import OrtRuntime

RUNTIME = OrtRuntime(threads=1, optimize=False)
HALF = {"rtol": 5e-3, "atol": 5e-3}  # a few roundings of 2^-11
REORDERED = {"rtol": 1e-4, "atol": 1e-4}  # the same float32 sums in another order


def text(body, opset=20, inputs="float[N,4,8,8] x", output="float y"):
    return f'<ir_version: 10, opset_import: ["" : {opset}]>\ng ({inputs}) => ({output}) {{ {body} }}'


def model_of(body, constants=(), **kw):
    model = ir.from_onnx_text(text(body, **kw))
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, array in constants:
        made = graph.initializer(model, f"{name}_c", np.asarray(array))
        values[name].replace_all_uses_with(made)
    return graph.tidy(graph.inline(model))


def run(model, **feeds):
    with RUNTIME.open(model) as session:
        return session.run(feeds)["y"]


def image(seed=0, channels=4, size=8):
    return np.random.default_rng(seed).standard_normal((2, channels, size, size)).astype(np.float32)


def weights(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 3


def conv(opset=20, attributes="pads = [1,1,1,1]"):
    """y = conv(relu(conv(x)))."""
    return model_of(
        f"a = Conv<pads = [1,1,1,1]>(x, w1) b = Relu(a) y = Conv<{attributes}>(b, w2)",
        [("w1", weights(4, 4, 3, 3)), ("w2", weights(6, 4, 3, 3, seed=2))],
        opset=opset,
        output="float[N,6,h,w] y",
    )


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


def test_what_fp16_cannot_hold_is_a_warning():
    model = model_of(
        "a = Mul(x, big) y = Mul(a, small)",
        [("big", np.float32([1e6])), ("small", np.float32([1e-9]))],
        output="float[N,4,8,8] y",
    )
    warnings = to_fp16(model).warnings
    assert any("cannot reach" in w and "big" in w for w in warnings)
    assert any("rounds to 0" in w and "small" in w for w in warnings)


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


def layer_for(node, grid):
    """Quantize a Conv's weights so finely that they are exact: 127 levels of integers."""
    w = graph.constant(node.inputs[1])
    divisor = 1.0 if grid.divisor is None else grid.divisor[:, None, None]
    offset = 0.0 if grid.offset is None else grid.offset[:, None, None]
    bias = (w * offset).sum(axis=(1, 2, 3)) if grid.offset is not None else np.zeros(len(w))
    folded = w * divisor
    scale = np.maximum(np.abs(folded).max(axis=(1, 2, 3)) / 127, 1e-9)
    q = np.round(folded / scale[:, None, None, None])
    return QuantizedLayer(
        node.name, grid, q.astype(np.int8), scale.astype(np.float32), 0, bias.astype(np.float32)
    )


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
    grid = Grid(
        0.05,
        np.linspace(0.5, 1.5, 4, dtype=np.float32) if shift else None,
        np.geomspace(0.5, 2, 4, dtype=np.float32) if divide else None,
    )
    done = to_qdq(model, [layer_for(model.graph[-1], grid)]).model
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
    grid = Grid(1.0, np.full(4, 128, np.float32))
    done = to_qdq(model, [layer_for(model.graph[0], grid)]).model
    np.testing.assert_allclose(run(done, x=x), run(model, x=x), **REORDERED)


def test_readers_of_one_tensor_share_its_quantizer():
    model = model_of(
        "a = Conv(x, w1) b = Conv(x, w2) y = Add(a, b)",
        [("w1", weights(4, 4, 1, 1)), ("w2", weights(4, 4, 1, 1, seed=5))],
        output="float[N,4,8,8] y",
    )
    grid = Grid(0.02)
    done = to_qdq(model, [layer_for(node, grid) for node in list(model.graph)[:2]]).model
    assert graph.ops(done).count("QuantizeLinear") == 1


def test_fp16_quantizers_have_fp16_scales_that_are_no_zeros():
    model = conv()
    layer = layer_for(model.graph[2], Grid(1e-9))
    half = to_fp16(to_qdq(model, [layer]).model)
    graph.check(half.model)
    for node in half.model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            scale = graph.constant(node.inputs[1])
            assert scale.dtype == np.float16
            assert (scale > 0).all()


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
    once = layer_for(conv_node, Grid(0.03))
    shared = to_qdq(model, [dataclasses.replace(once, grid=Grid(0.03, residual=True))]).model
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
    layer = layer_for(model.graph[2], Grid(0.03))
    np.testing.assert_array_equal(
        run(qdq.trial(model, [layer]), x=image()), run(to_qdq(model, [layer]).model, x=image())
    )


def test_small_scales_are_not_floored_to_larger_ones():
    model = model_of("y = Conv(x, w)", [("w", weights(4, 4, 1, 1) * 1e-3)], output="float[N,4,8,8] y")
    done = to_qdq(model, [layer_for(model.graph[0], Grid(0.03))]).model
    half = to_fp16(done).model
    np.testing.assert_allclose(run(half, x=image()), run(done, x=image()), rtol=0.05, atol=3e-5)
