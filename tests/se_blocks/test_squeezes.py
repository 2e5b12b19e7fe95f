"""What is a mean over the whole map, and what only looks like one: sums, windows, layouts, sizes."""

from __future__ import annotations

import numpy as np
import pytest
from se_graphs import CONSTANTS, GATE, run, written

from se_deploy import graph, se_blocks
from se_deploy.passes import canonical

SUM = "ReduceSum<keepdims = 1>(x, map_axes)"
SIZE = "t = Shape(x) h = Gather(t, two) w = Gather(t, three)"
GATED = "a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c) y = Mul(x, g)"
FREE = "float[N,4,H,W] x"
MEANS = {
    "by the area": f"s = {SUM} p = Div(s, area)",
    "by the area, negative axes": "s = ReduceSum<keepdims = 1>(x, last_axes) p = Div(s, area)",
    "times its reciprocal": f"s = {SUM} p = Mul(s, per_area)",
}
MEANS_BY_SHAPE = {
    "by H W": f"s = {SUM} {SIZE} k = Mul(h, w) f = Cast<to = 1>(k) p = Div(s, f)",
    "by W H": f"s = {SUM} {SIZE} k = Mul(w, h) f = Cast<to = 1>(k) p = Div(s, f)",
    "by all over N C": f"""s = {SUM} {SIZE} n = Gather(t, zero) d = Gather(t, one) b = Mul(n, d) e = Size(x)
        k = Div(e, b) f = Cast<to = 1>(k) p = Div(s, f)""",
    "by a product of a slice": f"""s = {SUM} t = Shape(x) i = Slice(t, from_two, to_four)
        k = ReduceProd<keepdims = 0>(i) f = Cast<to = 1>(k) p = Div(s, f)""",
    "by the end of a shape": f"""s = {SUM} t = Shape<start = 2>(x) k = ReduceProd<keepdims = 0>(t)
        f = Cast<to = 1>(k) p = Div(s, f)""",
    "by the sizes of another tensor of this size": f"""s = {SUM} v = Relu(x) t = Shape(v) h = Gather(t, two)
        w = Gather(t, three) k = Mul(h, w) f = Cast<to = 1>(k) p = Div(s, f)""",
}
NO_MEANS = {
    "by 10": f"s = {SUM} p = Div(s, ten)",
    "times 0.1": f"s = {SUM} p = Mul(s, tenth)",
    "by almost the area": f"s = {SUM} p = Div(s, almost)",
    "by the area under it": f"s = {SUM} p = Div(area, s)",
    "by H": f"s = {SUM} {SIZE} f = Cast<to = 1>(h) p = Div(s, f)",
    "by H H": f"s = {SUM} {SIZE} k = Mul(h, h) f = Cast<to = 1>(k) p = Div(s, f)",
    "by N H W": f"""s = {SUM} {SIZE} n = Gather(t, zero) k = Mul(h, w) l = Mul(k, n) f = Cast<to = 1>(l)
        p = Div(s, f)""",
    "by 2 H W": f"s = {SUM} {SIZE} k = Mul(h, w) l = Mul(k, two) f = Cast<to = 1>(l) p = Div(s, f)",
    "by half of H, twice W": f"""s = {SUM} {SIZE} j = Div(h, two) l = Mul(w, two) k = Mul(j, l)
        f = Cast<to = 1>(k) p = Div(s, f)""",
    "by three halves of H W": f"""s = {SUM} {SIZE} k = Mul(h, w) l = Mul(k, three) j = Div(l, two)
        f = Cast<to = 1>(j) p = Div(s, f)""",
    "by H + W": f"s = {SUM} {SIZE} k = Add(h, w) f = Cast<to = 1>(k) p = Div(s, f)",
    "the root of a sum by the area": f"s = {SUM} u = Abs(s) v = Sqrt(u) p = Div(v, area)",
    "weighted sums by the area": f"s = {SUM} v = Mul(s, b4) p = Div(v, area)",
}


def detected(body, x="float[N,4,5,6] x"):
    return se_blocks.detect(written(body, constants=CONSTANTS, x=x))


def squeezed(body, x):
    return written(f"{body} {GATED}", constants=CONSTANTS + SIZES, x=x)


SIZES = """, int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64 three = {3}, int64[1] from_two = {2},
    int64[1] to_four = {4}, int64[2] last_axes = {-2, -1}, float area = {30.0},
    float per_area = {0.0333333333},
    float ten = {10.0}, float tenth = {0.1}, float almost = {30.01},
    float[1,4,1,1] b4 = {1.0, 2.0, 3.0, 4.0}"""


