"""The small decisions that a census is made of, each by a table: what a changed one would get wrong."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from look_alikes import KIN, NEITHER
from onnx import helper, parser
from onnx.reference import ReferenceEvaluator
from se_graphs import CONSTANTS, GATE, Recipe, build, read, written

from se_deploy import se_blocks
from se_deploy.se_blocks import census, constants, functions, sizes
from se_deploy.se_blocks.dataflow import Dataflow
from se_deploy.se_blocks.values import locate, regroup

EMPTY = frozenset()


def axes(*groups):
    return tuple(frozenset(group) for group in groups)


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (("N", 4, 6, 5), ("N", 4, 30), axes({0}, {1}, {2, 3})),
        (
            ("N", 3, 4, 5),
            ("N", 12, 5),
            axes({0}, {1, 2}, {3}),
        ),  # 4 is not what 5 is
        (("N", 3, 4, 5), ("N", 60), axes({0}, {1, 2, 3})),
        (("N", 4, 6, 5), ("N", 4, 6, 1, 5), axes({0}, {1}, {2}, EMPTY, {3})),
        (("N", 4, 1, 1), ("N", 4), axes({0}, {1})),
        (("N", 4), (1, "M", 4), axes(EMPTY, {0}, {1})),  # nothing but the batch can have become M
        (("N", 4), ("N", 4, None), axes({0}, {1}, EMPTY)),  # what the new size is has to be 1
        (("N", 4), ("N", 4, 7), None),
        (("N", 24, 5), ("N", 4, 6, 5), None),  # one axis taken apart
        (("N", 4, None, None), ("N", 4, None, None), axes({0}, {1}, {2}, {3})),
        (("N", 4, 6, 5), ("M", 4, 6, 5), axes({0}, {1}, {2}, {3})),
        (("N", 4, 6, 5), ("N", 6, 4, 5), None),
    ],
)
def test_a_reshape_puts_axes_where_they_can_only_be(before, after, wanted):
    old = tuple(frozenset({i}) if d != 1 else EMPTY for i, d in enumerate(before))
    assert regroup(old, before, after) == wanted


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [
        (None, 8, None),
        (("N",), 8, None),
        (("N", 1, 1), 1, 1),
        (("N", 8, 1, 1), 8, 1),
        (("N", 1, 1, 8), 8, 3),
        (("N", 8, 8), 8, None),  # either might be meant
        (("N", 8, 4), 8, 1),
        (("N", 4, 8), 8, 2),
        (("N", 8, 1), None, 1),
        (("N", None, 8), None, None),  # neither is known to be of as many as nobody knows
        (("N", None, 1), 8, 1),
        (("N", "K", 1), 8, 1),
        (("N", 4, 1), 8, None),
        (("N", 1, 1), 8, None),
    ],
)
def test_the_channels_are_the_only_axis_of_their_size(shape, size, wanted):
    assert locate(shape, size) == wanted


def node_of(op_type, *arrays, **attributes):
    values = [ir.Value(name=f"i{i}", const_value=ir.tensor(a)) for i, a in enumerate(arrays)]
    return ir.node(op_type, values, attributes)


@pytest.mark.parametrize(
    ("op_type", "arrays", "wanted"),
    [
        ("Range", [0.0, 10.0, 4.0], 2.5),
        ("Range", [10.0, 0.0, 4.0], 0.0),
        ("Range", [0.0, 10.0, 0.0], np.inf),
        ("Range", [0.0, 10.0], np.inf),
        ("Range", [0.0, np.array([10.0, 20.0]), 4.0], np.inf),  # no number
        ("ConstantOfShape", [np.array([3, 4])], 12),
        ("Expand", [np.zeros(5, np.float32), np.array([3, 4])], 60),
        ("Expand", [np.zeros(5, np.float32), np.array([1])], 5),
        ("Tile", [np.zeros((5, 2), np.float32), np.array([3, 4])], 120),
        ("Gather", [np.zeros((5, 2), np.float32), np.array([1])], 10),
        ("Upsample", [np.zeros((5, 2), np.float32), np.array([3])], 30),
        ("Add", [np.zeros((5, 1), np.float32), np.zeros((1, 7), np.float32)], 35),
        ("MatMul", [np.zeros((5, 3), np.float32), np.zeros((2, 7), np.float32)], 15),
    ],
)
def test_what_a_node_makes_is_counted_before_it_is_computed(op_type, arrays, wanted):
    given = [np.asarray(array) for array in arrays]
    assert constants._made(node_of(op_type, *given), given) == wanted


def test_shapes_that_are_known_are_counted():
    node = node_of("Unknown", np.zeros(5, np.float32))
    node.outputs[0].shape = ir.Shape([70, 30])
    assert constants._made(node, [np.zeros(5, np.float32)]) == 2100


POSITIVE = {"Log", "Sqrt", "Reciprocal"}
CASES = [
    *((op, {}) for op in sorted(functions.UNARY_OPS - {"Clip", "Swish"})),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("LeakyRelu", {"alpha": 0.3}),
    ("ThresholdedRelu", {"alpha": 0.7}), ("Elu", {"alpha": 1.3}), ("Celu", {"alpha": 1.3}),
    ("Selu", {"alpha": 1.3, "gamma": 0.9}),
]  # fmt: skip


@pytest.mark.parametrize(("op_type", "attributes"), CASES, ids=str)
def test_a_function_of_one_number_is_what_onnx_says(op_type, attributes):
    low = 0.1 if op_type in POSITIVE else -5.0
    x = np.linspace(low, 5.0, 41)
    given = helper.make_tensor_value_info("x", 1, [41])
    made = helper.make_tensor_value_info("y", 1, [41])
    node = helper.make_node(op_type, ["x"], ["y"], **attributes)
    model = helper.make_model(
        helper.make_graph([node], "g", [given], [made]), opset_imports=[helper.make_opsetid("", 20)]
    )
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
    got = functions.unary(ir.from_proto(node), x)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_swish_has_a_slope():
    x = np.linspace(-5, 5, 11)
    node = ir.node("Swish", [ir.Value(name="x")], {"alpha": 1.7})
    np.testing.assert_allclose(functions.unary(node, x), x / (1 + np.exp(-1.7 * x)), rtol=1e-6)


def line(x, *points):
    return np.interp(x, [p for p, _ in points], [y for _, y in points])


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: line(x, (-3, 0), (3, 1)), ("hardsigmoid", 1.0)),
        (lambda x: line(x, (-1, -1), (1, 1)), ("other", 1.0)),  # of either sign
        (lambda x: line(x, (-3, -5e-4), (3, 900)), ("hardsigmoid", 900.0)),  # 0 but for its rounding
        (lambda x: 1.234567 * line(x, (-4, 0), (2, 1)), ("hardsigmoid", 1.234567)),
        (lambda x: line(x, (-4, 0), (0, 0.2), (3, 1)), ("other", 1.0)),  # bent: no straight line
        (lambda x: line(x, (-3, 0), (0, 0.7), (1, 0.5), (3, 1)), ("other", 1.0)),  # it falls in between
        (lambda x: line(x, (-3, 0.1), (3, 1)), ("hardsigmoid0.1", 0.9)),
        (lambda x: 1 / (1 + np.exp(-1.7 * x)), ("sigmoid", 1.0)),
        (lambda x: 2.345678 / (1 + np.exp(-1.7 * x)), ("sigmoid", 2.345678)),
        (lambda x: -1 / (1 + np.exp(-x)), ("other", 1.0)),
        (lambda x: np.exp(-(x**2)), ("other", 1.0)),
        (lambda x: x, None),
        (np.ones_like, None),
        (lambda x: np.where(x > 0, np.inf, 0), None),
    ],
)
def test_a_gate_is_named_by_its_shape_and_height(function, wanted):
    with np.errstate(all="ignore"):
        found = functions.gate_name(np.asarray(function(functions.GRID), np.float64))
    assert found == (None if wanted is None else (wanted[0], pytest.approx(wanted[1], abs=2e-7)))


def test_a_gain_has_six_digits():
    assert functions.gate_name(2.34567849 * functions._sigmoid(functions.GRID / 2)) == ("sigmoid", 2.345678)


X = functions.GRID


def test_a_gate_that_overshoots_is_no_sigmoid():
    assert functions.gate_name(functions._sigmoid(X) + 0.9 * np.exp(-(np.clip(X, -20, 20) ** 2))) == (
        "other",
        1,
    )


@pytest.mark.parametrize("gain", [1, 30])  # 30: the two spellings of GELU differ by more than the tolerance
@pytest.mark.parametrize(
    ("samples", "wanted"),
    [
        (0.5 * X * (1 + functions._ERF(X / np.sqrt(2))), "gelu"),
        (0.5 * X * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))), "gelu"),
        (X * functions._sigmoid(1.702 * X), "gelu"),  # as CLIP writes it
        (X * functions._sigmoid(1.3 * X), "other"),
        (np.maximum(X, 0) ** 2, "other"),
        (-X, "other"),  # a gain is positive
    ],
)
def test_an_activation_is_named_by_its_shape(samples, wanted, gain):
    assert functions.activation_name(gain * samples) == wanted


def flow_of(body):
    head = '<ir_version: 8, opset_import: ["" : 11]> g (float[N,4,6,5] x) => (float y)'
    text = f"{head} <{CONSTANTS}> {{ {body} }}"
    model = ir.from_proto(parser.parse_model(text))
    return Dataflow(model), {v.name: v for node in model.graph for v in node.outputs}


BATCH = "t = Shape(x) a = Gather(t, zero) b = Unsqueeze<axes = [0]>(a)"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("s = Shape(x)", ("N", 4, 6, 5)),
        ("t = Shape(x) s = Gather(t, zero)", ("N",)),
        (
            "t = Shape(x) a = Gather(t, zero) b = Unsqueeze<axes = [0]>(a) s = Concat<axis = 0>(b, first)",
            ("N", 1),
        ),
        ("t = Shape(x) s = Slice(t, first, last)", (4, 6)),
        ("t = Cast<to = 7>(x) s = Concat<axis = 0>(t, first)", None),
        ("t = Mul(half, half) s = Identity(t)", None),  # no whole numbers
        ("t = Shape(x) s = Neg(t)", None),
        ("t = Shape(x) s = Gather(t, last)", (5,)),
        ("t = Shape(x) i = Neg(first) s = Gather(t, i)", (5,)),
        ("t = Shape(x) i = Neg(last) s = Gather(t, i)", (4,)),
        ("t = Shape(x) i = Add(last, last) s = Gather(t, i)", None),  # there is no such axis
    ],
)
def test_arithmetic_on_shapes_is_evaluated(body, wanted):
    flow, values = flow_of(body)
    assert flow._sizes(values["s"]) == wanted


@pytest.mark.parametrize(
    ("body", "before", "wanted"),
    [
        (f"{BATCH} c = Concat<axis = 0>(b, three_one) y = Reshape(x, c)", ("N", 4, 6, 5), ("N", 3, 1)),
        ("y = Reshape(x, map)", ("N", 4, 6, 5), (None, 4, 1, 1)),  # -1 is what is left
        ("y = Reshape(x, rows)", (3, 4, 6, 5), (3, 4, 36)),
        ("y = Flatten(x)", ("N", 4, 6, 5), None),
    ],
)  # fmt: skip
def test_a_reshape_asks_for_the_sizes_that_are_computed(body, before, wanted):
    flow, values = flow_of(body)
    assert flow._target(values["y"].producer(), before) == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("t = Shape(x) a = Gather(t, first) s = Mul(a, three_one)", None),  # two numbers
        ("t = Shape(x) a = Gather(t, first) s = Mul(a, last)", sizes.Product(12)),
        ("t = Shape(x) a = Gather(t, zero) s = Mul(a, last)", sizes.Product(3, ("N",))),
        ("t = Shape(x) i = Neg(first) s = Gather(t, i)", sizes.Product(5)),
        (
            "t = Shape(x) a = Gather(t, first) b = Gather(t, last) c = Concat(a, b) s = ReduceProd(c)",
            sizes.Product(20),
        ),
        ("u = NoSuch(x) t = Shape(u) s = Gather(t, last)", None),
        ("t = Shape(x) i = Add(last, last) s = Gather(t, i)", None),  # there is no such axis
        ("t = Shape(x) a = Gather(t, first) b = Cast<to = 1>(a) s = Mul(b, half)", None),  # no whole number
    ],
)
def test_a_size_is_a_product_of_numbers_and_names(body, wanted):
    flow, values = flow_of(body)
    assert sizes.computed(flow, values["s"]) == wanted


def test_products_divide_where_nothing_is_left_over():
    area = sizes.Product(6, ("H", "W"))
    assert area.over(sizes.Product(2, ("W",))) == sizes.Product(3, ("H",))
    assert area.over(sizes.Product(6, ("W", "H"))) == sizes.Product(1)
    assert area.over(sizes.Product(0)) is None
    assert area.over(sizes.Product(4)) is None
    assert area.over(sizes.Product(6, ("H", "H"))) is None
    assert area.equals(sizes.Product(6, ("W", "H")))
    assert not area.equals(sizes.Product(3, ("W", "H")))


SWAPPED = {
    reason: body.replace("y = Mul(x, g)", "y = Mul(g, x)")
    for reason, body in NEITHER.items()
    if "y = Mul(x, g)" in body and reason
}


@pytest.mark.parametrize("reason", SWAPPED)
def test_the_reason_is_the_same_whichever_factor_comes_first(reason):
    model = written(SWAPPED[reason], constants=CONSTANTS)
    found = se_blocks.detect(model)
    assert not found.blocks
    assert [no.output for no in found.rejected] == ["y"]
    assert reason in found.rejected[0].reason


def test_the_spatial_factor_of_scse_may_come_first():
    body = KIN["scse"].replace("u = Mul(x, t)", "u = Mul(t, x)")
    assert [b.kind for b in se_blocks.detect(written(body, constants=CONSTANTS)).blocks] == ["scse"]
    both = KIN["scse"].replace("y = Add(z, u)", "y = Add(u, z)")
    assert [b.kind for b in se_blocks.detect(written(both, constants=CONSTANTS)).blocks] == ["scse"]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (("N", 1, 6, 5), True),
        (("N", 6, 5, 1), True),  # in NHWC
        (("N", 1, "H", "W"), True),
        (("N", 4, 6, 5), False),
        (("N", 1, 1, 1), False),  # one number for all
        (("N", 1), False),
    ],
)
def test_a_factor_per_position_is_one_for_all_channels(shape, wanted):
    assert census._one_per_position(shape) is wanted


def test_a_sum_behind_other_attention_is_no_part_of_it():
    body = KIN["cbam-channel"].replace("y = Mul(x, g)", "z = Mul(x, g) y = Add(x, z)")
    (block,) = se_blocks.detect(written(body, constants=CONSTANTS)).blocks
    assert (block.kind, block.output, block.spelling[-1]) == ("cbam-channel", "z", "Mul")


def test_a_block_says_where_its_parts_are():
    (block,) = se_blocks.detect(written(f"h = Relu(x) p = GlobalAveragePool(h) {GATE} y = Mul(h, g)")).se
    assert (block.squeeze_input, block.squeeze_output, block.gate_output, block.output) == (
        "h",
        "p",
        "g",
        "y",
    )
    named = dict(zip(block.nodes, block.spelling, strict=True))
    assert list(named.values()) == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]
    assert [named[layer] for layer in block.layers] == ["Conv", "Conv"]
    assert named[block.scale_node] == "Mul"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("h = Relu(x)", "activation"),
        ("h = PRelu(x, gains)", "activation"),
        ("h = Conv(x, full)", "linear-conv"),
        ("k = Conv(x, full) h = Mul(k, gains)", "linear-conv"),
        ("k = Conv(x, full) h = Add(gains, k)", "linear-conv"),
        ("k = Conv(x, full) s = HardSigmoid(k) h = Mul(s, k)", "activation"),
        ("k = Conv(x, full) h = Mul(k, x)", "other"),
        ("k = Conv(x, full) h = Add(k, x)", "other"),
        ("h = Pow(x, half)", "other"),
        ("h = Identity(x)", "other"),
    ],
)
def test_the_placement_is_what_the_map_comes_from(body, wanted):
    (block,) = se_blocks.detect(
        written(f"{body} p = GlobalAveragePool(h) {GATE} y = Mul(h, g)", constants=CONSTANTS)
    ).se
    assert block.placement == wanted


RELU6 = "s = Conv(x, point) c = Clip(s, nought, unit)"


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        (f"{RELU6} g = Div(c, half) y = Mul(x, g)", ["one factor per position"]),
        (f"{RELU6} g = Add(c, half) y = Mul(x, g)", ["one factor per position"]),
        ("s = Conv(x, point) g = Div(s, half) y = Mul(x, g)", []),  # not bounded: no candidate
        ("g = Add(z, half) y = Mul(x, g)", []),
    ],
)
def test_a_clipped_factor_is_a_candidate(body, reasons):
    inputs = "float[N,4,6,6] x" + (", float[N,1,6,6] z" if "(z" in body else "")
    found = se_blocks.detect(written(body, constants=CONSTANTS, x=inputs))
    assert not found.blocks
    assert [no.reason.partition(",")[0] for no in found.rejected] == reasons


def test_a_block_holds_its_own_nodes_and_no_others():
    block = se_blocks.detect(read(build(Recipe())[0])).se[0]
    assert block.spelling == ("GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul")
    shaped = se_blocks.detect(read(build(Recipe(expand="shape"))[0])).se[0]
    assert sorted(shaped.spelling) == sorted((*block.spelling, "Shape", "Expand"))
