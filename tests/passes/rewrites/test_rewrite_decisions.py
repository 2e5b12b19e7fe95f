"""Where a rewrite is possible and which sites are alike, one condition at a time."""

from __future__ import annotations

import numpy as np
import pytest
from rewrites_graphs import apply, assert_same, build, run, se

from se_deploy import graph
from se_deploy.passes import convolution, parts
from se_deploy.passes.rewrites import rewriters
from se_deploy.se_blocks import detect


def rewriter(name):
    return next(r for r in rewriters() if r.name == name)


def sites(model, name, *before):
    """Give the sites of a rewrite, where those of `before` have been applied."""
    return rewriter(name).sites(apply(model, *before)[0] if before else model, detect(model).blocks)


def refusals(model, name):
    blocks = detect(model).blocks
    return [no.reason for no in rewriter(name).refusals(model, blocks)]


# ---- a shortcut with fewer channels


def partial(*, cut="3", tail="9", step="1", of_tail="1", axis="1", x="float[N,3,4,4] x"):
    text = f"""
    lo = Constant<value_ints=[0]>()
    k = Constant<value_ints=[3]>()
    cut = Constant<value_ints=[{cut}]>()
    hi = Constant<value_ints=[{tail}]>()
    axis = Constant<value_ints=[{axis}]>()
    one = Constant<value_ints=[1]>()
    step = Constant<value_ints=[{step}]>()
    of_tail = Constant<value_ints=[{of_tail}]>()
    a = Slice(c, lo, k, axis, step)
    t = Slice(c, cut, hi, one, of_tail)
    s = Add(a, x)
    z = Concat<axis=1>(s, t)
    """
    return build(f"float[N,5,4,4] c, {x}", "float[N,M,P,4] z", text, {})


@pytest.mark.parametrize("tail", ["5", "9"])
def test_a_shortcut_is_padded_where_the_parts_are_the_whole(tail):
    before = partial(tail=tail)
    after, applied = apply(before, "partial-add-as-pad")
    assert [c.site for c in applied] == ["z"]
    assert_same(before, after)


@pytest.mark.parametrize(
    "before",
    [
        partial(tail="4"),
        partial(cut="2"),
        partial(cut="4"),
        partial(step="2", x="float[N,2,4,4] x"),
        partial(of_tail="2"),
        partial(axis="2", x="float[N,5,3,4] x"),
        partial(x="float[] x"),
    ],
    ids=[
        "a part of the rest",
        "overlapping",
        "a gap",
        "every other one",
        "every other one of the rest",
        "rows",
        "an unknown shape",
    ],
)
def test_other_parts_stay_a_concatenation(before):
    assert sites(before, "partial-add-as-pad") == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("z = Concat<axis=1>(c, x)", "partial-add-as-pad"),
        ("s = Relu(c)\nz = Concat<axis=1>(s, x)", "partial-add-as-pad"),
        ("z = Conv<group=5>(c, w)", "concat-behind-depthwise"),
        ("s = Relu(c)\nz = Conv<group=5>(s, w)", "concat-behind-depthwise"),
    ],
)
def test_what_comes_from_elsewhere_is_left_alone(text, name):
    given = {"w": (5, 1, 1, 1)} if "Conv" in text else {}
    assert sites(build("float[N,5,4,4] c, float[N,3,4,4] x", "float[N,M,4,4] z", text, given), name) == ()


@pytest.mark.parametrize(
    "op", ["Add(x, w)", "Mul(x, w)", "MatMul(x, w)", "Concat<axis=0>(x, w)", "Max(x, w)"]
)
def test_a_constant_beside_a_map_makes_no_convolution(op):
    model = build("float[1,4,4,4] x", "float[N,M,P,Q] z", f"y = {op}\nz = Relu(y)", {"w": (1, 4, 4, 4)})
    assert convolution.convolution(model.graph[0]).reason.startswith(
        f"it is {op.partition('(')[0].partition('<')[0]}"
    )


def test_a_last_layer_on_an_unknown_map_is_no_sum():
    body, shapes = se(8, 3)
    model = build(
        "float[N,8,5,5] x", "float[N,4,5,5] z", f"{body}z = Conv(y, wp)", shapes | {"wp": (4, 8, 1, 1)}
    )
    blocks = detect(model).blocks
    moved, _ = apply(model, "gate-into-next-batched")
    assert [s.name for s in rewriter("excite-as-sum").sites(moved, blocks)] == ["y"]
    graph.values(moved)["a"].shape = None
    assert rewriter("excite-as-sum").sites(moved, blocks) == ()


