import dataclasses
import itertools

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from ptq_graphs import FAST, RUNTIME, dataset, is_int8, layers_of, network, samples_of, zero_points

from se_deploy import graph, quantization
from se_deploy.backends import registry
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.backends.tensorrt import policies
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.errors import BadData, BadInput, UnsupportedGraph
from se_deploy.quantization import AccuracyGoal, QuantizeOptions, bias_correction, chain, gptq, ptq


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


def test_offset_folding_and_equalization_are_worth_it(tmp_path):
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
    assert made.rounding == "rounded at every FP16 tensor"
    assert made.kept_fp32 == made.unchecked == ()


def test_extremes_that_leave_an_fp16_base_keep_it_in_fp32(tmp_path):
    options = dataclasses.replace(FAST, base_precision="fp16")
    samples = dataset(tmp_path)
    extreme = {name: array[:1] * 1e6 for name, array in next(samples.batches(1)).items()}
    made = quantization.quantize(network(), samples, runtime=RUNTIME, options=options, extremes=[extreme])
    assert made.kept_fp32
    assert all("FP16 ends at 65,504" in kept.reason for kept in made.kept_fp32)


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


def test_a_drop_needs_labels(tmp_path):
    options = dataclasses.replace(FAST, goal=AccuracyGoal(max_drop=0.5))
    with pytest.raises(BadInput, match="labels"):
        quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)
    made = quantization.quantize(network(), dataset(tmp_path, labels=True), runtime=RUNTIME, options=options)
    assert made.curve[0].accuracy is not None


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


def graph_of(body, constants, inputs="float[N,3,16,16] x", output="float y", opset=20):
    """A graph from ONNX text, with its weights."""
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\ng ({inputs}) => ({output}) {{ {body} }}'
    )
    values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
    for name, array in constants.items():
        value = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
        values[name].replace_all_uses_with(value)
        model.graph.register_initializer(value)
    return graph.tidy(graph.inline(model))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))


def image_samples(tmp_path, count=24, size=16):
    return samples_of(tmp_path, x=np.random.default_rng(1).standard_normal((count, 3, size, size)))


def scales_of(model):
    """All scales of a graph, in one array."""
    return np.concatenate(
        [
            graph.constant(node.inputs[1]).astype(np.float64).reshape(-1)
            for node in model.graph
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
        ]
    )


DEAD_BRANCH = (
    "c = Conv<pads = [1,1,1,1]>(x, w) r = Relu(c) e = Conv(r, k1, kb) d = Relu(e) z = Conv(d, k2) "
    "s = Add(z, r) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB = 1>(f, fw)"
)


def dead_branch(bias=-100.0):
    """A branch whose ReLU is 0 on all data, as `bias` has it."""
    return graph_of(
        DEAD_BRANCH,
        {"w": normal(8, 3, 3, 3), "k1": normal(8, 8, 1, 1), "kb": np.full(8, bias), "k2": normal(8, 8, 1, 1),
         "fw": normal(5, 8)},
    )  # fmt: skip


@pytest.mark.parametrize("policy", registry.policies().values(), ids=registry.policies())
@pytest.mark.parametrize("base", ["fp32", "fp16"])
@pytest.mark.parametrize("gptq", [False, True])
def test_a_branch_that_is_dead_on_the_data_has_a_positive_scale_and_says_so(tmp_path, policy, base, gptq):
    options = QuantizeOptions(policy=policy, base_precision=base, gptq=gptq)
    made = quantization.quantize(dead_branch(), image_samples(tmp_path), runtime=RUNTIME, options=options)
    dead = made.params["d"]
    assert dead.low < 0 < dead.high
    assert "0 on all calibration data" in dead.reason
    assert any("'d'" in text and dead.reason in text for text in made.warnings)
    assert np.isfinite(made.sqnr_db["y"])
    assert made.sqnr_db["y"] > 25
    scales = scales_of(made.model)
    assert (scales >= 2**-24).all()
    assert (scales <= 65504).all()


def test_the_weights_behind_a_dead_branch_are_not_clipped(tmp_path):
    """Other data may wake the branch up."""
    made = quantization.quantize(dead_branch(), image_samples(tmp_path), runtime=RUNTIME)
    awake = {name: graph.constant(v) for name, v in made.model.graph.initializers.items()}
    rounded = awake["k2_int8"] * awake["k2_scale"].reshape(-1, 1, 1, 1)
    step = awake["k2_scale"].max()
    np.testing.assert_allclose(rounded, normal(8, 8, 1, 1), atol=step)


def test_the_note_on_a_dead_branch_survives_the_cache(tmp_path):
    samples, cache = image_samples(tmp_path), tmp_path / "cache.json"
    once, twice = (
        quantization.quantize(dead_branch(), samples, runtime=RUNTIME, options=FAST, calib_cache=cache)
        for _ in range(2)
    )
    assert once.warnings == twice.warnings != ()


