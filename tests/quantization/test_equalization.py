import dataclasses
import re

import numpy as np
import pytest
from layer_graphs import RUNTIME, image, model_of, run, weights
from ptq_graphs import FAST, samples_of

from se_deploy import calibration, graph
from se_deploy.backends import registry
from se_deploy.quantization import equalization, quantize

REORDERED = {"rtol": 2e-4, "atol": 2e-5}  # FP32 sums of weights that were multiplied and divided by up to e^2

FRONT = "a = Conv<pads = [1,1,1,1]>(x, w, b) "
BACK = " y = Conv(t, v)"
EXACT = {
    "relu": "t = Relu(a)",
    "leaky": "t = LeakyRelu<alpha = 0.3>(a)",
    "prelu": "t = PRelu(a, slope)",
    "linear": "t = Identity(a)",
    "clip that is a relu": "t = Clip(a, zero)",
    "clip that is nothing": "t = Clip(a)",
    "max pool": "r = Relu(a) t = MaxPool<kernel_shape = [2,2]>(r)",
    "average pool": "t = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(a)",
    "resizing": 't = Resize<mode = "linear">(a, roi, twice)',
    "residual": "r = Relu(a) c = Conv(r, u) s = Add(c, r) t = Relu(s)",
    "add of a constant": "r = Relu(a) t = Add(r, column)",
    "product with a constant": "r = Relu(a) t = Mul(r, column)",
    "quotient by a constant": "r = Relu(a) t = Div(r, column)",
    "depthwise": "r = Relu(a) d = Conv<group = 6, pads = [1,1,1,1]>(r, dw, bd) t = Relu(d)",
    "groups": "r = Relu(a) d = Conv<group = 2>(r, gw, bd) t = Relu(d)",
    "transposed": "r = Relu(a) d = ConvTranspose<group = 2>(r, tw, bd) t = Relu(d)",
    "a slope that is computed": "c = Conv<pads = [1,1,1,1]>(x, w) s = Relu(c) t = PRelu(a, s)",
    "se": "r = Relu(a) p = GlobalAveragePool(r) f = Conv(p, w1, b1) g = Relu(f) h = Conv(g, w2, bd) "
    "i = Sigmoid(h) t = Mul(r, i)",
    "residual se": "p = GlobalAveragePool(a) f = Conv(p, w1, b1) g = Relu(f) h = Conv(g, w2, bd) "
    "i = HardSigmoid(h) m = Mul(i, a) t = Add(a, m)",
}
BOUNDED = {  # which operators hold the bounds of each channel
    "relu6": ("t = Clip(a, zero, six)", ["Min", "Relu"]),
    "two bounds": ("t = Clip(a, below, one)", ["Max", "Min"]),
    "bounds above zero": ("t = Clip(a, one, six)", ["Max", "Min"]),
    "bounds below zero": ("t = Clip(a, lower, below)", ["Max", "Min"]),
    "bounds that are crossed": ("t = Clip(a, zero, below)", ["Max", "Min"]),
    "a bound at the end of float32": ("t = Clip(a, zero, largest)", ["Min", "Relu"]),
    "a bound above": ("t = Clip(a, , one)", ["Min"]),
    "a bound below": ("t = Clip(a, below)", ["Max"]),
    "relu6 behind a depthwise one": (
        "r = Clip(a, zero, six) d = Conv<group = 6, pads = [1,1,1,1]>(r, dw, bd) t = Clip(d, zero, six)",
        ["Min", "Min", "Relu", "Relu"],
    ),
    "relu6 behind a sum": (
        "r = Clip(a, zero, six) c = Conv(r, u) s = Add(c, r) t = Relu(s)",
        ["Min", "Relu"],
    ),
}
POINTWISE = {
    "hardswish": "t = HardSwish(a)",
    "silu": "s = Sigmoid(a) t = Mul(a, s)",
    "se behind hardswish": "r = HardSwish(a) p = GlobalAveragePool(r) f = Conv(p, w1, b1) g = Relu(f) "
    "h = Conv(g, w2, bd) i = Sigmoid(h) t = Mul(r, i)",
}
NOT_EXACT = {
    "a bound that is no number": "t = Clip(a, zero, nan)",
    "a lower bound without end": "t = Clip(a, endless, six)",
    "an upper bound below all": "t = Clip(a, zero, below_all)",
    "a number from beyond the map": 'r = Relu(a) t = Resize<mode = "linear", extrapolation_value = 5.0, '
    'coordinate_transformation_mode = "tf_crop_and_resize">(r, wider, , sizes)',
    "sigmoid": "t = Sigmoid(a)",
    "a bound that is computed": "k = ReduceMax<keepdims = 0>(a) t = Clip(a, zero, k)",
    "channels that meet": "t = Softmax<axis = 1>(a)",
    "another order of axes": "t = Transpose<perm = [0,1,3,2]>(a)",
    "computed weights": "e = Relu(a) c = Conv(x, w) k = ReduceMean<keepdims = 1>(c) z = Mul(u, k) "
    "q = Conv(e, z) t = Add(e, q)",
    "an input of the graph": "t = Add(a, x6)",
}
CONSTANTS = {
    "w": weights(6, 4, 3, 3), "b": weights(6), "v": weights(5, 6, 1, 1), "u": weights(6, 6, 1, 1, seed=4),
    "dw": weights(6, 1, 3, 3), "gw": weights(6, 3, 1, 1), "tw": weights(6, 3, 2, 2), "bd": weights(6, seed=5),
    "w1": weights(3, 6, 1, 1), "b1": weights(3), "w2": weights(6, 3, 1, 1), "slope": np.abs(weights(6, 1, 1)),
    "roi": np.zeros(0, np.float32), "twice": np.array([1, 1, 2, 2], np.float32),
    "largest": np.array(np.finfo(np.float32).max), "nan": np.array(np.nan, np.float32),
    "endless": np.array(np.inf, np.float32), "below_all": np.array(-np.inf, np.float32),
    "wider": np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32), "sizes": np.array([2, 6, 8, 8]),
    "column": weights(6, 1, 1, seed=6) + 2, "zero": np.zeros((), np.float32), "one": np.ones((), np.float32),
    "six": np.array(6, np.float32), "below": np.array(-0.5, np.float32), "lower": np.array(-2, np.float32),
}  # fmt: skip


