from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from se_graphs import (
    ACTIVATIONS,
    ANY_SPATIAL,
    CONSTANTS,
    GATES,
    LAYERS,
    OF_KNOWN_SIZE,
    SQUEEZES,
    UNUSUAL,
    Recipe,
    build,
    read,
    run,
    written,
)

from se_deploy import graph, se_blocks
from se_deploy.errors import UnsupportedGraph
from se_deploy.passes import canonical
from se_deploy.passes.canonical import fold_affine, fold_constants, recompose_hard, respell_blocks

FP32_REORDERED = {"rtol": 1e-4, "atol": 2e-5}  # the same float32 sums in another order, through two layers
PLAIN = {"GlobalAveragePool", "Conv", "Mul", "Add"}


def close(before, after, shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    for one, other in zip(run(before, x), run(after, x), strict=True):
        np.testing.assert_allclose(other, one, **FP32_REORDERED)


def same_blocks(before, after):
    kept = (
        "output",
        "kind",
        "channels",
        "reduced",
        "activation",
        "gate",
        "gain",
        "scale_node",
        "followed_by",
    )
    one, other = se_blocks.detect(before).se, se_blocks.detect(after).se
    assert [[getattr(b, k) for k in kept] for b in other] == [[getattr(b, k) for k in kept] for b in one]
    return other


recipes = st.builds(
    Recipe,
    squeeze=st.sampled_from(sorted(SQUEEZES)),
    layers=st.sampled_from(sorted(LAYERS)),
    norm=st.sampled_from(["none", "batch"]),
    activation=st.sampled_from(sorted(set(ACTIVATIONS) - {"hardswish"})),
    gate=st.sampled_from(sorted(GATES)),
    extra=st.sampled_from(["none", "identity", "cast"]),
    expand=st.sampled_from(["none", "shape"]),
    gate_first=st.booleans(),
    residual=st.booleans(),
    spatial=st.sampled_from([(6, 5), (1, 1), (3, 1)]),
    channels=st.sampled_from([2, 6]),
    reduced=st.sampled_from([None, 1, 4]),
    opset=st.sampled_from([11, 13, 17, 18, 20]),
    free_map=st.booleans(),
    constants=st.sampled_from(["initializer", "node", "computed"]),
    seed=st.integers(0, 99),
)


@settings(max_examples=40, deadline=None)
@given(recipe=recipes, batch=st.integers(1, 5))
def test_every_spelling_becomes_the_one_and_computes_the_same(recipe, batch):
    assume(not (recipe.free_map and recipe.squeeze in OF_KNOWN_SIZE))
    model = read(build(recipe)[0])
    made = canonical.canonicalize(model)
    assert made.refused == ()
    block = same_blocks(model, made.model)[0]
    functions = set(block.spelling) - PLAIN
    assert not functions & {
        "Reshape",
        "Shape",
        "Gather",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "BatchNormalization",
    }
    assert block.spelling[0] == "GlobalAveragePool"
    assert block.spelling.count("Conv") == (2 if recipe.reduced else 1)
    graph.check(made.model)
    close(model, made.model, (batch, 3, *recipe.spatial), recipe.seed)
    assert all(count == 0 for _, count in canonical.canonicalize(made.model).counts)


@pytest.mark.parametrize("spatial", [(9,), (3, 4, 5)], ids=["1-D", "3-D"])
@pytest.mark.parametrize("squeeze", ["mean", "mean-flat", "flattened"])
@pytest.mark.parametrize("layers", ["conv", "gemm"])
def test_sequences_and_volumes_take_the_same_form(spatial, squeeze, layers):
    recipe = Recipe(spatial=spatial, squeeze=squeeze, layers=layers)
    model = read(build(recipe)[0])
    made = canonical.canonicalize(model)
    block = same_blocks(model, made.model)[0]
    assert block.spelling == ("GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul")
    close(model, made.model, (3, 3, *spatial), 1)


def test_a_canonical_block_is_left_alone():
    model = read(build(Recipe())[0])
    assert all(count == 0 for _, count in canonical.canonicalize(model).counts)


def test_the_given_graph_keeps_its_nodes_and_weights():
    model = read(build(Recipe(layers="gemm", norm="batch"))[0])
    before, weights = (
        graph.ops(model),
        {k: v.const_value.numpy().copy() for k, v in model.graph.initializers.items()},
    )
    canonical.canonicalize(model)
    assert graph.ops(model) == before
    for name, array in weights.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)


