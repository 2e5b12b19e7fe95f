"""Every operator against numpy: float16 operands, computed in float32, rounded once to float16."""

import layer_graphs
import numpy as np
import onnx_ir as ir
import pytest
from layer_graphs import RUNTIME, run
from onnx.reference import ReferenceEvaluator

from se_deploy import graph
from se_deploy.errors import BadArtifact, UnsupportedGraph
from se_deploy.plan import Kernel, Plan, PlanTensor
from se_deploy.quantization import fp16_rounding
from se_deploy.quantization.fp16_rounding import rounded

SUM_ERROR = 1e-5  # float32 adds a few hundred terms of size 1 in another order
EDGES = [
    0.0,
    -0.0,
    6e-8,
    -6e-8,
    3e-5,
    6.1e-5,
    1.0,
    -1.0,
    2047.5,
    60000.0,
    -60000.0,
    65504.0,
    np.inf,
    -np.inf,
    np.nan,
]
"""Zeros, the smallest subnormal, subnormals, the smallest normal, 12 bits, the largest, and no numbers."""


def model_of(body, constants=None, *, inputs="float[2,4,6,6] x", **kw):
    return layer_graphs.model_of(body, (constants or {}).items(), inputs=inputs, **kw)


def to_half(array):
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32).astype(np.float16)


def reference(op, operands, constants):
    """`op` by onnx's reference in numpy, on the float16 operands widened, rounded once."""
    wide = {
        n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in (operands | constants).items()
    }
    declared = ", ".join(
        f"float[{','.join(map(str, a.shape))}] {n}" for n, a in wide.items() if a.dtype == np.float32
    )
    fixed = {n: a for n, a in wide.items() if a.dtype != np.float32}
    model = model_of(f"y = {op}", fixed, inputs=declared)
    feeds = {n: a for n, a in wide.items() if a.dtype == np.float32}
    with np.errstate(all="ignore"):
        return to_half(ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0])


def evaluated(op, operands, constants):
    """`op` in an FP16 graph with FP32 edges, by the rounding graph."""
    casts = " ".join(f"{n} = Cast<to = 10>({n}_in)" for n in operands)
    declared = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}_in" for n, a in operands.items())
    model = rounded(model_of(f"{casts} r = {op} y = Cast<to = 1>(r)", constants, inputs=declared))
    graph.check(model)
    y = run(model, **{f"{n}_in": a.astype(np.float32) for n, a in operands.items()})
    assert y.dtype == np.float32
    assert np.array_equal(y.astype(np.float16).astype(np.float32), y, equal_nan=True), "not rounded"
    return y.astype(np.float16)


def numbers(*shape, seed=0, scale=1.0):
    return to_half(np.random.default_rng(seed).standard_normal(shape) * scale)


