"""Graphs by hand, with what the census must say of each: unusual blocks, their kin, what is neither."""

from __future__ import annotations

import numpy as np
import pytest
from look_alikes import KIN, MORE_KIN, NEITHER, NOT_SCALED, SCALED_OTHERWISE
from onnx import parser
from se_graphs import CONSTANTS, GATE, UNUSUAL, read, run, written

from se_deploy import fusion, plan, se_blocks
from se_deploy.passes import canonical


def census(body, **kw):
    return se_blocks.detect(written(body, constants=CONSTANTS, **kw))


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_blocks_are_blocks(name):
    found = census(UNUSUAL[name])
    assert [block.kind for block in found.blocks] == ["se"], found
    assert not found.rejected
    block = found.blocks[0]
    gated = "gated" in name
    assert (block.channels, block.reduced, block.activation) == (
        4,
        4 if gated else 2,
        "other" if gated else "relu",
    )


@pytest.mark.parametrize("kind", KIN)
def test_kin_are_reported_as_what_they_are(kind):
    found = census(KIN[kind])
    assert [block.kind for block in found.blocks] == [kind], found
    assert not found.se


@pytest.mark.parametrize("name", MORE_KIN)
def test_kin_are_known_in_other_spellings(name):
    kind, body = MORE_KIN[name]
    found = census(body)
    assert [block.kind for block in found.blocks] == [kind], found
    assert not found.se


@pytest.mark.parametrize("reason", NEITHER)
def test_what_is_neither_is_rejected_with_the_reason(reason):
    found = census(NEITHER[reason])
    assert not found.blocks
    assert [no.output for no in found.rejected] == (["y"] if reason else [])
    assert all(reason in no.reason for no in found.rejected), found.rejected


@pytest.mark.parametrize("reason", SCALED_OTHERWISE)
def test_a_gate_that_no_mul_applies_channel_by_channel_is_told(reason):
    found = census(SCALED_OTHERWISE[reason])
    assert not found.blocks
    assert [no.output for no in found.rejected] == ["z"]
    assert reason in found.rejected[0].reason


@pytest.mark.parametrize("name", NOT_SCALED)
def test_other_divisions_and_products_are_no_candidates(name):
    found = census(NOT_SCALED[name])
    assert not found.blocks
    assert not [no for no in found.rejected if "applies the gate" in no.reason]


def test_a_sigmoid_by_hand_is_a_gate():
    (block,) = census(
        SCALED_OTHERWISE["a Div applies the gate"]
        .replace("Div(x, o)", "Mul(x, h)")
        .replace("z =", "h = Reciprocal(o) z =")
    ).se
    assert (block.output, block.gate) == ("z", "sigmoid")


@pytest.mark.parametrize("name", MORE_KIN)
def test_kin_compute_the_same_in_the_canonical_form(name):
    _, body = MORE_KIN[name]
    model = written(body, constants=CONSTANTS)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6), np.float32)
    np.testing.assert_allclose(
        run(canonical.canonicalize(model).model, x)[0], run(model, x)[0], rtol=1e-5, atol=1e-5
    )


def test_the_gate_may_scale_two_tensors_but_only_its_source_makes_a_block():
    found = census(f"p = GlobalAveragePool(x) {GATE} z = Mul(x, g) h = Neg(x) k = Mul(h, g) y = Add(z, k)")
    assert [block.output for block in found.se] == ["z"]
    assert [no.output for no in found.rejected] == ["k"]


def test_two_blocks_may_share_a_squeeze():
    second = "q = Conv(p, full) s = Sigmoid(q) k = Mul(x, s) y = Add(z, k)"
    found = census(f"p = GlobalAveragePool(x) {GATE} z = Mul(x, g) {second}")
    assert [(block.output, block.kind) for block in found.se] == [("z", "se"), ("k", "ese")]


def test_a_block_gated_twice_is_two_blocks():
    second = "d = Conv(q, w1) e = Relu(d) f = Conv(e, w2) h = Sigmoid(f)"
    found = census(
        f"p = GlobalAveragePool(x) {GATE} z = Mul(x, g) q = GlobalAveragePool(z) {second} y = Mul(z, h)"
    )
    assert [block.output for block in found.se] == ["z", "y"]


