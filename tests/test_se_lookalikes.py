"""Graphs by hand, with what the census must say of each: unusual blocks, their kin, what is neither."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser
from se_graphs import read, run, written

from se_deploy import se_blocks

GATE = "a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c)"
SE = {
    "in NHWC, as Keras writes it": """
        t = Transpose<perm = [0, 2, 3, 1]>(x) p = ReduceMean<axes = [1, 2]>(t)
        a = MatMul(p, m1) d = Add(a, b1) r = Relu(d) c = MatMul(r, m2) f = Add(c, b2) g = Sigmoid(f)
        y = Mul(t, g)""",
    "pooled in NCHW, scaled in NHWC": f"""
        t = Transpose<perm = [0, 2, 3, 1]>(x) p = GlobalAveragePool(x) {GATE}
        h = Transpose<perm = [0, 2, 3, 1]>(g) y = Mul(h, t)""",
    "pooled from a copy made twice": f"""
        s = Relu(x) t = Relu(x) p = GlobalAveragePool(s) {GATE} y = Mul(t, g)""",
    "with a LayerNorm spelled out": """
        p = GlobalAveragePool(x) a = Conv(p, w1)
        m = ReduceMean<axes = [1]>(a) d = Sub(a, m) q = Mul(d, d) v = ReduceMean<axes = [1]>(q)
        e = Add(v, eps) s = Sqrt(e) n = Div(d, s) r = Relu(n) c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)""",
    "with two branches of layers": """
        p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) s = Conv(p, full) u = Add(c, s)
        g = Sigmoid(u) y = Mul(x, g)""",
    "with a softmax of two": """
        p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, twice)
        v = Reshape(c, pairs) s = Softmax<axis = 1>(v) h = Gather<axis = 1>(s, zero)
        g = Reshape(h, map) y = Mul(x, g)""",
    "with a clipped line whose slope was folded": """
        p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) h = Add(c, half)
        g = Clip(h, nought, unit) y = Mul(x, g)""",
    "with a gain per channel": f"""
        p = GlobalAveragePool(x) {GATE} h = Mul(g, gains) y = Mul(x, h)""",
    "on a sequence, by Linear on (N, 1, C)": """
        q = Squeeze(x, last) p = ReduceMean<axes = [2]>(q) t = Transpose<perm = [0, 2, 1]>(p)
        a = MatMul(t, m1) r = Relu(a) c = MatMul(r, m2) u = Transpose<perm = [0, 2, 1]>(c) g = Sigmoid(u)
        y = Mul(q, g)""",
    "weights on the left of MatMul": """
        p = GlobalAveragePool(x) v = Reshape(p, column) a = MatMul(m2, v) r = Relu(a) c = MatMul(m1, r)
        g = Sigmoid(c) h = Unsqueeze(g, last) y = Mul(x, h)""",
    "after a hoisted cast": f"""
        d = Cast<to = 11>(x) f = Cast<to = 1>(d) p = GlobalAveragePool(f) {GATE} y = Mul(x, g)""",
    "quantized": """
        q = QuantizeLinear(x, scale, zp) d = DequantizeLinear(q, scale, zp) p = GlobalAveragePool(d)
        a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c) y = Mul(d, g)""",
}
KIN = {
    "eca": """p = GlobalAveragePool(x) v = Reshape(p, row) a = Conv<pads = [1, 1]>(v, along) s = Sigmoid(a)
        g = Reshape(s, map) y = Mul(x, g)""",
    "cbam-channel": """p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2)
        q = GlobalMaxPool(x) e = Conv(q, w1) f = Relu(e) h = Conv(f, w2) u = Add(c, h) g = Sigmoid(u)
        y = Mul(x, g)""",
    "scse": f"""p = GlobalAveragePool(x) {GATE} z = Mul(x, g) s = Conv(x, point) t = Sigmoid(s) u = Mul(x, t)
        y = Add(z, u)""",
    "dynamic-relu": """p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, twice) s = Sigmoid(c)
        h, k = Split<axis = 1>(s) z = Mul(x, h) y = Add(z, k)""",
    "split-attention": """v = Reshape(x, branches) u = ReduceSum<keepdims = 0>(v, first)
        p = ReduceMean<axes = [2, 3]>(u)
        a = Conv(p, half1) r = Relu(a) c = Conv(r, half2) d = Reshape(c, stack) s = Softmax<axis = 1>(d)
        g = Reshape(s, wide) z = Mul(v, g) y = ReduceSum<keepdims = 0>(z, first)""",
}
NEITHER = {
    "SiLU": "s = Sigmoid(x) y = Mul(x, s)",
    "HardSwish": "s = HardSigmoid(x) y = Mul(s, x)",
    "gated linear unit": "s, t = Split<axis = 1>(x) g = Sigmoid(t) y = Mul(s, g)",
    "spatial attention": """a = ReduceMean<axes = [1]>(x) m = ReduceMax<axes = [1]>(x)
        c = Concat<axis = 1>(a, m)
        d = Conv<pads = [3, 3, 3, 3]>(c, spatial) g = Sigmoid(d) y = Mul(x, g)""",
    "pooled from": f"h = Relu(x) p = GlobalAveragePool(x) {GATE} y = Mul(h, g)",
    "no learned layer": "p = GlobalAveragePool(x) g = Sigmoid(p) y = Mul(x, g)",
    "not bounded": "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) y = Mul(x, c)",
    "added": "p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) y = Add(x, c)",
    "resized from a coarser map": """p = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x) a = Conv(p, full)
        s = Sigmoid(a) g = Resize<mode = "nearest">(s, , scales) y = Mul(x, g)""",
    "another axis": """q = ReduceMean<axes = [1, 2]>(x) m = MatMul(q, six) g = Sigmoid(m)
        t = Transpose<perm = [0, 1, 3, 2]>(g) y = Mul(x, t)""",
    "": "p = GlobalAveragePool(x) a = Conv(p, w1) y = Relu(a)",
}
CONSTANTS = """
    int64[3] pairs = {-1, 2, 4}, int64 zero = {0}, int64[4] map = {-1, 4, 1, 1}, float half = {0.5},
    float nought = {0}, float unit = {1}, float[1,4,1,1] gains = {1, 2, 3, 4}, int64[1] last = {3},
    float eps = {0.00001}, int64[3] column = {-1, 4, 1}, int64[3] row = {-1, 1, 4}, int64[1] first = {1},
    int64[5] branches = {-1, 2, 2, 6, 6}, int64[4] stack = {-1, 2, 1, 2}, int64[5] wide = {-1, 2, 2, 1, 1},
    float[4] scales = {1, 1, 2, 2}, float scale = {0.1}, int8 zp = {0},
    float[3,2,1,1] half1 = {1, 2, 3, 4, 5, 6}, float[4,3,1,1] half2 = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3},
    float[6,6] six = {1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6}"""


def census(body, **kw):
    shape = "float[N,4,9,1] x" if "Squeeze(x" in body else "float[N,4,6,6] x"
    outputs = "float[N,A,B] y" if "Squeeze(x" in body else "float[N,M,K,L] y"
    return se_blocks.find(written(body, constants=CONSTANTS, x=shape, outputs=outputs, **kw))


@pytest.mark.parametrize("name", SE)
def test_unusual_blocks_are_blocks(name):
    found = census(SE[name])
    assert [block.kind for block in found.blocks] == ["se"], found
    block = found.blocks[0]
    assert (block.output, block.channels, block.reduced, block.activation) == ("y", 4, 2, "relu")


@pytest.mark.parametrize("kind", KIN)
def test_kin_are_reported_as_what_they_are(kind):
    found = census(KIN[kind])
    assert [block.kind for block in found.blocks] == [kind], found
    assert not found.se


@pytest.mark.parametrize("reason", NEITHER)
def test_what_is_neither_is_rejected_with_the_reason(reason):
    found = census(NEITHER[reason])
    assert not found.blocks
    assert [no.output for no in found.rejected] == (["y"] if reason else [])
    assert all(reason in no.reason for no in found.rejected), found.rejected


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


def test_the_branches_of_an_if_are_looked_into():
    body = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4,6,6] x, float[2,4] f1, float[4,2] f2, bool cond) => (float[N,4,6,6] y)
        <int64[2] axes = {2, 3}> {
            p = GlobalAveragePool(x)
            q = If (cond) <
                then_branch = t () => (float[N,4] s) { s = Squeeze(p, axes) },
                else_branch = e () => (float[N,4,1,1] i) { i = Identity(p) }>
            a = Gemm<transB = 1>(q, w1) r = Relu(a) c = Gemm<transB = 1>(r, w2) g = Sigmoid(c)
            h = Unsqueeze(g, axes) y = Mul(x, h)
        }"""
    proto = parser.parse_model(body.replace("f1,", "w1,").replace("f2,", "w2,"))
    for value in list(proto.graph.input)[1:3]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        proto.graph.initializer.add(name=value.name, data_type=1, dims=shape, float_data=[0.5] * 8)
    found = se_blocks.find(read(proto))
    assert [block.output for block in found.se] == ["y"]


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
    for body in (*SE.values(), *KIN.values(), *NEITHER.values()):
        if "Squeeze(x" not in body:
            run(written(body, constants=CONSTANTS), x)
