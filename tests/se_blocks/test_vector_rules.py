"""What becomes of views and pooled vectors, operator by operator: one rule broken at a time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from se_graphs import CONSTANTS, GATE, Recipe, build, expectation, read, written

from se_deploy import se_blocks
from se_deploy.se_blocks import functions, sizes, transfer
from se_deploy.se_blocks.dataflow import Dataflow, _product
from se_deploy.se_blocks.values import Vector, View

LAYERS = "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a)"
NUMBERS = f"{CONSTANTS}, float quarter = {{0.25}}, float also_quarter = {{0.25}}, float[1] bias = {{0.5}}"


def census(body, **kw):
    return se_blocks.detect(written(body, constants=NUMBERS, **kw))


def test_two_tensors_computed_alike_are_one():
    """By the number in a constant, not by its name."""
    body = f"s = Mul(x, quarter) t = Mul(x, %s) p = GlobalAveragePool(s) {GATE} y = Mul(t, g)"
    assert [b.output for b in census(body % "also_quarter").se] == ["y"]
    found = census(body % "half")
    assert not found.blocks
    assert [no.reason for no in found.rejected] == ["the gate is pooled from 's', but scales 't'"]


def test_numbers_drawn_twice_are_two_tensors():
    body = f"s = RandomNormalLike(x) t = RandomNormalLike(%s) p = GlobalAveragePool(s) {GATE} y = Mul(t, g)"
    found = census(body % "x")
    assert not found.blocks
    assert [no.reason for no in found.rejected] == ["the gate is pooled from 's', but scales 't'"]


def test_the_larger_or_smaller_of_three_makes_no_gate():
    body = f"{LAYERS} c = Conv(r, w2) g = Sigmoid(c)"
    assert census(f"{body} h = Max(g, half) y = Mul(x, h)").blocks
    assert not census(
        f"{body} h = Max(g, half, z) y = Mul(x, h)", x="float[N,4,6,6] x, float[N,4,6,6] z"
    ).blocks


def test_a_factor_of_two_tensors_is_no_activation_of_one():
    found = census("a = Conv(x, full) b = Neg(x) c = Add(a, b) g = Sigmoid(c) y = Mul(x, g)")
    assert [no.reason for no in found.rejected] == ["the gate is not pooled over the whole map"]


def test_axes_of_size_one_may_go_between_the_layers():
    flat = "t = ReduceMean<axes = [2, 3], keepdims = 0>(r) c = MatMul(t, m2) s = Sigmoid(c)"
    (block,) = census(f"{LAYERS} {flat} g = Reshape(s, map) y = Mul(x, g)").blocks
    assert (block.kind, block.channels, block.reduced) == ("se", 4, 2)


def test_a_padded_layer_makes_no_gate_per_channel():
    body = "p = GlobalAveragePool(x) a = Conv<pads = [1, 1, 1, 1]>(p, full) g = Sigmoid(a) y = Mul(x, g)"
    assert not census(body, x="float[N,4,3,3] x").blocks
    assert census(body.replace("<pads = [1, 1, 1, 1]>", ""), x="float[N,4,3,3] x").blocks


def test_two_bounded_branches_multiplied_are_a_gate_of_no_name():
    body = f"{LAYERS} c = Conv(r, w2) g = Sigmoid(c) f = Conv(p, full) h = Sigmoid(f) u = Mul(g, h)"
    (block,) = census(f"{body} y = Mul(x, u)").blocks
    assert (block.kind, block.gate, block.traits) == ("se", "other", ("merged",))


def test_the_bias_of_a_convolution_along_the_channels_counts():
    body = "p = GlobalAveragePool(x) v = Reshape(p, row) a = Conv<pads = [1, 1]>(v, along%s) s = Sigmoid(a)"
    plain, biased = (
        census(f"{body % bias} g = Reshape(s, map) y = Mul(x, g)").blocks[0] for bias in ("", ", bias")
    )
    assert [b.kind for b in (plain, biased)] == ["eca", "eca"]
    assert [b.params for b in (plain, biased)] == [3, 4]


def test_a_convolution_along_the_channels_keeps_their_number():
    along = "p = GlobalAveragePool(x) v = Reshape(p, row) a = Conv<pads = [1, 1]>(v, along) r = Relu(a)"
    twice = f"{along} c = Conv<pads = [1, 1]>(r, along) s = Sigmoid(c) g = Reshape(s, map)"
    before = f"{along} m = Reshape(r, map) d = Conv(m, w1) e = Relu(d) c = Conv(e, w2) g = Sigmoid(c)"
    blocks = [census(f"{body} y = Mul(x, g)").blocks[0] for body in (twice, before)]
    assert [(b.channels, b.reduced, len(b.layers)) for b in blocks] == [(4, 4, 2), (4, 2, 3)]


def test_a_gate_times_a_map_of_constants_is_no_gate():
    assert not census(f"{LAYERS} c = Conv(r, w2) g = Sigmoid(c) h = Mul(g, six) y = Mul(x, h)").blocks


def test_an_activation_of_two_operators_is_one():
    found = census("h = Relu(x) s = Sigmoid(h) y = Mul(x, s)")
    assert ["activation such as SiLU" in no.reason for no in found.rejected] == [True]


def test_windows_that_cover_an_axis_each_make_one_mean():
    one_by_one = "q = AveragePool<kernel_shape = [6, 1]%s>(x) p = AveragePool<kernel_shape = [1, %d]>(q)"
    assert [b.kind for b in census(f"{one_by_one % ('', 6)} {GATE} y = Mul(x, g)").blocks] == ["se"]
    assert not census(f"{one_by_one % (', strides = [1, 2]', 3)} {GATE} y = Mul(x, g)").blocks


def flow_of(body, x="float[N,4,6,5] x"):
    """Read a graph as it stands: no shape but the input's is known."""
    text = f'<ir_version: 8, opset_import: ["" : 11, "elsewhere" : 1]> g ({x}) => (float y)'
    model = ir.from_proto(parser.parse_model(f"{text} <{CONSTANTS}> {{ {body} y = Identity(v) }}"))
    return Dataflow(model), {v.name: v for node in model.graph for v in node.outputs}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("v = Transpose<perm = [0, 2, 3, 1]>(x)", ("N", 6, 5, 4)),
        ("v = Transpose(x)", (5, 6, 4, "N")),
        ("v = Reshape(x, rows)", ("N", 4, 30)),
        ("v = elsewhere.Unknown(x)", None),
        ("v = Reshape<shape = [0, 4, 30]>(x)", None),  # as before opset 5
    ],
)
def test_a_view_has_the_sizes_of_what_it_views(body, wanted):
    flow, values = flow_of(body)
    assert flow.dims(values["v"]) == wanted


