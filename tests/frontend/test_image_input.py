from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from se_deploy.errors import BadInput
from se_deploy.frontend import image_input
from se_deploy.frontend.image_input import ImageInput, NoImage
from se_deploy.protocols import TensorSpec
from se_deploy.schema.input_spec import RAW_STD, InputSpec, frames

TO_FIRST = "t = Transpose<perm = [0, 3, 1, 2]>({x})"
TO_LAST = "t = Transpose<perm = [0, 2, 3, 1]>({x})"
CONV = "t = Conv({x}, w)"


def model(x, body):
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({x}) => (float[N,a,b,c] t) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


@pytest.mark.parametrize(
    ("x", "body", "layout", "dims"),
    [
        ("uint8[N,8,9,3] x", "c = Cast<to = 1>(x) " + TO_FIRST.format(x="c"), "NHWC", (3, 8, 9)),
        ("uint8[N,h,w,3] x", "c = Cast<to = 1>(x) " + TO_FIRST.format(x="c"), "NHWC", (3, None, None)),
        ("uint8[N,h,w,q] x", TO_FIRST.format(x="x"), "NHWC", (None, None, None)),
        ("uint8[N,3,8,9] x", "c = Cast<to = 1>(x) d = Div(c, s) " + CONV.format(x="d"), "NCHW", (3, 8, 9)),
        ("uint8[N,3,4,3] x", "c = Cast<to = 1>(x) " + TO_FIRST.format(x="c"), "NHWC", (3, 3, 4)),
        ("uint8[N,3,4,3] x", "c = Cast<to = 1>(x) " + TO_LAST.format(x="c"), "NCHW", (3, 4, 3)),
        ("float[N,8,9,3] x", "c = Sub(x, m) d = Mul(c, s) " + TO_FIRST.format(x="d"), "NHWC", (3, 8, 9)),
        ("float[N,3,8,9] x", CONV.format(x="x"), "NCHW", (3, 8, 9)),
        ("uint8[N,8,9,3] x", "t = Reshape(x, s)", "NHWC", (3, 8, 9)),
        ("uint8[N,1,h,w] x", "t = Reshape(x, s)", "NCHW", (1, None, None)),
    ],
)  # fmt: skip
def test_layout_and_type_are_the_graphs(x, body, layout, dims):
    found = image_input.read(model(x, body))
    assert isinstance(found, ImageInput)
    assert (found.layout, found.dims) == (layout, dims)
    assert found.element == ("uint8" if x.startswith("uint8") else "float32")


def test_the_reason_names_the_node():
    found = image_input.read(model("uint8[N,8,9,3] x", TO_FIRST.format(x="x")))
    assert found.text == "input 'x' takes uint8 8x9x3, NHWC since Transpose 't' turns it into NCHW"


@pytest.mark.parametrize(
    ("x", "body", "said", "unclear"),
    [
        ("uint8[N,h,w,q] x", "t = Reshape(x, s)", "channels first or last", True),
        ("uint8[N,3,8,3] x", "t = Reshape(x, s)", "channels first or last", True),
        ("uint8[N,8,9,3] x", TO_FIRST.format(x="x") + CONV.format(x="x").replace("t =", "u ="), "", False),
        ("uint8[N,192] x", "t = Reshape(x, s)", "four dimensions", False),
        ("int64[N,3,8,8] x", "t = Reshape(x, s)", "int64", False),
        ("float[N,3,8,8] x, float[N,7] z", "t = Conv(x, w)", "2 inputs", False),
    ],
)
def test_what_is_no_image_or_unclear_says_why(x, body, said, unclear):
    found = image_input.read(model(x, body))
    if not said:  # read both ways: the sizes decide
        assert (found.layout, found.reason) == ("NHWC", "its last dimension is 3")
        return
    assert isinstance(found, NoImage)
    assert said in found.reason
    assert found.unclear is unclear


def test_the_flag_overrules_the_graph():
    found = image_input.read(model("uint8[N,3,8,3] x", TO_FIRST.format(x="x")), "NCHW")
    assert (found.layout, found.dims, found.reason) == (
        "NCHW",
        (3, 8, 3),
        "--layout or its input spec says so",
    )


def test_an_engine_is_read_by_its_sizes():
    found = image_input.of_inputs([TensorSpec("x", np.dtype(np.uint8), (None, 8, 9, 3))])
    assert (found.layout, found.dims, found.element) == ("NHWC", (3, 8, 9), "uint8")


FREE = ImageInput("x", "NHWC", (3, None, None), "uint8", "its last dimension is 3")
FIXED = ImageInput("x", "NHWC", (3, 8, 9), "uint8", "its last dimension is 3")
PREPARED = InputSpec("x", 3, 8, 9, (0.5,) * 3, (0.25,) * 3, resize="squash", labels=("a",))


def test_frames_need_no_more_than_their_size():
    made = image_input.described(None, FIXED, None)
    assert (made.name, made.dims, made.element) == ("x", (8, 9, 3), "uint8")
    assert (made.mean, made.std) == ((0.0,) * 3, (RAW_STD,) * 3)
    assert image_input.described(None, FREE, None) is None
    assert image_input.described(None, FREE, (3, 16, 32)).dims == (16, 32, 3)


def test_a_spec_of_floats_in_a_file_of_frames_keeps_what_is_no_normalization():
    made = image_input.described(PREPARED, FIXED, None)
    assert made == frames(PREPARED, "NHWC")
    assert (made.resize, made.labels) == ("squash", ("a",))


def test_a_spec_of_frames_is_kept_and_another_size_is_refused():
    own = frames(PREPARED, "NHWC")
    assert image_input.described(own, FIXED, None) == own
    for size in ((3, 9, 8), (1, 8, 9), (8, 9, 3)):
        with pytest.raises(BadInput, match="--input-size says"):
            image_input.described(own, FIXED, size)


def test_floats_need_a_size_and_get_the_layout():
    floats = ImageInput("x", "NHWC", (3, None, None), "float32", "")
    assert image_input.described(None, floats, None) is None
    assert image_input.described(PREPARED, floats, (3, 4, 4)) == PREPARED
    made = image_input.described(None, floats, (3, 4, 5))
    assert (made.layout, made.dims, made.element) == ("NHWC", (4, 5, 3), "float32")


def test_an_unclear_layout_is_asked_for_when_it_is_needed():
    unclear = NoImage("nothing says it", unclear=True)
    assert image_input.described(None, unclear, None) is None
    with pytest.raises(BadInput, match="nothing says it") as e:
        image_input.described(None, unclear, (3, 8, 8))
    assert "--layout NHWC" in e.value.hint
