"""Small networks with SE blocks in canonical form, written as ONNX text, and what tests ask of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from se_deploy import graph
from se_deploy.passes.rewrites import rewriters
from se_deploy.passes.search import Choice, replay
from se_deploy.se_blocks import detect

FP32_REORDERED = {"rtol": 2e-4, "atol": 2e-5}  # the same FP32 sums in another order, over a few layers


def build(inputs, outputs, body, constants, *, seed=0, opset=20):
    """Parse `body`; `constants` gives arrays, or shapes to fill with seeded normal numbers."""
    text = f'<ir_version: 10, opset_import: ["": {opset}]>\ng ({inputs}) => ({outputs}) {{\n{body}\n}}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for name, value in constants.items():
        array = (
            value if isinstance(value, np.ndarray) else 0.5 * rng.standard_normal(value).astype(np.float32)
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = f"n_{node.output[0]}"
    return graph.tidy(graph.inline(ir.from_proto(proto)))


def se(channels, reduced, *, x="x", y="y", gate="g", kind="Sigmoid"):
    """Spell one canonical block on `x`, and the shapes of its constants."""
    bounded = {"Sigmoid": "Sigmoid(e)", "Tanh": "Tanh(e)", "HardSigmoid": "HardSigmoid<alpha=0.2>(e)"}[kind]
    body = (
        f"s = GlobalAveragePool({x})\nh = Conv(s, f1, c1)\na = Relu(h)\ne = Conv(a, f2, c2)\n"
        f"{gate} = {bounded}\n{y} = Mul({x}, {gate})\n"
    )
    shapes = {
        "f1": (reduced, channels, 1, 1),
        "c1": (reduced,),
        "f2": (channels, reduced, 1, 1),
        "c2": (channels,),
    }
    return body, shapes


def bottlenecks(*, batch="N", between="", count=2):
    """Equal bottlenecks: conv1x1 [-> `between`] -> conv1x1 -> SE -> residual -> Relu."""
    text, constants = "", {}
    for i in range(1, count + 1):
        text += f"r{i} = Conv(x{i - 1}, v{i})\nu{i} = Relu(r{i})\n"
        text += (
            f"i{i} = {between}(u{i})\nc{i} = Conv(i{i}, w{i})\n" if between else f"c{i} = Conv(u{i}, w{i})\n"
        )
        text += _block(i)
        text += f"q{i} = Add(y{i}, x{i - 1})\nx{i} = Relu(q{i})\n"
        constants |= {f"v{i}": (4, 16, 1, 1), f"w{i}": (16, 4, 1, 1)}
        constants |= {f"fa{i}": (4, 16, 1, 1), f"ba{i}": (4,), f"fb{i}": (16, 4, 1, 1), f"bb{i}": (16,)}
    return build(f"float[{batch},16,6,6] x0", f"float[{batch},16,6,6] x{count}", text, constants)


def _block(i):
    return (
        f"s{i} = GlobalAveragePool(c{i})\nh{i} = Conv(s{i}, fa{i}, ba{i})\na{i} = Relu(h{i})\n"
        f"e{i} = Conv(a{i}, fb{i}, bb{i})\ng{i} = Sigmoid(e{i})\ny{i} = Mul(c{i}, g{i})\n"
    )


def run(model, *, seed=1, batch=2):
    """Compute the outputs for seeded inputs with ONNX Runtime's optimizer off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.to_bytes(model), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else batch for d in value.shape]
        feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return session.run(None, feeds)


def apply(model, *names):
    """Apply the named rewrites wherever they may be; give the copy and what was applied."""
    blocks = detect(model).blocks
    done, applied = model, ()
    for name in names:
        rewriter = next(r for r in rewriters() if r.name == name)
        choices = [Choice(name, site.name) for site in rewriter.sites(done, blocks)]
        result = replay(done, blocks, choices)
        graph.check(result.model)
        done, applied = result.model, (*applied, *result.applied)
    return done, applied


def assert_same(before, after, **options):
    for one, other in zip(run(before, **options), run(after, **options), strict=True):
        np.testing.assert_allclose(other, one, **FP32_REORDERED)


def signature(model):
    """Give every node by name: operator, inputs and attributes."""
    return {
        node.name: (
            node.op_type,
            tuple(v.name if v is not None else None for v in node.inputs),
            tuple(sorted((k, str(a.value)) for k, a in node.attributes.items())),
        )
        for node in model.graph
    }


def assert_only_touches(before, after, gone):
    """Check that the nodes `gone` went and that every other node stays what it was."""
    old, new = signature(before), signature(after)
    assert set(old) - set(new) == set(gone)
    assert {name: old[name] for name in old if name in new} == {
        name: new[name] for name in old if name in new
    }