@pytest.mark.parametrize(
    ("sizes", "wanted"), [(["N"], "N"), ([None], None), ([2, 3], 6), (["N", 3], None), ([], 1)]
)
def test_sizes_multiply_where_all_are_known(sizes, wanted):
    assert _product(sizes) == wanted


def test_what_has_no_known_shape_is_followed_no_further():
    body = "u = elsewhere.Unknown(x) p = GlobalAveragePool(u) v = Transpose<perm = [0, 2, 3, 1]>(u)"
    flow, values = flow_of(body)
    assert not flow.of(values["p"]).vectors
    assert flow.of(values["v"]).view.root is values["v"]


def test_weights_whose_shape_nobody_knows_make_no_layer():
    body = "k = elsewhere.Unknown(half) p = GlobalAveragePool(x) v = Conv(p, k)"
    flow, values = flow_of(body)
    assert len(flow.of(values["p"]).vectors) == 2  # pooled from x in one step, or from its rows
    assert not flow.of(values["v"]).vectors


def test_a_leaky_slope_per_channel_is_its_mean():
    body = f"{LAYERS.replace('Relu(a)', 'PRelu(a, slopes)')} c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)"
    constants = f"{CONSTANTS}, float[2,1,1] slopes = {{0.1, 0.3}}"
    (block,) = se_blocks.detect(written(body, constants=constants)).blocks
    assert (block.activation, block.params) == ("leakyrelu", 16 + 2)
    assert np.isclose(block.ratio, 2)