def network(body):
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = [(name, array) for name, array in CONSTANTS.items() if name in words]
    inputs = "float[N,4,8,8] x" + (", float[N,6,8,8] x6" if "x6" in words else "")
    return model_of(body, used, inputs=inputs, output="float[N,5,h,k] y")


def drawn(groups, seed=0):
    random = np.random.default_rng(seed)
    return {group: np.exp(random.uniform(-2, 2, group.channels)) for group in groups}


def tensors(groups):
    return {name for group in groups for name in group.tensors}


def conv_inputs(model):
    return [node.inputs[0].name for node in model.graph if node.op_type == "Conv"]


BODIES = EXACT | POINTWISE | {name: body for name, (body, _) in BOUNDED.items()}


@pytest.mark.parametrize("name", BODIES)
def test_folded_factors_keep_the_function_and_divide_the_tensors(name):
    model = network(FRONT + BODIES[name] + BACK)
    groups = equalization.groups(model, ["t"], pointwise=True)
    assert "t" in tensors(groups)
    factors = drawn(groups)
    folded = equalization.fold(model, factors).model
    graph.check(folded)
    np.testing.assert_allclose(run(folded, x=image()), run(model, x=image()), **REORDERED)
    (group,) = groups
    for one in group.tensors:
        exact, divided = (inner(m, one) for m in (model, folded))
        d = factors[group].reshape([-1 if i == group.axis else 1 for i in range(exact.ndim)])
        np.testing.assert_allclose(divided * d, exact, **REORDERED)


def inner(model, name):
    """What a tensor inside of the graph holds for the image."""
    with RUNTIME.open(calibration.with_outputs(model, [name])) as session:
        return session.run({"x": image()})[name]


