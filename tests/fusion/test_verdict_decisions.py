"""Decisions on regions and verdicts that no compiler's plan of a common network comes to."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import plan_graphs
import pytest
from onnx import numpy_helper, parser

from se_deploy import fusion, graph
from se_deploy.fusion import FusionRules
from se_deploy.fusion.region import Graph, is_map
from se_deploy.plan import Kernel, Plan, PlanTensor


def region(model, **changed):
    return Graph(model).region(dataclasses.replace(plan_graphs.block(model), **changed))


def test_a_block_whose_gate_has_no_tensor_is_followed_from_its_output_as_far_as_the_map():
    model = plan_graphs.se_net()
    whole = region(model)
    found = region(model, nodes=("gone",), layers=("gone",), scale_node="gone", gate_output="gone")
    assert found.nodes == whole.nodes
    assert "n_m" not in found.nodes
    assert (found.squeeze, found.layers) == (whole.squeeze, whole.layers)


@pytest.mark.parametrize("order", ["p, half", "half, p"])
def test_a_gate_is_followed_past_a_constant_whichever_input_it_is(monkeypatch, order):
    layers = plan_graphs.LAYERS["conv"].replace("Conv(p,", "Conv(h,")
    monkeypatch.setitem(plan_graphs.LAYERS, "conv", f"h = Mul({order}) {layers}")
    model = with_constants(monkeypatch, half=np.array(0.5, np.float32))
    block = plan_graphs.unknown(plan_graphs.block(model))
    assert Graph(model).region(block).squeeze == ("n_p",)


@pytest.mark.parametrize("shape", [(1, plan_graphs.C, 1, 1), (1, 1, plan_graphs.SIDE, plan_graphs.SIDE)])
@pytest.mark.parametrize("pool", ["ReduceSum<keepdims=1>(q, axes)", "GlobalAveragePool(q)"])
def test_a_map_pooled_after_weights_of_its_channels_or_a_mask_is_a_squeeze_and_no_layer(
    monkeypatch, shape, pool
):
    monkeypatch.setitem(plan_graphs.POOLS, "weighted", f"q = Mul(m, each) p = {pool}")
    each = np.full(shape, 0.01, np.float32)
    model = with_constants(monkeypatch, pool="weighted", each=each)
    block = plan_graphs.unknown(plan_graphs.block(model))
    found = Graph(model).region(block)
    assert (found.squeeze, found.layers) == (("n_p",), ("n_f1", "n_f2"))


def test_a_masked_mean_of_a_map_whose_shape_the_graph_does_not_say_is_a_squeeze(monkeypatch):
    monkeypatch.setitem(plan_graphs.POOLS, "masked", "q = Mul(m, mask) p = GlobalAveragePool(q)")
    mask = np.ones((1, 1, plan_graphs.SIDE, plan_graphs.SIDE), np.float32)
    model = with_constants(monkeypatch, pool="masked", mask=mask)
    for name in ("n_m", "n_q"):
        model.graph.node(name).outputs[0].shape = None
    found = Graph(model).region(plan_graphs.unknown(plan_graphs.block(model)))
    assert (found.squeeze, found.layers) == (("n_p",), ("n_f1", "n_f2"))
    assert "n_m" not in found.nodes


def test_a_mean_in_two_steps_with_a_factor_between_them_is_no_layer(monkeypatch):
    steps = "q = ReduceMean<keepdims=1>(m, axis2) h = Mul(q, each) p = ReduceSum<keepdims=1>(h, axis3)"
    monkeypatch.setitem(plan_graphs.POOLS, "steps", steps)
    each = np.full((1, 1, 1, 1), 1 / plan_graphs.SIDE, np.float32)
    model = with_constants(monkeypatch, pool="steps", each=each)
    found = Graph(model).region(plan_graphs.unknown(plan_graphs.block(model)))
    assert (found.squeeze, found.layers) == (("n_p",), ("n_f1", "n_f2"))


def test_a_first_layer_that_is_a_sum_of_products_is_no_squeeze(monkeypatch):
    head = "v = Reshape(p, row) h = Mul(v, rows) f1 = ReduceSum<keepdims=0>(h, axis2) a = ACT(f1) "
    tail = "f2 = Gemm<transB=1>(a, w2, b2) gl = Sigmoid(f2) g = Reshape(gl, c11)"
    monkeypatch.setitem(plan_graphs.LAYERS, "conv", head + tail)
    rows = np.full((1, plan_graphs.R, plan_graphs.C), 0.01, np.float32)
    c11 = np.array([-1, plan_graphs.C, 1, 1])
    model = with_constants(monkeypatch, rows=rows, row=np.array([-1, 1, plan_graphs.C]), c11=c11)
    for block in (plan_graphs.block(model), plan_graphs.unknown(plan_graphs.block(model))):
        found = Graph(model).region(block)
        assert (found.squeeze, found.layers) == (("n_p",), ("n_f1", "n_f2"))
    first = kernel("fc1", ["n_v", "n_h", "n_f1", "n_a"], ["p"], ["a"])
    last = kernel("fc2", ["n_f2", "n_gl", "n_g"], ["a"], ["g"])
    assert judged(model, BLOCK[0], first, last, BLOCK[3]).reasons == ()


def test_layers_of_two_units_that_are_sums_of_products_are_layers_and_no_gate():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,32,14,14] m, float[1,2,32] u, float[1,32,2] v, int64[3] row, int64[3] back, int64[4] map,
           int64[1] last) => (float[1,32,14,14] s)
        { p = GlobalAveragePool(m) r = Reshape(p, row) h1 = Mul(r, u) f1 = ReduceSum<keepdims = 0>(h1, last)
          a = Relu(f1) b = Reshape(a, back) h2 = Mul(b, v) f2 = ReduceSum<keepdims = 0>(h2, last)
          e = Sigmoid(f2) g = Reshape(e, map) s = Mul(m, g) }"""
    arrays = {
        "u": np.ones((1, 2, 32), np.float32), "v": np.ones((1, 32, 2), np.float32), "row": [1, 1, 32],
        "back": [1, 1, 2], "map": [1, 32, 1, 1], "last": [2],
    }  # fmt: skip
    model = named(text, arrays)
    for node in model.graph:
        assert node.outputs[0].shape is not None, node.name
    block = plan_graphs.unknown(plan_graphs.block(plan_graphs.se_net()))
    found = Graph(model).region(block)
    assert (found.squeeze, found.layers) == (("n_p",), ("n_f1", "n_f2"))
    assert (found.inner, found.gate) == ({"n_a", "n_h2"}, {"n_e"})