def test_a_cut_that_is_computed_is_no_known_part():
    text = "a = Slice(c, lo, k, one)\nt = Slice(c, k, hi, one)\ns = Add(a, x)\nz = Concat<axis=1>(s, t)"
    numbers = {"lo": np.array([0]), "k": np.array([3]), "hi": np.array([9]), "one": np.array([1])}
    for computed in ("", "lo", "k", "hi"):
        given = {name: array for name, array in numbers.items() if name != computed}
        more = f", int64[1] {computed}" if computed else ""
        model = build(f"float[N,5,4,4] c, float[N,3,4,4] x{more}", "float[N,M,P,4] z", text, given)
        assert [s.name for s in sites(model, "partial-add-as-pad")] == ([] if computed else ["z"])


# ---- a copy into a concatenation


def shared(reader, shape=None, parts="p, d"):
    """A Relu that a concatenation reads, and another node."""
    text = f"p = Relu(u)\nd = {reader}\nk = Concat<axis=1>({parts})\nz = Relu(k)"
    return build("float[N,4,6,6] u", "float[N,M,P,Q] z", text, {"w": shape} if shape else {})


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (shared("Conv<group=4>(p, w)", (4, 1, 1, 1)), True),
        (shared("Conv<group=4>(p, w)", (4, 1, 1, 1), "d, p"), True),
        (shared("Conv<group=2>(p, w)", (4, 2, 1, 1)), False),
        (shared("Conv(p, w)", (4, 4, 1, 1)), False),
        (shared("Sigmoid(p)"), False),
    ],
    ids=["depthwise", "depthwise, first", "groups", "dense", "no convolution"],
)
def test_a_map_is_copied_where_a_depthwise_convolution_reads_it(model, taken):
    assert [s.name for s in sites(model, "concat-of-copies")] == (["k"] if taken else [])


@pytest.mark.parametrize(("kernel", "taken"), [((1, 1), True), ((1, 3), False), ((3, 1), False)])
def test_a_gate_goes_into_a_product_of_1x1_kernels_only(kernel, taken):
    body, shapes = se(8, 3)
    model = build(
        "float[N,8,5,5] x", "float[N,5,P,Q] z", f"{body}z = Conv(y, wp)", shapes | {"wp": (5, 8, *kernel)}
    )
    assert [s.name for s in sites(model, "gate-into-next-batched")] == (["y"] if taken else [])


# ---- the squeeze before the convolution


def squeezed(conv="pads=[1,1,1,1]", side=("6", "6"), fc1="", shapes=None):
    body, constants = se(8, 4, x="c")
    body = body.replace("Conv(s, f1, c1)", f"Conv{fc1}(s, f1, c1)")
    constants |= {"w3": (8, 6, 3, 3), **(shapes or {})}
    sizes = ",".join(side)
    return build(
        f"float[N,6,{sizes}] u", "float[N,8,P,Q] z", f"c = Conv<{conv}>(u, w3)\n{body}z = Relu(y)", constants
    )


def test_a_kernel_is_hoisted_over_where_both_sizes_are_known():
    assert [s.name for s in sites(squeezed(), "hoist-squeeze-kxk")] == ["y"]
    for side in (("H", "6"), ("6", "W")):
        before = squeezed(side=side)
        assert ["free" in reason for reason in refusals(before, "hoist-squeeze-kxk")] == [True]


def test_an_even_kernel_is_not_hoisted_over_whatever_its_padding():
    before = squeezed(shapes={"w3": (8, 6, 2, 2)})
    assert ["not an odd square" in reason for reason in refusals(before, "hoist-squeeze-kxk")] == [True]


def test_a_gated_convolution_that_is_added_and_read_elsewhere_keeps_its_gate():
    body, shapes = se(6, 3, x="c")
    text = f"c = Conv(u, w3)\n{body}q = Conv(x, w2)\nv = Add(y, q)\n"
    shapes |= {"w3": (6, 4, 1, 1), "w2": (6, 5, 1, 1)}
    for tail, taken in (("z = Relu(v)", ["v"]), ("t = Relu(y)\nz = Add(v, t)", [])):
        model = build("float[1,4,3,3] u, float[1,5,3,3] x", "float[1,6,3,3] z", text + tail, shapes)
        assert [s.name for s in sites(model, "gated-add-as-concat", "hoist-squeeze-1x1")] == taken