def edges(*shape, seed=0):
    """Every number of EDGES among others of all sizes that float16 has."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal(np.prod(shape)) * 2.0 ** rng.integers(-24, 16, np.prod(shape))
    spread[: len(EDGES)] = EDGES
    return to_half(rng.permutation(spread).reshape(shape))


EXACT = {
    "Relu": "Relu(x)", "LeakyRelu": "LeakyRelu<alpha = 0.1>(x)", "Neg": "Neg(x)", "Abs": "Abs(x)",
    "Sqrt": "Sqrt(x)", "Reciprocal": "Reciprocal(x)", "Floor": "Floor(x)", "Ceil": "Ceil(x)",
    "Add": "Add(x, z)", "Sub": "Sub(x, z)", "Mul": "Mul(x, z)", "Div": "Div(x, z)", "square": "Mul(x, x)",
    "Identity": "Identity(x)", "Transpose": "Transpose<perm = [0,2,3,1]>(x)",
    "Concat": "Concat<axis = 1>(x, z)", "Flatten": "Flatten(x)",
    "DepthToSpace": "DepthToSpace<blocksize = 2>(x)",
    "SpaceToDepth": "SpaceToDepth<blocksize = 2>(x)", "Sum": "Sum(x, z)",
}  # fmt: skip
"""One float32 operation an element, or none: the bits are the same."""

ONE_ULP = {
    "Sigmoid": "Sigmoid(x)", "Tanh": "Tanh(x)", "Exp": "Exp(x)", "Log": "Log(x)", "Erf": "Erf(x)",
    "Softplus": "Softplus(x)", "Elu": "Elu(x)", "Selu": "Selu(x)", "Gelu": "Gelu(x)", "Mish": "Mish(x)",
    "HardSigmoid": "HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)", "HardSwish": "HardSwish(x)",
    "Softsign": "Softsign(x)", "Celu": "Celu(x)", "ThresholdedRelu": "ThresholdedRelu(x)",
    "Softmax": "Softmax<axis = 1>(x)", "LogSoftmax": "LogSoftmax<axis = 1>(x)",
}  # fmt: skip
"""Functions that each library approximates in float32: a value at a rounding edge may go either way."""


@pytest.mark.parametrize("op", EXACT.values(), ids=EXACT)
def test_an_exact_operator_has_numpys_bits(op):
    operands = {"x": edges(2, 4, 6, 6)} | ({"z": edges(2, 4, 6, 6, seed=1)} if "z" in op else {})
    np.testing.assert_array_equal(evaluated(op, operands, {}), reference(op, operands, {}))


@pytest.mark.parametrize("op", ONE_ULP.values(), ids=ONE_ULP)
def test_a_function_is_numpys_within_one_rounding(op):
    operands = {"x": numbers(2, 4, 6, 6, scale=4)}
    np.testing.assert_array_max_ulp(evaluated(op, operands, {}), reference(op, operands, {}), maxulp=1)


SATURATING = {"Sigmoid": "Sigmoid(x)", "Tanh": "Tanh(x)", "HardSigmoid": "HardSigmoid(x)", "Exp": "Exp(x)"}


@pytest.mark.parametrize("op", SATURATING.values(), ids=SATURATING)
def test_functions_at_the_edges_of_fp16(op):
    x = to_half([EDGES]).reshape(1, 1, 3, 5)
    found, wanted = evaluated(op, {"x": x}, {}), reference(op, {"x": x}, {})
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    finite = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(wanted))
    np.testing.assert_allclose(
        found[finite].astype(float), wanted[finite].astype(float), rtol=2e-3, atol=1e-7
    )


LAYERS = {
    "Conv": ("Conv<pads = [1,1,1,1]>(x, w, b)", {"w": (8, 4, 3, 3), "b": (8,)}),
    "Conv depthwise": ("Conv<group = 4, strides = [2,2]>(x, w)", {"w": (4, 1, 3, 3)}),
    "Conv 1x1": ("Conv(x, w)", {"w": (8, 4, 1, 1)}),
    "ConvTranspose": ("ConvTranspose<strides = [2,2]>(x, w)", {"w": (4, 3, 2, 2)}),
    "MatMul": ("MatMul(x, w)", {"w": (6, 5)}),
    "GlobalAveragePool": ("GlobalAveragePool(x)", {}),
    "AveragePool": ("AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(x)", {}),
    "MaxPool": ("MaxPool<kernel_shape = [2,2], strides = [2,2]>(x)", {}),
    "GlobalMaxPool": ("GlobalMaxPool(x)", {}),
    "LpPool": ("LpPool<kernel_shape = [2,2], strides = [2,2]>(x)", {}),
    "ReduceMean": ("ReduceMean(x, axes)", {}),
    "ReduceSum": ("ReduceSum(x, axes)", {}),
    "ReduceMax": ("ReduceMax(x, axes)", {}),
    "ReduceL2": ("ReduceL2(x, axes)", {}),
    "BatchNormalization": ("BatchNormalization(x, g, b, m, v)", dict.fromkeys("gbmv", (4,))),
    "LayerNormalization": ("LayerNormalization<axis = 3>(x, g, b)", dict.fromkeys("gb", (6,))),
    "InstanceNormalization": ("InstanceNormalization(x, g, b)", dict.fromkeys("gb", (4,))),
    "PRelu": ("PRelu(x, s)", {"s": (4, 1, 1)}),
    "Pow": ("Pow(p, two)", {}),
    "Clip": ("Clip(x, low, high)", {}),
    "Min and Max": ("Max(x, low)", {}),
    "Resize nearest": ('Resize<mode = "nearest">(x, , scales)', {}),
    "Resize linear": ('Resize<mode = "linear">(x, , scales)', {}),
    "Gemm": ("Gemm<transB = 1>(x2, w, b)", {"w": (5, 6), "b": (5,)}),
    "Pad": ("Pad(x, pads)", {}),
    "Reshape": ("Reshape(x, shape)", {}),
    "Slice": ("Slice(x, starts, ends)", {}),
    "Where": ("Where(mask, x, w)", {"w": (4, 1, 1)}),
    "Tile": ("Tile(x, repeats)", {}),
    "Expand": ("Expand(x, map)", {}),
    "Gather": ("Gather<axis = 1>(x, at)", {}),
    "Unsqueeze": ("Unsqueeze(x, at)", {}),
    "Mean": ("Mean(x, w)", {"w": (4, 1, 1)}),
    "Einsum": ('Einsum<equation = "nchw,co->nohw">(x, w)', {"w": (4, 8)}),
    "Batched MatMul": ("MatMul(x, x)", {}),
}
OTHERS = {
    "axes": np.array([2, 3]), "two": to_half(2.0), "low": to_half(-0.5), "high": to_half(0.5),
    "scales": np.float32([1, 1, 2, 2]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "shape": np.array([2, -1]), "starts": np.array([0, 1]), "ends": np.array([1, 3]),
    "mask": np.array([True, False, True, True, False, False]), "repeats": np.array([1, 2, 1, 1]),
    "map": np.array([3, 2, 4, 6, 6]), "at": np.array([0, 2]),
}  # fmt: skip


def names_in(op):
    return {w.strip(" ()<>") for w in op[op.rindex("(") :].split(",")}


@pytest.mark.parametrize(("op", "shapes"), LAYERS.values(), ids=LAYERS)
def test_a_layer_is_numpys_within_the_order_of_its_sum(op, shapes):
    constants = {n: numbers(*shape, seed=i) for i, (n, shape) in enumerate(shapes.items())}
    constants = {n: abs(a) if n == "v" else a for n, a in constants.items()}
    constants |= {n: a for n, a in OTHERS.items() if n in names_in(op)}
    operands = {"x2": numbers(3, 6)} if "x2" in op else {"x": numbers(2, 4, 6, 6, seed=9)}
    if "p," in op:
        operands = {"p": abs(numbers(2, 4, 6, 6, seed=9))}
    found, wanted = (f(op, operands, constants).astype(np.float64) for f in (evaluated, reference))
    assert found.shape == wanted.shape
    ulp = np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float64)
    assert (np.abs(found - wanted) <= ulp + SUM_ERROR).all()
    assert (found == wanted).mean() > 0.95  # all but what lies at an edge between two numbers


def test_a_sum_beyond_the_largest_number_is_infinite_and_its_mean_with_it():
    constants = {"axes": np.array([2, 3]), "inv": to_half(1 / 36)}
    model = model_of(
        "h = Cast<to = 10>(x) s = ReduceSum(h, axes) m = Mul(s, inv) y = Cast<to = 1>(m)", constants
    )
    x = np.full((2, 4, 6, 6), 2000, np.float32)
    assert np.isfinite(run(model, x=x)).all(), "ONNX Runtime rounds by itself now"
    assert np.isinf(run(rounded(model), x=x)).all()


def test_what_is_below_the_smallest_number_is_zero():
    body = "h = Cast<to = 10>(x) q = Mul(h, h) e = Add(q, q) r = Sqrt(e) y = Cast<to = 1>(r)"
    x = np.full((2, 4, 6, 6), 1e-4, np.float32)  # its square is 1e-8
    assert (run(rounded(model_of(body)), x=x) == 0).all()
    x[...] = 1e-3  # 1e-6, a subnormal of 4 bits
    half = to_half(1e-3)
    with np.errstate(under="ignore"):
        np.testing.assert_array_equal(run(rounded(model_of(body)), x=x), np.sqrt(half * half + half * half))


def test_fp32_tensors_are_not_rounded_and_a_graph_without_fp16_is_as_it_was():
    model = model_of(
        "a = Mul(x, k) h = Cast<to = 10>(a) b = Relu(h) w = Cast<to = 1>(b) c = Div(w, k) y = Sub(c, x)",
        {"k": np.float32(1.1)},
    )
    x = np.random.default_rng(0).random((2, 4, 6, 6), np.float32)
    k = np.float32(1.1)
    np.testing.assert_array_equal(
        run(rounded(model), x=x), (x * k).astype(np.float16).astype(np.float32) / k - x
    )
    plain = model_of("a = Relu(x) y = Neg(a)")
    assert not fp16_rounding.has_fp16(plain)
    assert graph.ops(rounded(plain)) == ["Relu", "Neg"]


def test_the_argument_and_its_weights_stay_and_so_do_names_and_types():
    model = model_of(
        "a = Conv(x, w) a_fp16 = Relu(a) y = Neg(a_fp16)", {"w": numbers(4, 4, 1, 1)},
        inputs="float16[2,4,6,6] x", output="float16 y",
    )  # fmt: skip
    before = ir.to_proto(model).SerializeToString()
    found = rounded(model)
    assert ir.to_proto(model).SerializeToString() == before
    graph.check(found)
    assert found.graph.inputs[0].dtype == found.graph.outputs[0].dtype == ir.DataType.FLOAT16
    assert {"a", "a_fp16", "y"} <= {v.name for node in found.graph for v in node.outputs}
    assert next(iter(found.graph.initializers.values())).dtype == ir.DataType.FLOAT
    x = numbers(2, 4, 6, 6)
    y = run(found, x=x)
    assert y.dtype == np.float16
    w = next(iter(model.graph.initializers.values())).const_value.numpy().astype(np.float32)
    conv = to_half(np.einsum("oi,nihw->nohw", w[:, :, 0, 0], x.astype(np.float32)))
    np.testing.assert_array_max_ulp(y, -np.maximum(conv, 0), maxulp=1)


def test_an_output_that_others_read_too_is_rounded_for_all():
    model = model_of("y = Mul(x, x) z = Sub(y, x)", inputs="float16[2,4] x", output="float16 y, float16 z")
    x = to_half([[300, 255, 1, 1e-4], [0.1, 0.3, 0.7, 2000]])
    with RUNTIME.open(rounded(model)) as session:
        found = session.run({"x": x})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found["y"], x * x)
        np.testing.assert_array_equal(found["z"], x * x - x)


BRANCHES = """
a = Mul(x, big)
b = If (c) <
  then_branch = t () => (float16[2] s) { s0 = Mul(a, big) s = Div(s0, big) },
  else_branch = e () => (float16[2] s) { s = Neg(a) }>
