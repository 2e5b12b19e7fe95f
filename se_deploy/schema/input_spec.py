"""What a network expects at its inputs: size, normalization, labels; it travels inside the ONNX file.

Written to the file's metadata under one key, so that calibration, parity and `predict` need no flags.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from se_deploy.errors import BadModel
from se_deploy.schema import codec

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

METADATA_KEY = "se_deploy.input"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Resize = Literal["shortest", "squash", "longest"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Layout = Literal["NCHW", "NHWC"]
Rounding = Literal["down", "nearest"]
Element = Literal["float32", "uint8"]

RAW_STD = 1 / 255
"""The std of pixels that are fed as they are stored: over it, those in [0, 1] are 0 to 255 again."""

Size = Annotated[int, Meta(ge=1)]
T = TypeVar("T")


def _written(default: T) -> T:
    """Return a default that is written even so: later fields are not, so that older readers take the rest."""
    made: T = field(default_factory=lambda: default)
    return made


class InputSpec(Struct, frozen=True, omit_defaults=True):
    """One image input: pixels in [0, 1] minus `mean`, over `std`, as float32 (N, C, H, W), or uint8 frames.

    `resize` "shortest" scales the image, aspect kept, until it covers `resize_size`, then takes the centre;
    "squash" scales both sides to `resize_size`, then takes the centre; "longest" scales, aspect kept, until
    the image fits into it, and pads with the mean.
    """

    name: str
    channels: Size
    height: Size
    width: Size
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Meta(gt=0)], ...]
    resize: Resize = _written("shortest")
    # the fraction of the resized side that is kept, timm's crop_pct; above 1 the rest is black
    crop: Annotated[float, Meta(gt=0)] = _written(1.0)
    interpolation: Interpolation = _written("bilinear")
    layout: Layout = _written("NCHW")  # of the tensor that the graph takes
    labels: tuple[str, ...] = _written(())  # class names by index of the first output; () where unknown
    resize_size: tuple[Size, Size] | None = None  # (H, W) before the crop; None: size / crop, rounded down
    rounding: Rounding = "down"  # of the side that follows from the aspect; "nearest" is timm's, of both
    antialias: bool = True  # False: bilinear as a network resizes inside itself
    # what "longest" pads frames with, whose mean is not known here; None: the mean
    pad: tuple[Annotated[int, Meta(ge=0, le=255)], ...] | None = None
    element: Element = "float32"  # "uint8": frames, 0 to 255 as stored, which the graph itself normalizes

    def __post_init__(self) -> None:
        """Check what fields say together. Raises: ValueError, which names the fields."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise ValueError(f"its {name} is no finite number for each of {self.channels} channels")
        if not self.antialias and self.interpolation != "bilinear":
            raise ValueError(f"only bilinear exists without antialiasing, not {self.interpolation}")
        if self.is_frames and (any(self.mean) or not all(math.isclose(s, RAW_STD) for s in self.std)):
            raise ValueError("uint8 frames are fed as they are: their mean is 0 and their std 1/255")
        if self.pad is not None and len(self.pad) != self.channels:
            raise ValueError(f"its pad is no number for each of {self.channels} channels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def dims(self) -> tuple[int, int, int]:
        """The dimensions behind the batch as the graph takes them: (C, H, W) or (H, W, C)."""
        return in_layout(self.shape, self.layout)

    @property
    def is_frames(self) -> bool:
        """Whether pixels are fed as they are stored, 0 to 255 as uint8, without mean and std."""
        return self.element == "uint8"


def in_layout(shape: tuple[T, T, T], layout: Layout) -> tuple[T, T, T]:
    """Return (C, H, W) in the order of the layout."""
    channels, height, width = shape
    return shape if layout == "NCHW" else (height, width, channels)


def frames(spec: InputSpec, layout: Layout | None = None) -> InputSpec:
    """Return `spec` for a graph that takes uint8 frames, in its own or another layout."""
    pad = None
    if spec.resize == "longest" and not spec.is_frames:
        pad = tuple(min(max(round(255 * mean), 0), 255) for mean in spec.mean)
    return replace(
        spec,
        element="uint8",
        layout=layout or spec.layout,
        mean=(0.0,) * spec.channels,
        std=(RAW_STD,) * spec.channels,
        pad=pad or spec.pad,
    )


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel; the mean of the known ones where the number of channels differs."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


def resized(spec: InputSpec | None, dims: Sequence[int]) -> InputSpec:
    """Return `spec` with another size (C, H, W); plain [0, 1] pixels where nothing was known."""
    channels, height, width = dims
    if spec is None:
        return InputSpec("input", channels, height, width, (0.0,) * channels, (1.0,) * channels)
    return replace(
        spec,
        channels=channels,
        height=height,
        width=width,
        mean=per_channel(spec.mean, channels),
        std=(RAW_STD,) * channels if spec.is_frames else per_channel(spec.std, channels),
        pad=None if channels != spec.channels else spec.pad,
        resize_size=None if (height, width) != (spec.height, spec.width) else spec.resize_size,
    )


def write(metadata: MutableMapping[str, str], spec: InputSpec) -> None:
    """Put `spec` into an ONNX model's metadata."""
    metadata[METADATA_KEY] = codec.encode(spec, indent=None)


def read(metadata: Mapping[str, str]) -> InputSpec | None:
    """Return the input spec in an ONNX model's metadata; None where the file has none.

    Raises: BadModel where the entry is there but is none of ours.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    return codec.decode(
        text,
        InputSpec,
        what=f"the metadata entry '{METADATA_KEY}', an input spec",
        error=BadModel,
        hint="export the network again, or write the entry as `se-deploy export` does",
    )