def test_of_three_layers_the_last_is_the_sum():
    text = """s = GlobalAveragePool(x)\nh = Conv(s, f1)\na = Relu(h)\ni = Conv(a, f2)\nb = Relu(i)
    e = Conv(b, f3)\ng = Sigmoid(e)\ny = Mul(x, g)\nz = Conv(y, wp)"""
    shapes = {"f1": (3, 8, 1, 1), "f2": (5, 3, 1, 1), "f3": (8, 5, 1, 1), "wp": (4, 8, 1, 1)}
    before = build("float[N,8,5,5] x", "float[N,4,5,5] z", text, shapes)
    (site,) = sites(before, "excite-as-sum", "gate-into-next-batched")
    assert site.shape == (8, 5, 1, 1)
    assert_same(before, apply(before, "gate-into-next-batched", "excite-as-sum")[0])


def test_a_first_layer_of_groups_is_not_folded():
    before = squeezed(fc1="<group=2>", shapes={"f1": (4, 4, 1, 1)})
    assert ["of one group" in reason for reason in refusals(before, "hoist-squeeze-kxk")] == [True]


# ---- wide 1x1 convolutions


def wide(c, o, side="4,4"):
    text = "y = Conv(x, w, b)\nz = Relu(y)"
    return build(f"float[N,{c},{side}] x", f"float[N,{o},P,Q] z", text, {"w": (o, c, 1, 1), "b": (o,)})


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (wide(128, 256), True),
        (wide(256, 128), True),
        (wide(256, 127), False),
        (wide(127, 256), False),
        (wide(128, 255), False),
        (wide(128, 256, "H,W"), True),
        (wide(128, 256, "1,1"), False),
        (wide(128, 256, "1,4"), True),
    ],
)
def test_a_convolution_is_wide_from_256_channels_with_128_on_the_other_side(model, taken):
    assert [s.name for s in sites(model, "pointwise-as-convolution")] == (["y"] if taken else [])


# ---- units that never change


def test_the_last_unit_that_stays_is_not_counted_twice():
    """All units give a constant; one stays a unit, and what the others give is in the bias."""
    body, shapes = se(6, 3)
    arrays = {n: np.random.default_rng(0).standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays["f1"][:] = 0
    arrays["c1"] = np.array([1, 2, 3], np.float32)
    before = build("float[N,6,4,4] x", "float[N,6,4,4] z", f"{body}z = Relu(y)", arrays)
    after, applied = apply(before, "dead-hidden-units")
    assert len(applied) == 1
    assert [len(graph.constant(n.inputs[1])) for n in after.graph if n.op_type == "Conv"] == [1, 6]
    assert_same(before, after)


# ---- sites that are alike gain alike


def bottleneck(side, seed=0):
    body, shapes = se(16, 4, x="c")
    text = f"c = Conv(u, w)\n{body}z = Relu(y)"
    shapes |= {"w": (16, 4, 1, 1)}
    return build(f"float[1,4,{side},{side}] u", f"float[1,16,{side},{side}] z", text, shapes, seed=seed)


def pointwise(side, seed=0):
    text = "y = Conv(x, w)\nz = Relu(y)"
    return build(
        f"float[1,256,{side},{side}] x", "float[1,256,P,Q] z", text, {"w": (256, 256, 1, 1)}, seed=seed
    )


def pooled(side, seed=0):
    body, shapes = se(8, 3)
    text = f"{body}z = MaxPool<kernel_shape=[2,2], strides=[2,2]>(y)"
    return build(f"float[N,8,{side},{side}] x", "float[N,8,P,Q] z", text, shapes, seed=seed)


def projected(side, seed=0):
    body, shapes = se(8, 3)
    shapes |= {"wp": (4, 8, 1, 1)}
    text = f"{body}z = Conv(y, wp)"
    return build(f"float[1,8,{side},{side}] x", "float[1,4,P,Q] z", text, shapes, seed=seed)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (bottleneck, ("hoist-squeeze-1x1",)),
        (bottleneck, ("squeeze-average-pool",)),
        (bottleneck, ("hoist-squeeze-1x1", "gate-into-previous")),
        (pointwise, ("pointwise-as-convolution",)),
        (pooled, ("gate-behind-pool",)),
        (projected, ("gate-into-next",)),
        (projected, ("gate-into-next-batched",)),
    ],
    ids=lambda given: given[-1] if isinstance(given, tuple) else "",
)
def test_sites_of_equal_sizes_are_alike_and_others_are_not(make, names):
    """The search plans one of those that are alike, whatever their weights are."""
    *before, name = names
    (first,), (second,), (third,) = (
        sites(model, name, *before) for model in (make(6), make(6, seed=1), make(8))
    )
    assert first.shape == second.shape
    assert first.shape != third.shape


