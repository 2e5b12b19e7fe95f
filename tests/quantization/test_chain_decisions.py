"""What the linter says of a graph in full, and which kernels it takes it for: where, why, which layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from chain_graphs import FIRST, conv, float_conv, last, model, pair

from se_deploy.quantization import chain
from se_deploy.quantization.chain import ModelledPlanner, kernels, spelling, storage

MEAN = "AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
MOST = "MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"
GATE = " p = GlobalAveragePool(r) f = Conv(p, fc_f) h = Relu(f) g = Conv(h, fc_g) t = Sigmoid(g) "
BOTH = FIRST + " r = Relu(a) " + pair("r", "rq") + conv("rq", "o")
"""Two INT8 convolutions: `a`, whose ReLU is `r`, and `o`, which reads `r` quantized."""
BESIDE = FIRST + " r = Relu(a) " + conv("xq", "o")
"""Two INT8 convolutions of the input: `a`, whose ReLU is `r`, and behind it `o`."""
FLAT = " n = Constant<value_ints = [1, 8, 196]>() m = Constant<value_ints = [1, 8, 14, 14]>() "


def by_output(found):
    return {node.name: node.outputs[0].name for node in found.graph}


def said(body, batch=1):
    """Breaks as (rule, node, layers, tensors, reader), ends as (node, layers); nodes by what they write."""
    made = model(body, batch)
    names, found = by_output(made), chain.lint(made)

    def several(given):
        return tuple(names[one] for one in given)

    breaks = {
        (b.rule.name, names[b.node], several(b.layers), b.tensors, b.reader and names[b.reader])
        for b in found.breaks
    }
    return breaks, {(names.get(end.node, end.node), several(end.layers)) for end in found.ends}


def causes(body):
    return {one.cause for one in chain.lint(model(body, 1)).breaks}


def planned(body, batch=1):
    """Each kernel as (what it writes, kind, nodes by what they write, types read, types written)."""
    made = model(body, batch)
    names = by_output(made)
    return [
        (
            kernel.outputs[0].name,
            kernel.kind,
            tuple(names[one] for one in kernel.onnx_nodes),
            tuple(tensor.dtype for tensor in kernel.inputs),
            tuple(tensor.dtype for tensor in kernel.outputs),
        )
        for kernel in ModelledPlanner("tensorrt", "sm86").plan(made).layers
    ]


F, I = ("float32",), ("int8",)  # noqa: E741 - a table of types
X = ("x", "other", (), F, I)
"""The input is quantized by a kernel of its own."""
END = ("y", ("y",))

FINDINGS = {
    "a sum that reads a float, quantized elsewhere": (
        BOTH + " e = Add(o, r) k = Relu(e) " + last("k"),
        {("residual-in-float", "e", ("a",), ("r",), "e"), ("residual-in-float", "e", ("o",), ("r",), "e")},
        {END},
    ),
    "a sum that reads a float": (
        BESIDE + " e = Add(o, r) " + last("e"),
        {("residual-in-float", "e", ("a",), ("r",), "e"), ("residual-in-float", "e", ("o",), ("r",), "e")},
        {END},
    ),
    "a sum that nobody quantizes": (
        BESIDE + " e = Add(o, r) y = Relu(e) ",
        set(),
        {("e", ("a",)), ("y", ("o",))},
    ),
    "a sum that reads the network's input": (
        FIRST + " e = Add(a, x) " + last("e"),
        {("residual-in-float", "e", ("a",), ("x",), "e")},
        {END},
    ),
    "a pooling between floats": (
        FIRST + f" r = Relu(a) m = {MEAN}(r) " + last("m"),
        {("not-fused", "m", ("a",), ("r",), "m")},
        {END},
    ),
    "a pooling that reads a float, quantized elsewhere": (
        BOTH + f" m = {MEAN}(r) " + pair("m", "mq") + conv("mq", "d") + " y = Add(o, d) ",
        {("not-fused", "m", ("a",), ("r",), "m")},
        {("y", ("o",)), ("y", ("d",))},
    ),
    "a layer in float beside one in INT8": (
        BOTH + float_conv("r", "d") + " y = Add(o, d) ",
        set(),
        {("d", ("a",)), ("y", ("o",))},
    ),
    "two scales": (
        BOTH + pair("r", "rq2", "s2") + " e = Add(o, rq2) " + last("e"),
        {("two-scales", "rq2_q", ("a",), ("r", "r"), None)},
        {END},
    ),
    "a concat of which an input is not quantized": (
        BESIDE + " t = Relu(o) " + pair("t", "tq") + " j = Concat<axis = 2>(r, tq) " + conv("j", "y"),
        {("concat", "j", ("y", "a"), (), None)},
        set(),
    ),
    "a concat of different scales": (
        BESIDE + " t = Relu(o) " + pair("t", "tq") + " j = Concat<axis = 2>(r, tq) " + last("j"),
        {("concat", "j", ("a",), ("tq", "j"), None)},
        {END},
    ),
    "a concat of two scales in front of a layer": (
        BESIDE + pair("r", "rq") + " t = Relu(o) " + pair("t", "tq", "s2") + " j = Concat<axis = 2>(rq, tq) "
        + conv("j", "y"),
        {("concat", "j", ("y",), (), None)},
        set(),
    ),
    "a concat of one scale in front of a layer": (
        BESIDE + pair("r", "rq") + " t = Relu(o) " + pair("t", "tq") + " j = Concat<axis = 2>(rq, tq) "
        + conv("j", "y"),
        set(),
        {END},
    ),
    "a concat behind which something is computed": (
        BESIDE + " t = Relu(o) " + pair("t", "tq") + " j = Concat<axis = 2>(r, tq) k = Relu(j) "
        + conv("k", "y"),
        {("half-quantized", "y", ("y",), (), None), ("concat", "j", ("a",), ("r",), "j")},
        set(),
    ),
    "a dequantizer without a zero point": (
        " xq_q = QuantizeLinear(x, s, z) xq = DequantizeLinear(xq_q, s) " + conv("xq", "y"),
        set(),
        {END},
    ),
    "a pair inside of an activation": (
        FIRST + pair("a", "aq") + " g = Sigmoid(aq) r = Mul(aq, g) " + last("r"),
        {("inside-activation", "aq_q", ("a",), (), None)},
        {END},
    ),
    "a pair in front of a gate's product": (
        FIRST + " r = Relu(a) " + GATE + pair("t", "tq") + " e = Mul(r, tq) " + last("e"),
        {("inside-gate", "tq_q", ("g", "a"), (), None)},
        {("p", ("a",)), END},
    ),
    "a pair in front of a gate's activation": (
        FIRST + " r = Relu(a) p = GlobalAveragePool(r) f = Conv(p, fc_f) " + pair("f", "fq")
        + " h = Relu(fq) g = Conv(h, fc_g) t = Sigmoid(g) e = Mul(r, t) " + last("e"),
        {("inside-gate", "fq_q", ("f",), (), None)},
        {("p", ("a",)), END},
    ),
    "a pair in front of a sum": (
        BOTH + pair("o", "oq") + " e = Add(oq, rq) k = Relu(e) " + last("k"),
        {("extra-pair", "oq_q", ("o", "a"), (), None)},
        {END},
    ),
    "a pair that a layer reads beside the sum": (
        BOTH + pair("o", "oq") + " e = Add(oq, rq) " + pair("e", "eq") + conv("eq", "d") + conv("oq", "c")
        + " y = Add(c, d) ",
        set(),
        {("y", ("d",)), ("y", ("c",))},
    ),
    "what has no INT8 form": (
        FIRST + " r = Softmax<axis = 1>(a) " + last("r"),
        set(),
        {("r", ("a",)), END},
    ),
    "weights alone are quantized": (
        " r = Relu(x) " + conv("r", "y"),
        {("half-quantized", "y", ("y",), (), None)},
        set(),
    ),
    "a padding and a factor": (
        FIRST + " r = Relu(a) e = Pad(r, edges) m = Mul(e, c_m) " + pair("m", "mq")
        + conv("mq", "y", "pads = [0, 0, 0, 0]"),
        {("between", "e", ("y",), (), None)},
        {END},
    ),
    "a padding alone": (
        FIRST + " r = Relu(a) e = Pad(r, edges) " + pair("e", "eq") + conv("eq", "y", "pads = [0, 0, 0, 0]"),
        {("between", "e", ("y",), (), None)},
        {END},
    ),
    "an activation that reads a float, quantized elsewhere": (
        BOTH + " u = Sigmoid(r) " + pair("u", "uq") + conv("uq", "d") + " y = Add(o, d) ",
        set(),
        {("u", ("a",)), ("y", ("o",)), ("y", ("d",))},
    ),
    "a padding that nobody quantizes, quantized elsewhere": (
        BOTH + " e = Pad(r, edges) g = Sigmoid(e) k = MaxPool<kernel_shape = [3, 3]>(g) y = Add(o, k) ",
        set(),
        {("e", ("a",)), ("y", ("o",))},
    ),
    "a sum in the kernel of a gate": (
        BESIDE + GATE + " e = Mul(r, t) k = Add(e, o) " + last("k"),
        {("residual-in-float", "k", ("o",), ("e",), "k")},
        {("p", ("a",)), END},
    ),
    "a padding that is an output": (FIRST + " r = Relu(a) y = Pad(r, edges) ", set(), {("y", ("a",))}),
    "a sum in the kernel of a gate that reads INT8": (
        BESIDE + pair("o", "oq") + GATE + " e = Mul(r, t) k = Add(e, oq) " + last("k"),
        set(),
        {("p", ("a",)), END},
    ),
    "pairs in front of a sum of two layers": (
        BESIDE + pair("r", "rq") + pair("o", "oq") + " e = Add(rq, oq) " + last("e"),
        {("extra-pair", "oq_q", ("o", "a"), (), None)},
        {END},
    ),
    "a pair inside of what has no INT8 form": (
        FIRST + conv("xq", "o") + " r = Softmax<axis = 1>(a) u = Mul(o, r) " + pair("u", "uq")
        + " g = Sigmoid(uq) " + last("g"),
        {("inside-activation", "uq_q", ("o",), (), None)},
        {("r", ("a",)), END},
    ),
    "a pair inside of what the network's input is multiplied with": (
        FIRST + " r = HardSwish(a) u = Mul(r, x) " + pair("u", "uq") + " g = Sigmoid(uq) " + last("g"),
        {("inside-activation", "uq_q", ("a",), (), None)},
        {END},
    ),
    "a sum of an activation with its own input": (
        FIRST + " e = LeakyRelu(a) r = Add(e, a) " + last("r"),
        set(),
        {END},
    ),
    "a pair inside of gelu": (
        FIRST + pair("a", "aq") + " r = Pow(aq, s2) " + last("r"),
        {("inside-activation", "aq_q", ("a",), (), None)},
        {END},
    ),
    "sums from which nothing leads to a quantizer": (
        FIRST + " t = Tanh(x) h = Add(t, a) p = Softmax<axis = 1>(h) u = Sub(t, a) y = Add(p, u) ",
        set(),
        {("h", ("a",)), ("u", ("a",))},
    ),
    "a product with a constant is no activation": (
        FIRST + f" r = Relu(a) m = {MOST}(r) " + pair("m", "mq") + " e = Mul(mq, c_m) " + last("e"),
        set(),
        {END},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_all_that_is_said_of_a_graph(name):
    body, breaks, ends = FINDINGS[name]
    assert said(body) == (breaks, ends)


TWO = pair("x", "xq")
ONCE = " q = QuantizeLinear(r, s, z) rq = DequantizeLinear(q, s, z) "
TWICE = " rd = DequantizeLinear(q, s, z) "
ORDERS = {
    "an activation behind the other layer": (
        (TWO, conv("xq", "a"), " r = Relu(a) ", conv("xq", "b"), " k = Add(r, b) ", last("k")),
        (0, 1, 3, 2, 4, 5),
    ),
    "a factor of the earlier layer": (
        (TWO, conv("xq", "b"), " m = Mul(b, c_m) ", conv("xq", "a"), " k = Add(a, m) ", last("k")),
        (0, 1, 3, 2, 4, 5),
    ),
    "a dequantizer behind the layer": (
        (FIRST, " r = Relu(a) ", ONCE, TWICE, conv("rq", "b"), " k = Add(b, rd) ", last("k")),
        (0, 1, 2, 4, 3, 5, 6),
    ),
    "a gate behind the layer": (
        (FIRST + " r = Relu(a) ", GATE, " e = Mul(r, t) ", conv("xq", "o"), " k = Add(e, o) ", last("k")),
        (0, 3, 1, 2, 4, 5),
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_nodes_decides_nothing(name):
    parts, order = ORDERS[name]
    one, other = "".join(parts), "".join(parts[place] for place in order)
    kernels_of_one, kernels_of_other = planned(one), planned(other)
    assert sorted(kernels_of_one) == sorted(kernels_of_other)
    assert any(set(nodes) > {"k"} for _, kind, nodes, *_ in kernels_of_one if kind == "layer"), (
        "k is taken in"
    )
    assert said(one) == said(other)


def test_of_two_layers_the_later_takes_the_sum_in():
    found = planned(TWO + conv("xq", "a") + conv("xq", "b") + " k = Add(a, b) r = Relu(k) " + last("r"))
    layers = [nodes for _, kind, nodes, *_ in found if kind == "layer"]
    assert layers == [("a",), ("b", "k", "r"), ("y",)]


def test_a_cause_names_the_tensor_and_what_is_around_it():
    gate, act, pairs, mixed, scales = (
        causes(FINDINGS[name][0])
        for name in (
            "a pair in front of a gate's product",
            "a pair inside of an activation",
            "a pair in front of a sum",
            "a concat of which an input is not quantized",
            "a concat of different scales",
        )
    )
    assert gate == {"a pair on 't' is inside of a gate: Mul reads it"}
    assert act == {"a pair on 'a' is inside of an activation: Sigmoid reads it"}
    assert pairs == {"a pair on 'o' keeps the kernel that makes it from taking the sum in"}
    assert mixed == {"its input 'r' is not quantized, others are"}
    assert scales == {"it joins tensors of different scales"}


KERNELS = {
    "a residual sum and its activation are the layer's": (
        BOTH + " e = Add(o, rq) k = Relu(e) " + last("k"),
        [X, ("r", "layer", ("a", "r"), I, I), ("k", "layer", ("o", "e", "k"), I, I),
         ("y", "layer", ("y",), I, F)],
    ),
    "bounds of each channel and the ReLU behind them are the layer's": (
        FIRST + " k = Min(a, c_six) r = Relu(k) " + last("r"),
        [X, ("r", "layer", ("a", "k", "r"), I, I), ("y", "layer", ("y",), I, F)],
    ),
    "a sum is the later layer's": (
        BESIDE + " e = Add(o, r) " + last("e"),
        [X, ("r", "layer", ("a", "r"), I, F), ("e", "layer", ("o", "e"), ("int8", "float32"), F),
         ("e", "other", (), F, I), ("y", "layer", ("y",), I, F)],
    ),
    "nothing follows an activation": (
        FIRST + " r = Relu(a) k = Relu(r) " + last("k"),
        [X, ("r", "layer", ("a", "r"), I, F), ("k", "pointwise", ("k",), F, I), ("y", "layer", ("y",), I, F)],
    ),
    "pointwise operators are one kernel": (
        FIRST + " r = Relu(a) u = Sigmoid(r) v = Tanh(r) e = Add(u, v) " + last("e"),
        [X, ("r", "layer", ("a", "r"), I, F), ("e", "pointwise", ("u", "v", "e"), F, I),
         ("y", "layer", ("y",), I, F)],
    ),
    "a pooling of floats writes floats": (
        FIRST + f" r = Relu(a) m = {MOST}(r) y = Sigmoid(m) ",
        [X, ("r", "layer", ("a", "r"), I, F), ("m", "move", ("m",), F, F), ("y", "pointwise", ("y",), F, F)],
    ),
    "a pooling that commutes moves INT8": (
        FIRST + f" r = Relu(a) m = {MOST}(r) " + last("m"),
        [X, ("r", "layer", ("a", "r"), I, I), ("m", "move", ("m",), I, I), ("y", "layer", ("y",), I, F)],
    ),
    "a mean of floats has a quantizer of its own": (
        FIRST + f" r = Relu(a) m = {MEAN}(r) " + last("m"),
        [X, ("r", "layer", ("a", "r"), I, F), ("m", "pool", ("m",), F, F), ("m", "other", (), F, I),
         ("y", "layer", ("y",), I, F)],
    ),
    "what has no INT8 form is quantized behind it": (
        FIRST + " r = Softmax<axis = 1>(a) " + last("r"),
        [X, ("a", "layer", ("a",), I, F), ("r", "other", ("r",), F, F), ("r", "other", (), F, I),
         ("y", "layer", ("y",), I, F)],
    ),
    "what has no INT8 form between pairs": (
        FIRST + " r = Relu(a) " + pair("r", "rq") + " m = Softmax<axis = 1>(rq) " + last("m"),
        [X, ("r", "layer", ("a", "r"), I, I), ("rq", "other", (), I, F), ("m", "other", ("m",), F, F),
         ("m", "other", (), F, I), ("y", "layer", ("y",), I, F)],
    ),
    "a layer in float has its input dequantized": (
        pair("x", "xq") + float_conv("xq", "y"),
        [X, ("xq", "other", (), I, F), ("y", "layer", ("y",), F, F)],
    ),
    "a reshape moves nothing": (
        FIRST + " r = Relu(a) " + FLAT + " f = Reshape(r, n) " + pair("f", "fq") + " b = Reshape(fq, m) "
        + conv("b", "y"),
        [X, ("r", "layer", ("a", "r"), I, I), ("y", "layer", ("y",), I, F)],
    ),
    "a summand behind a reshape is one too": (
        BOTH + FLAT + " f = Reshape(rq, n) b = Reshape(f, m) e = Add(o, b) " + last("e"),
        [X, ("r", "layer", ("a", "r"), I, I), ("e", "layer", ("o", "e"), ("int8", "int8"), I),
         ("y", "layer", ("y",), I, F)],
    ),
    "a layer's own output behind a reshape": (
        BOTH + FLAT + " f = Reshape(o, n) b = Reshape(f, m) e = Add(b, rq) " + last("e"),
        [X, ("r", "layer", ("a", "r"), I, I), ("e", "layer", ("o", "e"), I, I),
         ("y", "layer", ("y",), I, F)],
    ),
    "an output of the network ends a kernel": (
        FIRST + FLAT + " r = Relu(a) f = Reshape(r, n) y = Reshape(f, m) ",
        [X, ("r", "layer", ("a", "r"), I, F)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_which_kernels_run_a_graph(name):
    body, wanted = KERNELS[name]
    assert planned(body) == wanted


def test_sizes_are_computed_by_no_kernel():
    body = FIRST + " r = Relu(a) d = Shape(r) k = Mul(d, d) q = Div(k, d) y = Expand(r, q) "
    plan = ModelledPlanner("tensorrt", "sm86").plan(model(body, "N"))
    assert "int64" not in {tensor.dtype for kernel in plan.layers for tensor in kernel.outputs}


def test_a_plan_has_names_dims_and_weights_as_stored():
    plan = ModelledPlanner("tensorrt", "sm86").plan(model(pair("x", "xq") + float_conv("xq", "y"), "N"))
    (quantize, dequantize, layer) = plan.layers
    assert (plan.runtime, plan.target) == ("tensorrt", "sm86")
    assert (quantize.name, dequantize.name) == ("quantize x", "dequantize xq")
    assert layer.outputs[0].dims == (-1, 8, 14, 14)
    assert [t.dtype for t in layer.constants] == ["float32"]
    plan = ModelledPlanner("tensorrt", "sm86").plan(model(FIRST + " y = Relu(a) ", "N"))
    assert [t.dtype for t in plan.layers[-1].constants] == ["int8"]


@pytest.mark.parametrize("scale", ["-0.05", "0.0"])
def test_a_scale_that_is_not_above_0_is_a_break(scale):
    body = f" sn = Constant<value = float {{{scale}}}>() " + pair("x", "xq", "sn") + conv("xq", "y")
    (one,) = chain.lint(model(body, 1)).breaks
    assert one.rule.name == "scale"
    assert one.cause.endswith("a scale is 0, negative or not finite")


def test_quantizers_are_the_same_where_all_their_numbers_are():
    one = spelling.Quantizer("q", (0.5,), (0,), "INT8")
    several = dataclasses.replace(one, scale=(0.5, 0.25, 0.5))
    assert storage.same(one, dataclasses.replace(one, node="other"))
    assert storage.same(several, several)
    others = [
        dataclasses.replace(one, **change)
        for change in (
            {"scale": (0.25,)},
            {"scale": None},
            {"zero": (1,)},
            {"zero": None},
            {"dtype": "UINT8"},
        )
    ]
    for other in (*others, several, dataclasses.replace(several, scale=(0.5, 0.25)), None):
        assert not storage.same(one, other)
        assert not storage.same(other, one)
    assert not storage.same(several, dataclasses.replace(several, scale=(0.5, 0.25)))
    assert not storage.same(others[1], others[1]), "what is computed may be anything"


@pytest.mark.parametrize(("numbers", "per_tensor"), [([0.5], True), ([0.5, 0.5], True), ([0.5, 0.25], False)])
def test_scales_that_are_all_equal_are_one(numbers, per_tensor):
    scale = ir.Value(name="s", const_value=ir.tensor(np.float32(numbers)))
    zero = ir.Value(name="z", const_value=ir.tensor(np.zeros(len(numbers), np.int8)))
    found = spelling.quantizer(ir.node("QuantizeLinear", [ir.Value(name="x"), scale, zero]))
    assert (found.per_tensor, found.zero, found.dtype) == (per_tensor, (0,), "INT8")
    assert found.scale == (tuple(numbers[:1]) if per_tensor else tuple(numbers))


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"scale": (0.5, 0.25)}, True),
        ({"scale": (0.5, -0.25)}, False),
        ({"scale": (0.0,)}, False),
        ({"scale": (float("inf"),)}, False),
        ({"scale": None}, False),
        ({"zero": (-1,)}, False),
        ({"zero": (0, 1)}, False),
        ({"zero": None}, False),
        ({"dtype": "UINT8"}, False),
        ({"zero": (3,), "dtype": "INT8"}, False),
    ],
)
def test_what_a_symmetric_int8_quantizer_is(change, fits):
    one = dataclasses.replace(spelling.Quantizer("q", (0.5,), (0,), "INT8"), **change)
    assert one.symmetric_int8 is fits


def test_a_scale_is_read_behind_what_leaves_its_numbers_as_they_are():
    constant = ir.Value(name="c", const_value=ir.tensor(np.float32([[0.5], [0.25]])))
    turned = ir.node("Transpose", [constant]).outputs[0]
    flat = ir.node("Flatten", [turned]).outputs[0]
    np.testing.assert_array_equal(spelling.array(flat), [0.5, 0.25])
    assert spelling.array(ir.node("Neg", [constant]).outputs[0]) is None
    assert spelling.array(ir.Value(name="x")) is None
    assert spelling.array(None) is None


def test_a_squeeze_has_one_number_for_each_channel():
    made = model(FIRST + " r = Relu(a) " + GATE + " e = Mul(r, t) " + last("e"), 1)
    values = {value.name: value for node in made.graph for value in node.outputs}
    assert [name for name in ("r", "p", "f", "t", "e") if kernels.is_pooled(values[name])] == ["p", "f", "t"]


def test_ways_that_part_and_meet_again_are_walked_once():
    turned = "".join(
        f" c{i}, d{i} = Split<axis = 1, num_outputs = 2>(r{i}) r{i + 1} = Concat<axis = 1>(d{i}, c{i}) "
        for i in range(40)
    )
    body = FIRST + " r0 = Relu(a) " + turned
    assert said(body + last("r40")) == (set(), {END})
    other = pair("x", "xo") + " j = Concat<axis = 1>(r40, xo) k = Slice(j, b_s, b_e, b_s) "
    kept = body + other.replace(" k = Slice(j, b_s, b_e, b_s) ", " j2 = MaxPool<kernel_shape = [1, 1]>(j) ")
    assert "concat" not in {rule for rule, *_ in said(kept + pair("j2", "y", "s"))[0]}
    assert "concat" in {rule for rule, *_ in said(kept + pair("j2", "y", "s2"))[0]}