@pytest.mark.parametrize("name", EXACT)
def test_nothing_new_stands_in_the_graph(name):
    model = network(FRONT + EXACT[name] + BACK)
    folded = equalization.fold(model, drawn(equalization.groups(model, ["t"], pointwise=False))).model
    assert graph.ops(folded) == graph.ops(model)


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_of_each_channel_take_the_place_of_a_clip(name):
    body, expected = BOUNDED[name]
    model = network(FRONT + body + BACK)
    groups = equalization.groups(model, ["r", "t"], pointwise=False)
    folded = equalization.fold(model, drawn(groups)).model
    gone = [op for op in graph.ops(model) if op != "Clip"]
    assert sorted(graph.ops(folded)) == sorted([*gone, *expected])


@pytest.mark.parametrize("name", POINTWISE)
def test_a_pointwise_kernel_gets_a_product_behind_it_where_it_may(name):
    model = network(FRONT + POINTWISE[name] + BACK)
    assert "t" not in tensors(equalization.groups(model, ["t"], pointwise=False))
    folded = equalization.fold(model, drawn(equalization.groups(model, ["t"], pointwise=True))).model
    assert sorted(graph.ops(folded)) == sorted([*graph.ops(model), "Mul"])


@pytest.mark.parametrize("name", NOT_EXACT)
def test_what_does_not_commute_with_a_factor_is_left_alone(name):
    model = network(FRONT + NOT_EXACT[name] + BACK)
    assert "t" not in tensors(equalization.groups(model, ["t"], pointwise=True))


def test_a_graph_output_keeps_its_scale():
    model = network(FRONT + "t = Relu(a)" + BACK)
    model.graph.outputs.append(graph.values(model)["a"])
    assert not equalization.groups(model, ["t"], pointwise=True)


def test_branches_of_an_add_share_their_factors():
    model = network(FRONT + EXACT["residual"] + BACK)
    (group,) = equalization.groups(model, ["t", "r"], pointwise=True)
    assert {"a", "r", "c", "s", "t"} == set(group.tensors)


def test_a_gate_is_not_divided_and_its_product_passes_the_factors_on():
    model = network(FRONT + EXACT["se"] + BACK)
    (group,) = equalization.groups(model, ["t"], pointwise=True)
    assert {"a", "r", "p", "t"} == set(group.tensors)


def test_a_shared_weight_is_left_to_who_else_reads_it():
    model = network(FRONT + "r = Relu(a) c = Conv(r, u) k = Sigmoid(c) n = Conv(k, u) t = Relu(n)" + BACK)
    groups = [g for g in equalization.groups(model, ["r"], pointwise=True) if "r" in g.tensors]
    folded = equalization.fold(model, drawn(groups)).model
    np.testing.assert_allclose(run(folded, x=image()), run(model, x=image()), **REORDERED)


def test_channels_may_be_the_last_axis():
    model = model_of(
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)",
        [("w", weights(4, 6)), ("v", weights(6, 3))],
        inputs="float[N,7,4] x",
        output="float[N,7,3] y",
    )
    (group,) = equalization.groups(model, ["r"], pointwise=True)
    assert (group.axis, group.channels) == (2, 6)
    x = np.random.default_rng(0).standard_normal((2, 7, 4)).astype(np.float32)
    folded = equalization.fold(model, drawn([group])).model
    np.testing.assert_allclose(run(folded, x=x), run(model, x=x), **REORDERED)