def test_the_bias_of_one_hidden_unit_counts():
    recipe = Recipe(reduced=1, layers="matmul-add")
    (block,) = se_blocks.detect(read(build(recipe)[0])).blocks
    assert block.params == expectation(recipe)["params"]


@pytest.mark.parametrize("view", ["Identity(s)", "Reshape(s, places)", "Expand(s, ones)"])
def test_a_factor_per_position_is_one_in_any_layout(view):
    constants = f"{CONSTANTS}, int64[4] places = {{-1, 1, 6, 6}}, int64[4] ones = {{1, 1, 1, 1}}"
    model = written(f"c = Conv(x, point) s = Sigmoid(c) g = {view} y = Mul(x, g)", constants=constants)
    found = se_blocks.detect(model)
    assert ["spatial attention" in no.reason for no in found.rejected] == [True]


def test_a_product_across_images_is_no_layer():
    numbers = ", ".join(str(i) for i in range(16))
    constants = f"{CONSTANTS}, float[4,4] square_ = {{{numbers}}}, int64[4] images = {{4, 4, 1, 1}}"
    body = """p = GlobalAveragePool(x) v = Flatten(p) a = Gemm%s(v, square_) s = Sigmoid(a)
        g = Reshape(s, images) y = Mul(x, g)"""

    def found(attribute):
        model = written(body % attribute, constants=constants, x="float[4,4,6,6] x")
        return [b.kind for b in se_blocks.detect(model).blocks]

    assert found("") == ["ese"]
    assert found("<transA = 1>") == []


def test_one_hidden_unit_on_a_sequence_lies_where_the_channels_lie():
    constants = f"{CONSTANTS}, float[4,1] down = {{1, 2, 3, 4}}, float[1,4] up = {{1, 2, 3, 4}}"
    body = """q = Reshape(x, rows) p = ReduceMean<axes = [2]>(q) t = Transpose<perm = [0, 2, 1]>(p)
        a = MatMul(t, down) r = Relu(a) c = MatMul(r, up) u = Transpose<perm = [0, 2, 1]>(c) g = Sigmoid(u)
        y = Mul(q, g)"""
    (block,) = se_blocks.detect(written(body, constants=constants, outputs="float[N,M,K] y")).blocks
    assert (block.kind, block.channels, block.reduced) == ("se", 4, 1)


def test_weights_on_the_left_may_have_a_batch_of_one():
    constants = f"{CONSTANTS}, float[1,2,4] down = {{1, 2, 3, 4, 5, 6, 7, 8}}"
    body = """p = GlobalAveragePool(x) v = Reshape(p, column) a = MatMul(down, v) r = Relu(a)
        c = MatMul(m1, r) g = Sigmoid(c) h = Unsqueeze(g, last) y = Mul(x, h)"""
    (block,) = se_blocks.detect(written(body, constants=constants)).blocks
    assert (block.kind, block.channels, block.reduced) == ("se", 4, 2)


def test_a_slope_that_is_computed_is_followed_no_further():
    body = f"{LAYERS.replace('Relu(a)', 'PRelu(a, k)')} c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)"
    assert not census(body, x="float[N,4,6,6] x, float[2,1,1] k").blocks


def test_the_first_function_names_the_activation_though_another_follows_a_norm():
    constants = f"{CONSTANTS}, float[1,2,1,1] gain = {{2, 3}}"
    body = f"{LAYERS} n = Mul(r, gain) k = Tanh(n) c = Conv(k, w2) g = Sigmoid(c) y = Mul(x, g)"
    (block,) = se_blocks.detect(written(body, constants=constants)).blocks
    assert (block.activation, block.params) == ("relu", 18)


def test_a_size_that_inference_does_not_know_is_that_of_what_is_viewed():
    text = """<ir_version: 8, opset_import: ["" : 11]> g (float[N,4,6,5] x) => (float y)"""
    body = "v = Reshape(x, rows) t = Shape(v) s = Gather(t, two) y = Identity(v)"
    model = ir.from_proto(parser.parse_model(f"{text} <{CONSTANTS}, int64 two = {{2}}> {{ {body} }}"))
    values = {v.name: v for node in model.graph for v in node.outputs}
    values["v"].shape = ir.Shape(["N", 4, None])
    assert sizes.computed(Dataflow(model), values["s"]) == sizes.Product(30)


