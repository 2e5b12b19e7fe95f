import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites_graphs import apply, assert_only_touches, assert_same, build, se

from se_deploy import graph
from se_deploy.se_blocks import detect

SPELLINGS = ("squeeze-average-pool", "squeeze-nhwc-mean")


def block(channels=8, reduced=2, side=("5", "7"), opset=20, seed=0):
    body, shapes = se(channels, reduced)
    x = f"float[N,{channels},{side[0]},{side[1]}] x"
    return build(
        x, f"float[N,{channels},{side[0]},{side[1]}] z", body + "z = Relu(y)", shapes, seed=seed, opset=opset
    )


@pytest.mark.parametrize("name", SPELLINGS)
@settings(deadline=None, max_examples=8)
@given(
    channels=st.integers(2, 9),
    height=st.integers(1, 9),
    width=st.integers(2, 9),
    opset=st.sampled_from([13, 17, 20]),
)
def test_a_spelling_keeps_the_function(name, channels, height, width, opset):
    before = block(channels, 2, (str(height), str(width)), opset)
    after, applied = apply(before, name)
    assert len(applied) == 1
    assert "GlobalAveragePool" not in graph.ops(after)
    assert_same(before, after)
    assert_only_touches(before, after, {"n_s"})


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("sides", [(9,), (3, 5, 4), (1,)], ids=["signal", "clip", "one frame"])
def test_signals_and_clips_are_squeezed_the_same_way(name, sides):
    body, shapes = se(8, 2)
    ones = (1,) * len(sides)
    shapes |= {"f1": (2, 8, *ones), "f2": (8, 2, *ones)}
    dims = f"float[N,8,{','.join(map(str, sides))}]"
    before = build(f"{dims} x", f"{dims} z", body + "z = Relu(y)", shapes)
    after, applied = apply(before, name)
    assert [c.site for c in applied] == ["y"]
    assert "GlobalAveragePool" not in graph.ops(after)
    assert_same(before, after)
    assert_only_touches(before, after, {"n_s"})
    assert apply(after, name)[1] == ()
    assert [b.output for b in detect(after).se] == ["y"]


def test_a_signal_of_free_length_takes_the_mean_in_nhwc_alone():
    body, shapes = se(8, 2)
    shapes |= {"f1": (2, 8, 1), "f2": (8, 2, 1)}
    before = build("float[N,8,T] x", "float[N,8,T] z", body + "z = Relu(y)", shapes)
    assert apply(before, "squeeze-average-pool")[1] == ()
    assert len(apply(before, "squeeze-nhwc-mean")[1]) == 1


@pytest.mark.parametrize("name", SPELLINGS)
def test_twice_is_once(name):
    once, _ = apply(block(), name)
    assert apply(once, name)[1] == ()


def test_the_block_is_found_again_in_either_spelling():
    for name in SPELLINGS:
        after, _ = apply(block(), name)
        assert [b.output for b in detect(after).se] == ["y"]


def test_average_pool_needs_a_known_height_and_width():
    before = block(side=("H", "W"))
    assert apply(before, "squeeze-average-pool")[1] == ()
    after, applied = apply(before, "squeeze-nhwc-mean")
    assert len(applied) == 1
    assert "ReduceMean" in graph.ops(after)


@pytest.mark.parametrize("head", ["GlobalAveragePool(y)", "ReduceMean<keepdims=1>(y, axes)"])
def test_a_head_is_a_place_of_its_own(head):
    body, shapes = se(8, 2)
    shapes["axes"] = np.array([-1, -2], np.int64)
    before = build("float[N,8,4,4] x", "float[N,8,1,1] z", f"{body}z = {head}", shapes)
    for name in SPELLINGS:
        after, applied = apply(before, name)
        assert [c.site for c in applied] == ["y", "z"]
        assert_same(before, after)
        assert_only_touches(before, after, {"n_s", "n_z"})


@pytest.mark.parametrize("head", ["ReduceMean<keepdims=0>(y, axes)", "ReduceMean<keepdims=1>(y, one)"])
def test_another_mean_is_no_pooling(head):
    body, shapes = se(8, 2)
    shapes |= {"axes": np.array([2, 3], np.int64), "one": np.array([2], np.int64)}
    before = build("float[N,8,4,4] x", "float z", f"{body}z = {head}", shapes)
    assert [c.site for c in apply(before, "squeeze-average-pool")[1]] == ["y"]
