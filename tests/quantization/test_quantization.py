import dataclasses
import json

import numpy as np
import onnx_ir as ir
import pytest

from se_deploy import data, graph, quantization, se_blocks, targets
from se_deploy.backends import registry
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt import policies
from se_deploy.errors import BadInput, UnsupportedGraph
from se_deploy.protocols import TensorSpec
from se_deploy.quantization import AccuracyGoal, QuantizeOptions, layer_cost, layers

RUNTIME = OrtRuntime(threads=1, optimize=False)
FAST = QuantizeOptions(method="mse", gptq=False, float_macs=0.0)

NETWORK = """
<ir_version: 10, opset_import: ["" : 20]>
network (float[{batch},3,16,16] x) => (float[{batch},10] y) {{
  a = Conv<pads = [1,1,1,1]>(x, w0, b0)
  b = Relu(a)
  c = Conv<pads = [1,1,1,1], group = 8>(b, w1, b1)
  d = HardSwish(c)
  p = GlobalAveragePool(d)
  f = Conv(p, w2, b2)
  g = Relu(f)
  h = Conv(g, w3, b3)
  s = Sigmoid(h)
  e = Mul(d, s)
  i = Conv<strides = [2,2], pads = [1,1,1,1]>(e, w4)
  j = Relu(i)
  k = GlobalAveragePool(j)
  l = Flatten(k)
  y = Gemm<transB = 1>(l, w5, b5)
}}
"""
SHAPES = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "w2": (4, 8, 1, 1), "b2": (4,),
    "w3": (8, 4, 1, 1), "b3": (8,), "w4": (16, 8, 3, 3), "w5": (10, 16), "b5": (10,),
}  # fmt: skip


def network(batch="N"):
    """A small SE network with uneven channels, as trained ones have."""
    model = ir.from_onnx_text(NETWORK.format(batch=batch))
    random = np.random.default_rng(0)
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, shape in SHAPES.items():
        array = random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        array *= np.geomspace(0.3, 3, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
        values[name].replace_all_uses_with(graph.initializer(model, f"{name}_c", array.astype(np.float32)))
    return graph.tidy(graph.inline(model))


def dataset(tmp_path, count=24, labels=False):
    random = np.random.default_rng(1)
    x = random.standard_normal((count, 3, 16, 16)).astype(np.float32).cumsum(axis=3) / 4
    y = {"labels": random.integers(0, 10, count)} if labels else {}
    np.savez(tmp_path / "x.npz", x=x, **y)
    return data.read(tmp_path / "x.npz", [TensorSpec("x", np.dtype(np.float32), (None, 3, 16, 16))])


def layers_of(model):
    return [node for node in model.graph if node.op_type in {"Conv", "Gemm", "MatMul"}]


def is_int8(node):
    return all(
        v.producer() is not None and v.producer().op_type == "DequantizeLinear" for v in node.inputs[:2]
    )


def zero_points(model):
    points = [
        graph.constant(node.inputs[2])
        for node in model.graph
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    return {int(v) for array in points for v in np.unique(array)}


def test_the_portable_form(tmp_path):
    model = network()
    before = ir.to_proto(model).SerializeToString()
    made = quantization.quantize(model, dataset(tmp_path), runtime=RUNTIME, options=FAST)
    graph.check(made.model)
    assert ir.to_proto(model).SerializeToString() == before
    assert [is_int8(node) for node in layers_of(made.model)] == [True, True, False, False, True, True]
    assert zero_points(made.model) == {0}
    assert made.macs_int8_fraction > 0.95
    assert {kept.reason for kept in made.float_layers} == {"gate of SE block 'e'"}
    assert set(made.quantized) == {"x", "b", "e", "l"}
    assert made.sqnr_db["y"] > 30
    for node in layers_of(made.model):
        if is_int8(node) and node.op_type == "Conv":
            scales = graph.constant(node.inputs[1].producer().inputs[1])
            assert scales.shape == node.inputs[1].shape[:1]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_every_method(tmp_path, method):
    options = dataclasses.replace(FAST, method=method)
    made = quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)
    assert made.method == method
    assert made.sqnr_db["y"] > 20


def test_shift_and_division_are_worth_it(tmp_path):
    plain = dataclasses.replace(FAST, offset_folding=False, channel_equalization=False)
    samples = dataset(tmp_path)
    plainly, made = (
        quantization.quantize(network(), samples, runtime=RUNTIME, options=o).sqnr_db["y"]
        for o in (plain, FAST)
    )
    assert made > plainly + 3


def test_the_default_is_better_than_rounding_to_nearest(tmp_path):
    samples = dataset(tmp_path)
    fast = quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST)
    made = quantization.quantize(network(), samples, runtime=RUNTIME)
    assert made.sqnr_db["y"] > fast.sqnr_db["y"]
    assert made.macs_int8_fraction >= 0.95


