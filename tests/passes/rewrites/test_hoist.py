import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites_graphs import apply, assert_only_touches, assert_same, build, se

from se_deploy import graph
from se_deploy.passes.rewrites import rewriters
from se_deploy.se_blocks import detect

POINTWISE, SAME = "hoist-squeeze-1x1", "hoist-squeeze-kxk"


def bottleneck(
    c_in=6,
    channels=8,
    *,
    kernel=1,
    groups=1,
    conv="",
    between="x = Identity(c)",
    batch="N",
    size=5,
    seed=0,
    tail="",
    last="y",
):
    """u -> conv -> (something) -> SE -> Relu, with a second reader of nothing."""
    pad = kernel // 2
    attributes = conv or f"group={groups}, pads=[{pad},{pad},{pad},{pad}]"
    body, shapes = se(channels, 3, x="x" if between else "c")
    text = f"c = Conv<{attributes}>(u, w3, b3)\n{between}\n{body}{tail}z = Relu({last})"
    shapes |= {"w3": (channels, c_in // groups, kernel, kernel), "b3": (channels,)}
    return build(
        f"float[{batch},{c_in},{size},{size}] u", f"float[{batch},{channels},P,Q] z", text, shapes, seed=seed
    )


def linear(**options):
    return bottleneck(between="", **options)


@settings(deadline=None, max_examples=12)
@given(
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 3),
    size=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_pointwise_keeps_the_function(groups, per_group, size, seed):
    before = linear(c_in=groups * per_group, groups=groups, size=size, seed=seed)
    after, applied = apply(before, POINTWISE)
    assert [c.site for c in applied] == ["y"]
    assert_same(before, after)
    assert_only_touches(before, after, {"n_s", "n_h"})


@settings(deadline=None, max_examples=12)
@given(
    kernel=st.sampled_from([3, 5]),
    groups=st.sampled_from([1, 2, 8]),
    extra=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_same_padded_keeps_the_function(kernel, groups, extra, seed):
    before = linear(c_in=8, kernel=kernel, groups=groups, size=kernel // 2 + 1 + extra, seed=seed)
    after, applied = apply(before, SAME)
    assert [c.site for c in applied] == ["y"]
    assert_same(before, after)
    assert_only_touches(before, after, {"n_s", "n_h"})


def test_the_squeeze_reads_the_convolutions_input():
    after, _ = apply(linear(), POINTWISE)
    pool = next(node for node in after.graph if node.op_type == "GlobalAveragePool")
    assert pool.inputs[0].name == "u"
    assert apply(after, POINTWISE, SAME)[1] == ()


def test_no_bias_is_no_bias():
    body, shapes = se(8, 3, x="c")
    body = body.replace("Conv(s, f1, c1)", "Conv(s, f1)")
    del shapes["c1"]
    before = build(
        "float[N,6,5,5] u",
        "float[N,8,5,5] z",
        f"c = Conv(u, w3)\n{body}z = Relu(y)",
        shapes | {"w3": (8, 6, 1, 1)},
    )
    after, applied = apply(before, POINTWISE)
    assert len(applied) == 1
    assert_same(before, after)


REFUSED_1X1 = {
    "an activation in between": bottleneck(between="x = Relu(c)"),
    "stride": linear(conv="strides=[2,2]"),
    "padding": linear(conv="pads=[1,1,1,1]"),
    "a larger kernel": linear(kernel=3),
    "a second reader of the squeeze": linear(tail="t = Sigmoid(s)\ny2 = Mul(y, t)\n", last="y2"),
}


@pytest.mark.parametrize("before", REFUSED_1X1.values(), ids=REFUSED_1X1)
def test_pointwise_refuses(before):
    assert apply(before, POINTWISE)[1] == ()


REFUSED_KXK = {
    "an activation in between": bottleneck(kernel=3, between="x = Relu(c)"),
    "valid padding": linear(kernel=3, conv="pads=[0,0,0,0]"),
    "padding on one side": linear(kernel=3, conv="pads=[1,1,0,0]"),
    "stride": linear(kernel=3, conv="strides=[2,2], pads=[1,1,1,1]"),
    "dilation": linear(kernel=3, conv="dilations=[2,2], pads=[2,2,2,2]"),
    "an even kernel": linear(kernel=2, conv="pads=[1,1,0,0]"),
    "a map smaller than the padding": linear(kernel=5, size=2),
    "a 1x1 kernel": linear(),
}


@pytest.mark.parametrize("before", REFUSED_KXK.values(), ids=REFUSED_KXK)
def test_same_padded_refuses(before):
    assert apply(before, SAME)[1] == ()


def test_same_padded_needs_height_and_width():
    body, shapes = se(8, 3, x="c")
    shapes |= {"w3": (8, 6, 3, 3)}
    before = build(
        "float[N,6,H,W] u", "float[N,8,H,W] z", f"c = Conv<pads=[1,1,1,1]>(u, w3)\n{body}z = Relu(y)", shapes
    )
    assert apply(before, SAME)[1] == ()


def test_computed_weights_are_refused():
    body, shapes = se(8, 3, x="c")
    before = build(
        "float[N,6,5,5] u, float[8,6,1,1] w3",
        "float[N,8,5,5] z",
        f"c = Conv(u, w3)\n{body}z = Relu(y)",
        shapes,
    )
    assert apply(before, POINTWISE)[1] == ()


def test_weights_of_the_caller_are_not_written():
    before = linear()
    weights = graph.constant(before.graph.initializers["f1"]).copy()
    apply(before, POINTWISE)
    np.testing.assert_array_equal(graph.constant(before.graph.initializers["f1"]), weights)


@pytest.mark.parametrize("big", [{"w3": 1e25, "f1": 1e25}, {"b3": 1e38, "f1": 1e3}])
def test_weights_that_would_overflow_are_refused(big):
    body, shapes = se(8, 3, x="c")
    shapes |= {"w3": (8, 6, 1, 1), "b3": (8,)}
    arrays = {name: np.full(shapes[name], value, np.float32) for name, value in big.items()}
    before = build(
        "float[N,6,5,5] u", "float[N,8,5,5] z", f"c = Conv(u, w3, b3)\n{body}z = Relu(y)", shapes | arrays
    )
    rewriter = next(r for r in rewriters() if r.name == POINTWISE)
    assert apply(before, POINTWISE)[1] == ()
    assert ["overflow" in no.reason for no in rewriter.refusals(before, detect(before).se)] == [True]
