"""One precondition broken at a time: what a rewrite needs of a graph, and what it says."""

from __future__ import annotations

import numpy as np
import pytest
from rewrites_graphs import apply, assert_same, build, se

from se_deploy import graph
from se_deploy.passes import parts
from se_deploy.passes.registry import Refused
from se_deploy.se_blocks import detect

FINE = "p = Conv(u, w1, b1)\nq = Conv(x, w2, b2)\ny = Add(p, q)\nz = Relu(y)"
SHAPES = {"w1": (6, 4, 1, 1), "b1": (6,), "w2": (6, 4, 1, 1), "b2": (6,)}


QUANTIZED = FINE.replace("u, w1", "u, k").replace("p =", "k = DequantizeLinear(i8, f8)\np =")
TWO = "float[N,4,4,4] u, float[N,4,4,4] x"


def sum_of(text, more=None, inputs=TWO):
    return build(inputs, "float[N,6,H,W] z", text, {**SHAPES, **(more or {})})


def test_two_added_convolutions_are_one():
    before = sum_of(FINE)
    after, applied = apply(before, "add-as-concat")
    assert len(applied) == 1
    assert_same(before, after)


@pytest.mark.parametrize(
    "before",
    [
        sum_of(FINE, {"w1": (6, 4, 3, 3), "w2": (6, 4, 3, 3)}),
        sum_of(FINE.replace("Conv(u", "Conv<strides=[2,1]>(u").replace("Conv(x", "Conv<strides=[2,1]>(x")),
        sum_of(FINE.replace("Conv(u", "Conv<group=2>(u"), {"w1": (6, 2, 1, 1)}),
        sum_of(FINE.replace("Conv(u", "Conv<pads=[1,1,1,1]>(u").replace("Conv(x", "Conv<pads=[1,1,1,1]>(x")),
        sum_of(FINE.replace("w1, b1", "w1, k"), inputs=f"{TWO}, float[6] k"),
        sum_of(QUANTIZED, {"i8": np.ones((6, 4, 1, 1), np.int8), "f8": np.array(0.1, np.float32)}),
        sum_of(FINE.replace("Add(p, q)", "Add(p, p)")),
        sum_of(FINE.replace("y = Add(p, q)", "r = Relu(q)\ny = Add(p, r)")),
        sum_of(FINE.replace("y = Add(p, q)", "r = GlobalAveragePool(x)\ns = Conv(r, w2)\ny = Add(p, s)")),
        sum_of(FINE.replace("z = Relu(y)", "t = Mul(q, y)\nz = Relu(t)")),
    ],
    ids=["3x3", "unequal strides", "groups", "padding", "a computed bias", "quantized weights", "itself",
         "no convolution", "broadcast", "another reader"],
)  # fmt: skip
def test_other_sums_are_left_alone(before):
    assert apply(before, "add-as-concat")[1] == ()


SQUEEZES = {
    "GlobalAveragePool(x)": True,
    "AveragePool<kernel_shape=[4,6]>(x)": True,
    "AveragePool<kernel_shape=[4,4]>(x)": False,
    "MaxPool<kernel_shape=[4,6]>(x)": False,
    "ReduceMean(x, hw)": False,  # canonical blocks have none of it but between transposes
}


@pytest.mark.parametrize("op", SQUEEZES)
def test_a_squeeze_is_the_mean_of_a_whole_map(op):
    model = build("float[N,3,4,6] x", "float[N,3,H,W] z", f"y = {op}\nz = Relu(y)", {"hw": np.array([2, 3])})
    assert parts.is_squeeze(model.graph[0]) is SQUEEZES[op]


@pytest.mark.parametrize(
    ("there", "axes", "back", "wanted"),
    [
        ([0, 2, 3, 1], [1, 2], [0, 3, 1, 2], True),
        ([0, 2, 3, 1], [2, 1], [0, 3, 1, 2], True),
        ([0, 2, 3, 1], [1], [0, 3, 1, 2], False),
        ([0, 2, 3, 1], [2, 3], [0, 3, 1, 2], False),
        ([0, 3, 2, 1], [1, 2], [0, 3, 1, 2], False),
        ([0, 2, 3, 1], [1, 2], [0, 3, 2, 1], False),
        ([0, 1, 2, 3], [2, 3], [0, 1, 2, 3], False),
    ],
)
def test_a_mean_between_transposes_is_one_of_the_nhwc_view(there, axes, back, wanted):
    text = f"t = Transpose<perm={there}>(x)\nm = ReduceMean(t, a)\ny = Transpose<perm={back}>(m)\nz = Relu(y)"
    model = build("float[N,3,4,6] x", "float[N,C,H,W] z", text, {"a": np.array(axes)})
    mean = model.graph[1]
    assert parts.is_squeeze(mean) is wanted
    if wanted:
        read, written = parts.squeeze_ends(mean)
        assert (read.name, written.name) == ("x", "y")


def test_what_multiplies_no_map_is_said():
    body, shapes = se(4, 2)
    model = build("float[N,4,6,6] x", "float[N,4,6,6] z", f"{body}z = Relu(y)", shapes)
    (block,) = detect(model).se
    assert not isinstance(parts.parts(model, block), Refused)
    refused = parts.parts(model, block, ranks=(3,))
    assert refused.reason == "its gate does not multiply a map (N, C, H, W) by one factor per channel"
    refused = parts.parts(model, block, ranks=(3, 5))
    assert refused.reason == "its gate does not multiply a signal, a map or a clip by one factor per channel"


NONNEGATIVE = ("Sigmoid(x)", "HardSigmoid(x)", "Relu(x)", "Clip(x, nought, one)")
OTHERS = ("Tanh(x)", "Clip(x, minus, one)", "Clip(x)", "Identity(x)")
KEPT = ("Mul(g, two)", "Mul(two, g)", "Div(g, two)", "Reshape(g, same)")
LOST = ("Mul(g, minus)", "Mul(g, mixed)", "Div(two, g)", "Div(g, minus)", "Add(g, two)")
NUMBERS = {
    "nought": np.array(0, np.float32),
    "one": np.array(1, np.float32),
    "minus": np.array(-1, np.float32),
    "two": np.array(2, np.float32),
    "mixed": np.array([1, -1, 1], np.float32).reshape(1, 3, 1, 1),
    "same": np.array([0, 3, 1, 1]),
}


@pytest.mark.parametrize(
    ("gate", "wanted"),
    [
        *((f"y = {op}", True) for op in NONNEGATIVE),
        *((f"y = {op}", False) for op in OTHERS),
        *((f"g = Sigmoid(x)\ny = {op}", True) for op in KEPT),
        *((f"g = Sigmoid(x)\ny = {op}", False) for op in LOST),
        ("g = Tanh(x)\ny = Mul(g, two)", False),
    ],
)
def test_a_gate_is_never_negative_by_what_bounds_it(gate, wanted):
    used = {name: array for name, array in NUMBERS.items() if name in gate}
    model = build("float[N,3,1,1] x", "float[N,3,1,1] z", f"{gate}\nz = Identity(y)", used)
    assert parts.is_nonnegative(graph.values(model)["y"]) is wanted


def test_a_batch_of_one_is_one_for_every_call():
    def batch(first):
        model = build(f"float[{first},3,1,1] x", f"float[{first},3,1,1] z", "z = Relu(x)", {})
        return parts.static_batch_1(model.graph.inputs[0])

    assert [batch(1), batch(2), batch("N")] == [True, False, False]
