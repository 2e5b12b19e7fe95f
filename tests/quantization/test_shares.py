"""Shares count all layers with constant weights, SE gates included, and at least 95 % are in INT8."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from ptq_graphs import FAST, RUNTIME, is_int8, samples_of

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.quantization import PORTABLE, chain, job, quantize

SIDE = 4
HEAD = '<ir_version: 10, opset_import: ["" : 20]> net (float[{1}] x) => (float[{1}] y) {{ {0} }}'
GATED = (
    "a = Conv(x, k0) r = Relu(a) p = GlobalAveragePool(r) f = Conv(p, k1) h = Relu(f) g = Conv(h, k2) "
    "s = Sigmoid(g) e = Mul(r, s) y = Conv(e, k3)"
)
"""Gates are 2 of 34 parts of its multiply-accumulates: 5.9 %."""
PARTS = 2 * SIDE * SIDE + 2
ELSEWHERE = "t = Transpose <perm = [1, 0, 2, 3]> (x) u = Transpose <perm = [1, 0, 2, 3]> (t) y = Conv(u, k0)"
"""The batch is its second axis for a while."""


def network(body, dims="N,8,4,4"):
    found = ir.from_onnx_text(HEAD.format(body, dims))
    random = np.random.default_rng(0)
    for node in found.graph:
        for slot, value in enumerate(node.inputs):
            if value is not None and value.producer() is None and value.name[0] in "km":
                array = random.standard_normal((8, 8, 1, 1) if value.name[0] == "k" else (4, 4)) / 3
                node.replace_input_with(
                    slot, graph.initializer(found, f"{value.name}_c", array.astype(np.float32))
                )
    return graph.tidy(graph.inline(found))


def promising():
    return [policy for policy in registry.policies().values() if policy.float_macs]


def quantized(body, tmp_path, policy, *, dims="N,8,4,4", **changes):
    samples = samples_of(tmp_path, x=np.random.default_rng(1).standard_normal((16, 8, SIDE, SIDE)))
    options = dataclasses.replace(
        FAST, policy=policy, base_precision="fp32", **{"float_macs": None, **changes}
    )
    return quantize(network(body, dims), samples, runtime=RUNTIME, options=options)


@pytest.mark.parametrize("policy", promising(), ids=lambda policy: policy.name)
def test_gates_are_quantized_where_they_are_too_much_to_leave_in_float(tmp_path, policy):
    result = quantized(GATED, tmp_path, policy)
    assert result.macs_int8_fraction == pytest.approx(1 - 1 / PARTS)  # one of the two is enough
    assert result.macs_int8_fraction >= 0.95
    assert [one.reason[:16] for one in result.float_layers] == ["gate of SE block"]
    assert result.macs_int8_fraction == pytest.approx(chain.lint(result.model).int8_macs_fraction)
    assert not [text for text in result.warnings if "less than 95" in text]


def test_gates_stay_in_float_where_more_may(tmp_path):
    result = quantized(GATED, tmp_path, PORTABLE, float_macs=0.1)
    assert {one.reason[:4] for one in result.float_layers} >= {"gate"}
    assert len([one for one in result.float_layers if one.reason.startswith("gate")]) == 2


def test_a_form_that_promises_no_share_leaves_gates_alone(tmp_path):
    plain = dataclasses.replace(PORTABLE, float_macs=0.0)
    result = quantized(GATED, tmp_path, plain)
    assert len(result.float_layers) == 2
    assert result.macs_int8_fraction == pytest.approx(1 - 2 / PARTS)


def test_excluded_gates_stay_in_float_and_it_is_said(tmp_path):
    gates = [n.name for n in network(GATED).graph if n.op_type == "Conv"][1:3]
    result = quantized(GATED, tmp_path, PORTABLE, exclude_nodes="|".join(f"^{name}$" for name in gates))
    assert result.macs_int8_fraction == pytest.approx(1 - 2 / PARTS)


def test_a_share_that_is_missed_is_said_with_its_reason(tmp_path):
    left = "a = Conv(x, k0) r = Relu(a) z = MatMul(m0, r) y = Conv(z, k1)"
    result = quantized(left, tmp_path, PORTABLE)
    assert result.macs_int8_fraction < 0.95
    (text,) = [text for text in result.warnings if "less than 95" in text]
    assert "left operand" in text


def test_products_of_activations_and_computed_weights_are_no_layers(tmp_path):
    body = "a = Conv(x, k0) r = Relu(a) z = MatMul(r, r) y = Conv(z, k1)"
    result = quantized(body, tmp_path, PORTABLE)
    assert result.macs_int8_fraction == 1
    assert sum(map(is_int8, [n for n in result.model.graph if n.op_type == "Conv"])) == 2


@pytest.mark.parametrize("batch", ["N", "1", "4"])
@pytest.mark.parametrize("policy", promising(), ids=lambda policy: policy.name)
def test_free_sizes_count_as_the_samples_are_whatever_the_batch(tmp_path, policy, batch):
    free, fixed = (
        quantized(GATED, tmp_path, policy, dims=f"{batch},8,{sides}") for sides in ("H,W", f"{SIDE},{SIDE}")
    )
    assert free.macs_int8_fraction == fixed.macs_int8_fraction == pytest.approx(1 - 1 / PARTS)
    assert [one.node for one in free.float_layers] == [one.node for one in fixed.float_layers]
    sized, unsized = chain.lint(fixed.model), chain.lint(free.model)
    assert sized.int8_macs_fraction == pytest.approx(fixed.macs_int8_fraction)
    assert (unsized.int8_macs_fraction, unsized.int8_bytes_fraction) == (None, None)  # no size counts as 1


VECTOR = (
    "a = Conv(x, k0) r = Relu(a) p = GlobalAveragePool(r) s = Constant<value = int64[2] {2, 4}>() "
    "f = Reshape(p, s) o = Constant<value = int64[1] {0}>() v = ReduceMean<keepdims = 0>(f, o) "
    "h = MatMul(v, m0) y = Add(r, h)"
)
"""A network without a batch: a single vector, without rows, enters its matrix."""


@pytest.mark.parametrize("policy", promising(), ids=lambda policy: policy.name)
def test_a_vector_that_a_matrix_reads_stays_in_float(tmp_path, policy):
    result = quantized(VECTOR, tmp_path, policy, dims="1,8,4,4")
    assert [one.reason for one in result.float_layers] == ["its input is a single vector"]
    assert result.quantized == ("x",)


@pytest.mark.parametrize("dims", ["N,8,4,4", "N,8,H,W"])
def test_a_nodes_work_is_that_of_one_sample_whatever_is_free(tmp_path, dims):
    samples = samples_of(tmp_path, x=np.zeros((2, 8, SIDE, SIDE)))
    wanted = {node.name: (graph.macs(node), graph.elements(node)) for node in network(GATED, "1,8,4,4").graph}
    found = job._work(network(GATED, dims), samples)
    assert {name: (work.macs, work.elements) for name, work in found.items()} == wanted


@pytest.mark.parametrize(
    ("body", "dims", "known"),
    [
        (GATED, "N,8,4,4", True),
        (GATED, "2,8,4,4", True),
        (GATED, "N,8,H,W", False),
        (ELSEWHERE, "N,8,4,4", False),
    ],
)
def test_sizes_are_inferred_anew_unless_the_batch_alone_is_free(body, dims, known):
    assert job._only_batch_is_free(network(body, dims)) is known


@pytest.mark.parametrize("policy", registry.policies().values(), ids=lambda policy: policy.name)
def test_weights_of_a_transposed_convolution_have_one_scale(tmp_path, policy):
    """TensorRT's kernels take none for each output channel, and gave wrong answers with some."""
    body = "a = Conv(x, k0) r = Relu(a) t = ConvTranspose(r, k1) q = Relu(t) y = Conv(q, k2)"
    result = quantized(body, tmp_path, policy)
    (transposed,) = (node for node in result.model.graph if node.op_type == "ConvTranspose")
    weights = transposed.inputs[1].producer()
    assert weights.op_type == "DequantizeLinear"
    assert graph.constant(weights.inputs[1]).shape == ()
