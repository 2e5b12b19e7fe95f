"""Rewrites about a place in the graph: the stem, wide 1x1 convolutions, concatenations, additions; fc2."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites_graphs import apply, assert_only_touches, assert_same, build, se

from se_deploy import graph


def stem(kernel=3, pads=(1, 1, 1, 1), *, channels=3, size=(8, 12), stride=2, attributes="", seed=0):
    text = f"y = Conv<strides=[{stride},{stride}], pads={list(pads)}{attributes}>(x, w, b)\nz = Relu(y)"
    shapes = {"w": (4, channels, kernel, kernel), "b": (4,)}
    return build(f"float[N,{channels},{size[0]},{size[1]}] x", "float[N,4,P,Q] z", text, shapes, seed=seed)


@settings(deadline=None, max_examples=25)
@given(
    kernel=st.integers(2, 7),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    height=st.integers(4, 8),
    seed=st.integers(0, 9),
)
def test_stem_keeps_the_function(kernel, pads, height, seed):
    before = stem(kernel, pads, size=(2 * height, 2 * height + 2), seed=seed)
    after, applied = apply(before, "stem-space-to-depth")
    assert [c.site for c in applied] == ["y"]
    assert_same(before, after)
    assert_only_touches(before, after, {"n_y"})
    assert apply(after, "stem-space-to-depth")[1] == ()


@pytest.mark.parametrize(
    "before",
    [
        stem(stride=1),
        stem(size=(7, 8)),
        stem(channels=4),
        stem(1, (0, 0, 0, 0)),
        stem(attributes=", dilations=[2,2]"),
    ],
    ids=["stride 1", "an odd height", "four channels", "1x1", "dilation"],
)
def test_stem_refuses(before):
    assert apply(before, "stem-space-to-depth")[1] == ()


def wide(c=128, o=256, attributes="", kernel=1, size=4):
    text = f"y = Conv{attributes}(x, w, b)\nz = Relu(y)"
    shapes = {"w": (o, c, kernel, kernel), "b": (o,)}
    return build(f"float[N,{c},{size},{size}] x", f"float[N,{o},P,Q] z", text, shapes)


def test_a_wide_pointwise_convolution_gets_a_dilation():
    before = wide()
    after, applied = apply(before, "pointwise-as-convolution")
    assert [c.site for c in applied] == ["y"]
    assert_same(before, after)
    assert_only_touches(before, after, {"n_y"})
    assert apply(after, "pointwise-as-convolution")[1] == ()


@pytest.mark.parametrize(
    "before",
    [
        wide(16, 16),
        wide(size=1),
        wide(attributes="<strides=[2,2]>"),
        wide(attributes="<pads=[1,1,1,1]>", kernel=3),
    ],
    ids=["narrow", "a map of one pixel", "stride", "3x3"],
)
def test_pointwise_as_convolution_refuses(before):
    assert apply(before, "pointwise-as-convolution")[1] == ()


def concatenated(
    end="z = Conv<pads=[1,1,1,1], strides=[2,2]>(k, w, b)", *, axis=1, shapes=None, first="Relu(u)", seed=0
):
    text = f"p = {first}\nd = Conv<group=4, pads=[1,1,1,1]>(p, wd)\nk = Concat<axis={axis}>(p, d)\n{end}"
    default = {"wd": (4, 1, 3, 3), "w": (5, 8, 3, 3), "b": (5,)} | (shapes or {})
    used = {
        name: shape
        for name, shape in default.items()
        if name in text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    return build("float[N,4,6,6] u", "float[N,M,P,Q] z", text, used, seed=seed)


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 99))
def test_concat_as_sum_keeps_the_function(seed):
    before = concatenated(seed=seed)
    after, applied = apply(before, "concat-as-sum")
    assert [c.site for c in applied] == ["k"]
    assert "Concat" not in graph.ops(after)
    assert_same(before, after)
    assert_only_touches(before, after, {"n_k", "n_z"})


DEPTHWISE = "z = Conv<group=8, pads=[1,1,1,1], strides=[2,2]>(k, w, b)"
DEPTHWISE_SHAPES = {"w": (8, 1, 3, 3), "b": (8,)}


@pytest.mark.parametrize(
    "before",
    [
        concatenated(axis=2),
        concatenated(
            "q = Conv<pads=[1,1,1,1]>(k, w, b)\nz = Add(q, k)", shapes={"w": (8, 8, 3, 3), "b": (8,)}
        ),
        concatenated(DEPTHWISE, shapes=DEPTHWISE_SHAPES),
    ],
    ids=["another axis", "another reader", "groups"],
)
def test_concat_as_sum_refuses(before):
    assert apply(before, "concat-as-sum")[1] == ()


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 99))
def test_concat_behind_depthwise_keeps_the_function(seed):
    before = concatenated(DEPTHWISE, shapes=DEPTHWISE_SHAPES, seed=seed)
    after, applied = apply(before, "concat-behind-depthwise")
    assert [c.site for c in applied] == ["z"]
    assert_same(before, after)
    assert_only_touches(before, after, {"n_k", "n_z"})
    assert apply(after, "concat-behind-depthwise")[1] == ()


@pytest.mark.parametrize(
    "before",
    [
        concatenated(),
        concatenated("q = Conv<group=8, pads=[1,1,1,1]>(k, w, b)\nz = Add(q, k)", shapes=DEPTHWISE_SHAPES),
        concatenated(DEPTHWISE, shapes={"w": (16, 1, 3, 3), "b": (16,)}),
    ],
    ids=["a full convolution", "another reader", "two outputs per channel"],
)
def test_concat_behind_depthwise_refuses(before):
    assert apply(before, "concat-behind-depthwise")[1] == ()


def test_concat_of_copies_is_bit_exact():
    before = concatenated()
    after, applied = apply(before, "concat-of-copies")
    assert [c.site for c in applied] == ["k"]
    assert graph.ops(after).count("Relu") == 2
    assert_same(before, after)
    names = {node.name for node in after.graph}
    assert {node.name for node in before.graph} <= names
    assert apply(after, "concat-of-copies")[1] == ()


@pytest.mark.parametrize("first", ["Sigmoid(u)", "Identity(u)"])
def test_concat_of_copies_needs_a_relu(first):
    assert apply(concatenated(first=first), "concat-of-copies")[1] == ()


def added(*, a="", b="<strides=[2,2]>", wide=(6, 5, 1, 1), end="z = Relu(y)", seed=0):
    text = f"p = Conv{a}(v, w1, b1)\nq = Conv{b}(x, w2, b2)\ny = Add(p, q)\n{end}"
    shapes = {"w1": (6, 4, 1, 1), "b1": (6,), "w2": wide, "b2": (6,)}
    return build("float[N,4,3,3] v, float[N,5,6,6] x", "float[N,6,3,3] z", text, shapes, seed=seed)


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 99))
def test_add_as_concat_keeps_the_function(seed):
    before = added(seed=seed)
    after, applied = apply(before, "add-as-concat")
    assert [c.site for c in applied] == ["y"]
    assert graph.ops(after).count("Conv") == 1
    assert_same(before, after)
    assert_only_touches(before, after, {"n_p", "n_q", "n_y"})


@pytest.mark.parametrize(
    "before",
    [
        added(b="<strides=[2,2], pads=[1,1,0,0]>", wide=(6, 5, 2, 2)),
        added(end="t = Relu(p)\nz = Add(y, t)"),
    ],
    ids=["a larger kernel", "another reader of a term"],
)
def test_add_as_concat_refuses(before):
    assert apply(before, "add-as-concat")[1] == ()


def sum_of(v, x, *, p="Conv(v, w1, b1)", first="p", more=""):
    """A sum of two 1x1 convolutions of inputs of these shapes, the second with stride 2."""
    text = f"p = {p}\n{more}q = Conv<strides=[2,2]>(x, w2, b2)\ny = Add({first}, q)\nz = Relu(y)"
    shapes = {"w1": (6, 4, 1, 1), "b1": (6,), "w2": (6, 5, 1, 1), "b2": (6,)}
    return build(
        f"float[{v}] v, float[{x}] x{', float[1,6,1,1] k' if more else ''}", "float[O,6,P,Q] z", text, shapes
    )


@pytest.mark.parametrize(
    "before",
    [
        sum_of("N,4,H,W", "N,5,G,V"),  # one of them may be a pixel
        sum_of("N,4,3,3", "M,5,6,6"),  # or one image for all
        sum_of("1,4,3,3", "N,5,6,6"),
        sum_of("N,4,?,3", "N,5,?,6"),
        sum_of("1,4,3,3", "N,5,6,6", more="r = Add(p, k)\n", first="r"),
    ],
)  # fmt: skip
def test_add_as_concat_refuses_what_may_be_a_broadcast(before):
    """None stood for each free size, and None is None: two sizes that nobody knew were taken for one."""
    assert apply(before, "add-as-concat")[1] == ()


def test_a_computed_bias_of_more_images_is_no_column():
    text = "p = Conv(v, w1)\nr = Add(p, k)\nq = Conv(x, w2)\ny = Add(r, q)\nz = Relu(y)"
    shapes = {"w1": (6, 4, 1, 1), "w2": (6, 5, 1, 1)}
    given = "float[1,4,3,3] v, float[N,5,3,3] x, float[N,6,1,1] k"
    assert apply(build(given, "float[N,6,3,3] z", text, shapes), "add-as-concat")[1] == ()


def test_add_as_concat_takes_free_sizes_of_one_name():
    text = "p = Conv(v, w1)\nq = Conv(x, w2)\ny = Add(p, q)\nz = Relu(y)"
    shapes = {"w1": (6, 4, 1, 1), "w2": (6, 5, 1, 1)}
    before = build("float[N,4,3,W] v, float[N,5,3,W] x", "float[N,6,3,W] z", text, shapes)
    for value in (node.outputs[0] for node in before.graph):
        value.shape = ir.Shape(["N", 6, 3, "W"])
    assert [c.site for c in apply(before, "add-as-concat")[1]] == ["y"]


def test_add_as_concat_takes_computed_weights():
    body, shapes = se(6, 3, x="c")
    text = f"c = Conv(u, w3, b3)\n{body}q = Conv<strides=[2,2]>(x, w2, b2)\nv = Add(y, q)\nz = Relu(v)"
    shapes |= {"w3": (6, 4, 1, 1), "b3": (6,), "w2": (6, 5, 1, 1), "b2": (6,)}
    before = build("float[1,4,3,3] u, float[1,5,6,6] x", "float[1,6,3,3] z", text, shapes)
    after, applied = apply(before, "hoist-squeeze-1x1", "gate-into-previous", "add-as-concat")
    assert len(applied) == 3
    assert_same(before, after)


def test_add_as_concat_adds_a_constant_bias_once():
    """Both terms hold a gate's bias, which is computed; the constant ones go into one of them only."""
    text = """p = Conv(v, w1, b1)\npk = Add(p, k1)\nq = Conv<strides=[2,2]>(x, w2, b2)\nqk = Add(q, k2)
    y = Add(pk, qk)\nz = Relu(y)"""
    before = build(
        "float[1,4,3,3] v, float[1,5,6,6] x, float[1,6,1,1] k1, float[1,6,1,1] k2",
        "float[1,6,3,3] z",
        text,
        {"w1": (6, 4, 1, 1), "b1": (6,), "w2": (6, 5, 1, 1), "b2": (6,)},
    )
    after, applied = apply(before, "add-as-concat")
    assert [c.site for c in applied] == ["y"]
    assert graph.ops(after).count("Conv") == 1
    assert_same(before, after)