@pytest.mark.parametrize("name", [*MEANS, *MEANS_BY_SHAPE])
@pytest.mark.parametrize("size", ["float[N,4,5,6] x", FREE])
def test_a_sum_by_the_area_is_a_mean(name, size):
    model = squeezed((MEANS | MEANS_BY_SHAPE)[name], size)
    free = size == FREE and name in MEANS  # a number is the area of one size only
    assert [block.kind for block in se_blocks.detect(model).blocks] == ["pooled-attention" if free else "se"]
    made = canonical.canonicalize(model).model
    assert ("GlobalAveragePool" in graph.ops(made)) != free
    for height in (5, 9) if size == FREE else (5,):
        x = np.random.default_rng(0).standard_normal((2, 4, height, 6), np.float32)
        np.testing.assert_allclose(run(made, x), run(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NO_MEANS)
@pytest.mark.parametrize("size", ["float[N,4,5,6] x", FREE])
def test_no_other_quotient_of_a_sum_is_a_mean(name, size):
    model = squeezed(NO_MEANS[name], size)
    assert not se_blocks.detect(model).se
    made = canonical.canonicalize(model).model
    assert "GlobalAveragePool" not in graph.ops(made)
    x = np.abs(np.random.default_rng(0).standard_normal((2, 4, 5, 6), np.float32))
    np.testing.assert_allclose(run(made, x), run(model, x), rtol=1e-5, atol=1e-5)


SCALARS = {
    "an input of rank 0": ("float alpha", "s0 = Sigmoid(alpha)"),
    "an input of rank 1": ("float[1] alpha", "s0 = Sigmoid(alpha)"),
    "an input of rank 4": ("float[1,1,1,1] alpha", "s0 = Sigmoid(alpha)"),
    "a number per image": ("float[N,1,1,1] alpha", "s0 = Sigmoid(alpha)"),
}


@pytest.mark.parametrize("name", SCALARS)
def test_a_factor_for_all_beside_a_gate_changes_nothing(name):
    declared, gate = SCALARS[name]
    body = f"p = GlobalAveragePool(x) {GATE} m = Mul(x, g) {gate} k = Mul(x, s0) y = Add(m, k)"
    found = detected(body, x=f"float[N,4,5,6] x, {declared}")
    assert [(block.output, block.kind) for block in found.blocks] == [("m", "se")]


STRIDED = {
    "a window of the map, strided to one pixel": """
        p = AveragePool<kernel_shape = [4, 4], strides = [6, 6]>(x)""",
    "rows only": "p = AveragePool<kernel_shape = [5, 1], strides = [1, 6]>(x)",
    "windows, then a pixel of them": """q = AveragePool<kernel_shape = [2, 3], strides = [3, 3]>(x)
        p = MaxPool<kernel_shape = [2, 2]>(q)""",
}


@pytest.mark.parametrize("name", STRIDED)
def test_a_gate_pooled_from_a_part_of_the_map_is_none(name):
    found = detected(f"{STRIDED[name]} {GATE} y = Mul(x, g)")
    assert not found.se
    assert [no.output for no in found.rejected] == ["y"]


def test_a_strided_gate_that_is_resized_is_none():
    """LR-ASPP as published: windows with a stride, a gate per window, resized to the map."""
    found = detected(
        f"""p = AveragePool<kernel_shape = [4, 4], strides = [2, 2]>(x) {GATE}
        s = Shape(x) k = Resize<mode = "linear">(g, , , s) y = Mul(x, k)"""
    )
    assert not found.blocks
    assert ["resized from a coarser map" in no.reason for no in found.rejected] == [True]


def test_one_window_is_a_squeeze_whatever_its_stride():
    (block,) = detected(
        f"p = AveragePool<kernel_shape = [5, 6], strides = [4, 5]>(x) {GATE} y = Mul(x, g)"
    ).se
    assert block.squeeze_output == "p"


NHWC = {
    "axes 1 and 2": "p = ReduceMean<axes = [1, 2], keepdims = 0>(x)",
    "axes 1 and 2, kept": "q = ReduceMean<axes = [1, 2]>(x) p = Reshape(q, flat)",
    "a sum by the area": "s = ReduceSum<keepdims = 0>(x, hw_axes) p = Div(s, area)",
}


@pytest.mark.parametrize("name", NHWC)
def test_a_squeeze_of_a_channels_last_map_is_found(name):
    layers = "a = MatMul(p, m1) r = Relu(a) c = MatMul(r, m2) e = Sigmoid(c) g = Reshape(e, last1)"
    more = ", int64[2] flat = {0, 4}, int64[4] last1 = {0, 1, 1, 4}, int64[2] hw_axes = {1, 2}"
    model = written(
        f"{NHWC[name]} {layers} y = Mul(x, g)", constants=CONSTANTS + SIZES + more, x="float[N,5,6,4] x"
    )
    (block,) = se_blocks.detect(model).blocks
    assert (block.kind, block.channels, block.reduced, block.channel_axis) == ("se", 4, 2, 3)


def test_a_squeeze_that_rounds_is_left_as_it_is():
    model = written(
        f"h = Cast<to = 6>(x) f = Cast<to = 1>(h) p = GlobalAveragePool(f) {GATE} y = Mul(x, g)",
        constants=CONSTANTS,
        x="float[N,4,5,6] x",
    )
    made = canonical.canonicalize(model)
    assert graph.ops(made.model).count("Cast") == 2
    assert ["rounds" in no.reason for no in made.refused] == [True]
    x = 3 * np.random.default_rng(0).standard_normal((2, 4, 5, 6), np.float32)
    np.testing.assert_allclose(run(made.model, x), run(model, x), rtol=1e-5, atol=1e-5)