def test_a_maximum_that_also_says_where_it_was_stays_behind_the_gate():
    body, shapes = se(8, 3)
    text = f"{body}z, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(y)"
    before = build("float[N,8,6,6] x", "float[N,8,P,Q] z, int64[N,8,P,Q] i", text, shapes)
    assert ["indices" in reason for reason in refusals(before, "gate-behind-pool")] == [True]


def test_the_two_spellings_of_a_squeeze_take_turns():
    """A site takes one rewrite of a turn."""
    turns = {rewriter(name).tried.turn for name in ("squeeze-average-pool", "squeeze-nhwc-mean")}
    assert len(turns) == 1


@pytest.mark.parametrize("x", ["float[] x", "float[N,3,H,8] x", "float[N,3,8,W] x"])
def test_a_stem_of_an_unknown_size_stays(x):
    text = "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)\nz = Relu(y)"
    assert sites(build(x, "float[N,4,P,Q] z", text, {"w": (4, 3, 3, 3)}), "stem-space-to-depth") == ()
    declared = build(x, "float[N,4,4,4] y", text.partition("\n")[0], {"w": (4, 3, 3, 3)})
    assert sites(declared, "stem-space-to-depth") == ()


@pytest.mark.parametrize(("channels", "taken"), [(1, True), (3, True), (4, False), (5, False), (16, False)])
def test_a_stem_reads_fewer_channels_than_a_compiler_pads_to(channels, taken):
    text = "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)\nz = Relu(y)"
    model = build(f"float[N,{channels},8,8] x", "float[N,4,P,Q] z", text, {"w": (4, channels, 3, 3)})
    assert [s.name for s in sites(model, "stem-space-to-depth")] == (["y"] if taken else [])


@pytest.mark.parametrize(("axes", "taken"), [([2, 3], True), ([-1, -2], True), ([2, -1], True), ([3], False)])
def test_a_mean_over_the_map_is_a_squeeze_by_whichever_name_of_its_axes(axes, taken):
    model = build("float[N,8,4,4] x", "float[N,8,P,Q] z", "z = ReduceMean(x, axes)", {"axes": np.array(axes)})
    assert [s.name for s in sites(model, "squeeze-average-pool")] == (["z"] if taken else [])


def test_parts_of_a_free_number_of_channels_are_not_cut():
    text = "k = Concat<axis=1>(x, u)\nz = Conv(k, w)"
    for channels, taken in (("3", ["k"]), ("C", [])):
        model = build(
            f"float[N,{channels},4,4] x, float[N,5,4,4] u", "float[N,2,4,4] z", text, {"w": (2, 8, 1, 1)}
        )
        assert [s.name for s in sites(model, "concat-as-sum")] == taken


@pytest.mark.parametrize("channels", [(3, 5), (3, 2, 3), (1, 2, 4, 1)])
def test_a_concatenation_of_any_number_of_parts_is_cut(channels):
    names = [f"u{i}" for i in range(len(channels))]
    inputs = ", ".join(f"float[N,{c},4,4] {name}" for c, name in zip(channels, names, strict=True))
    text = f"k = Concat<axis=1>({', '.join(names)})\nz = Conv(k, w, b)"
    before = build(inputs, "float[N,2,4,4] z", text, {"w": (2, 8, 1, 1), "b": (2,)})
    after, applied = apply(before, "concat-as-sum")
    assert [c.site for c in applied] == ["k"]
    assert graph.ops(after).count("Conv") == len(channels)
    assert_same(before, after)