@pytest.mark.parametrize("bias", [True, False])
def test_gated_add_as_concat_keeps_the_function(bias):
    before = shortcut(bias=bias)
    after, applied = apply(before, "hoist-squeeze-1x1", "gated-add-as-concat")
    assert [c.site for c in applied] == ["y", "v"]
    assert graph.ops(after).count("Conv") == 3  # fc1, fc2 and one for both
    assert_same(before, after)
    assert_only_touches(before, after, {"n_s", "n_h", "n_c", "n_y", "n_q", "n_v"})
    assert apply(after, "gated-add-as-concat")[1] == ()


@pytest.mark.parametrize("options", [{"batch": "N"}, {"end": "t = Relu(q)\nw = Add(v, t)\nz = Relu(w)"}])
def test_gated_add_as_concat_refuses(options):
    assert apply(shortcut(**options), "hoist-squeeze-1x1", "gated-add-as-concat")[1][1:] == ()


def test_gated_add_as_concat_waits_for_the_hoist():
    assert apply(shortcut(), "gated-add-as-concat")[1] == ()


def shortcut(*, batch=1, bias=True, end="z = Relu(v)"):
    """A bottleneck's end with a projected shortcut: relu(g (W u + b) + W2 x)."""
    body, shapes = se(6, 3, x="c")
    conv = "Conv(u, w3, b3)" if bias else "Conv(u, w3)"
    text = f"c = {conv}\n{body}q = Conv<strides=[2,2]>(x, w2, b2)\nv = Add(y, q)\n{end}"
    shapes |= {"w3": (6, 4, 1, 1), "w2": (6, 5, 1, 1), "b2": (6,)} | ({"b3": (6,)} if bias else {})
    return build(f"float[{batch},4,3,3] u, float[{batch},5,6,6] x", f"float[{batch},6,3,3] z", text, shapes)


