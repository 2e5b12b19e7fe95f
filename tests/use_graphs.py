"""Small classifiers as ONNX files, and images to show them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace
from onnx import numpy_helper, parser
from PIL import Image

from se_deploy import files, graph
from se_deploy.schema import input_spec
from se_deploy.schema.common import Plan, PlanBlock
from se_deploy.schema.files import Manifest, ShapeRange
from se_deploy.schema.input_spec import InputSpec

SPEC = InputSpec("x", 3, 8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), labels=("red", "green", "blue"))

MEANS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[{batch},3,8,8] x) => (float[{batch},3] y) <float[1] gain = {{4.0}}> {{
    p = GlobalAveragePool(x)
    f = Flatten(p)
    y = Mul(f, gain)
}}"""
"""The mean of each colour, times 4, is the score of that colour's class."""

ENDINGS = {
    "softmax": "y = Softmax(z)",
    "nan": "zero = Sub(z, z)\n    y = Div(zero, zero)",
}

SE = """<ir_version: 8, opset_import: ["" : 17]>
g (float[{batch},3,8,8] x, float[8,3,3,3] w0, float[2,8,1,1] w1, float[8,2,1,1] w2, float[3,8] w3)
=> (float[{batch},3] y) {{
    a = Conv <pads = [1, 1, 1, 1]> (x, w0)
    r = Relu(a)
    p = GlobalAveragePool(r)
    h = Conv(p, w1)
    u = Relu(h)
    e = Conv(u, w2)
    s = Sigmoid(e)
    m = Mul(r, s)
    q = GlobalAveragePool(m)
    f = Flatten(q)
    y = Gemm <transB = 1> (f, w3)
}}"""
"""A convolution, one SE block of 8 channels with ratio 4, a classifier of 3 classes."""


def model(text, spec=SPEC, *, batch="N", weights=True):
    """Parse a graph; with `weights`, inputs behind the first become seeded weights."""
    proto = parser.parse_model(text.format(batch=batch))
    rng = np.random.default_rng(0)
    for value in list(proto.graph.input)[1:] if weights else ():
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape, np.float32), value.name)
        )
        proto.graph.input.remove(value)
    made = ir.from_proto(proto)
    if spec is not None:
        input_spec.write(made.metadata_props, spec)
    return graph.tidy(made)


def save(path, text=MEANS, spec=SPEC, **fields):
    graph.save(model(text, spec, **fields), path)
    return path


def spec(**fields):
    """The input spec with other fields."""
    return replace(SPEC, **fields)


def plan(runtime):
    """A plan of one fused block."""
    return Plan(
        runtime=runtime,
        version="1.7.1" if runtime == "tensorrt-rtx" else "10.3.0",
        target="sm86",
        precision="fp16",
        kernels=4,
        activation_bytes=1,
        weight_bytes=0,
        layers=(),
        blocks=(PlanBlock(output="m", verdict="fused", kernels=4, activation_bytes=1, reasons=()),),
    )


def manifest(engine, onnx, *, runtime="tensorrt-rtx", **fields):
    """What `build-engine` writes beside an engine, with a plan of one fused block."""
    batch = ShapeRange((1, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8))
    made_by = plan(runtime)
    made = Manifest(
        engine=engine.name,
        engine_sha256=files.sha256(engine),
        engine_bytes=engine.stat().st_size,
        onnx=onnx.name,
        onnx_sha256=files.sha256(onnx),
        precision="fp16",
        requested_precision="fp16",
        shapes={"x": batch},
        runtime=runtime,
        version=made_by.version,
        targets=("sm86",),
        trtexec=f"tensorrt_rtx --onnx={onnx.name} --saveEngine={engine.name}",
        host={"machine": "x86_64", "system": "Linux", "python": "3.10"},
        tool_version="0.1.0",
        input=SPEC,
        plan=made_by,
    )
    return replace(made, **fields)


def ending(name):
    """The colour network with another end: its scores are `z`."""
    return MEANS.replace("y = Mul(f, gain)", "z = Mul(f, gain)\n    " + ENDINGS[name])


def image(path, colour=(255, 0, 0), size=(12, 10)):
    Image.new("RGB", size, colour).save(path)
    return path


def noise(path, seed=0, size=(13, 9)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path