def test_the_rtx_form(tmp_path):
    options = dataclasses.replace(FAST, policy=policies.TENSORRT_RTX, base_precision="fp16")
    made = quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)
    graph.check(made.model)
    depthwise = next(node for node in layers_of(made.model) if graph.attribute(node, "group", 1) == 8)
    assert not is_int8(depthwise)
    assert any("depthwise" in kept.reason for kept in made.float_layers)
    for node in made.model.graph:
        if node.op_type == "DequantizeLinear":
            scale = graph.constant(node.inputs[1])
            assert scale.shape == ()
            assert scale.dtype == np.float16
    assert made.sqnr_db["y"] > 20


def test_excluded_nodes_stay(tmp_path):
    model = network()
    name = layers_of(model)[0].name
    options = dataclasses.replace(FAST, exclude_nodes=f"^{name}$")
    made = quantization.quantize(model, dataset(tmp_path), runtime=RUNTIME, options=options)
    assert not is_int8(layers_of(made.model)[0])
    assert any(kept.node == name and "--exclude-nodes" in kept.reason for kept in made.float_layers)


def test_a_share_of_float_macs_is_spent_and_not_exceeded(tmp_path):
    samples = dataset(tmp_path)
    none = quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST)
    some = quantization.quantize(
        network(), samples, runtime=RUNTIME, options=dataclasses.replace(FAST, float_macs=0.4)
    )
    assert 0.6 <= some.macs_int8_fraction < none.macs_int8_fraction
    assert some.sqnr_db["y"] > none.sqnr_db["y"]


@pytest.mark.parametrize(
    ("keep", "said"), [(0.4, "of the network's output"), (None, "of its own output, as predicted")]
)
def test_a_layer_left_in_float_says_how_it_was_found(tmp_path, keep, said):
    few = dataclasses.replace(quantization.PORTABLE, name="few", float_macs=0.4)
    options = dataclasses.replace(FAST, policy=few, float_macs=keep)
    made = quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)
    assert any(kept.reason.endswith(said) for kept in made.float_layers)


def test_an_outlier_makes_another_method_the_best(tmp_path):
    dataset(tmp_path)
    x = np.load(tmp_path / "x.npz")["x"]
    x[0, :, 3, 3] = 300  # one broken pixel, not among the samples held back
    np.savez(tmp_path / "x.npz", x=x)
    samples = data.read(tmp_path / "x.npz", [TensorSpec("x", np.dtype(np.float32), (None, 3, 16, 16))])
    options = QuantizeOptions(float_macs=0.0, gptq=False)
    best = quantization.quantize(network(), samples, runtime=RUNTIME, options=options)
    unclipped = dataclasses.replace(options, method="minmax")
    plain = quantization.quantize(network(), samples, runtime=RUNTIME, options=unclipped)
    assert best.method != "minmax"
    assert best.sqnr_db["y"] > plain.sqnr_db["y"] + 3


def test_a_faster_runtime_for_the_float_network_changes_only_rounding(tmp_path):
    one = quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME)
    fast = OrtRuntime(threads=1, lean=True)
    other = quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, fast=fast)
    assert other.method == one.method
    assert other.sqnr_db["y"] == pytest.approx(one.sqnr_db["y"], abs=0.5)


def test_a_goal_is_reached_with_the_fewest_layers(tmp_path):
    samples = dataset(tmp_path)
    none = quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST)
    wanted = none.sqnr_db["y"] + 3
    made = quantization.quantize(
        network(),
        samples,
        runtime=RUNTIME,
        options=dataclasses.replace(FAST, goal=AccuracyGoal(min_sqnr_db=wanted)),
    )
    assert made.sqnr_db["y"] >= wanted
    assert made.macs_int8_fraction > 0
    assert len(made.curve) > 1
    assert made.curve[0].sqnr_db < made.curve[-1].sqnr_db


