"""What a network expects at its inputs: size, normalization, labels; it travels inside the ONNX file.

Written to the file's metadata under one key, so that calibration, parity and `predict` need no flags.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from se_deploy.errors import BadModel

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

METADATA_KEY = "se_deploy.input"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Resize = Literal["shortest", "squash", "longest"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Layout = Literal["NCHW", "NHWC"]
Rounding = Literal["down", "nearest"]

_OPTIONAL = ("resize_size", "rounding", "antialias")
"""Fields that came later: written only where they say something, so that older readers take the rest."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One image input: pixels in [0, 1] minus `mean`, over `std`, as float32 (N, C, H, W).

    `resize` "shortest" scales the image, aspect kept, until it covers `resize_size`, then takes the centre;
    "squash" scales both sides to `resize_size`, then takes the centre; "longest" scales, aspect kept, until
    the image fits into it, and pads with the mean.
    """

    name: str
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize = "shortest"
    crop: float = 1.0  # fraction of the resized side that is kept, timm's crop_pct; above 1 the rest is black
    interpolation: Interpolation = "bilinear"
    layout: Layout = "NCHW"  # of the tensor that the graph takes
    labels: tuple[str, ...] = ()  # class names by index of the first output; () where unknown
    resize_size: tuple[int, int] | None = None  # (H, W) before the crop; None: size / crop, rounded down
    rounding: Rounding = "down"  # of the side that follows from the aspect; "nearest" is timm's, of both
    antialias: bool = True  # False: bilinear as a network resizes inside itself

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel; the mean of the known ones where the number of channels differs."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


def resized(spec: InputSpec | None, dims: tuple[int, ...], name: str = "input") -> InputSpec | None:
    """Return `spec` with another size (C, H, W); plain [0, 1] pixels where nothing was known.

    None where `dims` are no image's.
    """
    if len(dims) != 3:  # noqa: PLR2004 - (C, H, W)
        return None
    channels, height, width = dims
    if spec is None:
        return InputSpec(name, channels, height, width, (0.0,) * channels, (1.0,) * channels)
    return dataclasses.replace(
        spec,
        channels=channels,
        height=height,
        width=width,
        mean=per_channel(spec.mean, channels),
        std=per_channel(spec.std, channels),
        resize_size=None if (height, width) != (spec.height, spec.width) else spec.resize_size,
    )


def to_fields(spec: InputSpec) -> dict[str, Any]:
    """Return the spec as a JSON object; later fields are left out where they have their default."""
    fields = dataclasses.asdict(spec)
    defaults = {field.name: field.default for field in dataclasses.fields(InputSpec)}
    return {k: v for k, v in fields.items() if k not in _OPTIONAL or v != defaults[k]}


def from_fields(fields: Mapping[str, Any]) -> InputSpec:
    """Return the spec that a JSON object describes.

    Raises: ValueError, TypeError or KeyError that says which field is wrong.
    """
    lists = {name: tuple(fields[name]) for name in ("mean", "std")}
    lists["labels"] = tuple(fields.get("labels", ()))
    if fields.get("resize_size") is not None:
        lists["resize_size"] = tuple(fields["resize_size"])
    spec = InputSpec(**{**fields, **lists})
    choices = {"resize": Resize, "interpolation": Interpolation, "layout": Layout, "rounding": Rounding}
    for name, choice in choices.items():
        if getattr(spec, name) not in get_args(choice):
            raise ValueError(
                f"its {name} is {getattr(spec, name)!r}, not one of {', '.join(get_args(choice))}"
            )
    for name in ("mean", "std"):
        values = getattr(spec, name)
        if len(values) != spec.channels or not all(math.isfinite(value) for value in values):
            raise ValueError(f"its {name} is no finite number for each of {spec.channels} channels")
    if not all(value > 0 for value in spec.std):
        raise ValueError("its std is not above 0")
    sizes = (*spec.shape, *(spec.resize_size or (1, 1)))
    if len(sizes) != 5 or not all(isinstance(size, int) and size > 0 for size in sizes):  # noqa: PLR2004 - C, H, W and two
        raise ValueError("its sizes are not whole numbers above 0")
    if not spec.crop > 0:
        raise ValueError("its crop is not above 0")
    if not spec.antialias and spec.interpolation != "bilinear":
        raise ValueError(f"only bilinear exists without antialiasing, not {spec.interpolation}")
    return spec


def write(metadata: MutableMapping[str, str], spec: InputSpec) -> None:
    """Put `spec` into an ONNX model's metadata."""
    metadata[METADATA_KEY] = json.dumps(to_fields(spec))


def read(metadata: Mapping[str, str]) -> InputSpec | None:
    """Return the input spec in an ONNX model's metadata; None where the file has none.

    Raises: BadModel where the entry is there but is none of ours.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        return from_fields(json.loads(text))
    except (ValueError, TypeError, KeyError) as e:
        reason = f"it has no {e}" if isinstance(e, KeyError) else e
        raise BadModel(
            f"the metadata entry '{METADATA_KEY}' is not an input spec: {reason}",
            hint="export the network again, or write the entry as `se-deploy export` does",
        ) from e
