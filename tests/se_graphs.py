"""SE blocks spelled in every way that exporters and people spell them, put together from parts.

`build` writes a small ONNX network with one block from a `Recipe`; each part of the recipe is a key of
one of the tables below. What the census must say of it follows from the recipe alone.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper, parser

from se_deploy import graph


@dataclass(frozen=True)
class Recipe:
    squeeze: str = "pool"
    layers: str = "conv"
    norm: str = "none"  # between fc1 and the activation
    activation: str = "relu"
    gate: str = "sigmoid"
    extra: str = "none"  # something idle on the gate's way
    expand: str = "none"
    gate_first: bool = False
    residual: bool = False
    source: str = "activation"  # what x comes from
    spatial: tuple = (6, 5)
    channels: int = 8
    reduced: int | None = 4  # None: one learned layer
    groups: int = 1
    opset: int = 17
    batch: object = "N"
    free_map: bool = False  # H and W are not known
    constants: str = "initializer"
    seed: int = 0


class Net:
    """A graph as it is being written."""

    def __init__(self, recipe):
        self.recipe = recipe
        self.opset = recipe.opset
        self.rng = np.random.default_rng(recipe.seed)
        self.nodes, self.initializers, self.count = [], [], 0

    def op(self, op_type, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op_type, inputs, names, name=f"n{self.count}_{op_type}", **attributes)
        )
        return names[0] if outputs == 1 else names

    def const(self, array):
        self.count += 1
        name, array = f"c{self.count}", np.asarray(array)
        if self.recipe.constants == "node":
            value = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], value=value, name=f"n{self.count}_C"))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def weight(self, *shape, spread=1.0):
        return self.const((self.rng.standard_normal(shape) * spread).astype(np.float32))

    def number(self, value):
        if self.recipe.constants == "computed":  # as an exporter that folds nothing leaves it
            return self.op("Cast", self.const(np.array(value, np.float64)), to=onnx.TensorProto.FLOAT)
        return self.const(np.array(value, np.float32))

    def reduce(self, op_type, x, axes, *, keepdims=1):
        first = 13 if op_type == "ReduceSum" else 18
        if self.opset >= first:
            return self.op(op_type, x, self.ints(*axes), keepdims=keepdims)
        return self.op(op_type, x, axes=list(axes), keepdims=keepdims)

    def squeeze(self, x, axes):
        return (
            self.op("Squeeze", x, self.ints(*axes)) if self.opset >= 13 else self.op("Squeeze", x, axes=axes)
        )

    def unsqueeze(self, x, axes):
        if self.opset >= 13:
            return self.op("Unsqueeze", x, self.ints(*axes))
        return self.op("Unsqueeze", x, axes=axes)

    def clip(self, x, low, high):
        return self.op("Clip", x, self.number(low), self.number(high))

    def size(self, x, axis):
        """x.shape[axis] as TorchScript writes it."""
        return self.op("Gather", self.op("Shape", x), self.const(np.array(axis, np.int64)), axis=0)

    def view(self, x, *sizes):
        """x.view(sizes) as TorchScript writes it: each size computed, made a vector, concatenated."""
        parts = [self.unsqueeze(s, [0]) if isinstance(s, str) else self.ints(s) for s in sizes]
        return self.op("Reshape", x, self.op("Concat", *parts, axis=0))


def _axes(net):
    return list(range(2, 2 + len(net.recipe.spatial)))


def _sum_by_shape(net, x):
    count = functools.reduce(lambda a, b: net.op("Mul", a, b), [net.size(x, a) for a in _axes(net)])
    area = net.op("Cast", count, to=onnx.TensorProto.FLOAT)
    return net.op("Div", net.reduce("ReduceSum", x, _axes(net)), area)


def _flattened(net, x):
    return net.reduce(
        "ReduceMean", net.op("Reshape", x, net.ints(0, net.recipe.channels, -1)), [-1], keepdims=0
    )


def _flattened_by_shape(net, x):
    shape = net.op("Slice", net.op("Shape", x), net.ints(0), net.ints(2), net.ints(0))
    flat = net.op("Reshape", x, net.op("Concat", shape, net.ints(-1), axis=0))
    return net.reduce("ReduceMean", flat, [2], keepdims=0)


def _in_steps(net, x):
    for axis in reversed(_axes(net)):
        x = net.reduce("ReduceMean", x, [axis], keepdims=0)
    return x


# x: (N, C, *) -> (N, C) or (N, C, 1*)
SQUEEZES = {
    "pool": lambda net, x: net.op("GlobalAveragePool", x),
    "mean": lambda net, x: net.reduce("ReduceMean", x, _axes(net)),
    "mean-negative": lambda net, x: net.reduce(
        "ReduceMean", x, [a - len(_axes(net)) - 2 for a in _axes(net)]
    ),
    "mean-flat": lambda net, x: net.reduce("ReduceMean", x, _axes(net), keepdims=0),
    "in-steps": _in_steps,
    "window": lambda net, x: net.op("AveragePool", x, kernel_shape=list(net.recipe.spatial)),
    "flattened": _flattened,
    "flattened-by-shape": _flattened_by_shape,
    "sum": lambda net, x: net.op(
        "Div", net.reduce("ReduceSum", x, _axes(net)), net.number(float(np.prod(net.recipe.spatial)))
    ),
    "sum-times": lambda net, x: net.op(
        "Mul", net.reduce("ReduceSum", x, _axes(net)), net.number(1 / np.prod(net.recipe.spatial))
    ),
    "sum-by-shape": _sum_by_shape,
    "twice": lambda net, x: net.op("GlobalAveragePool", net.op("GlobalAveragePool", x)),
}
FLAT = {"mean-flat", "in-steps", "flattened", "flattened-by-shape"}
ANY_SPATIAL = set(SQUEEZES) - {"window"}
OF_KNOWN_SIZE = {"window", "sum", "sum-times"}
"""They hold H and W as numbers, so that they are means of a map of that size alone."""


def _conv(net, y, i, o):
    g = net.recipe.groups
    return net.op("Conv", y, net.weight(o, i // g, *_ones(net), spread=0.7), net.weight(o), group=g)


def _conv_bias_add(net, y, i, o):
    y = net.op("Conv", y, net.weight(o, i, *_ones(net)))
    return net.op("Add", y, net.weight(1, o, *_ones(net)))


def _conv_bias_reshaped(net, y, i, o):
    y = net.op("Conv", y, net.weight(o, i, *_ones(net)))
    return net.op("Add", net.op("Reshape", net.weight(o), net.ints(1, o, *_ones(net))), y)


def _conv_bias_of_paddle(net, y, i, o):
    """As Paddle2ONNX writes it: the shape of the bias is an Identity of a constant."""
    y = net.op("Conv", y, net.weight(o, i, *_ones(net)))
    shape = net.op("Identity", net.ints(1, o, *_ones(net)))
    return net.op("Add", y, net.op("Reshape", net.weight(o), shape))


def _ones(net):
    return [1] * len(net.recipe.spatial)


def _in_linear(layer):
    layer.flat = True
    return layer


@_in_linear
def _gemm(net, y, i, o):
    return net.op("Gemm", y, net.weight(o, i), net.weight(o), transB=1)


@_in_linear
def _gemm_scaled(net, y, i, o):
    return net.op("Gemm", y, net.weight(i, o), net.weight(1, o), alpha=0.5, beta=2.0)


@_in_linear
def _matmul(net, y, i, o):
    return net.op("MatMul", y, net.weight(i, o))


@_in_linear
def _matmul_add(net, y, i, o):
    return net.op(
        "Add", net.weight(o), net.op("MatMul", y, net.op("Transpose", net.weight(o, i), perm=[1, 0]))
    )


# the learned layers: y of `i` channels -> `o` channels
LAYERS = {
    "conv": _conv,
    "conv-bias-add": _conv_bias_add,
    "conv-bias-reshaped": _conv_bias_reshaped,
    "conv-bias-of-paddle": _conv_bias_of_paddle,
    "gemm": _gemm,
    "gemm-scaled": _gemm_scaled,
    "matmul": _matmul,
    "matmul-add": _matmul_add,
}


def _hard_swish_clipped(net, y):
    return net.op("Div", net.op("Mul", y, net.clip(net.op("Add", y, net.number(3.0)), 0, 6)), net.number(6.0))


def _gelu(net, y):
    e = net.op("Erf", net.op("Div", y, net.number(2**0.5)))
    return net.op("Mul", net.op("Mul", y, net.op("Add", e, net.number(1.0))), net.number(0.5))


# (name that the census must give, how to write it)
ACTIVATIONS = {
    "relu": ("relu", lambda net, y: net.op("Relu", y)),
    "max-zero": ("relu", lambda net, y: net.op("Max", y, net.number(0.0))),
    "relu6": ("relu6", lambda net, y: net.clip(y, 0, 6)),
    "silu": ("silu", lambda net, y: net.op("Mul", y, net.op("Sigmoid", y))),
    "silu-first": ("silu", lambda net, y: net.op("Mul", net.op("Sigmoid", y), y)),
    "hardswish": ("hardswish", lambda net, y: net.op("HardSwish", y)),
    "hardswish-product": (
        "hardswish",
        lambda net, y: net.op("Mul", y, net.op("HardSigmoid", y, alpha=1 / 6)),
    ),
    "hardswish-clipped": ("hardswish", _hard_swish_clipped),
    "leakyrelu": ("leakyrelu", lambda net, y: net.op("LeakyRelu", y, alpha=0.1)),
    "prelu": ("leakyrelu", lambda net, y: net.op("PRelu", y, net.number(0.25))),
    "elu": ("elu", lambda net, y: net.op("Elu", y)),
    "gelu": ("gelu", _gelu),
    "tanh": ("tanh", lambda net, y: net.op("Tanh", y)),
    "none": ("none", lambda _net, y: y),
}


def _clipped_line(net, y):
    return net.clip(net.op("Add", net.op("Mul", y, net.number(0.2)), net.number(0.5)), 0, 1)


def _relu6(net, y):
    return net.op("Div", net.clip(net.op("Add", net.number(3.0), y), 0, 6), net.number(6.0))


def _min_max(net, y):
    y = net.op("Add", net.op("Mul", y, net.number(1 / 6)), net.number(0.5))
    return net.op("Min", net.op("Max", y, net.number(0.0)), net.number(1.0))


# (name, constant gain, how to write it)
GATES = {
    "sigmoid": ("sigmoid", 1.0, lambda net, y: net.op("Sigmoid", y)),
    "sigmoid-twice": ("sigmoid", 2.0, lambda net, y: net.op("Mul", net.number(2.0), net.op("Sigmoid", y))),
    "sigmoid-spelled": (
        "sigmoid",
        1.0,
        lambda net, y: net.op(
            "Div", net.number(1.0), net.op("Add", net.op("Exp", net.op("Neg", y)), net.number(1.0))
        ),
    ),
    "sigmoid-steep": (
        "sigmoid",
        1.0,
        lambda net, y: net.op("Sigmoid", net.op("Mul", y, net.number(1.7))),
    ),
    "one-plus-sigmoid": (
        "sigmoid1",
        1.0,
        lambda net, y: net.op("Add", net.op("Sigmoid", y), net.number(1.0)),
    ),
    "hardsigmoid": ("hardsigmoid", 1.0, lambda net, y: net.op("HardSigmoid", y)),
    "hardsigmoid-sixth": ("hardsigmoid", 1.0, lambda net, y: net.op("HardSigmoid", y, alpha=1 / 6, beta=0.5)),
    "relu6": ("hardsigmoid", 1.0, _relu6),
    "clipped-line": ("hardsigmoid", 1.0, _clipped_line),
    "min-max": ("hardsigmoid", 1.0, _min_max),
    "tanh1": ("tanh1", 1.0, lambda net, y: net.op("Add", net.op("Tanh", y), net.number(1.0))),
    "tanh": ("tanh", 1.0, lambda net, y: net.op("Tanh", y)),
}


def _batch_norm(net, y, c):
    arrays = [net.weight(c), net.weight(c), net.weight(c), net.const(np.full(c, 0.7, np.float32))]
    return net.op("BatchNormalization", y, *arrays)


NORMS = {"none": lambda _net, y, _c: y, "batch": _batch_norm}
EXTRAS = {
    "none": lambda _net, y: y,
    "identity": lambda net, y: net.op("Identity", y),
    "dropout": lambda net, y: net.op("Dropout", y),
    "cast": lambda net, y: net.op("Cast", y, to=onnx.TensorProto.FLOAT),
}
EXPANDS = {
    "none": lambda _net, y, _x: y,
    "shape": lambda net, y, x: net.op("Expand", y, net.op("Shape", x)),
}
SOURCES = {
    "activation": ("activation", lambda net, x: net.op("Relu", x)),
    "swish": ("activation", lambda net, x: net.op("Mul", x, net.op("Sigmoid", x))),
    "convolution": ("linear-conv", lambda _net, x: x),
    "norm": ("linear-conv", lambda net, x: _batch_norm(net, x, net.recipe.channels)),
}


@dataclass(frozen=True)
class Written:
    """A block as it was written: the names of its values, and of its Mul."""

    squeezed: str
    gate: str
    scaled: str
    mul: str
    end: str  # what follows reads: behind the residual Add where there is one


def write(net, x):
    """Write the block of the net's recipe behind `x`, of the recipe's channels and size."""
    recipe = net.recipe
    c = recipe.channels
    y = squeezed = SQUEEZES[recipe.squeeze](net, EXTRAS[recipe.extra](net, x))
    flat = recipe.squeeze in FLAT
    layer = LAYERS[recipe.layers]
    wants_flat = getattr(layer, "flat", False)
    if wants_flat and not flat:
        y = net.op("Flatten", y) if recipe.seed % 2 else net.view(y, net.size(x, 0), net.size(x, 1))
    elif flat and not wants_flat:
        y = net.unsqueeze(y, _axes(net))
    if recipe.reduced:
        y = layer(net, y, c, recipe.reduced)
        y = ACTIVATIONS[recipe.activation][1](net, NORMS[recipe.norm](net, y, recipe.reduced))
        y = layer(net, EXTRAS[recipe.extra](net, y), recipe.reduced, c)
    else:
        y = layer(net, y, c, c)
    y = GATES[recipe.gate][2](net, y)
    if wants_flat:
        y = (
            net.unsqueeze(y, _axes(net))
            if recipe.seed % 3
            else net.view(y, net.size(x, 0), net.size(x, 1), *_ones(net))
        )
    gate = EXPANDS[recipe.expand](net, EXTRAS[recipe.extra](net, y), x)
    scaled = net.op("Mul", gate, x) if recipe.gate_first else net.op("Mul", x, gate)
    mul = net.nodes[-1].name
    end = net.op("Add", x, scaled) if recipe.residual else scaled
    return Written(squeezed, gate, scaled, mul, end)


def expectation(recipe):
    """Give what the census must say of a recipe's block."""
    layers = 2 if recipe.reduced else 1
    kind = "residual-se" if recipe.residual else "se" if layers == 2 else "ese"
    name, gain, _ = GATES[recipe.gate]
    c, r = recipe.channels, recipe.reduced
    weights = 2 * c * r if r else c * c
    weights //= recipe.groups
    biases = 0 if recipe.layers == "matmul" else c + (r or 0)
    norm = 2 * r if recipe.norm == "batch" and r else 0
    slope = recipe.activation == "prelu" and r
    return {
        "kind": kind,
        "channels": c,
        "reduced": r,
        "ratio": c / r if r else None,
        "activation": ACTIVATIONS[recipe.activation][0] if r else "none",
        "gate": name,
        "gain": gain,
        "form": "conv" if recipe.layers.startswith("conv") else "linear",
        "params": weights + biases + norm + (1 if slope else 0),
        "placement": SOURCES[recipe.source][0],
        "followed_by": "conv",
        "channel_axis": 1,
    }