def test_a_graph_with_a_dead_branch_builds(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = quantization.quantize(dead_branch(), image_samples(tmp_path), runtime=RUNTIME)
    planner = start_planner()
    try:
        assert planner.plan(made.model).kernels > 0
    finally:
        planner.close()


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-3, 0.25])
def test_a_tensor_that_is_constant_on_the_data_is_exact(tmp_path, value):
    model = graph_of(
        "c = Conv(x, w, b) k = Max(c, low) l = Min(k, high) y = Conv(l, v)",
        {"w": normal(4, 3, 1, 1), "b": np.zeros(4), "low": np.array(value), "high": np.array(value),
         "v": normal(4, 4, 1, 1)},
        output="float[N,4,16,16] y",
    )  # fmt: skip
    made = quantization.quantize(model, image_samples(tmp_path), runtime=RUNTIME, options=FAST)
    fp16 = abs(value) * 2**-10  # what rounding the scale to FP16 may take away
    assert made.params["l"].low <= min(0, value) + fp16
    assert made.params["l"].high >= max(0, value) - fp16
    assert made.sqnr_db["y"] > 45


def test_names_that_a_quantizer_would_give_stay_with_the_graph(tmp_path):
    names = [f"probe_{n}_{kind}" for n in (0, 1) for kind in ("low", "high", "values", "total")]
    chain = " ".join(f"{b} = Relu({a})" for a, b in itertools.pairwise(["int8_zero", *names, "x_scale"]))
    model = graph_of(
        f"w_int8 = Conv<pads = [1,1,1,1]>(x, w) w_scale = Relu(w_int8) int8_zero = Conv(w_scale, w2) {chain}",
        {"w": normal(8, 3, 3, 3), "w2": normal(8, 8, 1, 1)},
        output="float[N,8,16,16] x_scale",
    )
    before = {v.name for node in model.graph for v in node.outputs}
    made = quantization.quantize(model, image_samples(tmp_path), runtime=RUNTIME, options=FAST)
    graph.check(made.model)
    after = [v.name for node in made.model.graph for v in node.outputs] + list(made.model.graph.initializers)
    assert len(set(after)) == len(after)
    assert before <= set(after)
    assert made.sqnr_db["x_scale"] > 30


@pytest.mark.parametrize(
    ("scale", "said"),
    [(1e12, "reaches"), (1e-12, "is never larger")],
)
def test_a_layer_whose_input_no_scale_serves_stays_in_float(tmp_path, scale, said):
    model = graph_of(
        "a = Conv(x, w) b = Relu(a) c = Mul(b, k) d = Conv(c, v) e = Relu(d) y = Mul(e, l)",
        {"w": normal(4, 3, 1, 1), "k": np.array(scale), "v": normal(4, 4, 1, 1), "l": np.array(1 / scale)},
        output="float[N,4,16,16] y",
    )
    cache = tmp_path / "cache.json"
    for _ in range(2):  # the second time from the cache
        made = quantization.quantize(
            model, image_samples(tmp_path), runtime=RUNTIME, options=FAST, calib_cache=cache
        )
        (left,) = made.float_layers
        assert left.reason.startswith(f"its input 'c' {said}")
        assert made.quantized == ("x",)
        assert made.sqnr_db["y"] > 30


def test_where_no_layer_can_be_quantized_the_reasons_are_named(tmp_path):
    model = graph_of(
        "a = Mul(x, k) y = Conv(a, v)",
        {"k": np.array(1e12), "v": normal(4, 3, 1, 1)},
        output="float[N,4,16,16] y",
    )
    with pytest.raises(UnsupportedGraph, match="its input 'a' reaches"):
        quantization.quantize(model, image_samples(tmp_path), runtime=RUNTIME, options=FAST)


@pytest.mark.parametrize("position", [0, 3, 77])
def test_nan_anywhere_in_a_tensor_is_named(tmp_path, position):
    """Minimum and maximum pass over a NaN, and few positions are sampled."""
    x = np.abs(np.random.default_rng(1).standard_normal((24, 3, 16, 16))) + 0.1
    x[2, 1].reshape(-1)[position] = -1
    model = graph_of("r = Sqrt(x) y = Conv(r, w)", {"w": normal(4, 3, 1, 1)}, output="float[N,4,16,16] y")
    with pytest.raises(BadData, match=r"tensor '[ry]' holds NaN") as refused:
        quantization.quantize(model, samples_of(tmp_path, x=x), runtime=RUNTIME, options=FAST)
    assert "--mean and --std" in refused.value.hint


