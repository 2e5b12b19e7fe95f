from __future__ import annotations

import case_graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.data import preprocess
from se_deploy.errors import BadInput
from se_deploy.frontend import image_input
from se_deploy.frontend.bake import bake_preprocessing
from se_deploy.schema import input_spec
from se_deploy.schema.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec

EXACT = OrtRuntime(threads=1, optimize=False)
SPEC = InputSpec("x", 3, 16, 16, IMAGENET_MEAN, IMAGENET_STD, labels=("a", "b", "c", "d", "e"))


def model(spec=SPEC, batch="N"):
    made = ir.from_proto(case_graphs.frozen_batch(batch))
    if spec is not None:
        input_spec.write(made.metadata_props, spec)
    return graph.tidy(made)


def copied(x="float[N,3,h,w] x"):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({x}) => (float[N,a,b,c] y) {{ y = Identity(x) }}'
    return ir.from_proto(parser.parse_model(text))


def answers(made, **feeds):
    with EXACT.open(made) as session:
        return session.run(feeds)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)]
)
def test_what_reaches_the_graph_is_what_is_prepared_outside_to_the_last_bit(layout, mean, std):
    from PIL import Image  # noqa: PLC0415 - of this test alone

    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)  # every byte in every channel
    spec = InputSpec("x", 3, 16, 16, mean, std, layout=layout)
    given = copied("float[N,3,h,w] x" if layout == "NCHW" else "float[N,h,w,3] x")
    input_spec.write(given.metadata_props, spec)
    baked = bake_preprocessing(given)
    want = preprocess(Image.fromarray(pixels), spec)
    np.testing.assert_array_equal(answers(baked, x=pixels[None])["y"][0], want)


@pytest.mark.parametrize("batch", ["N", 2])
def test_the_baked_file_says_what_it_takes(batch):
    given = model(batch=batch)
    baked = bake_preprocessing(given)
    (taken,) = baked.graph.inputs
    assert (taken.name, taken.dtype) == ("x", ir.DataType.UINT8)
    assert graph.dims(taken) == (2 if batch == 2 else None, 16, 16, 3)
    spec = input_spec.read(baked.metadata_props)
    assert spec == input_spec.frames(SPEC, "NHWC")
    assert spec.labels == SPEC.labels
    found = image_input.read(baked)
    assert (found.layout, found.element, found.dims) == ("NHWC", "uint8", (3, 16, 16))
    assert input_spec.read(given.metadata_props) == SPEC  # the given one is left as it was
    assert given.graph.inputs[0].dtype == ir.DataType.FLOAT
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    outside = (frames / np.float32(255) - np.float32(SPEC.mean)) / np.float32(SPEC.std)
    outside = np.ascontiguousarray(outside.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(answers(baked, x=frames)["y"], answers(given, x=outside)["y"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (model(spec=None), "nothing says how an image becomes the input 'x'"),
        (graph.tidy(ir.from_proto(case_graphs.frames())), "nothing says how"),
        (graph.tidy(ir.from_proto(case_graphs.scalar_factor())), "a graph of 2 inputs"),
    ],
)
def test_what_cannot_be_baked_is_refused(given, said):
    with pytest.raises(BadInput, match=said):
        bake_preprocessing(given)


def test_a_file_of_frames_is_not_baked_twice():
    with pytest.raises(BadInput, match="is no float image"):
        bake_preprocessing(bake_preprocessing(model()))


def test_frames_that_are_padded_with_the_mean_keep_its_colour():
    spec = InputSpec("x", 3, 4, 4, IMAGENET_MEAN, IMAGENET_STD, "longest")
    assert input_spec.frames(spec).pad == (124, 116, 104)
