"""Say which classes the network finds in pictures: python3 predict.py PICTURE...

Runs the ONNX file beside it on the CPU; needs numpy, Pillow and onnxruntime, and nothing of se-deploy.
How a picture becomes the input is in input.json.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

FOLDER = Path(__file__).resolve().parent
TOP = 5


def prepare(image: Image.Image, spec: dict[str, Any]) -> npt.NDArray[Any]:
    """Resize, crop the centre, scale to [0, 1], subtract the mean, divide by the deviation."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow would clip at 255
        wide = np.asarray(image).astype(np.float64)
        top = float(wide.max(initial=0))
        full = next((scale for scale in (1.0, 255.0, 65535.0) if top <= scale), top)
        image = Image.fromarray(np.round(wide / max(1.0, full) * 255).astype(np.uint8))
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[spec["channels"]])
    height, width = math.floor(spec["height"] / spec["crop"]), math.floor(spec["width"] / spec["crop"])
    if spec["resize"] == "shortest":
        ratio = max(height / image.height, width / image.width)
        if height * image.width >= width * image.height:
            width = max(width, int(image.width * ratio))
        else:
            height = max(height, int(image.height * ratio))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling[spec["interpolation"].upper()])
    left, top_edge = round((width - spec["width"]) / 2), round((height - spec["height"]) / 2)
    image = image.crop((left, top_edge, left + spec["width"], top_edge + spec["height"]))
    pixels: npt.NDArray[Any] = np.asarray(image, np.float32).reshape(
        spec["height"], spec["width"], spec["channels"]
    )
    pixels = pixels / np.float32(255)
    pixels = (pixels - np.asarray(spec["mean"], np.float32)) / np.asarray(spec["std"], np.float32)
    return pixels if spec["layout"] == "NHWC" else pixels.transpose(2, 0, 1)


def probabilities(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Softmax of one picture's scores, unless they are probabilities already."""
    scores = scores.astype(np.float64)
    if (scores >= 0).all() and abs(scores.sum() - 1) <= 1e-3:  # noqa: PLR2004 - FP16 adds up no better
        return scores
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum(), np.float64)


def main(pictures: list[str]) -> None:
    """Print the most probable classes of each picture."""
    spec = json.loads((FOLDER / "input.json").read_text("utf-8"))
    session = onnxruntime.InferenceSession(str(FOLDER / spec["onnx"]), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    half = taken.type == "tensor(float16)"
    batch = taken.shape[0] if isinstance(taken.shape[0], int) else 1
    for name in pictures:
        with Image.open(name) as image:
            one = prepare(image, spec).astype(np.float16 if half else np.float32)
        scores = session.run(None, {taken.name: np.repeat(one[None], batch, axis=0)})[0][0]
        found = probabilities(scores)
        print(name)  # noqa: T201 - it is a script of its own
        for index in np.argsort(-found, kind="stable")[:TOP]:
            label = spec["labels"][index] if index < len(spec["labels"]) else ""
            print(f"  {found[index]:8.4%}  {index}  {label}")  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    main(sys.argv[1:])
