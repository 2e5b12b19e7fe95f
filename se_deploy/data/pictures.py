"""Pictures, each opened when its batch is asked for and prepared as the network's input spec says."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.protocols import Array
    from se_deploy.schema.input_spec import InputSpec

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no whole picture."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a source: its name in messages, its bytes, and its class where it has one."""

    name: str
    content: Callable[[], bytes]
    label: int | None = None
    raw: tuple[int, int, int] | None = None  # (H, W, C) of bare pixels; None: a file Pillow knows

    def open(self, data: bytes) -> Image.Image:
        """Decode `data`; raises one of UNREADABLE."""
        if self.raw is None:
            return Image.open(io.BytesIO(data))
        height, width, channels = self.raw
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, channels)
        return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Pictures and the spec that turns each into a network's input."""

    pictures: tuple[Picture, ...]
    spec: InputSpec

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Give float32 (N, C, H, W), or (N, H, W, C) where the spec says so.

        Raises: BadData that names the picture which cannot be read.
        """
        return {self.spec.name: np.stack([self._sample(self.pictures[n]) for n in numbers])}

    def _sample(self, picture: Picture) -> Array:
        try:
            return preprocess(picture.open(picture.content()), self.spec)
        except UNREADABLE as e:
            raise unreadable(picture.name, e) from e


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a first look at the chosen pictures found."""

    readable: tuple[int, ...]  # positions among the pictures that were looked at
    skipped: tuple[str, ...]  # names of those that were not readable
    sha256: str


def inspect(pictures: Sequence[Picture], spec: InputSpec, *, skip_unreadable: bool) -> Inspection:
    """Decode each picture once, so that a broken one is known before any work is done.

    Raises: BadData that names the first unreadable one, unless `skip_unreadable`; BadData where none is
    left.
    """
    digest = hashlib.sha256(repr(dataclasses.replace(spec, name="", labels=())).encode())
    readable, skipped = [], []
    for position, picture in enumerate(pictures):
        try:
            data = picture.content()
            image = picture.open(data)
            # A JPEG decodes several times faster at a reduced size, and its whole stream is still read.
            image.draft("RGB", (spec.width, spec.height))
            image.load()
        except UNREADABLE as e:
            if not skip_unreadable:
                raise unreadable(picture.name, e) from e
            skipped.append(picture.name)
            continue
        readable.append(position)
        digest.update(f"{picture.name}\0{len(data)}\0{picture.label}\0".encode())
        digest.update(data)
    if not readable:
        raise BadData(
            f"none of the {len(pictures)} pictures can be read, '{pictures[0].name}' among them",
            hint="look at the files: they may be truncated or no pictures at all",
        )
    return Inspection(tuple(readable), tuple(skipped), digest.hexdigest())


def unreadable(name: str, reason: Exception) -> BadData:
    """Build the error that names a picture which cannot be read."""
    return BadData(
        f"the picture '{name}' cannot be read: {str(reason) or type(reason).__name__}",
        hint="remove or replace it, or pass --skip-unreadable to go on without it",
    )


def preprocess(image: Image.Image, spec: InputSpec) -> Array:
    """Turn a picture into one sample: float32 (C, H, W), or (H, W, C) where `spec.layout` says so.

    Shorter side (or both) to the input's size over `spec.crop`, centre crop, [0, 1], minus mean, over std.
    """
    if spec.channels not in _MODES:
        raise BadData(
            f"the input '{spec.name}' has {spec.channels} channels, a picture has 1, 3 or 4",
            hint="give the data as .npy or .npz, already prepared",
        )
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit and wider; Pillow would clip at 255
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.round(wide / max(1.0, _full_scale(wide)) * 255).astype(np.uint8))
    image = image.convert(_MODES[spec.channels])
    image = _resized(image, spec)
    left, top = round((image.width - spec.width) / 2), round((image.height - spec.height) / 2)
    image = image.crop((left, top, left + spec.width, top + spec.height))
    pixels = np.asarray(image, np.float32).reshape(spec.height, spec.width, spec.channels) / np.float32(255)
    pixels = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(pixels if spec.layout == "NHWC" else pixels.transpose(2, 0, 1))


def _resized(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Scale as the spec says; sides are rounded down as torchvision and timm do."""
    height, width = math.floor(spec.height / spec.crop), math.floor(spec.width / spec.crop)
    if spec.resize == "shortest":
        ratio = max(height / image.height, width / image.width)
        # The side that decides is set exactly: a ratio of two integers need not give it back.
        if height * image.width >= width * image.height:
            width = max(width, int(image.width * ratio))
        else:
            height = max(height, int(image.height * ratio))
    if (width, height) == image.size:
        return image
    return image.resize((width, height), _RESAMPLING[spec.interpolation])


def _full_scale(pixels: Array) -> float:
    """Give the largest value of the number format: 1, 255, 65535 or the picture's own maximum."""
    top = float(pixels.max(initial=0))
    return next((full for full in (1.0, 255.0, 65535.0) if top <= full), top)