def test_a_squeeze_by_a_sum_that_names_its_axes_in_an_attribute_is_one():
    text = """<ir_version: 8, opset_import: ["" : 11]>
        g (float[1,32,14,14] m, float[1,32,1,1] w) => (float[1,32,14,14] s)
        { p = ReduceSum<axes = [2, 3]>(m) f = Mul(p, w) g = Sigmoid(f) s = Mul(m, g) }"""
    block = plan_graphs.unknown(plan_graphs.block(plan_graphs.se_net()))
    assert Graph(named(text)).region(block).squeeze == ("n_p",)


def test_a_block_without_a_layer_that_is_known_has_a_gate_and_its_squeeze_is_none_of_it():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,32,14,14] m, float[1,32,1,1] w) => (float[1,32,14,14] s)
        { p = GlobalAveragePool(m) f = Mul(p, w) g = Sigmoid(f) s = Mul(m, g) }"""
    model = named(text)
    block = plan_graphs.unknown(plan_graphs.block(plan_graphs.se_net()))
    found = Graph(model).region(block)
    assert (found.squeeze, found.layers, found.gate) == (("n_p",), (), frozenset({"n_f", "n_g"}))
    pool, scale = kernel("pool", ["n_p"], ["m"], ["p"]), kernel("scale", ["n_s"], ["m", "g"], ["s"])
    verdict = judged(model, pool, kernel("fc", ["n_f", "n_g"], ["p"], ["g"]), scale, block=block)
    (reason,) = verdict.reasons
    assert reason.startswith("the gate (Mul+Sigmoid) is neither in its layer's kernel nor in the scale's")


@pytest.mark.parametrize("way", ["Cast<to=1>(gl)", "Reshape(gl, c4)"], ids=["cast", "reshape"])
def test_what_moves_the_gate_is_followed_to_what_applies_it(monkeypatch, way):
    layers = plan_graphs.LAYERS["conv"].replace("g = Sigmoid", "gl = Sigmoid")
    monkeypatch.setitem(plan_graphs.LAYERS, "conv", f"{layers} g2 = {way}")
    monkeypatch.setitem(plan_graphs.TAILS, "residual", "s = Mul(m, g2) e = Add(s, x) y = Relu(e)")
    model = with_constants(monkeypatch, c4=np.array([-1, plan_graphs.C, 1, 1]))
    block = dataclasses.replace(plan_graphs.unknown(plan_graphs.block(model)), gate_output="gl", output="was")
    found = Graph(model).region(block)
    assert (found.end, found.scale >= {"n_s"}) == ("n_s", True)


def with_constants(monkeypatch, pool="gap", **arrays):
    made = plan_graphs._model
    monkeypatch.setattr(plan_graphs, "_model", lambda *args, **kw: made(*args, **kw, extra=arrays))
    return plan_graphs.se_net(pool)


def named(text, constants=None):
    """The graph of `text`, each node named after what it writes; inputs in `constants` are none."""
    proto = parser.parse_model(text)
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        proto.graph.input.remove(next(one for one in proto.graph.input if one.name == name))
    model = graph.tidy(ir.from_proto(proto))
    for node in model.graph:
        node.name = f"n_{node.outputs[0].name}"
    return model


def kernel(name, nodes, reads, writes, layout="nhwc"):
    def tensors(names, layout):
        return tuple(PlanTensor(n, "float32", (-1, 32, 14, 14), layout) for n in names)

    return Kernel(name, "kgen", tensors(reads, "nhwc"), tensors(writes, layout), tuple(nodes))


BLOCK = (
    kernel("mean", ["n_p"], ["m"], ["p"]),
    kernel("fc1", ["n_f1", "n_a"], ["p"], ["a"]),
    kernel("fc2", ["n_f2", "n_g"], ["a"], ["g"]),
    kernel("scale", ["n_s", "n_e", "n_y"], ["m", "g", "x"], ["y"]),
)


def judged(model, *layers, block=None):
    plan = Plan("any", "", "sm86", layers)
    (verdict,) = fusion.verdicts(plan, [block or plan_graphs.block(model)], model, FusionRules())
    return verdict


@pytest.mark.parametrize(
    ("maker", "advised"),
    [
        (kernel("act", ["n_act"], ["m0"], ["m"], "nchw"), True),
        (kernel("act", ["n_act"], ["m0"], ["m"]), False),  # turns nothing
        (kernel("act", ["n_act"], ["m0"], ["m"], ""), False),  # does not say
        (kernel("conv", ["n_m"], ["x0"], ["m"], "nchw"), False),  # is the convolution
    ],
    ids=["turns", "keeps", "unsaid", "convolution"],
)
def test_only_a_kernel_apart_that_turns_the_map_is_advised_against(maker, advised):
    model = plan_graphs.se_net()
    verdict = judged(model, maker, *BLOCK)
    assert verdict.verdict == "fused"
    assert ["turns NHWC to NCHW" in reason for reason in verdict.reasons] == [True] * advised


@pytest.mark.parametrize(
    ("given", "made", "constant", "padded"),
    [
        (19, 20, False, True),
        (19, 20, True, False),  # has weights: it is a part of the layer
        (20, 20, False, False),  # adds nothing
        (8, 32, False, False),  # is the product
        (None, 20, False, False),  # reads constants only
        (19, None, False, False),
    ],
)
def test_a_layer_in_two_kernels_is_padded_where_the_first_adds_a_channel(given, made, constant, padded):
    def vector(name, channels):
        return () if channels is None else (PlanTensor(name, "float32", (-1, channels, 1, 1)),)

    weights = (PlanTensor("w", "float32", (32, 20, 1, 1)),)
    beside = (PlanTensor("scale", "float32", ()),) if given else ()
    reads, writes = vector("a", given) + beside, vector("a2", made)
    first = Kernel("first", "kgen", reads, writes, ("n_f2",), weights * constant)
    second = Kernel("second", "kgen", vector("a2", 20), vector("g", 32), ("n_f2", "n_g"), weights)
    verdict = judged(plan_graphs.se_net(), *BLOCK[:2], first, second, BLOCK[3])
    (reason,) = verdict.reasons
    assert verdict.verdict == "split"
    assert reason.startswith(
        "the 19 channels into layer 'n_f2' are padded to 20"
        if padded
        else "layer 'n_f2' is taken apart into 2"
    )


@pytest.mark.parametrize("nodes", [["n_q"], ["n_q", "n_d"]], ids=["one", "both"])
def test_quantization_inside_the_block_is_named_whether_one_kernel_does_both_ways_or_not(monkeypatch, nodes):
    layers = plan_graphs.LAYERS["conv"].replace("Conv(p,", "Conv(d,")
    monkeypatch.setitem(
        plan_graphs.LAYERS, "conv", f"q = QuantizeLinear(p, sp, zp) d = DequantizeLinear(q, sp, zp) {layers}"
    )
    model = with_constants(monkeypatch, sp=np.array(0.1, np.float32), zp=np.array(0, np.int8))
    first = kernel("fc1", [n for n in ("n_q", "n_d", "n_f1", "n_a") if n not in nodes], ["d"], ["a"])
    verdict = judged(model, BLOCK[0], kernel("quantize", nodes, ["p"], ["d"]), first, *BLOCK[2:])
    (reason,) = verdict.reasons
    assert verdict.verdict == "split"
    assert reason.startswith("quantization kernel from 'n_q' inside the block: leave the gate in float")


def test_a_kernel_that_shapes_and_quantizes_is_a_shape_kernel(monkeypatch):
    layers = plan_graphs.LAYERS["conv"].replace("Conv(p,", "Conv(d,")
    shaped = f"r = Reshape(p, c4) q = QuantizeLinear(r, sp, zp) d = DequantizeLinear(q, sp, zp) {layers}"
    monkeypatch.setitem(plan_graphs.LAYERS, "conv", shaped)
    arrays = {"sp": np.array(0.1, np.float32), "zp": np.array(0, np.int8)}
    model = with_constants(monkeypatch, c4=np.array([-1, plan_graphs.C, 1, 1]), **arrays)
    both = kernel("both", ["n_r", "n_q"], ["p"], ["q"])
    verdict = judged(model, BLOCK[0], both, kernel("fc1", ["n_d", "n_f1", "n_a"], ["q"], ["a"]), *BLOCK[2:])
    (reason,) = verdict.reasons
    assert reason.startswith("shape kernel from 'n_r'")


@pytest.mark.parametrize("read", ["float16", "float32"])
def test_a_wider_map_is_no_int8_convolutions_unless_its_kernel_reads_int8(read):
    def typed(kernel, **dtypes):
        def changed(tensors):
            return tuple(dataclasses.replace(t, dtype=dtypes.get(t.name, "float16")) for t in tensors)

        return dataclasses.replace(kernel, inputs=changed(kernel.inputs), outputs=changed(kernel.outputs))

    model = plan_graphs.se_net(dtype="float16")
    made = typed(kernel("conv", ["n_m"], ["x0"], ["m"]), x0=read, m="float32")
    verdict = judged(model, made, *(typed(one, m="float32") for one in BLOCK))
    assert verdict.verdict == "fallback"
    assert not any("INT8" in reason for reason in verdict.reasons)


def test_a_copy_before_a_block_in_one_kernel_is_counted():
    copy = dataclasses.replace(
        BLOCK[0], name="copy", onnx_nodes=(), outputs=kernel("", [], [], ["m2"]).outputs
    )
    names = [node for one in BLOCK for node in one.onnx_nodes]
    verdict = judged(plan_graphs.se_net(), copy, kernel("all", names, ["m2", "x"], ["y"]))
    assert (verdict.verdict, verdict.layers) == ("split", ("copy", "all"))


def test_a_copy_that_reads_a_scale_beside_its_map_is_no_cast():
    def seen(name, layout):
        return PlanTensor(name, "float32", (-1, 32, 14, 14), layout)

    read = (seen("m", "nhwc"), PlanTensor("scale", "float16", ()))
    copy = Kernel("copy", "kgen", read, (seen("m2", "nchw"),), ())
    verdict = judged(plan_graphs.se_net(), copy, kernel("mean", ["n_p"], ["m2"], ["p"]), *BLOCK[1:])
    (reason,) = verdict.reasons
    assert reason.startswith("copy NHWC to NCHW before GlobalAveragePool")


def test_a_block_whose_type_the_graph_does_not_say_is_asked_for_in_fp32():
    model = plan_graphs.se_net()
    model.graph.node("n_s").outputs[0].type = None
    assert judged(model, *BLOCK).verdict == "fused"


def test_the_network_without_se_is_in_the_json_where_it_was_planned():
    plan, plain = (Plan("any", "", "sm86", BLOCK[:count]) for count in (4, 1))
    (whole, alone) = (
        fusion.to_schema(plan, (), "fp32", fusion.totals(plan, (), other)).totals for other in (plain, None)
    )
    assert (whole.without_se.kernels, whole.without_se.activation_bytes) == (1, plain.activation_bytes)
    assert whole.tax == pytest.approx(plan.activation_bytes / plain.activation_bytes - 1)
    assert (alone.without_se, alone.tax) == (None, None)


def test_the_shapes_that_a_plan_was_made_for_are_in_the_json():
    plan = Plan("any", "", "sm86", BLOCK)
    assert fusion.to_schema(plan, (), "fp32").shapes is None
    shaped = dataclasses.replace(plan, shapes=(("x", (8, 4, 2, 2)),))
    assert fusion.to_schema(shaped, (), "fp32").shapes == {"x": (8, 4, 2, 2)}


def test_a_plan_without_activations_has_no_share_of_them():
    assert fusion.totals(Plan("any", "", "sm86", ()), ()).se_share == 0


@pytest.mark.parametrize("factors", ["m, g", "g, m"])
def test_a_block_of_one_pixel_is_taken_out_too(factors):
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,1,1] x, float[4,4,1,1] w) => (float[1,4,1,1] y)
        {{ m = Relu(x) p = GlobalAveragePool(m) f = Conv(p, w) g = Sigmoid(f) y = Mul({factors}) }}"""
    model = named(text)
    block = dataclasses.replace(
        plan_graphs.block(plan_graphs.se_net()), output="y", gate_output="g", scale_node="n_y"
    )
    plain = fusion.without_gates(model, [block])
    assert [node.op_type for node in plain.graph] == ["Relu", "Identity"]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 4), False),
        ((1, 4, 1, 1), False),
        ((1, 4, 8, 1), True),  # a column
        ((1, 4, 1, 8), True),
        ((1, 4, None, 1), True),
        ((1, 4, 8), True),
    ],
)
def test_a_map_has_more_than_one_place(shape, wanted):
    assert is_map(ir.Value(name="x", shape=ir.Shape(shape))) == wanted