y = Cast<to = 1>(b)
"""


@pytest.mark.parametrize(("taken", "wanted"), [(True, [np.inf, 0.1]), (False, [-400, -0.1])])
def test_bodies_are_rounded_as_the_graph_is(taken, wanted):
    model = model_of(BRANCHES, {"big": to_half(200)}, inputs="float16[2] x, bool c", output="float[2] y")
    found = rounded(model, plan_of((graph_names(model)["a"],)))
    graph.check(found)
    y = run(found, x=to_half([2, 5e-4]), c=np.array(taken))
    np.testing.assert_allclose(y, wanted, rtol=2e-3)
    assert all(
        v.dtype != ir.DataType.FLOAT16 or v.producer().op_type == "Cast"
        for n in found.graph.all_nodes()
        for v in n.outputs
    )


def test_sequences_of_fp16_are_refused():
    model = model_of(
        "q = SequenceConstruct(x) y = ConcatFromSequence<axis = 0>(q)",
        inputs="float16[2] x",
        output="float16 y",
    )
    with pytest.raises(UnsupportedGraph, match="sequence"):
        rounded(model)


def test_a_quantizer_rounds_what_the_device_rounds():
    x, scale = edges(2, 4, 6, 6), to_half(0.0123)
    body = "h = Cast<to = 10>(x) q = QuantizeLinear(h, s, z) y = DequantizeLinear(q, s32, z)"
    constants = {"s": scale, "z": np.int8(0), "s32": np.float32(1)}
    found = run(rounded(model_of(body, constants)), x=x.astype(np.float32))
    wide = x.astype(np.float32)
    finite = np.isfinite(wide)
    wanted = np.clip(np.rint(wide / np.float32(scale)), -128, 127)
    np.testing.assert_array_equal(found[finite], wanted[finite])


def test_a_scale_keeps_its_stored_value():
    smallest = np.float16(6e-8)
    body = (
        "h = Cast<to = 10>(x) q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) y = Cast<to = 1>(d)"
    )
    x = np.array([[6e-8, 1.2e-7, 7.6e-6, 1.0]], np.float32)
    y = run(rounded(model_of(body, {"s": smallest, "z": np.int8(0)}, inputs="float[1,4] x")), x=x)
    np.testing.assert_array_equal(y, np.float32(smallest) * np.float32([[1, 2, 127, 127]]))


def graph_names(model):
    """The name of each node by its first output's."""
    return {node.outputs[0].name: node.name for node in model.graph}