def build(recipe):
    """Write the network of a recipe: convolution -> source -> block -> convolution."""
    net, c, spatial = Net(recipe), recipe.channels, list(recipe.spatial)
    x = net.op("Conv", "input", net.weight(c, 3, *[1] * len(spatial)), net.weight(c))
    made = write(net, SOURCES[recipe.source][1](net, x))
    out = net.op("Conv", made.end, net.weight(2, c, *[1] * len(spatial)), net.weight(2))
    net.nodes.append(helper.make_node("Identity", [out], ["output"], name="out"))
    sizes = list("HWD"[: len(spatial)]) if recipe.free_map else spatial
    proto = helper.make_graph(
        net.nodes,
        "g",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [recipe.batch, 3, *sizes])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [recipe.batch, 2, *sizes])],
        net.initializers,
    )
    opsets = [helper.make_opsetid("", recipe.opset)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=8), made.mul, made.scaled


def read(proto):
    """Give an ONNX protobuf as `graph.load` gives a file."""
    return graph.tidy(graph.inline(ir.from_proto(proto)))


def run(model, *feeds):
    """Run a graph in ONNX Runtime as it stands, with no optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.to_bytes(model), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, feeds, strict=True)))


WEIGHTS = {
    "w1": (2, 4, 1, 1),
    "w2": (4, 2, 1, 1),
    "full": (4, 4, 1, 1),
    "k1": (2, 4, 1),
    "k2": (4, 2, 1),
    "spatial": (1, 2, 7, 7),
    "point": (1, 4, 1, 1),
    "along": (1, 1, 3),
    "twice": (8, 2, 1, 1),
    "small": (2, 2, 1, 1),
    "stack1": (4, 8, 1, 1),
    "b1": (2,),
    "b2": (4,),
    "m1": (4, 2),
    "m2": (2, 4),
}


def written(body, *, opset=17, x="float[N,4,6,6] x", constants="", outputs="float[N,M,K,L] y"):
    """Read a graph written as ONNX text, in which the names in WEIGHTS are random weights."""
    used = [name for name in WEIGHTS if re.search(rf"\b{name}\b", body)]
    inputs = ", ".join([x, *(f"float[{','.join(map(str, WEIGHTS[n]))}] {n}" for n in used)])
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    proto = parser.parse_model(f"{head} g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}")
    rng = np.random.default_rng(0)
    for name in used:
        array = rng.standard_normal(WEIGHTS[name]).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return read(proto)


GATE = "a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c)"
# blocks that no recipe writes; each has 4 channels, 2 hidden, ReLU, and y as its output
UNUSUAL = {
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
    "with a gated linear unit between its layers": """
        p = GlobalAveragePool(x) a = Conv(p, full) s, t = Split<axis = 1>(a) h = Sigmoid(t) u = Mul(s, h)
        c = Conv(u, w2) g = Sigmoid(c) y = Mul(x, g)""",
    "with a softmax of two": """
        p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, twice)
        v = Reshape(c, pairs) s = Softmax<axis = 1>(v) h = Gather<axis = 1>(s, zero)
        g = Reshape(h, map) y = Mul(x, g)""",
    "with a clipped line whose slope was folded": """
        p = GlobalAveragePool(x) a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) h = Add(c, half)
        g = Clip(h, nought, unit) y = Mul(x, g)""",
    "with a gain per channel": f"""
        p = GlobalAveragePool(x) {GATE} h = Mul(g, gains) y = Mul(x, h)""",
    "with its gate resized to the map": f"""
        p = GlobalAveragePool(x) {GATE} h = Resize<mode = "nearest">(g, , map_up) y = Mul(x, h)""",
    "on a sequence, by Linear on (N, 1, C)": """
        q = Reshape(x, rows) p = ReduceMean<axes = [2]>(q) t = Transpose<perm = [0, 2, 1]>(p)
        a = MatMul(t, m1) r = Relu(a) c = MatMul(r, m2) u = Transpose<perm = [0, 2, 1]>(c) g = Sigmoid(u)
        z = Mul(q, g) y = Reshape(z, square)""",
    "weights on the left of MatMul": """
        p = GlobalAveragePool(x) v = Reshape(p, column) a = MatMul(m2, v) r = Relu(a) c = MatMul(m1, r)
        g = Sigmoid(c) h = Unsqueeze(g, last) y = Mul(x, h)""",
    "after a hoisted cast": f"""
        d = Cast<to = 11>(x) f = Cast<to = 1>(d) p = GlobalAveragePool(f) {GATE} y = Mul(x, g)""",
    "quantized": """
        q = QuantizeLinear(x, scale, zp) d = DequantizeLinear(q, scale, zp) p = GlobalAveragePool(d)
        a = Conv(p, w1) r = Relu(a) c = Conv(r, w2) g = Sigmoid(c) y = Mul(d, g)""",
}
CONSTANTS = """
    int64[3] pairs = {-1, 2, 4}, int64 zero = {0}, int64[4] map = {-1, 4, 1, 1}, float half = {0.5},
    float nought = {0}, float unit = {1}, float[1,4,1,1] gains = {1, 2, 3, 4}, int64[1] last = {3},
    int64[2] three_one = {3, 1}, int64[2] one_three = {1, 3}, int64[6] ends = {0, 0, 1, 0, 0, 1},
    int64[3] line = {-1, 1, 36}, int64[5] kernels = {-1, 2, 4, 1, 1}, int64[2] map_axes = {2, 3},
    int64[3] rows = {0, 4, 36}, int64[4] square = {0, 4, 6, 6},
    float eps = {0.00001}, int64[3] column = {-1, 4, 1}, int64[3] row = {-1, 1, 4}, int64[1] first = {1},
    int64[5] branches = {-1, 2, 2, 6, 6}, int64[4] stack = {-1, 2, 1, 2}, int64[5] wide = {-1, 2, 2, 1, 1},
    float[4] scales = {1, 1, 2, 2}, float scale = {0.1}, int8 zp = {0},
    float[3,2,1,1] half1 = {1, 2, 3, 4, 5, 6}, float[4,3,1,1] half2 = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3},
    int64[5] groups = {0, 2, 2, 6, 6}, int64[5] by_group = {0, 2, 1, 1, 1},
    int64[5] twofold = {1, 1, 2, 1, 1}, int64[4] repeats = {1, 2, 1, 1}, int64[4] twice_over = {0, 0, 1, 1},
    float[4] channels_up = {1, 2, 1, 1}, float[4] map_up = {1, 1, 6, 6},
    int64[5] pairs_of = {0, 2, 2, 1, 1}, int64[3] tall = {0, 4, 1}, int64[3] lines = {0, 4, 36},
    float[4,4] eye = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1},
    bool[4,4] diagonal = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1},
    float[6,6] six = {1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6,1,2,3,4,5,6}"""