def test_a_bias_that_int32_does_not_hold_raises_the_weight_scale_and_says_so(tmp_path):
    model = graph_of(
        "a = Mul(x, k) b = Conv(a, w, bias) y = Relu(b)",
        {"k": np.array(1e-4), "w": normal(4, 3, 1, 1) * 1e-3, "bias": np.array([300.0, 1e-9, -200.0, 0.0])},
        output="float[N,4,16,16] y",
    )
    made = quantization.quantize(model, image_samples(tmp_path), runtime=RUNTIME, options=FAST)
    (note,) = [text for text in made.warnings if "int32" in text]
    assert "1 layer " in note
    constants = {name: graph.constant(v) for name, v in made.model.graph.initializers.items()}
    product = float(constants["a_scale"]) * constants["w_scale"].astype(np.float64)
    assert (np.abs(constants["bias_folded"]) / product < 2**31 - 1).all()
    assert made.sqnr_db["y"] > 100, "what the raised scale costs is below the bias' own rounding"
    with OrtRuntime(threads=1).open(made.model) as optimized, RUNTIME.open(made.model) as plain:
        feeds = next(image_samples(tmp_path).batches(4))
        np.testing.assert_allclose(optimized.run(feeds)["y"], plain.run(feeds)["y"], rtol=1e-6)


@pytest.mark.parametrize("gptq", [False, True])
def test_auto_pad_with_a_free_size_is_quantized_without_an_offset(tmp_path, gptq):
    model = graph_of(
        'c = Conv<auto_pad = "SAME_UPPER", strides = [2,2]>(x, w) r = Relu(c) '
        'd = Conv<auto_pad = "SAME_LOWER">(r, v) y = Relu(d)',
        {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3)},
        inputs="float[N,3,H,W] x",
        output="float[N,8,h,w] y",
    )
    options = dataclasses.replace(FAST, gptq=gptq)
    made = quantization.quantize(model, image_samples(tmp_path), runtime=RUNTIME, options=options)
    assert made.float_layers == ()
    assert all(params.offset is None for params in made.params.values())
    assert any("auto_pad" in text and "--input-size" in text for text in made.warnings)
    assert made.sqnr_db["y"] > 30
    x = np.random.default_rng(3).standard_normal((2, 3, 23, 30)).astype(np.float32)  # another size
    with RUNTIME.open(made.model) as session, RUNTIME.open(model) as reference:
        got, wanted = session.run({"x": x})["y"], reference.run({"x": x})["y"]
    assert ((got - wanted) ** 2).mean() < 1e-3 * (wanted**2).mean()


@pytest.mark.parametrize(
    ("name", "offsets", "equalized"),
    [("portable", {"x", "a", "b"}, True), ("tensorrt-rtx", {"x"}, True), ("tensorrt", set(), False)],
)
def test_each_policy_puts_offsets_and_equalization_where_it_may(tmp_path, name, offsets, equalized):
    """x is read unpadded, a padded and by a residual Add, b padded."""
    model = graph_of(
        "h = Conv(x, w) a = Relu(h) c = Conv<pads = [1,1,1,1]>(a, v) b = Relu(c) "
        "d = Conv<pads = [1,1,1,1]>(b, u) s = Add(d, a) y = Relu(s)",
        {"w": normal(8, 3, 1, 1), "v": normal(8, 8, 3, 3), "u": normal(8, 8, 3, 3)},
        output="float[N,8,16,16] y",
    )
    options = dataclasses.replace(FAST, policy=registry.policy(name))
    x = np.abs(np.random.default_rng(1).standard_normal((24, 3, 16, 16))) * [[[[1]], [[9]], [[81]]]]
    made = quantization.quantize(model, samples_of(tmp_path, x=x), runtime=RUNTIME, options=options)
    assert {tensor for tensor, params in made.params.items() if params.offset is not None} == offsets
    assert (made.params["x"].equalization is not None) is equalized
    shared = {tensor for tensor, params in made.params.items() if params.residual}
    beside = {one.tensor for params in made.params.values() for one in params.beside}
    assert (shared | beside) == (set() if name == "portable" else {"a"})


def test_uneven_channels_between_relu6_are_equalized_in_the_weights(tmp_path):
    model = graph_of(
        "h = Conv(x, w) a = Clip(h, zero, six) d = Conv<pads = [1,1,1,1], group = 8>(a, v) "
        "b = Clip(d, zero, six) y = Conv(b, u)",
        {"w": normal(8, 3, 1, 1) * np.geomspace(0.1, 3, 8).reshape(-1, 1, 1, 1), "v": normal(8, 1, 3, 3),
         "u": normal(8, 8, 1, 1), "zero": np.zeros(()), "six": np.full((), 6)},
        output="float[N,8,16,16] y",
    )  # fmt: skip
    made, plain = (
        quantization.quantize(
            model,
            dataset(tmp_path),
            runtime=RUNTIME,
            options=dataclasses.replace(FAST, policy=registry.policy("tensorrt"), channel_equalization=on),
        )
        for on in (True, False)
    )
    ops = [op for op in graph.ops(made.model) if op in {"Clip", "Min", "Mul", "Relu"}]
    assert ops == ["Min", "Relu"] * 2
    assert chain.lint(made.model).breaks == ()
    assert made.sqnr_db["y"] > plain.sqnr_db["y"] + 3