def plan_of(*groups, writes="float16"):
    out = (PlanTensor("t", writes, (1,)),)
    return Plan(
        "tensorrt-rtx",
        "1",
        "sm86",
        tuple(Kernel(f"k{i}", "kgen", (), out, names) for i, names in enumerate(groups)),
    )


def rounded_tensors(model, plan):
    return {
        v.name.removesuffix("_unrounded")
        for node in rounded(model, plan).graph
        for v in node.outputs
        if v.name.endswith("_unrounded")
    }


CHAIN = """
h = Cast<to = 10>(x) a = Mul(h, h) b = Relu(a) f = Flatten(b) c = Neg(f)
g = Flatten(b) d = Sqrt(g) e = Add(c, d) y = Cast<to = 1>(e)
"""


def chain():
    return model_of(CHAIN)


def test_only_what_crosses_from_kernel_to_kernel_is_rounded():
    model = chain()
    n = graph_names(model)
    every = {"h", "a", "b", "f", "g", "c", "d", "e"}
    assert rounded_tensors(model, None) == every
    apart = plan_of((n["h"], n["a"], n["b"]), (n["c"],), (n["d"], n["e"], n["y"]))
    assert rounded_tensors(model, apart) == {"h", "b", "c"}  # d and e stay within; the Flattens are views
    together = plan_of(tuple(n[v] for v in ("h", "a", "b", "c", "d", "e", "y")))
    assert rounded_tensors(model, together) == {"h"}
    twice = plan_of((n["h"],), (n["a"], n["b"], n["c"]), (n["a"], n["b"], n["d"], n["e"], n["y"]))
    assert rounded_tensors(model, twice) == {"h", "c"}  # b is computed in both kernels


