"""What a network expects at its inputs: size, normalization, labels; it travels inside the ONNX file.

Written to the file's metadata under one key, so that calibration, parity and `predict` need no flags.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from se_deploy.errors import BadModel

if TYPE_CHECKING:
    from collections.abc import MutableMapping

METADATA_KEY = "se_deploy.input"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One image input: pixels in [0, 1] minus `mean`, over `std`, as float32 (N, C, H, W).

    `resize` "shortest" scales the shorter side to the input's size over `crop`, then takes the centre;
    "squash" scales both sides to the input's size over `crop` without keeping the aspect, then takes it.
    """

    name: str
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["shortest", "squash"] = "shortest"
    crop: float = 1.0  # fraction of the resized side that is kept, timm's crop_pct
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    layout: Literal["NCHW", "NHWC"] = "NCHW"  # of the tensor that the graph takes
    labels: tuple[str, ...] = ()  # class names by index of the first output; () where unknown

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)


def write(metadata: MutableMapping[str, str], spec: InputSpec) -> None:
    """Put `spec` into an ONNX model's metadata."""
    metadata[METADATA_KEY] = json.dumps(dataclasses.asdict(spec))


def read(metadata: MutableMapping[str, str]) -> InputSpec | None:
    """Get the input spec from an ONNX model's metadata; None where the file has none.

    Raises: BadModel where the entry is there but is none of ours.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        fields = json.loads(text)
        for name in ("mean", "std", "labels"):
            fields[name] = tuple(fields[name])
        return InputSpec(**fields)
    except (ValueError, TypeError, KeyError) as e:
        raise BadModel(
            f"the metadata entry '{METADATA_KEY}' is not an input spec: {e}",
            hint="export the network again, or pass --input-size, --mean and --std",
        ) from e
