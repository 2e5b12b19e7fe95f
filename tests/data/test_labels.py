"""Labels that cannot be right give no accuracy, and a reason."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import parser
from PIL import Image

from se_deploy import data
from se_deploy.cli.main import main
from se_deploy.data import labels
from se_deploy.schema.input_spec import InputSpec

CLASSES = ("dog", "cat", "bird", "cat fish")
SPEC = InputSpec("x", 3, 4, 4, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("names", "known", "index", "counted", "reason"),
    [
        (["bird", "dog"], CLASSES, [2, 0], None, ""),
        (["Bird", "cat", "dog"], CLASSES, [], None, "'Bird'"),
        (["cat", "dog"], ("dog", "cat", "cat"), [], None, "'cat'"),  # which of the two, nobody knows
        (["0", "10", "2"], CLASSES, [0, 10, 2], None, ""),
        (["n01", "n02", "n03", "n04"], CLASSES, [0, 1, 2, 3], 4, ""),
        (["n01", "n02"], CLASSES, [], None, "'n01'"),
        (["a", "b"], (), [0, 1], 2, ""),
    ],
)
def test_class_folders_are_numbered_as_far_as_they_are_known(names, known, index, counted, reason):
    found = labels.numbering(names, known)
    assert [found.index[name] for name in names if found.index] == index
    assert found.counted == counted
    assert reason in found.reason
    assert bool(found.reason) == bool(reason)


@pytest.mark.parametrize(
    ("given", "counted", "said"),
    [
        ([0, 3], None, ""),
        ([0, 4], None, "label 4"),
        ([-1, 0], None, "label -1"),
        ([0, 1], 2, "2 class folders"),
        ([0, 1], 4, ""),
    ],
)
def test_labels_are_held_against_the_classes(given, counted, said):
    found = labels.doubt(np.array(given), counted, 4)
    assert said in found
    assert bool(found) == bool(said)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (9, 99, 200)).save(path)


@pytest.mark.parametrize(
    ("files", "known", "counted", "why"),
    [
        (["dog/0.png", "cat fish/0.png"], True, None, ""),
        (["dog/0.png", "Cat fish/0.png"], False, None, "'Cat fish'"),
        (["dog/0.png", "cat/0.png", "sheet.png"], False, None, "'sheet.png'"),
        (["u/0.png", "v/0.png", "w/0.png", "x/0.png"], True, 4, ""),
        (["0.png", "1.png"], False, None, ""),
    ],
)
def test_a_folder_says_why_it_has_no_labels(files, known, counted, why, tmp_path):
    for name in files:
        picture(tmp_path / name)
    spec = InputSpec("x", 3, 4, 4, (0.5,) * 3, (0.5,) * 3, labels=CLASSES)
    found = data.read(tmp_path, [spec])
    assert (found.labels is not None) == known
    assert found.counted == counted
    assert why in found.unlabelled
    assert bool(found.unlabelled) == bool(why)
    assert found.take([0]).counted == counted


def test_a_list_with_a_label_missing_has_none(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png 1\na.png\n")
    found = data.read(tmp_path / "list.txt", [SPEC])
    assert found.labels is None
    assert found.unlabelled == "1 of 2 images has no label"


@pytest.mark.parametrize("targets", [[0.5, 1.0], [0.0, np.nan]])
def test_targets_that_are_no_classes_are_no_labels(targets, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 4, 4), np.float32), y=np.array(targets))
    found = data.read(tmp_path / "x.npz", [SPEC])
    assert found.labels is None
    assert found.unlabelled == "'y' holds no whole numbers"


def test_parity_measures_no_accuracy_that_would_be_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[N,3,4,4] x) => (float[N,3] y)
        { m = GlobalAveragePool(x)  y = Flatten(m) }"""
    onnx.save(parser.parse_model(text), "net.onnx")
    for given, accuracy in ([0, 0], 1.0), ([0, 3], None):
        x = np.zeros((2, 3, 4, 4), np.float32)
        x[:, 0] = 1
        np.savez("x.npz", x=x, labels=np.array(given))
        assert not main(
            ["parity", "net.onnx", "net.onnx", "--data", "x.npz", "--json"], standalone_mode=False
        )
        said = json.loads(capsys.readouterr().out)
        assert said["reference_accuracy"] == said["candidates"][0]["accuracy"] == accuracy
        assert any("no accuracy" in text for text in said["warnings"]) == (accuracy is None)