@pytest.mark.parametrize("mean", ["ReduceMean(x)", "ReduceMean<keepdims = 0>(half)"])
def test_a_mean_over_all_axes_is_no_squeeze(mean):
    flow, values = flow_of(f"v = {mean}")
    assert flow.reduced_axes(values["v"].producer()) is None
    assert not flow.of(values["v"]).vectors


def test_what_is_added_behind_an_activation_is_no_bias():
    weights = "float[1,4,1,1] down = {1, 2, 3, 4}, float[4,1,1,1] up = {1, 2, 3, 4}"
    constants = f"{CONSTANTS}, float[1,1,1,1] more = {{3}}, {weights}"
    body = "p = GlobalAveragePool(x) a = Conv(p, down) %s c = Conv(d, up) g = Sigmoid(c) y = Mul(x, g)"

    def described(between):
        (block,) = se_blocks.detect(written(body % between, constants=constants)).blocks
        return block.activation, block.params

    assert described("b = Add(a, more) d = Relu(b)") == ("relu", 9)
    assert described("r = Relu(a) d = Add(r, more)") == ("other", 8)


@pytest.mark.parametrize(
    ("window", "wanted"),
    [
        ("kernel_shape = [6, 5]", {2, 3}),
        ("kernel_shape = [6, 5], pads = [0, 0, 0, 0]", {2, 3}),
        ("kernel_shape = [6, 5], pads = [1, 0, 1, 0]", None),
        ('kernel_shape = [6, 5], auto_pad = "VALID"', {2, 3}),
        ('kernel_shape = [6, 5], auto_pad = "SAME_UPPER"', None),
        ("kernel_shape = [6, 1]", {2}),
        ("kernel_shape = [6, 4]", None),
        ("kernel_shape = [6, 1], strides = [1, 2]", None),  # every other column is no column left as it was
    ],
)
def test_a_window_is_a_mean_of_the_axes_that_it_covers(window, wanted):
    flow, values = flow_of(f"v = AveragePool<{window}>(x)")
    assert flow.reduced_axes(values["v"].producer()) == wanted


@pytest.mark.parametrize(("strides", "found"), [("[1, 1]", ["se"]), ("[2, 1]", [])])
def test_every_other_row_of_a_free_height_is_no_whole_map(strides, found):
    """What a window of one leaves of a free size is told by its stride: inference gives it a new name."""
    body = f"q = AveragePool<kernel_shape = [1, 6], strides = {strides}>(x) p = GlobalAveragePool(q) {GATE}"
    assert [b.kind for b in census(f"{body} y = Mul(x, g)", x="float[N,4,?,6] x").blocks] == found


def vector_of(size, axis):
    view = View(ir.Value(name="x", shape=ir.Shape(["N", None, 6, 6])), (frozenset({1}),), ((2, "mean"),))
    pools = frozenset({"mean"})
    return Vector(view, view.root, pools, size, axis, base=0, function=functions.identity())


@pytest.mark.parametrize(("whole", "part", "cut"), [(8, 8, False), (8, 4, True), (None, None, True)])
def test_of_how_many_numbers_nobody_knows_a_slice_may_take_a_part(whole, part, cut):
    flow, values = flow_of("v = Slice(x, x, x)")
    values["v"].shape = ir.Shape(["N", part, 1, 1])
    taken = transfer.part_of(flow, values["v"].producer(), vector_of(whole, 1), values["v"])
    assert ("part" in taken.traits) is cut


@pytest.mark.parametrize(
    ("before", "after", "kept"), [(4, 4, True), ("C", "C", True), (None, None, False), (1, 4, False)]
)
def test_channels_that_an_expand_may_repeat_are_followed_no_further(before, after, kept):
    flow, _ = flow_of("v = Slice(x, x, x)")
    node = ir.node("Expand", [ir.Value(name="v", shape=ir.Shape(["N", before, 1, 1]))])
    found = transfer._relaid(flow, node, vector_of(None, 1), ("N", after, 6, 6))
    assert (found is not None) is kept
