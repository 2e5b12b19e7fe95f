"""What a user gets wrong: one sentence with what to do, the contract's exit code, and nothing written.

Each is said before the long step, an export or a build, has begun.
"""

from __future__ import annotations

import needs
import numpy as np
import onnx
import pytest
import test_cli
from onnx import numpy_helper, parser
from PIL import Image
from test_cli import run as call

from se_deploy.errors import meant, near_misses

NETWORK = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
    def forward(self, x):
        if torch.compiler.is_exporting():
            raise RuntimeError("the export had begun")
        return self.head(x.mean((2, 3)))
"""
FROM_FILE = ("net.onnx", "--input-size", "3x16x16", "--mean", "0,0,0", "--std", "1,1,1")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with what the commands below name."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    proto = parser.parse_model(test_cli.NET)
    for name, shape in test_cli.WEIGHTS.items():
        weights = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weights, name))
    onnx.save(proto, tmp_path / "net.onnx")
    for name in ("photos", "mixed", "empty"):
        (tmp_path / name).mkdir()
    for i in range(4):
        picture = Image.fromarray(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8))
        picture.save(tmp_path / "photos" / f"{i}.png")
        picture.save(tmp_path / "mixed" / f"{i}.png")
    (tmp_path / "mixed" / "z.jpg").write_bytes(b"")
    whole = (tmp_path / "photos" / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(rng.integers(0, 65535, (20, 20)).astype(np.uint16)).save(tmp_path / "wide.png")
    Image.fromarray(rng.integers(0, 255, (20, 20)).astype(np.uint8)).save(tmp_path / "grey.png")
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


MISTAKES = {
    "labels of another length": (
        ("predict", *FROM_FILE, "photos/0.png", "--labels", "five.txt"),
        "names 5 labels for 4 classes",
    ),
    "labels of another length, written": (
        ("export", *FROM_FILE, "--labels", "five.txt", "-o", "out.onnx"),
        "names 5 labels for 4 classes",
    ),
    "no label": (("predict", *FROM_FILE, "photos/0.png", "--labels", "none.txt"), "names no class"),
    "another size": (
        ("predict", "net.onnx", "photos/0.png", "--input-size", "3x8x8"),
        "which --input-size 3x8x8",
    ),
    "a cut image": (("predict", *FROM_FILE, "cut.png"), "'cut.png' cannot be read"),
    "no image": (("predict", *FROM_FILE, "text.jpg"), "'text.jpg' cannot be read: it is none of JPEG"),
    "an empty folder": (
        ("quantize", *FROM_FILE, "--calib-data", "empty", "-o", "out.onnx"),
        "holds no images",
    ),
    "an empty image": (
        ("quantize", *FROM_FILE, "--calib-data", "mixed", "-o", "out.onnx"),
        "'z.jpg' cannot be read: the file is empty",
    ),
    "a shape of no input": (
        ("build-engine", "net.onnx", "-o", "out.engine", "--max-shapes", "inputs:4x3x16x16"),
        "did you mean 'input'?",
    ),
    "a shape of no input, timed": (
        ("profile", "net.onnx", "--opt-shapes", "inputs:1x3x16x16"),
        "did you mean 'input'?",
    ),
    "a shape of no input, compared": (
        ("parity", "net.onnx", "net.onnx", "--data", "photos", "--opt-shapes", "inputs:1x3x16x16"),
        "did you mean 'input'?",
    ),
    "a shape of no input, exported": (
        ("export", "net.onnx", "-o", "out.onnx", "--opt-shapes", "inputs:1x3x16x16"),
        "did you mean 'input'?",
    ),
    "a rewrite nearly": (
        ("export", "net.onnx", "-o", "out.onnx", "--rewrites", "gate_into_nxt"),
        "did you mean 'gate-into-next'?",
    ),
    "a target nearly": (
        ("export", "net.onnx", "-o", "out.onnx", "--target", "orin-nanoo"),
        "did you mean 'orin-nano'?",
    ),
}


def told(words, capsys):
    """The error as a paragraph, once the command has ended with 1 and written nothing."""
    code, _, err = call(capsys, *words)
    assert code == 1, err
    assert "hint: " in err
    assert "the export had begun" not in err
    return " ".join(err.split())


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_with_what_to_do(name, folder, capsys):
    words, said = MISTAKES[name]
    before = sorted(folder.rglob("*"))
    assert said in told(words, capsys)
    assert sorted(folder.rglob("*")) == before


IN_PYTORCH = {
    "labels": (("export", "--labels", "five.txt", "-o", "out.onnx"), "names 5 labels for 4 classes"),
    "shapes": (("export", "-o", "out.onnx", "--opt-shapes", "inputs:1x3x16x16"), "did you mean 'input'?"),
    "an empty image": (
        ("run", "--calib-data", "mixed", "-o", "out"),
        "'z.jpg' cannot be read: the file is empty",
    ),
    "data to compare on": (
        ("run", "--calib-data", "photos", "--data", "empty", "-o", "out"),
        "'empty' holds no images",
    ),
}


@needs.TORCH
@pytest.mark.parametrize("name", IN_PYTORCH)
def test_a_mistake_is_said_before_the_export(name, folder, capsys):
    (command, *rest), said = IN_PYTORCH[name]
    words = (command, f"{folder / 'net.py'}:Net", "--input-size", "3x16x16", *rest)
    assert said in told(words, capsys)
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize("option", ["10", "27"])
def test_an_operator_set_outside_of_what_is_written_is_a_usage_error(option, capsys):
    code, _, err = call(capsys, "export", "net.onnx", "-o", "out.onnx", "--opset", option)
    assert (code, "11<=x<=26" in err) == (2, True), err


@pytest.mark.parametrize("picture", ["wide.png", "grey.png"])
def test_sixteen_bit_and_grey_images_are_images(picture, capsys):
    code, out, err = call(capsys, "predict", *FROM_FILE, picture)
    assert (code, picture in out) == (0, True), err


def test_a_spelling_with_other_dashes_is_the_nearest():
    names = ["vit_base_resnet50d_224", "seresnet50", "seresnet18"]
    assert near_misses("SE-ResNet50", names, 2)[0] == "seresnet50"
    assert (
        meant("gate_into_next", ["gate-into-previous", "gate-into-next"]) == "did you mean 'gate-into-next'? "
    )


@needs.TORCH
def test_a_zoo_name_spelled_otherwise_is_suggested():
    from se_deploy.frontend import public_zoos  # noqa: PLC0415 - not every install has torch

    assert public_zoos._near("se_resnet50", ["vit_base_resnet50d_224", "seresnet50"]).startswith(
        "did you mean seresnet50?"
    )
