"""What the canonical form decides, one condition at a time: what is folded, respelled, or left and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from se_graphs import CONSTANTS, Recipe, build, read, run, written

from se_deploy import graph, se_blocks
from se_deploy.passes import canonical
from se_deploy.passes.canonical import blocks, fold_affine, fold_constants, recompose_hard

NUMBERS = f"""{CONSTANTS}, float[3,1,1] each = {{1, 2, 3}}, float[4] ones = {{1, 1, 1, 1}},
    float fifth = {{0.2}}, float[2,4,1,1] half_k = {{1, 2, 3, 4, 5, 6, 7, 8}}"""


def same(before, after, shape=(2, 4, 6, 6)):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    for one, other in zip(run(before, x), run(after, x), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5)


def test_all_arithmetic_behind_a_convolution_is_folded_at_once():
    model = written("a = Conv(x, full) b = Mul(a, gains) c = Add(b, half) y = Relu(c)", constants=NUMBERS)
    made = graph.rewrite(model, fold_affine)
    assert made.counts == (("fold_affine", 2),)
    assert graph.ops(made.model) == ["Conv", "Relu"]
    assert len(made.model.graph[0].inputs) == 3
    same(model, made.model)


def test_what_widens_one_channel_to_several_stays():
    model = written("a = Conv(x, point) b = Mul(a, each) y = Relu(b)", constants=NUMBERS)
    made = graph.rewrite(model, fold_affine)
    assert made.counts == (("fold_affine", 0),)
    assert graph.dims(made.model.graph.outputs[0])[1] == 3


def test_a_batch_norm_whose_statistics_are_read_stays():
    body = "a = Conv(x, full) b, m = BatchNormalization(a, ones, ones, ones, ones) c = Relu(b) y = Add(c, m)"
    model = written(body.replace("Add(c, m)", "Mul(c, half)"), opset=9, constants=NUMBERS)
    assert graph.rewrite(model, fold_affine).counts == (("fold_affine", 1),)
    read_too = written(
        body.replace("c, m", "c, n").replace("y =", "n = Sum(m) y ="), opset=9, constants=NUMBERS
    )
    assert graph.rewrite(read_too, fold_affine).counts == (("fold_affine", 0),)


def test_what_is_not_folded_is_named():
    factors = f"{NUMBERS}, float[1,4,1,1] huge = {{3.0e38, 3.0e38, 3.0e38, 3.0e38}}"
    model = written("a = Conv(x, full) b = Mul(a, gains) c = Mul(b, huge) y = Relu(c)", constants=factors)
    muls = [node.name for node in model.graph if node.op_type == "Mul"]
    (left,) = canonical.canonicalize(model).unfolded
    assert (left.node, left.op_type) == (muls[1], "Mul")


def test_constants_are_counted_named_and_folded_though_they_are_large():
    """As large as what they are made of, whatever that is; above a million bytes only then."""
    model = written("z = Relu(x) k = Transpose(w) j = Mul(k, half) y = MatMul(z, j)", x="float[N,600] x",
                    outputs="float[N,600] y", constants=CONSTANTS)  # fmt: skip
    weights = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)
    given = graph.initializer(model, "w", weights)
    next(node for node in model.graph if node.op_type == "Transpose").replace_input_with(0, given)
    made = graph.rewrite(model, fold_constants)
    assert made.counts == (("fold_constants", 2),)
    assert graph.ops(made.model) == ["Relu", "MatMul"]
    (name,) = made.model.graph.initializers
    assert name.startswith("j")
    np.testing.assert_array_equal(graph.constant(made.model.graph.initializers[name]), weights.T / 2)


def test_a_clipped_line_of_any_offset_is_a_hard_sigmoid():
    body = "a = Mul(x, fifth) b = Add(a, fifth) c = Max(b, nought) y = Min(c, unit)"
    model = written(body, constants=NUMBERS)
    made = graph.rewrite(model, recompose_hard)
    assert graph.ops(made.model) == ["HardSigmoid"]
    slope = made.model.graph[0].attributes
    assert [slope[name].value for name in ("alpha", "beta")] == pytest.approx([0.2, 0.2])
    same(model, made.model)


@pytest.mark.parametrize("beside", ["t = Tanh(x)", "t = Add(x, x)"])
def test_another_reader_of_what_is_clipped_changes_nothing(beside):
    body = f"{beside} a = Add(x, three) b = Clip(a, nought, six_) c = Div(b, six_) y = Add(c, t)"
    model = written(body, constants=f"{CONSTANTS}, float three = {{3}}, float six_ = {{6}}")
    made = graph.rewrite(model, recompose_hard).model
    assert graph.ops(made) == [graph.ops(model)[0], "HardSigmoid", "Add"]
    same(model, made)


def test_the_largest_of_three_is_another_function():
    body = "a = Mul(x, fifth) b = Add(a, half) c = Max(b, nought, fifth) y = Min(c, unit)"
    model = written(body, constants=NUMBERS)
    made = graph.rewrite(model, recompose_hard).model
    same(model, made)


def test_a_convolution_of_unknown_shape_is_left_alone():
    text = f"""<ir_version: 8, opset_import: ["" : 17, "elsewhere" : 1]>
        g (float[N,4,6,6] x) => (float[N,M,P,Q] y) <{CONSTANTS}, float[1,1,1,1] w = {{2}}>
        {{ u = elsewhere.Unknown(x) a = Conv(u, w) b = Mul(a, gains) y = Relu(b) }}"""
    made = graph.rewrite(read(parser.parse_model(text)), fold_affine)
    assert made.counts == (("fold_affine", 0),)


def test_a_sixth_is_a_sixth_to_the_last_bit():
    body = "a = Add(x, three) b = Clip(a, nought, six_) y = Div(b, six_)"
    model = written(body, constants=f"{CONSTANTS}, float three = {{3}}, float six_ = {{6}}")
    (node,) = graph.rewrite(model, recompose_hard).model.graph
    assert np.float32(node.attributes["alpha"].value) == np.float32(1 / 6)


@pytest.mark.parametrize("biases", [("", ""), (", b1", ""), ("", ", b2"), (", b1", ", b2")])
def test_a_gemm_with_a_bias_or_none_becomes_a_convolution(biases):
    body = """p = GlobalAveragePool(x) v = Flatten(p) a = Gemm(v, m1%s) r = Relu(a) c = Gemm(r, m2%s)
        s = Sigmoid(c) g = Reshape(s, map) y = Mul(x, g)"""
    model = written(body % biases, constants=CONSTANTS)
    made = canonical.canonicalize(model)
    assert made.refused == ()
    assert graph.ops(made.model) == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]
    same(model, made.model)


def test_a_scalar_keeps_its_constant_and_a_vector_gets_the_shape_of_the_map():
    body = "p = ReduceMean<axes = [2, 3], keepdims = 0>(x) a = MatMul(p, m1) d = Add(a, b1) e = Mul(d, half)"
    tail = "r = Relu(e) c = MatMul(r, m2) f = Sigmoid(c) g = Reshape(f, map) y = Mul(x, g)"
    model = written(f"{body} {tail}", constants=NUMBERS)
    made = graph.rewrite(model, canonical.respell_blocks)
    by_type = {node.op_type: node for node in made.model.graph}
    assert graph.scalar(graph.values(made.model)["e"].producer().inputs[1]) == 0.5
    assert "half" in made.model.graph.initializers
    assert graph.dims(by_type["Add"].inputs[1]) == (1, 2, 1, 1)
    same(model, made.model)


def test_a_convolution_of_another_rank_between_the_layers_becomes_one_of_the_map():
    body = """p = ReduceMean<axes = [2, 3], keepdims = 0>(x) q = Unsqueeze(p, two) a = Conv(q, k1) r = Relu(a)
        c = Conv(r, k2) f = Sigmoid(c) g = Unsqueeze(f, last) y = Mul(x, g)"""
    model = written(body, constants=f"{CONSTANTS}, int64[1] two = {{2}}")
    made = canonical.canonicalize(model)
    assert made.refused == ()
    (block,) = se_blocks.detect(made.model).se
    assert block.spelling == ("GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul")
    same(model, made.model)


def test_a_weight_that_has_its_rank_stays_as_it_is():
    body = """p = ReduceMean<axes = [2, 3]>(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c)
        y = Mul(x, g)"""
    made = canonical.canonicalize(written(body)).model
    assert set(made.graph.initializers) == {"w1", "w2"}


def test_weights_with_a_batch_of_one_become_kernels():
    body = """p = GlobalAveragePool(x) v = Reshape(p, column) a = MatMul(down, v) r = Relu(a)
        c = MatMul(m1, r) g = Sigmoid(c) h = Unsqueeze(g, last) y = Mul(x, h)"""
    model = written(body, constants=f"{CONSTANTS}, float[1,2,4] down = {{1, 2, 3, 4, 5, 6, 7, 8}}")
    made = canonical.canonicalize(model)
    assert made.refused == ()
    assert graph.ops(made.model) == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]
    same(model, made.model)


def test_a_block_behind_one_in_canonical_form_is_respelled_too():
    first = (
        "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c) z = Mul(x, g)"
    )
    second = """q = ReduceMean<axes = [2, 3], keepdims = 0>(z) b = MatMul(q, m1) s = Relu(b) d = MatMul(s, m2)
        f = Sigmoid(d) h = Reshape(f, map) y = Mul(z, h)"""
    model = written(f"{first} {second}", constants=CONSTANTS)
    made = graph.rewrite(model, canonical.respell_blocks)
    assert made.counts == (("respell_blocks", 1),)
    assert graph.ops(made.model).count("GlobalAveragePool") == 2
    same(model, made.model)


@pytest.mark.parametrize("body", ["k = DequantizeLinear(i8, f8, zp)", "k = RandomNormalLike(full)"])
def test_what_is_small_as_it_is_or_never_the_same_is_not_computed(body):
    weights = ", ".join(str(i) for i in range(16))
    model = written(
        f"{body} y = Conv(x, k)",
        constants=f"int8[4,4,1,1] i8 = {{{weights}}}, float f8 = {{0.1}}, int8 zp = {{0}}",
    )
    assert graph.rewrite(model, fold_constants).counts == (("fold_constants", 0),)


def test_layers_of_groups_keep_them():
    model = read(build(Recipe(groups=2, squeeze="mean"))[0])
    made = canonical.canonicalize(model)
    assert made.refused == ()
    groups = [graph.attribute(node, "group", 1) for node in made.model.graph if node.op_type == "Conv"]
    assert groups == [1, 2, 2, 1]
    same(model, made.model, (2, 3, 6, 5))


def test_casts_to_the_same_type_go():
    model = read(build(Recipe(extra="cast", layers="matmul"))[0])
    made = canonical.canonicalize(model)
    assert made.refused == ()
    assert "Cast" not in graph.ops(made.model)
    same(model, made.model, (2, 3, 6, 5))


def test_a_respelled_activation_keeps_its_slope():
    body = """p = ReduceMean<axes = [2, 3], keepdims = 0>(x) a = MatMul(p, m1) r = LeakyRelu<alpha = 0.3>(a)
        c = MatMul(r, m2) f = HardSigmoid<alpha = 0.25>(c) g = Reshape(f, map) y = Mul(x, g)"""
    model = written(body, constants=CONSTANTS)
    made = canonical.canonicalize(model)
    assert made.refused == ()
    assert graph.ops(made.model) == ["GlobalAveragePool", "Conv", "LeakyRelu", "Conv", "HardSigmoid", "Mul"]
    same(model, made.model)


FLOAT, HALF, DOUBLE, INT = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT32


@pytest.mark.parametrize(
    ("op_type", "before", "after", "data", "wanted"),
    [
        ("Cast", FLOAT, HALF, FLOAT, True),
        ("CastLike", FLOAT, INT, FLOAT, True),
        ("Cast", FLOAT, DOUBLE, FLOAT, False),
        ("Cast", FLOAT, FLOAT, FLOAT, False),
        ("Cast", FLOAT, HALF, HALF, False),  # no fewer bits than what is scaled
        ("Cast", INT, HALF, FLOAT, False),
        ("Relu", FLOAT, HALF, FLOAT, False),
        ("Cast", None, HALF, FLOAT, False),
        ("Cast", FLOAT, None, FLOAT, False),
        ("Cast", FLOAT, HALF, None, False),
    ],
)
def test_a_cast_rounds_where_it_leaves_fewer_bits(op_type, before, after, data, wanted):
    def value(kind):
        return ir.Value(name="v", type=None if kind is None else ir.TensorType(kind))

    node = ir.Node("", op_type, [value(before)], outputs=[value(after)])
    assert blocks._rounds(node, value(data)) is wanted


@pytest.mark.parametrize("branches", ["u = Add(c, s)", "u = Add(s, c)"])
def test_weights_that_are_computed_in_either_branch_are_an_obstacle(branches):
    body = f"""k = DequantizeLinear(i8, f8) p = GlobalAveragePool(x)
        a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) h = Conv(p, k) i = Relu(h) s = Conv(i, w2)
        {branches} g = Sigmoid(u) y = Mul(x, g)"""
    made = canonical.canonicalize(
        written(body, constants="int8[2,4,1,1] i8 = {1, 2, 3, 4, 5, 6, 7, 8}, float f8 = {0.1}")
    )
    assert ["computed in the graph" in no.reason for no in made.refused] == [True]


@pytest.mark.parametrize("tail", ["y = Mul(x, g)", "z = Mul(x, g) y = Relu(z)"])
def test_the_networks_own_input_in_nhwc_is_refused_with_its_reason(tail):
    body = "p = ReduceMean<axes = [1, 2]>(x) a = MatMul(p, m1) r = Relu(a) c = MatMul(r, m2) g = Sigmoid(c)"
    made = canonical.canonicalize(written(f"{body} {tail}", x="float[N,6,6,4] x"))
    assert ["NHWC" in no.reason for no in made.refused] == [True]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (["N", 4, 1, 1], ["N", 4], True),
        (["N", 4, 6], ["N", 4, 1], False),
        (["N", None, 1], ["N", None, 1], True),
        (None, ["N", 4], False),
        (["N", 4], None, False),
    ],
)
def test_a_reduction_keeps_all_where_its_axes_have_size_one(before, after, wanted):
    x = ir.Value(name="x", shape=None if before is None else ir.Shape(before))
    node = ir.node("ReduceMean", [x])
    node.outputs[0].shape = None if after is None else ir.Shape(after)
    assert blocks._keeps_all(node) is wanted


SHARED = (
    "float[4,4] tied = {1, 2, -3, 1, 0, 1, 2, 0, -1, 0, 1, 3, 2, 1, 0, -2}, float[4] shift = {1, -2, 3, 1}"
)


@pytest.mark.parametrize(
    ("squeeze", "excite"),
    [
        ("MatMul(v, tied)", "Gemm<transB = 1>(r, tied)"),
        ("Gemm(v, tied, shift)", "Gemm<alpha = 0.5, beta = 0.25>(r, tied, shift)"),
    ],
)
def test_two_layers_that_share_weights_each_read_them_their_own_way(squeeze, excite):
    body = f"s = GlobalAveragePool(x) v = Flatten(s) a = {squeeze} r = Relu(a) b = {excite} g = Sigmoid(b) "
    body += "h = Reshape(g, map) y = Mul(x, h)"
    model = written(body, constants=f"{NUMBERS}, {SHARED}")
    made = graph.rewrite(model, blocks.respell_blocks)
    assert made.counts == (("respell_blocks", 1),)
    same(model, made.model)


def test_what_a_branch_adds_to_a_convolution_outside_stays_in_the_branch():
    body = """a = Conv(x, full) y = If(yes) <then_branch = t () => (float[N,4,6,6] p) { p = Add(a, half) },
        else_branch = e () => (float[N,4,6,6] q) { q = Identity(x) }>"""
    model = written(body, constants=f"{NUMBERS}, bool yes = {{1}}")
    made = graph.rewrite(model, fold_affine)
    assert made.counts == (("fold_affine", 0),)
    same(model, made.model)


@pytest.mark.parametrize("kind", [7, 11], ids=["int64", "float64"])
def test_a_clamp_of_other_numbers_is_no_hard_sigmoid(kind):
    body = f"i = Cast<to = {kind}>(x) k = Cast<to = {kind}>(none) n = Cast<to = {kind}>(all) "
    body += "a = Max(i, k) b = Min(a, n) y = Cast<to = 1>(b)"
    model = written(body, constants=f"{NUMBERS}, float none = {{0}}, float all = {{1}}")
    made = graph.rewrite(model, fold_constants, recompose_hard)
    assert dict(made.counts) == {"fold_constants": 2, "recompose_hard": 0}
    same(model, made.model)