def test_the_curve_costs_more_and_keeps_more(tmp_path):
    options = dataclasses.replace(FAST, goal=AccuracyGoal(min_sqnr_db=80.0))
    made = quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)
    costs = [point.added_ms for point in made.curve]
    assert costs[0] == 0
    assert costs == sorted(costs)
    assert made.curve[-1].sqnr_db > made.curve[0].sqnr_db


def test_a_layer_costs_what_the_roofline_of_the_device_says():
    pointwise, device = _layer(macs=1_000_000, elements=1_000_000), targets.resolve_target("a10").device
    heavy = _layer(macs=10**9, elements=1_000_000)
    # 600 GB/s; 125 TFLOPS in FP16 and 250 TOPS in INT8: the first is bound by its bytes, the second is not
    assert layer_cost.fp16_overhead_ms(pointwise, device) == pytest.approx(1e6 / 600e9 * 1e3)
    assert layer_cost.fp16_overhead_ms(heavy, device) == pytest.approx(
        2e9 / 125e12 * 1e3 - 2e9 / 250e12 * 1e3
    )
    assert layer_cost.fp16_overhead_ms(heavy, None) > layer_cost.fp16_overhead_ms(heavy, device), (
        "a Jetson is slower"
    )
    assert (
        layer_cost.roofline_device([targets.resolve_target(name) for name in ("sm86", "h100", "a10")])
        is device
    )
    assert layer_cost.roofline_device([targets.resolve_target("sm86")]) is None


def _layer(*, macs, elements):
    layer = layers.collect(network(), se_blocks.detect(network()), quantization.PORTABLE).quantizable[0]
    return dataclasses.replace(layer, macs=macs, elements=elements)


def test_a_drop_needs_labels(tmp_path):
    options = dataclasses.replace(FAST, goal=AccuracyGoal(max_drop=0.5))
    with pytest.raises(BadInput, match="labels"):
        quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)
    made = quantization.quantize(network(), dataset(tmp_path, labels=True), runtime=RUNTIME, options=options)
    assert made.curve[0].accuracy is not None


def test_the_cache_is_readable_and_gives_the_same_file(tmp_path):
    cache = tmp_path / "cache.json"
    samples = dataset(tmp_path)
    options = dataclasses.replace(FAST, float_macs=0.4)
    once = quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=cache)
    content = json.loads(cache.read_text())
    assert set(content["tensors"]) == {"x", "b", "e", "l"}
    assert content["stamp"]["data_sha256"] == samples.sha256
    twice = quantization.quantize(network(), samples, runtime=RUNTIME, options=options, calib_cache=cache)
    assert graph.to_bytes(once.model) == graph.to_bytes(twice.model)


@pytest.mark.parametrize("field", ["data_sha256", "onnx_sha256", "method", "version", "policy"])
def test_a_cache_of_something_else_is_refused_with_the_difference(tmp_path, field):
    cache = tmp_path / "cache.json"
    samples = dataset(tmp_path)
    quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST, calib_cache=cache)
    content = json.loads(cache.read_text())
    content["stamp"][field] = "another"
    cache.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=f"{field} is another"):
        quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST, calib_cache=cache)


@pytest.mark.parametrize("content", ["", "[]", '{"stamp": {}}', "no json"])
def test_what_is_no_cache_is_refused(tmp_path, content):
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    with pytest.raises(BadInput, match="a calibration cache"):
        quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=FAST, calib_cache=cache)


def test_an_unknown_policy_is_refused():
    with pytest.raises(BadInput, match="no policy 'best'"):
        registry.policy("best")


def test_nothing_to_quantize_is_refused(tmp_path):
    model = graph.tidy(
        ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 20]>\n'
            "g (float[N,3,16,16] x) => (float[N,3,16,16] y) { y = Relu(x) }"
        )
    )
    with pytest.raises(UnsupportedGraph, match="no convolution"):
        quantization.quantize(model, dataset(tmp_path), runtime=RUNTIME)


@pytest.mark.parametrize(("batch", "count"), [(1, 6), (4, 18)])
def test_frozen_batches(tmp_path, batch, count):
    made = quantization.quantize(network(batch), dataset(tmp_path, count), runtime=RUNTIME, options=FAST)
    assert made.sqnr_db["y"] > 25


def test_one_sample_is_judged_on_itself_and_says_so(tmp_path):
    made = quantization.quantize(network(), dataset(tmp_path, 1), runtime=RUNTIME, options=FAST)
    assert "too few to hold any back" in made.warnings[0]