def branched(x, declared, then, otherwise, pooled):
    """A gate whose pooled numbers go through an If."""
    proto = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[{x}] x, float[2,4] w1, float[4,2] w2, bool cond) => (float[{x}] y)
        <int64[2] axes = {{2, 3}}, int64[1] last = {{3}}{declared}> {{
            p = GlobalAveragePool(x)
            q = If (cond) <
                then_branch = t () => ({then[0]}) {{ {then[1]} }},
                else_branch = e () => ({otherwise[0]}) {{ {otherwise[1]} }}>
            {pooled}
            a = Gemm<transB = 1>(f, w1) r = Relu(a) c = Gemm<transB = 1>(r, w2) g = Sigmoid(c)
            h = Unsqueeze(g, axes) y = Mul(x, h)
        }}""")
    for value in list(proto.graph.input)[1:3]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        proto.graph.initializer.add(name=value.name, data_type=1, dims=shape, float_data=[0.5] * 8)
    return se_blocks.detect(read(proto))


def test_the_branches_of_an_if_are_looked_into():
    squeezed = ("float[N,4] s", "s = Squeeze(p, axes)")
    whole = ("float[N,4,1,1] i", "i = Identity(p)")
    found = branched("N,4,6,6", "", squeezed, whole, "f = Identity(q)")
    assert [block.output for block in found.se] == ["y"]


def test_an_if_with_another_rank_than_its_first_branch_is_not_that_branch():
    """It is declared as the other branch, which holds half of the numbers."""
    whole = ("float[N,4,6,1] i", "i = Identity(x)")
    half = ("float[N,4,3] s", "m = MaxPool<kernel_shape = [2, 1], strides = [2, 1]>(x) s = Squeeze(m, last)")
    pooled = "f = ReduceMean<axes = [2], keepdims = 0>(q)"
    found = branched("N,4,6,1", ", float[N,4,3] q", whole, half, pooled)
    assert not found.blocks
    assert [no.reason for no in found.rejected] == ["the gate is not pooled over the whole map"]


def in_a_body(kind):
    """A block that a Loop or an If holds, and what reads it."""
    block = f"p = GlobalAveragePool(s) {GATE} z = Mul(s, g)"
    heads = {
        "Loop": f"""q = Loop (three, cond, x) <body = b (int64 i, bool c, float[N,4,6,6] s) =>
            (bool d, float[N,4,6,6] z) {{ d = Identity(c) {block} }}>""",
        "If": f"""q = If (cond) <then_branch = t () => (float[N,4,6,6] z) {{ s = Relu(x) {block} }},
            else_branch = e () => (float[N,4,6,6] k) {{ k = Identity(x) }}>""",
    }
    body = heads[kind].replace("c = Conv", "f = Conv").replace("Sigmoid(c)", "Sigmoid(f)")
    return written(f"{body} y = Relu(q)", constants="int64 three = {3}", x="float[N,4,6,6] x, bool cond")


@pytest.mark.parametrize("kind", ["Loop", "If"])
def test_a_block_in_a_body_is_found_and_says_where_it_lies(kind):
    model = in_a_body(kind)
    assert [block.kind for block in se_blocks.detect(model).blocks] == ["se"]
    (refused,) = canonical.canonicalize(model).refused
    assert refused.reason.startswith(f"it lies in a body of the {kind} '")


@pytest.mark.parametrize("kind", ["Loop", "If"])
def test_a_block_in_a_body_has_a_verdict_and_can_be_taken_out(kind):
    model = in_a_body(kind)
    blocks = se_blocks.detect(model).se
    rules = fusion.FusionRules()
    (verdict,) = fusion.verdicts(plan.Plan("none", "1", "cpu", ()), blocks, model, rules)
    assert f"it lies in a body of the {kind} '" in verdict.reasons[0]
    x, plain = (
        np.random.default_rng(0).standard_normal((2, 4, 6, 6), np.float32),
        fusion.without_gates(model, blocks),
    )
    np.testing.assert_array_equal(run(plain, x, np.array(True))[0], np.maximum(x, 0))


def test_a_reader_of_y_decides_what_follows():
    def followed(tail):
        return census(f"p = GlobalAveragePool(x) {GATE} z = Mul(x, g) {tail}").se[0].followed_by

    assert followed("s = Relu(x) y = Add(z, s)") == "residual-add"
    assert followed("d = Mul(z, half) s = Relu(x) y = Add(s, d)") == "residual-add"
    assert followed("y = Conv(z, full)") == "conv"
    assert followed("i = Identity(z) y = Conv(i, full)") == "conv"
    assert followed("y = Relu(z)") == "other"


def test_the_graphs_of_this_file_run():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6), np.float32)
    more = (body for _, body in MORE_KIN.values())
    others = (*NEITHER.values(), *SCALED_OTHERWISE.values(), *NOT_SCALED.values())
    for body in (*UNUSUAL.values(), *KIN.values(), *more, *others):
        run(written(body, constants=CONSTANTS), x)


NORMALIZED = {
    "one operator": "n = LayerNormalization<axis = 1>(a, n2)",
    "beside its input": "m = LayerNormalization<axis = 1>(a, n2) n = Add(a, m)",
    "spelled out": """u = ReduceMean<axes = [1]>(a) d = Sub(a, u) q = Mul(d, d) v = ReduceMean<axes = [1]>(q)
        e = Add(v, eps) f = Sqrt(e) n = Div(d, f)""",
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_a_norm_between_the_layers_is_not_forgotten_behind_the_last(name):
    body = f"p = GlobalAveragePool(x) a = Conv(p, w1) {NORMALIZED[name]} r = Relu(n) c = Conv(r, w2)"
    constants = f"{CONSTANTS}, float[2,1,1] n2 = {{1.0, 2.0}}"
    model = written(f"{body} g = Sigmoid(c) y = Mul(x, g)", constants=constants)
    (block,) = se_blocks.detect(model).blocks
    assert set(block.traits) - {"merged"} == {"norm"}
    made = canonical.canonicalize(model)
    assert ["normalization" in no.reason for no in made.refused] == [True]


def test_what_a_layer_mixes_again_is_no_trait_of_the_gate():
    """A part, a softmax or a join before the last layer says nothing of the gate behind it."""
    body = """p = GlobalAveragePool(x) a = Conv(p, w1) h, k = Split<axis = 1>(a) j = Concat<axis = 1>(h, k)
        r = Relu(j) c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)"""
    (block,) = census(body).blocks
    assert (block.kind, block.traits) == ("se", ())


LAYERS = "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a)"


def test_a_bounded_branch_beside_an_unbounded_one_is_no_gate():
    found = census(f"{LAYERS} c = Conv(r, w2) s = Sigmoid(c) h = Conv(p, full) g = Add(s, h) y = Mul(x, g)")
    assert not found.blocks
    assert ["not bounded" in no.reason for no in found.rejected] == [True]


def test_a_gate_that_is_joined_from_parts_is_not_se():
    constants = CONSTANTS + ", float[2,2,1,1] two2 = {1.0, 2.0, 3.0, 4.0}"
    body = f"{LAYERS} c = Conv(r, two2) j = Concat<axis = 1>(c, c) g = Sigmoid(j) y = Mul(x, g)"
    found = se_blocks.detect(written(body, constants=constants))
    assert [block.kind for block in found.blocks] == ["pooled-attention"]


def test_a_softmax_of_two_is_a_gate_of_that_name():
    (block,) = census(UNUSUAL["with a softmax of two"]).se
    assert (block.gate, block.gain) == ("softmax2", 1.0)


def test_a_gate_of_one_channel_is_said_to_be_one():
    """One number for an image: not told from a scalar, and no spatial attention either."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,1,4,4] x) => (float[N,1,4,4] y)
        <float[2,1,1,1] a1 = {1.0, 2.0}, float[1,2,1,1] a2 = {1.0, 2.0}>
        { p = GlobalAveragePool(x) a = Conv(p, a1) r = Relu(a) c = Conv(r, a2) g = Sigmoid(c)
          y = Mul(x, g) }"""
    found = se_blocks.detect(read(parser.parse_model(text)))
    assert not found.blocks
    assert [no.reason.partition(":")[0] for no in found.rejected] == ["one factor for the whole map"]