@pytest.mark.parametrize("name", ["even-hidden-units", "dead-hidden-units"])
@pytest.mark.parametrize("layer", ["f1", "f2"])
def test_layers_of_groups_are_no_bottleneck(name, layer):
    body, shapes = se(8, 6)
    shapes[layer] = (shapes[layer][0], shapes[layer][1] // 2, 1, 1)
    read = {"f1": "s", "f2": "a"}[layer]
    body = body.replace(f"Conv({read}, {layer}", f"Conv<group=2>({read}, {layer}")
    model = build("float[N,8,4,4] x", "float[N,8,4,4] z", f"{body}z = Relu(y)", shapes)
    assert ["of one group" in reason for reason in refusals(model, name)] == [True]


def test_an_input_of_the_graph_may_be_negative():
    model = build("float[N,3,1,1] x", "float[N,3,1,1] z", "z = Relu(x)", {})
    assert not parts.is_nonnegative(model.graph.inputs[0])


def test_a_stem_whose_channels_only_its_weights_say_is_folded():
    text = "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)\nz = Relu(y)"
    model = build("float[N,C,8,8] x", "float[N,4,P,Q] z", text, {"w": (4, 3, 3, 3)})
    assert [s.name for s in sites(model, "stem-space-to-depth")] == ["y"]


@pytest.mark.parametrize(("kernel", "pad", "taps"), [(2, 0, 1), (3, 1, 2), (4, 1, 3), (5, 2, 3), (7, 3, 4)])
def test_a_folded_stem_has_no_tap_that_is_always_zero(kernel, pad, taps):
    text = f"y = Conv<strides=[2,2], pads=[{pad},{pad},{pad},{pad}]>(x, w)\nz = Relu(y)"
    before = build("float[N,3,12,12] x", "float[N,4,P,Q] z", text, {"w": (4, 3, kernel, kernel)})
    after, _ = apply(before, "stem-space-to-depth")
    (conv,) = (node for node in after.graph if node.op_type == "Conv")
    assert graph.dims(conv.inputs[1]) == (4, 12, taps, taps)
    assert_same(before, after)


@pytest.mark.parametrize("opset", [11, 20])
def test_a_mean_keeps_its_axes(opset):
    body, shapes = se(8, 2)
    before = build("float[N,8,5,7] x", "float[N,8,5,7] z", f"{body}z = Relu(y)", shapes, opset=opset)
    after, _ = apply(before, "squeeze-nhwc-mean")
    (mean,) = (node for node in after.graph if node.op_type == "ReduceMean")
    assert graph.attribute(mean, "keepdims") == 1
    assert run(after)[0].shape == (2, 8, 5, 7)
    assert ["spelling" in reason for reason in refusals(after, "squeeze-nhwc-mean")] == [True]  # it is one


def test_what_a_moved_gate_computes_has_the_shape_that_was_declared():
    body, shapes = se(6, 3, x="c")
    text = f"c = Conv(u, w3, b3)\n{body}z = Relu(y)"
    shapes |= {"w3": (6, 4, 1, 1), "b3": (6,)}
    model = build("float[1,4,5,5] u", "float[1,6,5,5] z", text, shapes)
    (site,) = sites(model, "gate-into-previous", "hoist-squeeze-1x1")
    after, _ = apply(model, "hoist-squeeze-1x1")
    rewriter("gate-into-previous").apply(after, site)
    products = [node.outputs[0] for node in after.graph if node.op_type == "Mul" and node.outputs[0].uses()]
    assert [graph.dims(value) for value in products] == [(6, 4, 1, 1), (1, 6, 1, 1)]


@pytest.mark.parametrize("computed", ["", "steps", "starts", "ends"])
def test_a_slice_is_whole_where_its_bounds_are_known(computed):
    numbers = {"starts": [0], "ends": [4], "axes": [1], "steps": [1]}
    given = {name: np.array(value) for name, value in numbers.items() if name != computed}
    more = f", int64[1] {computed}" if computed else ""
    for steps in ("", ", steps"):
        text = f"y = Slice(x, starts, ends, axes{steps})\nz = Relu(y)"
        used = {name: array for name, array in given.items() if name != "steps" or steps}
        model = build(f"float[N,4,6,6] x{more}", "float[N,M,P,Q] z", text, used)
        whole = not computed or (computed == "steps" and not steps)
        assert [s.name for s in sites(model, "drop-whole-slice")] == (["y"] if whole else [])


@pytest.mark.parametrize("name", ["gate-behind-pool", "gate-into-next", "gate-into-next-batched"])
def test_a_gate_that_was_moved_is_taken_and_no_fault_of_the_graph(name):
    before = projected(6)
    blocks = detect(before).blocks
    assert not any(no.taken for no in rewriter(name).refusals(before, blocks))
    moved, _ = apply(before, "gate-into-next-batched")
    assert [no.taken for no in rewriter(name).refusals(moved, blocks)] == [True]
