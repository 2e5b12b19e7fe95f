"""The TensorRT form breaks no chain: summands and poolings get pairs, what must be equal one scale."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from ptq_graphs import FAST, RUNTIME, samples_of, zero_points

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.quantization import PORTABLE, chain, placement, quantize

HEAD = '<ir_version: 10, opset_import: ["" : 20]> net (float[N,4,12,12] x) => (float[N,4,12,12] y) {{ {} }}'
BLOCK = "a = Conv<pads = [1,1,1,1]>(x, w0, b0) r = Relu(a) "
SE = "p = GlobalAveragePool({0}) f = Conv(p, k0) h = Relu(f) g = Conv(h, k1) s = Sigmoid(g) e = Mul({0}, s) "
GELU = (
    "three = Constant<value_float = 3.0>() part = Constant<value_float = 0.044715>() "
    "one = Constant<value_float = 1.0>() "
    "c3 = Pow(a, three) c1 = Mul(c3, part) i = Add(a, c1) t = Tanh(i) u = Add(t, one) g = Mul(a, u) "
)  # fmt: skip
NETWORKS = {
    "residual": BLOCK + "c = Conv<pads = [1,1,1,1]>(r, w1, b1) t = Add(c, r) k = Relu(t) "
    "y = Conv<pads = [1,1,1,1]>(k, w2, b2)",
    "downsampled residual": BLOCK + "c = Conv<pads = [1,1,1,1]>(r, w1, b1) d = Conv(r, k2) t = Add(c, d) "
    "k = Relu(t) y = Conv<pads = [1,1,1,1]>(k, w2, b2)",
    "se residual": BLOCK + "c = Conv<pads = [1,1,1,1]>(r, w1, b1) d = Conv(r, k2) " + SE.format("c")
    + "t = Add(e, d) k = Relu(t) y = Conv<pads = [1,1,1,1]>(k, w2, b2)",
    "gelu behind a convolution": "a = Conv<pads = [1,1,1,1]>(x, w0, b0) r = Gelu(a) "
    "y = Conv<pads = [1,1,1,1]>(r, w1, b1)",
    "average pooling": BLOCK + "m = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(r) "
    "y = Conv<pads = [1,1,1,1]>(m, w1, b1)",
    "concat and one of its inputs": BLOCK + "c = Conv<pads = [1,1,1,1]>(r, w1, b1) u = Relu(c) "
    "j = Concat<axis = 2>(r, u) z = Conv<strides = [2,1], pads = [1,1,1,1]>(j, w2, b2) "
    "q = Relu(z) y = Conv<pads = [1,1,1,1]>(q, w3, b3)",
    "an activation and its own input": "a = Conv<pads = [1,1,1,1]>(x, w0, b0) e = LeakyRelu(a) s = Add(e, a) "
    "y = Conv<pads = [1,1,1,1]>(s, w1, b1)",
    "a map added to itself": BLOCK + "s = Add(r, r) c = Conv<pads = [1,1,1,1]>(s, w1, b1) u = Add(c, c) "
    "k = Relu(u) y = Conv<pads = [1,1,1,1]>(k, w2, b2)",
    "gelu by tanh": "a = Conv<pads = [1,1,1,1]>(x, w0, b0) " + GELU + "y = Conv<pads = [1,1,1,1]>(g, w1, b1)",
    "parts in a last sum": BLOCK + "c = Conv<pads = [1,1,1,1]>(r, w1, b1) "
    "d, e = Split<axis = 1, num_outputs = 2>(r) "
    "f, g = Split<axis = 1, num_outputs = 2>(c) j = Concat<axis = 1>(d, g) t = Tanh(x) y = Add(t, j)",
    "a part of a last sum beside what a layer reads": BLOCK + "d, e = Split<axis = 1, num_outputs = 2>(r) "
    "j = Concat<axis = 1>(e, e) c = Conv<pads = [1,1,1,1]>(j, w1, b1) "
    "f = Concat<axis = 1>(d, d) t = Tanh(x) q = Add(t, f) y = Sub(q, c)",
    "sums that nobody quantizes": BLOCK + "c = Conv<pads = [1,1,1,1]>(r, w1, b1) t = Tanh(x) h = Add(t, c) "
    "p = Softmax<axis = 1>(h) m = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(c) u = Add(t, m) "
    "y = Add(p, u)",
}  # fmt: skip


def network(body):
    found = ir.from_onnx_text(HEAD.format(body))
    random = np.random.default_rng(0)
    for node in found.graph:
        for slot, value in enumerate(node.inputs):
            if value is not None and value.producer() is None and value.name[0] in "wbk" and slot:
                shape = {"w": (4, 4, 3, 3), "b": (4,), "k": (4, 4, 1, 1)}[value.name[0]]
                array = random.standard_normal(shape).astype(np.float32) / 3
                node.replace_input_with(slot, graph.initializer(found, f"{value.name}_c", array))
    return graph.tidy(graph.inline(found))


@pytest.fixture
def samples(tmp_path):
    return samples_of(tmp_path, x=np.random.default_rng(0).standard_normal((16, 4, 12, 12)))


def whole_policies():
    return [policy for policy in registry.policies().values() if policy.whole_chain]


def quantized(model, samples, policy):
    options = dataclasses.replace(FAST, policy=policy, base_precision="fp32", offset_folding=True)
    return quantize(model, samples, runtime=RUNTIME, options=options)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_form_breaks_no_chain(samples, name):
    (policy,) = whole_policies()
    result = quantized(network(NETWORKS[name]), samples, policy)
    found = chain.lint(result.model)
    assert not found.breaks
    assert found.unbroken == len(found.int8) >= 2
    assert zero_points(result.model) == {0}
    assert result.sqnr_db["y"] > 20


def test_what_the_network_breaks_is_said(samples):
    (policy,) = whole_policies()
    edges = "edges = Constant<value_ints = [0, 0, 1, 1, 0, 0, 1, 1]>() "
    made = network(BLOCK + edges + "e = Pad(r, edges) y = Conv(e, w1, b1)")
    (pad,) = (node.name for node in made.graph if node.op_type == "Pad")
    result = quantized(made, samples, policy)
    assert {one.node for one in chain.lint(result.model).breaks} == {pad}
    said = [one for one in result.warnings if "INT8 chain" in one]
    assert [f"at '{pad}': Pad between" in one for one in said] == [True]
    portable = quantized(made, samples, PORTABLE).warnings
    assert not [one for one in portable if "INT8 chain" in one], "which breaks it for accuracy"


@pytest.mark.parametrize("name", ["an activation and its own input", "gelu by tanh"])
def test_nothing_inside_of_an_activation_is_quantized(samples, name):
    (policy,) = whole_policies()
    model = quantized(network(NETWORKS[name]), samples, policy).model
    asked = {node.inputs[0].name for node in model.graph if node.op_type == "QuantizeLinear"}
    assert "a" not in asked
    assert len(asked) == 2


def test_without_placement_the_same_networks_break(samples):
    (policy,) = whole_policies()
    loose = dataclasses.replace(policy, whole_chain=False, quantize_residual=False)
    rules = set()
    for body in NETWORKS.values():
        rules |= {b.rule.name for b in chain.lint(quantized(network(body), samples, loose).model).breaks}
    assert rules >= {"residual-in-float", "not-fused", "two-scales"}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_activation_has_one_scale(samples, name):
    (policy,) = whole_policies()
    model = quantized(network(NETWORKS[name]), samples, policy).model
    scales = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            scales.setdefault(node.inputs[0].name, set()).add(float(graph.constant(node.inputs[1])))
    assert all(len(found) == 1 for found in scales.values())


def test_the_whole_form_is_not_the_portable_one(samples):
    (policy,) = whole_policies()
    model = network(NETWORKS["downsampled residual"])
    whole, portable = quantized(model, samples, policy), quantized(model, samples, PORTABLE)
    assert graph.to_bytes(whole.model) != graph.to_bytes(portable.model)
    assert (whole.policy, portable.policy) == (policy.name, PORTABLE.name)
    assert chain.lint(portable.model).breaks, "offsets and factors stand in front of its quantizers"


def test_a_pair_goes_where_no_layer_in_int8_needs_it(samples):
    (policy,) = whole_policies()
    model = network(NETWORKS["downsampled residual"])
    names = {node.outputs[0].name: node.name for node in model.graph}
    options = dataclasses.replace(FAST, policy=policy, base_precision="fp32", exclude_nodes=f"^{names['y']}$")
    result = quantize(model, samples, runtime=RUNTIME, options=options)
    adds = [node for node in result.model.graph if node.op_type == "Add"]
    makers = {v.producer().op_type for node in adds for v in node.inputs}
    assert "DequantizeLinear" not in makers
    assert not chain.lint(result.model).breaks


def test_channels_that_are_loud_in_front_of_a_relu_decide_too(samples):
    (policy,) = whole_policies()
    model = network(NETWORKS["downsampled residual"])
    (bias,) = (v for n in model.graph for v in n.inputs if v is not None and v.name == "b1_c")
    bias.const_value = ir.tensor(np.float32([-12, -6, 0, 0]), name="b1_c")  # the ReLU lets little of two pass
    assert quantized(model, samples, policy).sqnr_db["y"] > 25


def test_the_scale_of_a_summand_is_the_one_of_least_error_behind_the_sum(samples):
    """A loud channel of which the layer behind the sum reads nothing does not make the steps large."""
    (policy,) = whole_policies()

    def steps(*, is_read):
        model = network(NETWORKS["downsampled residual"])
        constants = {v.name: v for n in model.graph for v in n.inputs if v is not None and v.is_initializer()}
        for name, row in (("w1_c", (3, slice(None))), ("w2_c", (slice(None), 3))):
            array = constants[name].const_value.numpy().copy()
            array[row] *= 30 if name == "w1_c" else float(is_read)
            constants[name].const_value = ir.tensor(array, name=name)
        options = dataclasses.replace(
            FAST, policy=policy, base_precision="fp32", channel_equalization=False, bias_correction=False
        )
        result = quantize(model, samples, runtime=RUNTIME, options=options)
        (add,) = (node for node in result.model.graph if node.op_type == "Add")
        pairs = [v.producer() for v in add.inputs if v.producer().op_type == "DequantizeLinear"]
        assert pairs
        return max(float(graph.constant(pair.inputs[1])) for pair in pairs)

    assert steps(is_read=False) < steps(is_read=True) / 3


def test_a_cache_keeps_the_pairs(samples, tmp_path):
    (policy,) = whole_policies()
    model = network(NETWORKS["se residual"])
    options = dataclasses.replace(FAST, policy=policy, base_precision="fp32")
    first, again = (
        quantize(model, samples, runtime=RUNTIME, options=options, calib_cache=tmp_path / "c.json")
        for _ in range(2)
    )
    assert graph.to_bytes(first.model) == graph.to_bytes(again.model)


def test_scales_of_a_group_clip_nothing():
    placed = placement.Placement(groups=(frozenset({"a", "b"}),))
    assert placed.scales({"a": 1.0, "b": 3.0, "c": 2.0}) == {"a": 3.0, "b": 3.0, "c": 2.0}
