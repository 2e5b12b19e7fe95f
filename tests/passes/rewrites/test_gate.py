import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites_graphs import apply, assert_only_touches, assert_same, build, run, se

from se_deploy import graph

PREVIOUS, NEXT, BATCHED, POOL = (
    "gate-into-previous",
    "gate-into-next",
    "gate-into-next-batched",
    "gate-behind-pool",
)
HOIST = "hoist-squeeze-1x1"


def residual(*, batch=1, groups=1, seed=0, scaled="y = Mul(c, g)", end="v = Add(y, u)\nz = Relu(v)"):
    """A bottleneck whose gate does not wait for the convolution: relu(g (W u + b) + u)."""
    body, shapes = se(6, 3, x="c")
    body = body.replace("y = Mul(c, g)", scaled)
    shapes |= {"w3": (6, 6 // groups, 1, 1), "b3": (6,)}
    text = f"c = Conv<group={groups}>(u, w3, b3)\n{body}{end}"
    return build(f"float[{batch},6,5,4] u", f"float[{batch},6,5,4] z", text, shapes, seed=seed)


@settings(deadline=None, max_examples=8)
@given(groups=st.sampled_from([1, 2, 6]), seed=st.integers(0, 99))
def test_previous_keeps_the_function(groups, seed):
    before = residual(groups=groups, seed=seed)
    after, applied = apply(before, HOIST, PREVIOUS)
    assert [c.rewrite for c in applied] == [HOIST, PREVIOUS]
    assert_same(before, after)
    assert_only_touches(before, after, {"n_s", "n_h", "n_c", "n_y"})
    assert apply(after, PREVIOUS)[1] == ()


def test_previous_keeps_the_blocks_output_tensor():
    after, _ = apply(residual(end="z = Relu(y)"), HOIST, PREVIOUS)
    assert "y" in {v.name for node in after.graph for v in node.outputs}


def test_previous_waits_for_the_hoist():
    assert apply(residual(), PREVIOUS)[1] == ()


@pytest.mark.parametrize(
    "before",
    [
        residual(batch="N"),
        residual(batch=2),
        residual(scaled="y = Mul(c, g)\nother = Relu(c)", end="v = Add(y, other)\nz = Relu(v)"),
    ],
    ids=["a free batch", "a batch of 2", "another reader of the convolution"],
)
def test_previous_refuses(before):
    assert apply(before, HOIST, PREVIOUS)[1][1:] == ()


def project(*, batch=1, conv="", shape=(5, 8, 1, 1), end="z = Relu(q)", seed=0, size=5):
    """An inverted bottleneck's end: act -> SE -> 1x1 projection."""
    body, shapes = se(8, 3)
    text = f"x = Relu(u)\n{body}q = Conv{conv}(y, wp, bp)\n{end}"
    shapes |= {"wp": shape, "bp": (shape[0],)}
    return build(f"float[{batch},8,{size},{size}] u", f"float[{batch},M,P,Q] z", text, shapes, seed=seed)


@settings(deadline=None, max_examples=8)
@given(
    case=st.sampled_from(
        [
            ("", (5, 8, 1, 1)),
            ("<pads=[1,1,1,1], strides=[2,2]>", (5, 8, 3, 3)),
            ("<group=8, pads=[1,1,1,1]>", (8, 1, 3, 3)),
        ]
    ),
    seed=st.integers(0, 99),
)
def test_next_keeps_the_function(case, seed):
    before = project(conv=case[0], shape=case[1], seed=seed)
    after, applied = apply(before, NEXT)
    assert [c.site for c in applied] == ["y"]
    assert_same(before, after)
    assert set(graph.ops(after)).issuperset({"Conv", "Sigmoid"})
    assert apply(after, NEXT)[1] == ()


def test_next_removes_the_scale_alone():
    before = project()
    after, _ = apply(before, NEXT)
    names = {node.name for node in after.graph}
    assert {node.name for node in before.graph} - names == {"n_y"}


REFUSED_NEXT = {
    "a free batch": project(batch="N"),
    "a batch of 5, the number of outputs": project(batch=5),
    "two groups": project(conv="<group=2>", shape=(6, 4, 1, 1)),
    "another reader": project(shape=(8, 8, 1, 1), end="z = Add(q, y)"),
}


@pytest.mark.parametrize("before", REFUSED_NEXT.values(), ids=REFUSED_NEXT)
def test_next_refuses(before):
    assert apply(before, NEXT)[1] == ()


def test_next_refuses_an_output_of_the_graph():
    body, shapes = se(8, 3)
    before = build(
        "float[1,8,5,5] u",
        "float[1,4,5,5] z, float[1,8,5,5] y",
        f"x = Relu(u)\n{body}z = Conv(y, wp)",
        shapes | {"wp": (4, 8, 1, 1)},
    )
    for name in (NEXT, BATCHED):
        assert apply(before, name)[1] == ()


def test_next_refuses_quantized_weights():
    body, shapes = se(8, 3)
    text = f"x = Relu(u)\n{body}w8 = QuantizeLinear(wp, k)\nwq = DequantizeLinear(w8, k)\nz = Conv(y, wq)"
    before = build(
        "float[1,8,5,5] u",
        "float[1,4,5,5] z",
        text,
        shapes | {"wp": (4, 8, 1, 1), "k": np.array(0.01, np.float32)},
    )
    for name in (NEXT, BATCHED):
        assert apply(before, name)[1] == ()


@settings(deadline=None, max_examples=8)
@given(batch=st.sampled_from(["N", 1, 5]), size=st.integers(1, 6), seed=st.integers(0, 99))
def test_next_batched_keeps_the_function_for_any_batch(batch, size, seed):
    before = project(batch=batch, size=size, seed=seed)
    after, applied = apply(before, BATCHED)
    assert [c.site for c in applied] == ["y"]
    for n in (1, 5):
        for one, other in zip(run(before, batch=n), run(after, batch=n), strict=True):
            assert abs(one - other).max() < 2e-5
    assert apply(after, BATCHED)[1] == ()


@pytest.mark.parametrize(
    "before",
    [
        project(conv="<strides=[2,2]>"),
        project(conv="<pads=[1,1,1,1]>"),
        project(conv="<pads=[1,1,1,1]>", shape=(5, 8, 3, 3)),
        project(conv="<group=2>", shape=(6, 4, 1, 1)),
        project(shape=(8, 8, 1, 1), end="z = Add(q, y)"),
    ],
    ids=["stride", "padding", "3x3", "groups", "another reader"],
)
def test_next_batched_refuses(before):
    assert apply(before, BATCHED)[1] == ()


def pooled(
    pool="MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(y)",
    kind="Sigmoid",
    seed=0,
    end="z = Relu(q)",
):
    body, shapes = se(8, 3, kind=kind)
    return build("float[N,8,6,6] x", "float[N,8,P,Q] z", f"{body}q = {pool}\n{end}", shapes, seed=seed)


@settings(deadline=None, max_examples=8)
@given(
    case=st.sampled_from(
        [
            ("MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(y)", "Sigmoid"),
            ("MaxPool<kernel_shape=[2,2], strides=[2,2]>(y)", "HardSigmoid"),
            ("AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(y)", "Sigmoid"),
            ("AveragePool<kernel_shape=[2,2], strides=[2,2]>(y)", "Tanh"),
        ]
    ),
    seed=st.integers(0, 99),
)
def test_behind_pool_keeps_the_function(case, seed):
    before = pooled(*case, seed=seed)
    after, applied = apply(before, POOL)
    assert [c.site for c in applied] == ["y"]
    assert_same(before, after)
    assert_only_touches(before, after, {"n_y", "n_q"})
    assert apply(after, POOL)[1] == ()


@pytest.mark.parametrize(
    "before",
    [
        pooled(kind="Tanh"),
        pooled(pool="LpPool<kernel_shape=[2,2]>(y)"),
        pooled(pool="MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(y)", end="z = Add(q, y)"),
    ],
    ids=["a gate that may be negative", "another pooling", "another reader"],
)
def test_behind_pool_refuses(before):
    assert apply(before, POOL)[1] == ()
