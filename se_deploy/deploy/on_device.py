"""Say which classes the network finds in images: python3 predict.py IMAGE...

Runs the ONNX file beside it on the CPU; needs numpy, Pillow and onnxruntime, and nothing of se-deploy.
How an image becomes the input is in input.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from se_deploy.data.preprocessing import to_sample

FOLDER = Path(__file__).resolve().parent
TOP = 5
LATER_FIELDS = {"resize_size": None, "rounding": "down", "antialias": True, "pad": None, "element": "float32"}
"""What an input.json from before these fields means."""


def prepare(image: Image.Image, spec: dict[str, Any]) -> npt.NDArray[np.float32 | np.uint8]:
    """Return one sample, (C, H, W) or (H, W, C), float32 or uint8, as input.json says."""
    described: Any = SimpleNamespace(**{**LATER_FIELDS, **spec})
    return to_sample(image, described)


def probabilities(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Softmax of one image's scores, unless they are probabilities already."""
    scores = scores.astype(np.float64)
    if (scores >= 0).all() and abs(scores.sum() - 1) <= 1e-3:  # noqa: PLR2004 - FP16 adds up no better
        return scores
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(), np.float64)


def main(images: list[str]) -> None:
    """Print the most probable classes of each image."""
    spec = json.loads((FOLDER / "input.json").read_text("utf-8"))
    session = onnxruntime.InferenceSession(str(FOLDER / spec["onnx"]), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    half = taken.type == "tensor(float16)"
    outputs = [output.name for output in session.get_outputs()]
    batch = taken.shape[0] if isinstance(taken.shape[0], int) else 1
    for name in images:
        with Image.open(name) as image:
            one = prepare(image, spec)
        one = one.astype(np.float16) if half else one
        answers = session.run(outputs, {taken.name: np.repeat(one[None], batch, axis=0)})
        scores = next(a for a in answers if a.ndim == 2 and a.dtype.kind == "f")  # noqa: PLR2004 - (N, classes)
        found = probabilities(scores[0])
        print(name)  # noqa: T201 - it is a script of its own
        for index in np.argsort(-found, kind="stable")[:TOP]:
            label = spec["labels"][index] if index < len(spec["labels"]) else ""
            print(f"  {found[index]:8.4%}  {index}  {label}")  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    main(sys.argv[1:])