PARTIAL = """
    lo = Constant<value_ints=[{head}]>()
    k = Constant<value_ints=[{cut}]>()
    hi = Constant<value_ints=[{tail}]>()
    one = Constant<value_ints=[1]>()
    a = Slice(c, lo, k, one)
    t = Slice(c, k, hi, one)
    s = Add(a, x)
    z = Concat<axis=1>(s, t)
    """


def partial(head="0", cut="3", tail="9", size="4", seed=0):
    text = PARTIAL.format(head=head, cut=cut, tail=tail)
    return build(f"float[N,5,4,4] c, float[N,3,4,{size}] x", "float[N,M,4,4] z", text, {}, seed=seed)


def test_partial_add_as_pad_keeps_the_function():
    before = partial()
    after, applied = apply(before, "partial-add-as-pad")
    assert [c.site for c in applied] == ["z"]
    assert graph.ops(after) == ["Pad", "Add"]
    assert_same(before, after)


@pytest.mark.parametrize(
    "before", [partial(tail="4"), partial(size="1")], ids=["not the whole map", "a broadcast"]
)
def test_partial_add_as_pad_refuses(before):
    assert apply(before, "partial-add-as-pad")[1] == ()


@pytest.mark.parametrize(
    ("c", "x", "applied"),
    [
        ("N,5,4,W", "N,3,4,W", True), ("N,5,H,W", "N,3,G,W", False), ("N,5,?,4", "N,3,?,4", False),
        ("1,5,4,4", "N,3,4,4", False), ("?,5,4,4", "?,3,4,4", True),
    ],
)  # fmt: skip
def test_partial_add_as_pad_asks_for_sizes_that_are_known_to_be_equal(c, x, applied):
    """A free size is None, and None is None: two sizes that nobody knew were taken for one."""
    before = build(
        f"float[{c}] c, float[{x}] x", "float[N,M,P,Q] z", PARTIAL.format(head=0, cut=3, tail=9), {}
    )
    assert [one.site for one in apply(before, "partial-add-as-pad")[1]] == (["z"] if applied else [])


