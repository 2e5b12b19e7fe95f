"""Rules that TensorRT-RTX's own plan confirms: what `evidence` calls measured."""

import numpy as np
import onnx_ir as ir
import pytest
from chain_graphs import FIRST, conv, last, model, pair

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.errors import BuildFailed
from se_deploy.quantization import chain

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow  # a compiler plans

POOL = "MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"


@pytest.fixture(scope="module")
def planner():
    planning = next(b.planning for b in registry.every() if b.planning and b.planning.decides_rewrites)
    with planning.open(None) as opened:
        yield opened


def kernels(planner, body):
    return planner.plan(model(body, batch=1)).kernels


def test_a_zero_point_is_refused(planner):
    body = pair("x", "xq", zero="z3") + conv("xq", "y")
    assert {one.rule.name for one in chain.lint(model(body)).breaks} == {"zero-point"}
    with pytest.raises(BuildFailed, match="zero point"):
        planner.plan(model(body, batch=1))


def test_a_scale_of_0_is_refused(planner):
    body = pair("x", "xq", "nothing") + conv("xq", "y")
    assert {one.rule.name for one in chain.lint(model(body)).breaks} == {"scale"}
    with pytest.raises(BuildFailed, match="positive"):
        planner.plan(model(body, batch=1))


def test_max_pooling_commutes(planner):
    behind = FIRST + f" r = Relu(a) m = {POOL}(r) " + last("m", "s")
    before = FIRST + " r = Relu(a) " + pair("r", "rq") + f" m = {POOL}(rq) " + conv("m", "y")
    assert kernels(planner, behind) == kernels(planner, before)
    types = [
        (k.inputs[0].dtype, k.outputs[0].dtype)
        for k in planner.plan(model(behind, batch=1)).layers
        if "pool" in k.kind
    ]
    assert types == [("int8", "int8")]


def test_other_scales_cost_a_kernel(planner):
    second = FIRST + " r = Relu(a) " + pair("r", "rq") + conv("rq", "o")
    shared = second + " e = Add(o, rq) k = Relu(e) " + last("k")
    other = second + pair("r", "rq2", "s2") + " e = Add(o, rq2) k = Relu(e) " + last("k")
    assert not chain.lint(model(shared)).breaks
    assert {one.rule.name for one in chain.lint(model(other)).breaks} == {"two-scales"}
    assert kernels(planner, other) == kernels(planner, shared) + 1


def test_factors_and_sums_behind_a_pointwise_kernel_cost_none(planner):
    plain = FIRST + " h = HardSwish(a) " + last("h")
    more = FIRST + " h = HardSwish(a) m = Mul(h, c_m) r = Sub(m, c_o) " + last("r")
    assert not chain.lint(model(more)).breaks
    one, two = (planner.plan(model(body, batch=1)) for body in (plain, more))
    assert (one.kernels, one.activation_bytes) == (two.kernels, two.activation_bytes)


def test_a_bias_of_integers_is_refused(planner):
    body = (
        pair("x", "xq") + " b = DequantizeLinear<axis = 0>(integers, channel_scales, integer_zeros)"
        " w = DequantizeLinear(int8_y, s, z) y = Conv<pads = [1, 1, 1, 1]>(xq, w, b) "
    )  # fmt: skip
    assert {one.rule.name for one in chain.lint(model(body)).breaks} == {"integer-type"}
    with pytest.raises(BuildFailed, match="Int32"):
        planner.plan(model(body, batch=1))


def test_operators_that_compute_with_integers_are_refused(planner):
    body = (
        " x_i = QuantizeLinear(x, s, z) o = QLinearConv<pads = [1, 1, 1, 1]>(x_i, s, z, int8_o, s, z, s, z)"
        " y = DequantizeLinear(o, s, z) "
    )  # fmt: skip
    assert {one.rule.name for one in chain.lint(model(body)).breaks} == {"integer-operator"}
    with pytest.raises(BuildFailed, match="QLinearConv"):
        planner.plan(model(body, batch=1))


def test_weights_with_scales_of_input_channels_run_in_float(planner):
    def read(axis):
        body = (
            pair("x", "xq") + f" w = DequantizeLinear<axis = {axis}>(int8_y, channel_scales, channel_zeros)"
            " y = Conv<pads = [1, 1, 1, 1]>(xq, w, b_y) "
        )  # fmt: skip
        rules = {one.rule.name for one in chain.lint(model(body)).breaks}
        layers = planner.plan(model(body, batch=1)).layers
        return rules, {k.inputs[0].dtype for k in layers if k.kind == "correlation"}

    assert read(0) == (set(), {"int8"})
    assert read(1) == ({"weight-scales"}, {"float32"})


def test_blocks_of_weights_are_refused(planner):
    made = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[1,16,64] x) => (float[1,16,32] y) <float s = {0.05}, int8 z = {0}> {
          x_q = QuantizeLinear(x, s, z) xq = DequantizeLinear(x_q, s, z)
          w = DequantizeLinear<axis = 0, block_size = 16>(stored, scales) y = MatMul(xq, w)
        }""")
    random = np.random.default_rng(0)
    arrays = {
        "stored": random.integers(-127, 128, (64, 32)).astype(np.int8),
        "scales": random.uniform(0.05, 0.1, (4, 32)).astype(np.float32),
    }
    (node,) = (n for n in made.graph if n.outputs[0].name == "w")
    for slot, (known, array) in enumerate(arrays.items()):
        node.replace_input_with(slot, graph.initializer(made, f"{known}_c", array))
    made = graph.tidy(graph.inline(made))
    assert {one.rule.name for one in chain.lint(made).breaks} == {"weight-scales"}
    with pytest.raises(BuildFailed):
        planner.plan(made)


def test_products_of_quantized_activations_run_in_int8(planner):
    body = (
        FIRST + pair("a", "aq") + " t = Transpose<perm = [0, 1, 3, 2]>(aq) m = MatMul(aq, t) " + last("m")
    )  # fmt: skip
    layers = planner.plan(model(body, batch=1)).layers
    (product,) = (k for k in layers if len(k.inputs) == 2 and {t.dtype for t in k.inputs} == {"int8"})
    assert product.kind != "correlation"
    assert chain.lint(model(body, batch=1)).int8_bytes_fraction > 0.5
