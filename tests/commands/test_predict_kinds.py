"""`predict` draws masks and lists boxes, and takes arrays and recordings where the network does."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import use_graphs
from onnx import numpy_helper, parser
from PIL import Image
from recordings import record
from test_cli import run as call

from se_deploy.commands import predict
from se_deploy.commands.predict import Shown
from se_deploy.data import masks
from se_deploy.errors import BadInput, OutputExists
from se_deploy.schema import input_spec

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[{batch},3,8,8] x) => ({outputs}) {{ {body} }}'
SPEC = use_graphs.spec(mean=(0.0,) * 3, std=(1.0,) * 3, labels=("reddish", "bluish", "other"))
TWO_CLASSES = "scores = Conv(x, tell)"  # class 0 where red is above blue, else 1
DETECTED = """
    m = ReduceMean<keepdims = 0>(x) z = Mul(m, none)
    found = Add(corners, z) sure = Add(confidence, z) kind = Identity(kinds)
"""
ONE_SET = "float[K,4] found, float[K] sure, int64[K] kind"
CONSTANTS = {
    "tell": np.array([[1, 0, -1], [-1, 0, 1]], np.float32).reshape(2, 3, 1, 1),
    "none": np.float32(0),
    "corners": np.array([[1, 1, 3, 3], [0, 0, 0, 0], [2, 2, 8, 4], [4, 4, 5, 6]], np.float32),
    "confidence": np.array([0.25, 0.0, 0.75, 0.5], np.float32),
    "kinds": np.array([2, 0, 1, 9]),
}


def save(path, body, outputs, batch="N", spec=SPEC):
    proto = parser.parse_model(HEAD.format(body=body, outputs=outputs, batch=batch))
    for name, array in CONSTANTS.items():
        if name in body:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    metadata = {}
    input_spec.write(metadata, spec)
    proto.metadata_props.add(key=input_spec.METADATA_KEY, value=metadata[input_spec.METADATA_KEY])
    onnx.save(proto, path)
    return path


@pytest.fixture
def photo(tmp_path):
    """Red on the left, three quarters of it; blue on the right."""
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    image.paste((0, 0, 255), (6, 0, 8, 8))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


MASKS = {
    "scores of classes": (TWO_CLASSES, "float[N,2,8,8] scores"),
    "classes": ("s = Conv(x, tell) y = ArgMax<axis = 1, keepdims = 0>(s)", "int64[N,8,8] y"),
    "classes on an axis of one": ("s = Conv(x, tell) y = ArgMax<axis = 1>(s)", "int64[N,1,8,8] y"),
}


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_drawn_and_its_classes_are_listed(tmp_path, monkeypatch, photo, name, batch):
    monkeypatch.chdir(tmp_path)
    body, outputs = MASKS[name]
    net = save(tmp_path / "net.onnx", body, outputs.replace("N", batch), batch)
    (said,) = predict.predict(net, [photo]).predictions
    assert [(one.index, one.label, one.share) for one in said.classes] == [
        (0, "reddish", 0.75), (1, "bluish", 0.25)
    ]  # fmt: skip
    assert (said.mask, said.top, said.boxes) == ("photo.mask.png", (), ())
    with Image.open(tmp_path / said.mask) as drawn:
        assert drawn.mode == "P"
        assert np.array_equal(np.asarray(drawn), np.tile([0] * 6 + [1] * 2, (8, 1)))
        assert drawn.convert("RGB").getpixel((7, 0)) == (128, 0, 0)
    with pytest.raises(OutputExists):
        predict.predict(net, [photo])
    elsewhere = Shown(folder=tmp_path / "masks", overwrite=True)
    for _ in range(2):
        (said,) = predict.predict(net, [photo], shown=elsewhere).predictions
    assert said.mask == str(tmp_path / "masks" / "photo.mask.png")


def test_one_class_is_there_or_not(tmp_path, photo):
    net = save(
        tmp_path / "net.onnx",
        "s = Conv(x, tell) i = Constant<value_ints = [1]>() p = Gather<axis = 1>(s, i) mask = Sigmoid(p)",
        "float[N,1,8,8] mask",
    )
    (said,) = predict.predict(net, [photo], shown=Shown(folder=tmp_path)).predictions
    assert [(one.index, one.share) for one in said.classes] == [(0, 0.75), (1, 0.25)]


def test_the_colours_are_pascal_vocs():
    colours = np.array(masks.palette()).reshape(-1, 3).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[8] == [64, 0, 0]
    assert colours[255] == [224, 224, 192]
    assert len({tuple(colour) for colour in colours}) == 256
    with pytest.raises(ValueError, match="a palette has 256"):
        masks.png(np.array([[0, 256]]))


def test_boxes_are_listed_with_score_and_label_best_first(tmp_path, photo):
    net = save(tmp_path / "net.onnx", DETECTED, ONE_SET)
    (said,) = predict.predict(net, [photo], top=2).predictions
    assert [(box.corners, box.score, box.index, box.label) for box in said.boxes] == [
        ((2, 2, 8, 4), 0.75, 1, "bluish"), ((4, 4, 5, 6), 0.5, 9, None)
    ]  # fmt: skip
    (said,) = predict.predict(net, [photo], top=9).predictions
    assert len(said.boxes) == 3, "a row of zeros fills up and is no box"


def test_boxes_of_every_image_and_the_best_class_of_each(tmp_path, photo):
    one = "three = Constant<value_ints = [1, 4, 4]>() boxes = Reshape(found, three) "
    scored = "column = Constant<value_ints = [1, 4, 1]>() c = Reshape(sure, column) d = Mul(c, c) "
    net = save(
        tmp_path / "net.onnx",
        DETECTED + one + scored + "scores = Concat<axis = 2>(d, c)",
        "float[1,4,4] boxes, float[1,4,2] scores",
        batch="1",
    )
    first, second = predict.predict(net, [photo, photo], top=1).predictions
    assert first.boxes == second.boxes
    assert [(box.corners, box.score, box.label) for box in first.boxes] == [((2, 2, 8, 4), 0.75, "bluish")]


def test_a_kind_that_is_named_overrules_the_guess(tmp_path, photo):
    net = save(tmp_path / "net.onnx", DETECTED, ONE_SET)
    with pytest.raises(BadInput, match="no classifier"):
        predict.predict(net, [photo], shown=Shown(kinds={"found": "values"}))
    flat = use_graphs.save(tmp_path / "flat.onnx")
    assert predict.predict(flat, [photo]).predictions[0].top
    with pytest.raises(BadInput, match="no classifier"):
        predict.predict(flat, [photo], shown=Shown(kinds={"y": "embedding"}))
    with pytest.raises(BadInput, match="there is no output 'z'"):
        predict.predict(flat, [photo], shown=Shown(kinds={"z": "mask"}))


def test_the_command_says_all_of_it(tmp_path, monkeypatch, capsys, photo):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "boxes.onnx", DETECTED, ONE_SET)
    code, out, err = call(capsys, "predict", "boxes.onnx", photo.name, "--top", "1")
    assert code in {0, None}, err
    assert all(text in out for text in ("bluish", "0.7500", "2, 2, 8, 4"))
    save(tmp_path / "mask.onnx", TWO_CLASSES, "float[N,2,8,8] scores")
    code, out, _ = call(capsys, "predict", "mask.onnx", photo.name, "-o", "there", "--json")
    assert json.loads(out)["predictions"][0]["mask"] == "there/photo.mask.png"
    assert (tmp_path / "there" / "photo.mask.png").is_file()
    code, _, err = call(capsys, "predict", "mask.onnx", photo.name, "--output", "scores:embedding")
    assert (code, "no classifier" in err) == (1, True)
    code, out, _ = call(capsys, "predict", "mask.onnx", ".", "-o", "all", "--json")  # a folder of images
    assert {"photo.png", "photo.mask.png"} == {
        one["image"].rpartition("/")[2] for one in json.loads(out)["predictions"]
    }


def test_arrays_and_recordings_are_asked_too(tmp_path):
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, L] wave, float[N, 2] meta) => (float[N, 2] y) '
        "{ m = ReduceMean<axes = [1]>(wave) y = Mul(m, meta) }"
    )
    onnx.save(proto, tmp_path / "two.onnx")
    np.savez(tmp_path / "x.npz", wave=np.ones((3, 5), np.float32), meta=np.array([[1, 2], [9, 2], [0, 1]]))
    said = predict.predict(tmp_path / "two.onnx", [tmp_path / "x.npz"], top=1).predictions
    assert [one.top[0].index for one in said] == [1, 0, 1]
    assert [one.image.rpartition("/")[2] for one in said] == ["x.npz[0]", "x.npz[1]", "x.npz[2]"]
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, L] wave) => (float[N, 2] y) '
        "{ m = ReduceMean<axes = [1]>(wave) n = Neg(m) y = Concat<axis = 1>(m, n) }"
    )
    onnx.save(proto, tmp_path / "one.onnx")
    record(tmp_path / "speech" / "low.wav", np.full(10, -999))
    record(tmp_path / "speech" / "high.wav", np.full(20, 999))
    said = predict.predict(tmp_path / "one.onnx", [tmp_path / "speech"], top=1).predictions
    assert [one.top[0].index for one in said] == [0, 1]  # high.wav comes first
    (said,) = predict.predict(tmp_path / "one.onnx", [tmp_path / "speech" / "low.wav"], top=1).predictions
    assert said.image.endswith("low.wav")