def test_a_gate_that_something_else_reads_stays_for_it():
    proto, _, _ = build(Recipe(layers="gemm"))
    gate = next(n.output[0] for n in proto.graph.node if n.op_type == "Sigmoid")
    proto.graph.output.append(helper.make_tensor_value_info(gate, 1, None))
    model = read(proto)
    made = canonical.canonicalize(model)
    assert len(same_blocks(model, made.model)) == 1
    close(model, made.model, (2, 3, 6, 5), 0)


HAS_NO_FORM = {
    "in NHWC, as Keras writes it": "NHWC",
    "pooled in NCHW, scaled in NHWC": "NHWC",
    "with a LayerNorm spelled out": "normalization",
    "with a softmax of two": "Gather",
    "with a gated linear unit between its layers": "Split",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_blocks_are_respelled_or_refused(name):
    model = written(UNUSUAL[name], constants=CONSTANTS)
    made = canonical.canonicalize(model)
    if name in HAS_NO_FORM:
        assert [HAS_NO_FORM[name] in no.reason for no in made.refused] == [True], made.refused
    else:
        assert made.refused == ()
        block = same_blocks(model, made.model)[0]
        assert not set(block.spelling) - PLAIN - {"Relu", "Sigmoid", "HardSigmoid", "Cast"}
    for batch in (1, 3):
        close(model, made.model, (batch, 4, 6, 6), batch)


LAYER_NORM = """
    p = GlobalAveragePool(x) a = Conv(p, w1) t = Transpose<perm = [0, 2, 3, 1]>(a)
    n = LayerNormalization(t, b1, b1) u = Transpose<perm = [0, 3, 1, 2]>(n)
    r = Relu(u) c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)"""
CHANNELS_LAST = """
    t = Transpose<perm = [0, 2, 3, 1]>(x) h = Relu(t) p = ReduceMean<axes = [1, 2]>(h)
    a = MatMul(p, m1) r = Relu(a) c = MatMul(r, m2) g = Sigmoid(c) y = Mul(h, g)"""
MIXED = """
    h = Cast<to = 11>(x) q = ReduceMean<axes = [2, 3]>(h) p = Cast<to = 1>(q) a = Conv(p, w1) r = Relu(a)
    c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)"""
ROUNDED = """
    h = Cast<to = 10>(x) f = Cast<to = 1>(h) p = GlobalAveragePool(f) a = Conv(p, w1) r = Relu(a)
    c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)"""
COMPUTED = """
    k = DequantizeLinear(i8, f8) p = GlobalAveragePool(x) a = Conv(p, k) r = Relu(a) c = Conv(r, w2)
    g = Sigmoid(c) y = Mul(x, g)"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (LAYER_NORM, "normalization"),
        (CHANNELS_LAST, "NHWC"),
        (COMPUTED, "computed in the graph"),
        (MIXED, "squeezed in"),
        (ROUNDED, "rounds what it squeezes"),
    ],
    ids=["norm", "channels-last", "computed-weights", "mixed-types", "rounded"],
)
def test_what_has_no_canonical_form_is_refused_with_its_reason(body, reason):
    model = written(body, constants="int8[2,4,1,1] i8 = {1, 2, 3, 4, 5, 6, 7, 8}, float f8 = {0.1}")
    made = canonical.canonicalize(model)
    assert [no.output for no in made.refused] == ["y"]
    assert reason in made.refused[0].reason
    assert graph.ops(made.model) == graph.ops(model)
    close(model, made.model, (2, 4, 6, 6), 0)


BETWEEN_TRANSPOSES = """
    h = Relu(x) t = Transpose<perm = [0, 2, 3, 1]>(h) p = ReduceMean<axes = [1, 2]>(t)
    a = MatMul(p, m1) d = Add(a, b1) r = Relu(d) c = MatMul(r, m2) f = Add(c, b2) g = Sigmoid(f)
    z = Mul(t, g)"""
OBLONG = "float[N,4,6,5] x"


@pytest.mark.parametrize(
    ("tail", "transposes"),
    [
        ("u = Transpose<perm = [0, 3, 1, 2]>(z) y = Relu(u)", 0),
        ("y = Relu(z)", 1),
        ("u = Transpose<perm = [0, 3, 1, 2]>(z) v = Transpose<perm = [0, 3, 1, 2]>(z) y = Add(u, v)", 0),
        ("u = Transpose<perm = [0, 2, 3, 1]>(z) y = Relu(u)", 2),
        ("y = Transpose<perm = [0, 3, 1, 2]>(z)", 2),
        ("u = Add(t, z) y = Transpose<perm = [0, 3, 1, 2]>(u)", 3),
    ],
)
def test_a_block_between_transposes_goes_to_its_convolutions(tail, transposes):
    model = written(f"{BETWEEN_TRANSPOSES} {tail}", x=OBLONG)
    made = canonical.canonicalize(model)
    assert made.refused == ()
    block = same_blocks(model, made.model)[0]
    assert block.spelling[:6] == ("GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul")
    assert graph.ops(made.model).count("Transpose") == transposes
    for batch in (1, 4):
        close(model, made.model, (batch, 4, 6, 5), batch)
    assert all(count == 0 for _, count in canonical.canonicalize(made.model).counts)


def test_a_block_whose_output_is_the_networks_stays_channels_last():
    model = written(BETWEEN_TRANSPOSES.replace("z = Mul", "y = Mul"), x=OBLONG)
    made = canonical.canonicalize(model)
    assert ["NHWC" in no.reason for no in made.refused] == [True]
    close(model, made.model, (2, 4, 6, 5), 0)


# ---- folding


def convolution(op, tail, *, channels=4, group=1, rank=2, seed=0, bias=True):
    """Give Conv or ConvTranspose on (N, 4, 5, 5) and what `tail` makes of its output."""
    rng = np.random.default_rng(seed)
    shape = (channels, 4 // group) if op == "Conv" else (4, channels // group)
    weights = {"w": rng.standard_normal((*shape, *[2] * rank)), "b": rng.standard_normal(channels)}
    if not bias:
        del weights["b"]
    nodes = [helper.make_node(op, ["x", *weights], ["c"], group=group, name="conv")]
    nodes += tail(weights, rng, channels)
    initializers = [
        helper.make_tensor(k, 1, np.shape(v), np.asarray(v, np.float32).reshape(-1))
        for k, v in weights.items()
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 4, *[5] * rank])],
        [helper.make_tensor_value_info("y", 1, None)],
        initializers,
    )
    return read(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def batch_norm(weights, rng, c):
    weights |= {"g": rng.standard_normal(c), "t": rng.standard_normal(c), "m": rng.standard_normal(c)}
    weights["v"] = rng.uniform(0.1, 2, c)
    return [helper.make_node("BatchNormalization", ["c", "g", "t", "m", "v"], ["y"])]


def arithmetic(op, *, first=False, shape=(1, -1, 1, 1)):
    def tail(weights, rng, c):
        size = c if -1 in shape else 1
        weights["k"] = (rng.uniform(0.5, 2, size)).reshape(shape)
        return [helper.make_node(op, ["k", "c"] if first else ["c", "k"], ["y"])]

    return tail


TAILS = {
    "norm": batch_norm,
    "add": arithmetic("Add"),
    "add-first": arithmetic("Add", first=True),
    "add-one": arithmetic("Add", shape=()),
    "add-no-batch": arithmetic("Add", shape=(-1, 1, 1)),
    "sub": arithmetic("Sub"),
    "sub-from": arithmetic("Sub", first=True),
    "mul": arithmetic("Mul"),
    "div": arithmetic("Div"),
    "div-by-one": arithmetic("Div", shape=(1, 1, 1, 1)),
}


@settings(max_examples=40, deadline=None)
@given(
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    tail=st.sampled_from(sorted(TAILS)),
    group=st.sampled_from([1, 2]),
    channels=st.sampled_from([2, 6]),
    batch=st.integers(1, 5),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_affine_arithmetic_folds_into_the_convolution(*, op, tail, group, channels, batch, bias, seed):
    model = convolution(op, TAILS[tail], channels=channels, group=group, seed=seed, bias=bias)
    made = graph.rewrite(model, fold_affine, fold_affine)
    assert made.counts == (("fold_affine", 1), ("fold_affine", 0))
    assert graph.ops(made.model) == [op]
    close(model, made.model, (batch, 4, 5, 5), seed)


def across_width(weights, rng, _c):
    weights["k"] = rng.standard_normal(4)  # lies along W, not along the channels
    return [helper.make_node("Mul", ["c", "k"], ["y"])]


def divided(weights, rng, c):
    weights["k"] = rng.standard_normal((1, c, 1, 1))
    return [helper.make_node("Div", ["k", "c"], ["y"])]


def read_twice(weights, rng, c):
    return [*arithmetic("Add")(weights, rng, c)[:0], helper.make_node("Add", ["c", "c"], ["y"])]


def of_training(weights, rng, c):
    nodes = batch_norm(weights, rng, c)
    nodes[0].attribute.append(helper.make_attribute("training_mode", 1))
    return nodes


def to_zero_variance(weights, rng, c):
    nodes = batch_norm(weights, rng, c)
    weights["v"], weights["g"] = np.zeros(c), np.full(c, 1e38)
    return nodes


@pytest.mark.parametrize("tail", [across_width, divided, read_twice, of_training, to_zero_variance])
def test_what_is_not_affine_per_channel_stays(tail):
    model = convolution("Conv", tail)
    made = graph.rewrite(model, fold_affine)
    assert made.counts == (("fold_affine", 0),)
    assert graph.ops(made.model) == graph.ops(model)


def test_a_convolution_that_is_an_output_itself_stays():
    model = convolution("Conv", TAILS["add"])
    model.graph.outputs.append(next(n for n in model.graph if n.op_type == "Conv").outputs[0])
    assert graph.rewrite(model, fold_affine).counts == (("fold_affine", 0),)


@pytest.mark.parametrize(
    "body",
    [
        "k = Transpose<perm = [1, 0]>(w) y = MatMul(x, k)",
        "k = Reshape(w, s) y = MatMul(x, k)",
        "k = Identity(w) j = Unsqueeze(k, a) i = Squeeze(j, a) y = MatMul(x, i)",
        "k = Cast<to = 1>(w) y = MatMul(x, k)",
        "j = Mul(w, w) k = Sqrt(j) y = MatMul(x, k)",
        "z = Shape(w) k = Expand(f, z) y = MatMul(x, k)",
    ],
)
def test_what_depends_on_constants_alone_is_computed_once(body):
    numbers = ", ".join(str(i / 7) for i in range(36))
    integers = "int64[2] s = {0, -1}, int64[1] a = {0}"
    model = written(body, constants=f"float[6,6] w = {{{numbers}}}, {integers}, float f = {{0.5}}")
    made = graph.rewrite(model, fold_constants, fold_constants)
    assert graph.ops(made.model) == ["MatMul"]
    assert made.counts[1][1] == 0
    close(model, made.model, (2, 4, 6, 6), 0)


# ---- HardSigmoid and HardSwish


HARD = {
    "a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)": ["HardSigmoid"],
    "a = Add(three, x) b = Clip(a, zero, six) y = Mul(b, sixth)": ["HardSigmoid"],
    "a = Mul(x, fifth) b = Add(a, half) y = Clip(b, zero, one)": ["HardSigmoid"],
    "a = Div(x, six) b = Add(a, half) c = Max(b, zero) y = Min(c, one)": ["HardSigmoid"],
    "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)": ["HardSwish"],
    "a = Add(x, three) b = Clip(a, zero, six) c = Div(b, six) y = Mul(x, c)": ["HardSwish"],
    "a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(a, x)": ["HardSwish"],
}
NOT_HARD = [
    "a = Add(x, three) b = Clip(a, zero, six) y = Mul(b, almost)",
    "a = Add(x, three) y = Clip(a, zero, six)",
    "a = HardSigmoid(x) y = Mul(a, x)",
    "a = Add(x, three) b = Clip(a, zero, six) c = Div(b, six) y = Add(x, c)",
]
NUMBERS = """float three = {3}, float zero = {0}, float six = {6}, float one = {1}, float half = {0.5},
    float fifth = {0.2}, float sixth = {0.16666667}, float almost = {0.1667}"""


@pytest.mark.parametrize("body", HARD)
def test_hard_functions_become_their_operator(body):
    model = written(body, constants=NUMBERS)
    made = graph.rewrite(model, recompose_hard, recompose_hard)
    assert graph.ops(made.model) == HARD[body]
    assert made.counts[1][1] == 0
    for batch in (1, 3):
        close(model, made.model, (batch, 4, 6, 6), batch)


@pytest.mark.parametrize("body", NOT_HARD)
def test_other_arithmetic_is_no_hard_function(body):
    made = graph.rewrite(written(body, constants=NUMBERS), recompose_hard)
    assert not {"HardSwish"} & set(graph.ops(made.model))
    assert len(made.model.graph) >= 2


def test_there_is_no_hard_swish_before_opset_14():
    body = "a = Add(x, three) b = Clip(a, zero, six) c = Div(b, six) y = Mul(x, c)"
    made = graph.rewrite(written(body, opset=13, constants=NUMBERS), recompose_hard)
    assert graph.ops(made.model) == ["HardSigmoid", "Mul"]


def test_a_bias_of_one_channel_is_no_part_of_the_function():
    biased = "c = Add(x, fifth) a = Add(c, three) b = Clip(a, zero, six) d = Div(b, six) y = Mul(c, d)"
    made = graph.rewrite(written(biased, opset=13, constants=NUMBERS), recompose_hard, recompose_hard)
    assert graph.ops(made.model) == ["Add", "HardSigmoid", "Mul"]
    assert [v.name for v in next(n for n in made.model.graph if n.op_type == "HardSigmoid").inputs] == ["c"]
    assert made.counts[1][1] == 0


def test_a_value_that_is_also_an_output_keeps_its_spelling_for_it():
    model = written("a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)", constants=NUMBERS)
    model.graph.outputs.append(next(n for n in model.graph if n.op_type == "Clip").outputs[0])
    made = graph.rewrite(model, recompose_hard).model
    close(model, made, (2, 4, 6, 6), 0)
    assert [v.name for v in made.graph.outputs] == [v.name for v in model.graph.outputs]


def test_respelling_alone_keeps_the_function():
    for squeeze in sorted(ANY_SPATIAL):
        recipe = dataclasses.replace(Recipe(), squeeze=squeeze, layers="gemm-scaled", norm="none")
        model = read(build(recipe)[0])
        made = graph.rewrite(model, respell_blocks, respell_blocks)
        assert made.counts == (("respell_blocks", 1), ("respell_blocks", 0))
        close(model, made.model, (4, 3, 6, 5), 3)


BIG = """float[4,4,1,1] big =
        {2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0},
    float[4] huge = {3.0e38, 1.0, 1.0, 1.0}, float[4] none = {0.0, 0.0, 0.0, 0.0},
    float[4] ones = {1.0, 1.0, 1.0, 1.0}, float[1,4,1,1] factors = {3.0e38, 1.0, 1.0, 1.0},
    float[1,4,1,1] divisors = {0.0, 1.0, 1.0, 1.0}"""
OVERFLOWS = {
    "BatchNormalization": "z = BatchNormalization(u, huge, none, none, ones)",
    "Mul": "z = Mul(u, factors)",
    "Div": "z = Div(u, divisors)",
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_weights_that_would_overflow_are_not_folded_and_it_is_said(name):
    model = written(f"u = Conv(x, big) {OVERFLOWS[name]} y = Relu(z)", constants=BIG)
    made = canonical.canonicalize(model)
    assert [(no.op_type, "no finite numbers" in no.reason) for no in made.unfolded] == [(name, True)]
    assert graph.ops(made.model) == ["Conv", name, "Relu"]
    x = np.ones((2, 4, 6, 6), np.float32)
    np.testing.assert_array_equal(run(made.model, x), run(model, x))


def test_what_is_folded_is_not_said_to_overflow():
    model = written("v = Conv(x, full) z = Mul(v, gains) y = Relu(z)", constants=CONSTANTS)
    made = canonical.canonicalize(model)
    assert made.unfolded == ()
    assert graph.ops(made.model) == ["Conv", "Relu"]


def test_a_graph_in_training_mode_is_refused():
    model = written("y = Dropout(x, half, on)", constants="float half = {0.5}, bool on = {1}")
    with pytest.raises(UnsupportedGraph, match="Dropout"):
        canonical.canonicalize(model)
