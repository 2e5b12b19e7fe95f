"""One image becomes one sample, exactly as the network's weights were evaluated.

Needs Python, numpy and Pillow alone: `bundle` writes this very code into the script for the device, so that
both sides compute the same. The arithmetic follows torchvision's transforms on Pillow images, which timm uses
too, and timm's own `ResizeKeepRatio` and `CenterCropOrPad` where those are meant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from se_deploy.schema.input_spec import InputSpec

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for an input of so many channels."""

_EIGHT_BIT, _SIXTEEN_BIT = 255, 65535
_MOST_RESIZED = 1 << 24  # pixels of an image before its crop


def to_sample(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.float32 | np.uint8]:
    """Return one sample: (C, H, W), or (H, W, C) where `spec.layout` says so.

    Resized, centre cropped (or padded); then float32, scaled to [0, 1], minus mean, over std, or uint8 as it
    is where `spec.element` says so. Pixels are read as they are
    stored: a JPEG's EXIF orientation is not applied and transparency is dropped, as in both zoos.
    """
    image = eight_bit(image).convert(MODES[spec.channels])
    height, width = resized_size(image.height, image.width, spec)
    if (width, height) == image.size:
        pixels = _centre(np.asarray(image).reshape(height, width, spec.channels), spec).astype(np.float32)
    elif not spec.antialias:
        pixels = _centre(_bilinear(np.asarray(image), height, width, spec), spec)
    else:
        image = _resized(image, height, width, spec)
        pixels = _centre(np.asarray(image).reshape(image.height, image.width, spec.channels), spec)
        pixels = pixels.astype(np.float32)
    made: npt.NDArray[np.float32 | np.uint8]
    if spec.element == "uint8":
        made = np.round(pixels).astype(np.uint8)  # Pillow's filters round already, the other one does not
    else:
        pixels = pixels / np.float32(_EIGHT_BIT)
        made = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(made if spec.layout == "NHWC" else made.transpose(2, 0, 1))


def eight_bit(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel, scaled, where Pillow's own conversion would clip at 255.

    Sixteen-bit images are divided by 257; 32-bit integers and floats by 1, 255, 65,535 or their own maximum,
    the first of these that holds every pixel: their formats do not say what white is.
    """
    if image.mode.startswith("I;16"):
        wide, white = np.asarray(image).astype(np.float64), float(_SIXTEEN_BIT)
    elif image.mode in {"I", "F"}:
        wide = np.asarray(image).astype(np.float64)
        top = float(wide.max(initial=0))
        floats = (1.0,) if image.mode == "F" else ()
        white = next((full for full in (*floats, _EIGHT_BIT, _SIXTEEN_BIT) if top <= full), top)
    elif image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # straight to RGB, Pillow warns of transparency given as bytes
    else:
        return image
    return Image.fromarray(np.round(np.clip(wide / white, 0, 1) * _EIGHT_BIT).astype(np.uint8))


def target_size(spec: InputSpec) -> tuple[int, int]:
    """Return the (height, width) that a resized image has to cover, to be or to fit into."""
    return spec.resize_size or (math.floor(spec.height / spec.crop), math.floor(spec.width / spec.crop))


def resized_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Return the (height, width) to which an image of this size is resized before the crop."""
    to_height, to_width = target_size(spec)
    if spec.resize == "squash":
        return to_height, to_width
    if spec.rounding == "nearest":  # timm's ResizeKeepRatio, in its own floating-point steps
        ratios = (height / to_height, width / to_width)
        ratio = min(ratios) if spec.resize == "shortest" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    # torchvision's int(size * long / short), in integers: 600x400 to 456 is 684, never 683.
    wide = to_height * width >= to_width * height
    if wide == (spec.resize == "shortest"):
        return to_height, max(1, width * to_height // height)
    return max(1, height * to_width // width), to_width


def _kept(size: int, wanted: int) -> tuple[int, int]:
    """Return the first position of a side that the centre crop keeps, and how many."""
    return (round((size - wanted) / 2), wanted) if size > wanted else (0, size)


def _resized(image: Image.Image, height: int, width: int, spec: InputSpec) -> Image.Image:
    """Return the image at this size; of one that would be huge, only what the crop keeps.

    A line of 65,000 pixels that has to cover 224x224 would have 14 million columns. Both ways give the same
    numbers up to the rounding of a pixel's place.
    """
    method = Image.Resampling[spec.interpolation.upper()]
    if height * width <= _MOST_RESIZED:
        return image.resize((width, height), method)
    (top, rows), (left, columns) = _kept(height, spec.height), _kept(width, spec.width)
    down, across = image.height / height, image.width / width
    right, bottom = min((left + columns) * across, image.width), min((top + rows) * down, image.height)
    return image.resize((columns, rows), method, (left * across, top * down, right, bottom))


def _centre(pixels: npt.NDArray[Any], spec: InputSpec) -> npt.NDArray[Any]:
    """Return the central (H, W, C) of the input's size; a side that is too short is padded first.

    Offsets are torchvision's center_crop's: half the difference, rounded to even when cut, down when padded.
    """
    for axis, wanted in ((0, spec.height), (1, spec.width)):
        missing = wanted - pixels.shape[axis]
        if missing <= 0:
            start, count = _kept(pixels.shape[axis], wanted)
            pixels = pixels.take(range(start, start + count), axis=axis)
            continue
        shape = (wanted, pixels.shape[1]) if axis == 0 else (pixels.shape[0], wanted)
        canvas = np.broadcast_to(_fill(spec), (*shape, spec.channels)).copy()
        inside = slice(missing // 2, missing // 2 + pixels.shape[axis])
        canvas[(inside, slice(None)) if axis == 0 else (slice(None), inside)] = pixels
        pixels = canvas
    return pixels


def _fill(spec: InputSpec) -> npt.NDArray[np.float32]:
    """Return what is padded with, 0 to 255 for each channel: the mean around a whole image, else black."""
    if spec.resize != "longest":
        return np.zeros(spec.channels, np.float32)
    if spec.pad is not None:
        return np.array(spec.pad, np.float32)
    return np.array([round(_EIGHT_BIT * mean) for mean in spec.mean], np.float32)


def _bilinear(pixels: npt.NDArray[np.uint8], height: int, width: int, spec: InputSpec) -> npt.NDArray[Any]:
    """Return what the crop keeps of `pixels` (H, W, C) at another size, without antialiasing.

    The arithmetic is that of `torch.nn.functional.interpolate`'s bilinear.
    """
    pixels = pixels.reshape(*pixels.shape[:2], spec.channels)
    steps = []
    for axis, (size, wanted) in enumerate(((height, spec.height), (width, spec.width))):
        start, count = _kept(size, wanted)
        length = pixels.shape[axis]
        at = np.maximum((np.arange(start, start + count) + 0.5) * (length / size) - 0.5, 0.0)
        low = np.minimum(at.astype(np.int64), length - 1)
        high = np.minimum(low + 1, length - 1)
        used, place = np.unique(np.concatenate((low, high)), return_inverse=True)
        pixels = pixels.take(used, axis=axis)  # few, so that nothing large is made on the way
        weight: npt.NDArray[Any] = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        steps.append((axis, place[:count], place[count:], weight))
    made: npt.NDArray[Any] = pixels.astype(np.float32)
    for axis, low, high, weight in steps:
        made = made.take(low, axis=axis) * (1 - weight) + made.take(high, axis=axis) * weight
    return made