@pytest.mark.parametrize("biases", [True, False])
def test_gptq_is_better_than_rounding_to_nearest(tmp_path, biases):
    samples = dataset(tmp_path)
    options = dataclasses.replace(FAST, bias_correction=biases)
    plain = quantization.quantize(network(), samples, runtime=RUNTIME, options=options)
    with_gptq = dataclasses.replace(options, gptq=True)
    made = quantization.quantize(network(), samples, runtime=RUNTIME, options=with_gptq)
    assert made.sqnr_db["y"] > plain.sqnr_db["y"] + 0.3


def test_corrected_biases_are_better(tmp_path):
    samples = dataset(tmp_path, 96)  # of fewer, other draws gain 0.1 to 11 dB
    without = dataclasses.replace(FAST, bias_correction=False)
    plain = quantization.quantize(network(), samples, runtime=RUNTIME, options=without)
    made = quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST)
    assert made.sqnr_db["y"] > plain.sqnr_db["y"] + 3
    assert graph.ops(made.model) == graph.ops(plain.model), "nothing is added to the graph"


def test_corrected_biases_are_kept_only_where_they_are_not_surely_worse(tmp_path, monkeypatch):
    def spoiled(model, planned, *rest, **options):
        return [dataclasses.replace(layer, weight=layer.weight // 2) for layer in planned]

    samples = dataset(tmp_path)
    without = dataclasses.replace(FAST, bias_correction=False)
    plain = quantization.quantize(network(), samples, runtime=RUNTIME, options=without)
    monkeypatch.setattr(bias_correction, "correct", spoiled)
    made = quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST)
    assert graph.to_bytes(made.model) == graph.to_bytes(plain.model)


def test_gptq_is_kept_only_where_it_is_evaluated_better(tmp_path, monkeypatch):
    def spoiled(model, layers, params, start, *rest, **options):
        return [dataclasses.replace(layer, weight=layer.weight // 2) for layer in start]

    monkeypatch.setattr(gptq, "round_layers", spoiled)
    samples = dataset(tmp_path)
    plain = quantization.quantize(network(), samples, runtime=RUNTIME, options=FAST)
    with_gptq = dataclasses.replace(FAST, gptq=True)
    made = quantization.quantize(network(), samples, runtime=RUNTIME, options=with_gptq)
    assert graph.to_bytes(made.model) == graph.to_bytes(plain.model)


def test_a_goal_counts_from_what_the_budget_left_in_float(tmp_path):
    options = dataclasses.replace(FAST, float_macs=0.4, goal=AccuracyGoal(min_sqnr_db=80.0))
    made = quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)
    nodes = [layer.node for layer in made.float_layers]
    assert len(set(nodes)) == len(nodes)
    assert made.curve[0].macs_int8_fraction < 0.9, "the budget's layers are no choice any more"


def test_a_pattern_that_is_no_regular_expression_is_refused(tmp_path):
    options = dataclasses.replace(FAST, exclude_nodes="(")
    with pytest.raises(BadInput, match="no regular expression"):
        quantization.quantize(network(), dataset(tmp_path), runtime=RUNTIME, options=options)


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (0.0, "no noise in its own output"),
        (1e-4, "noise at -40 dB of its own output"),
        (10.0, "noise at 10 dB of its own output"),
        (1e23, "does not vary its own output"),
    ],
)
def test_noise_over_what_does_not_vary_is_no_figure(noise, said):
    assert said in ptq._noise_in_words(noise, "its own output")


def test_layers_inside_of_an_if_are_counted_beside_those_that_are_quantized(tmp_path):
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[N,4,6,6] x) => (float[N,4,6,6] y)
        <float zero = {0}>
        { a = Conv(x, w)  s = ReduceSum<keepdims = 0>(a)  t = Greater(s, zero)
          y = If (t) <then_branch = one () => (float[N,4,6,6] b) { b = Conv(a, w) },
                      else_branch = other () => (float[N,4,6,6] c) { c = Neg(a) }> }"""
    proto = parser.parse_model(text)
    array = np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(array, "w"))
    model = graph.tidy(graph.inline(ir.from_proto(proto)))
    x = np.random.default_rng(1).standard_normal((8, 4, 6, 6))
    made = quantization.quantize(model, samples_of(tmp_path, x=x), runtime=RUNTIME, options=FAST)
    assert made.quantized == ("x",)
    (kept,) = made.float_layers
    assert "inside of If" in kept.reason
    assert made.macs_int8_fraction == 0.5