VECTOR, ROWS, MAPS = "float[6,4] x", "float[N,5,4] x", "float[N,4,3,3] x"
BIASED = "a = Gemm(x, w, b) r = Relu(a) y = MatMul(r, v)"
GEMM = "a = Gemm(x, w) r = Relu(a) "
WITH_SHAPES_OF_THEIR_OWN = {  # input, graph, output, constants beside w and v
    "a bias for each row": (VECTOR, BIASED, "6,3", {"b": (6, 1)}),
    "a bias for each number": (VECTOR, BIASED, "6,3", {"b": (6, 6)}),
    "a mean over the channels": (
        ROWS, "a = MatMul(x, w) r = Relu(a) m = ReduceMean(r, two) y = MatMul(m, row)", "N,5,3",
        {"row": (1, 3)},
    ),
    "a product with what has an axis more": (
        VECTOR, GEMM + "q = Mul(r, planes) y = MatMul(q, v)", "2,6,3", {"planes": (2, 1, 1)},
    ),
    "a sum with what has an axis more": (
        VECTOR, GEMM + "q = Add(r, planes) y = Conv(q, k)", "2,3,6",
        {"planes": (2, 1, 1), "k": (3, 6, 1)},
    ),
    "a sum with what has more channels": (
        MAPS, "a = Conv(x, one) r = Relu(a) q = Add(r, column) y = Conv(q, k)", "N,3,3,3",
        {"one": (1, 4, 1, 1), "column": (6, 1, 1), "k": (3, 6, 1, 1)},
    ),
    "a map whose only channel is last": (
        "float[N,5,1,4] x", "a = MatMul(x, last) r = Relu(a) q = Reshape(r, flat) y = Mul(q, k)", "N,5",
        {"last": (4, 1), "k": (1,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_SHAPES_OF_THEIR_OWN)
def test_factors_of_every_group_keep_the_function_whatever_is_broadcast(name):
    inputs, body, output, shapes = WITH_SHAPES_OF_THEIR_OWN[name]
    known = {"w": weights(4, 6), "v": weights(6, 3), "two": np.array([2]), "flat": np.array([0, 5])}
    known |= {name: weights(*shape, seed=len(name)) + 1 for name, shape in shapes.items()}
    used = [(name, array) for name, array in known.items() if name in re.findall(r"\w+", body)]
    model = model_of(body, used, inputs=inputs, output=f"float[{output}] y")
    every = [value.name for node in model.graph for value in node.outputs]
    folded = equalization.fold(model, drawn(equalization.groups(model, every, pointwise=True))).model
    shape = [d or 2 for d in graph.dims(model.graph.inputs[0])]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(run(folded, x=x), run(model, x=x), **REORDERED)


def test_what_a_branch_reads_keeps_its_scale():
    branch = "If(yes) <then_branch = one () => (float[N,6,8,8] p) { p = Relu(t) }, "
    branch += "else_branch = two () => (float[N,6,8,8] q) { q = Identity(t) }>"
    model = network(FRONT + f"t = Relu(a) z = Conv(t, u) yes = Cast<to = 9>(one) s = {branch} m = Add(z, s)"
                    + BACK.replace("t", "m"))  # fmt: skip
    assert not tensors(equalization.groups(model, ["t"], pointwise=True))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("t = HardSwish(a)", True),
        ("s = Sigmoid(a) t = Mul(a, s)", True),
        ("r = HardSwish(a) q = HardSwish(r) t = Add(q, r)", True),
        ("r = HardSwish(a) s = Add(r, a) t = Relu(s)", True),
        ("t = Relu(a)", False),
        ("r = Relu(a) c = Conv(r, u) s = Add(c, r) t = Relu(s)", False),
        ("t = Conv(a, u)", False),
    ],
)
def test_an_offset_goes_where_no_convolution_writes_int8_itself(body, expected):
    model = network(FRONT + body + BACK)
    assert equalization.in_pointwise_kernel(graph.values(model)["t"]) is expected


def test_factors_that_leave_weights_without_a_scale_are_left_out(tmp_path):
    random = np.random.default_rng(1)
    shapes = {"w": (4, 4, 3, 3), "v": (4, 1, 3, 3), "u": (4, 4, 1, 1)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["w"] *= np.geomspace(1, 1 / 64, 4, dtype=np.float32).reshape(4, 1, 1, 1)
    arrays["v"] *= 8e-6 / np.abs(arrays["v"]).max()  # the least that an INT8 tensor resolves is 7.6e-6
    body = "a = Conv<pads = [1,1,1,1]>(x, w) r = Relu(a) c = Conv<pads = [1,1,1,1], group = 4>(r, v) "
    made = model_of(
        body + "t = Relu(c) y = Conv(t, u)",
        arrays.items(),
        inputs="float[N,4,12,12] x",
        output="float[N,4,12,12] y",
    )
    x = np.random.default_rng(0).standard_normal((16, 4, 12, 12))
    options = dataclasses.replace(FAST, policy=registry.policy("tensorrt"), base_precision="fp32")
    done = quantize(made, samples_of(tmp_path, x=x), runtime=RUNTIME, options=options)
    assert done.macs_int8_fraction == 1