@pytest.mark.parametrize("size", ["4", "4,4,4"], ids=["a signal", "a clip"])
def test_partial_add_as_pad_is_about_maps(size):
    text = """
    lo = Constant<value_ints=[0]>()
    k = Constant<value_ints=[3]>()
    hi = Constant<value_ints=[5]>()
    one = Constant<value_ints=[1]>()
    a = Slice(c, lo, k, one)
    t = Slice(c, k, hi, one)
    s = Add(a, x)
    z = Concat<axis=1>(s, t)
    """
    before = build(f"float[N,5,{size}] c, float[N,3,{size}] x", f"float[N,5,{size}] z", text, {})
    assert apply(before, "partial-add-as-pad")[1] == ()


def gated(reduced=3, seed=0):
    body, shapes = se(8, reduced)
    return build(
        "float[N,8,5,5] x",
        "float[N,4,5,5] z",
        f"{body}z = Conv(y, wp)",
        shapes | {"wp": (4, 8, 1, 1)},
        seed=seed,
    )


@settings(deadline=None, max_examples=6)
@given(reduced=st.integers(1, 64), seed=st.integers(0, 99))
def test_excite_as_sum_keeps_the_function(reduced, seed):
    before = gated(reduced, seed)
    moved, _ = apply(before, "gate-into-next-batched")
    after, applied = apply(before, "gate-into-next-batched", "excite-as-sum")
    assert [c.rewrite for c in applied] == ["gate-into-next-batched", "excite-as-sum"]
    assert_same(before, after)
    assert_only_touches(moved, after, {"n_e"})


def test_excite_as_sum_refuses_many_units_and_a_gate_on_a_map():
    assert apply(gated(65), "gate-into-next-batched", "excite-as-sum")[1][1:] == ()
    assert apply(gated(), "excite-as-sum")[1] == ()


def test_a_rewrite_leaves_weights_of_the_caller_alone():
    before = stem()
    weights = graph.constant(before.graph.initializers["w"]).copy()
    apply(before, "stem-space-to-depth")
    np.testing.assert_array_equal(graph.constant(before.graph.initializers["w"]), weights)


def sliced(bounds, end="z = Relu(y)", axes="1", out="z"):
    text = f"y = Slice(x, starts, ends, axes, steps)\n{end}"
    given = {"starts": bounds[0], "ends": bounds[1], "axes": [int(axes)], "steps": bounds[2]}
    arrays = {name: np.array(value, np.int64) for name, value in given.items()}
    return build("float[N,4,H,6] x", f"float[N,M,P,Q] {out}", text, arrays)


@pytest.mark.parametrize(
    ("end", "axis"), [(4, "1"), (9, "1"), (2**62, "1"), (2**63 - 1, "1"), (2**63 - 1, "2")]
)
def test_a_whole_slice_goes(end, axis):
    before = sliced(([0], [end], [1]), axes=axis)
    after, applied = apply(before, "drop-whole-slice")
    assert [c.site for c in applied] == ["y"]
    assert graph.ops(after) == ["Relu"]


@pytest.mark.parametrize(
    "before",
    [
        sliced(([1], [4], [1])),
        sliced(([0], [3], [1])),
        sliced(([0], [4], [2])),
        sliced(([0], [4], [1]), axes="2"),
        sliced(([0], [4], [1]), end="z = Relu(x)", out="y"),
    ],
    ids=["a later start", "an earlier end", "a step", "an unknown size", "an output of the graph"],
)
def test_a_slice_of_less_stays(before):
    assert apply(before, "drop-whole-slice")[1] == ()