def test_a_node_that_the_plan_does_not_name_is_rounded():
    model = chain()
    n = graph_names(model)
    assert rounded_tensors(model, plan_of((n["h"], n["a"], n["b"], n["c"], n["d"]))) == {"h", "c", "d", "e"}


def test_what_a_kernel_writes_in_fp32_is_not_rounded():
    model = chain()
    n = graph_names(model)
    groups = ((n["h"], n["a"], n["b"]), (n["c"], n["d"], n["e"], n["y"]))
    assert rounded_tensors(model, plan_of(*groups)) == {"h", "b"}
    assert rounded_tensors(model, plan_of(*groups, writes="float32")) == {"h"}


def test_a_suffix_of_the_compiler_belongs_to_the_node():
    model = chain()
    n = graph_names(model)
    groups = ((n["h"], n["a"], f"{n['b']}]__gemm_from_conv1x1"), (n["c"], n["d"], n["e"], n["y"]))
    assert rounded_tensors(model, plan_of(*groups)) == {"h", "b"}


def test_the_plan_of_another_graph_is_refused():
    with pytest.raises(BadArtifact, match="names no node"):
        rounded(chain(), plan_of(("elsewhere",)))


def test_numbers_within_a_kernel_are_fp32():
    constants = {"axes": np.array([2, 3]), "inv": to_half(1 / 36)}
    model = model_of(
        "h = Cast<to = 10>(x) s = ReduceSum(h, axes) m = Mul(s, inv) y = Cast<to = 1>(m)", constants
    )
    n = graph_names(model)
    x = np.full((2, 4, 6, 6), 2000, np.float32)
    fused = rounded(model, plan_of((n["h"],), (n["s"], n["m"]), (n["y"],)))
    np.testing.assert_array_equal(
        run(fused, x=x), to_half(72000 * np.float32(to_half(1 / 36))).astype(np.float32)
    )
    apart = rounded(model, plan_of((n["h"], n["s"]), (n["m"], n["y"])))
    assert np.isinf(run(apart, x=x)).all()


def test_every_reader_of_a_tensor_gets_it_rounded():
    model = model_of("h = Cast<to = 10>(x) a = Mul(h, h) b = Sub(a, a) y = Cast<to = 1>(b)")
    assert np.isnan(run(rounded(model), x=np.full((2, 4, 6, 6), 300, np.float32))).all()


def test_what_stands_in_functions_is_rounded_too():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20, "own" : 1]>\n'
        "g (float16[N,4] x) => (float16[N,4] y) { y = own.f(x) }\n"
        '<domain: "own", opset_import: ["" : 20]> f (a) => (b) { c = Mul(a, a) b = Mul(c, a) }'
    )
    made = rounded(model)
    assert not made.functions
    assert len(model.functions) == 1
    x = np.linspace(0.1, 3, 100).reshape(25, 4).astype(np.float16)
    wide = x.astype(np.float32)
    c = to_half(wide * wide).astype(np.float32)
    (y,) = [run(graph.tidy(made), x=x)]
    np.testing.assert_array_equal(y, to_half(c * wide))
    assert not np.array_equal(y, to_half(wide**3)), "these numbers do not show a rounding between"
