"""What costs seconds is done once per command: a compiler starts, a picture is decoded, a file gets its form.

And what is there when the work begins, PyTorch among it, is not walked again by Python's collector in `run`.
"""

import json
import subprocess
import sys

import needs
import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, needs.RTX]

COUNTS = """
import gc, json, sys
from PIL import ImageFile
starts, decoded, spared = [], [], []

def hook(event, args):
    if event == "subprocess.Popen":
        starts.append([str(word) for word in args[1]])
        spared.append(gc.get_freeze_count() > 0)

sys.addaudithook(hook)
load = ImageFile.ImageFile.load

def counted(self):
    if self.fp is not None:  # None: its pixels are there
        decoded.append(1)
    return load(self)

ImageFile.ImageFile.load = counted
from se_deploy.cli import main
from se_deploy.commands import verifying
brought, canonical_form = [], verifying.canonical_form

def form_of(given, *more, **named):
    brought.append(given)
    return canonical_form(given, *more, **named)

verifying.canonical_form = form_of
try:
    main()
except SystemExit as e:
    code = e.code
compilers = [any("tensorrt/worker.py" in word for word in start) for start in starts]
found = {"code": code, "compilers": sum(compilers), "decoded": len(decoded), "brought": len(brought)}
found["spared"] = any(compiler and frozen for compiler, frozen in zip(compilers, spared))
print(json.dumps(found), file=sys.stderr)
"""
PICTURES = 8


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a small SE network and pictures."""
    folder = tmp_path_factory.mktemp("once")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(PICTURES):
        pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    network = ("se_deploy:se_resnet20", "-o", "net.onnx", "--input-size", "3x32x32", "--no-rewrites")
    assert counted(folder, "export", *network)["code"] == 0
    return folder


def counted(folder, *words):
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, *words, "--quiet"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stderr.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "words",
    [
        ("build-engine", "net.onnx", "-o", "net.engine", "--int8", "--calib-data", "pictures"),
        ("run", "net.onnx", "-o", "out", "--int8", "--calib-data", "pictures", "--duration-s", "0.1"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_starts_one_compiler_and_decodes_each_picture_once(given, words):
    found = counted(given, *words, "--target", "sm86", "--runtime", "tensorrt-rtx")
    is_run = words[0] == "run"
    forms = 2 if is_run else 1  # the file given; in a run then what it wrote, for all that is made of it
    assert found == {"code": 0, "compilers": 1, "decoded": PICTURES, "brought": forms, "spared": is_run}
