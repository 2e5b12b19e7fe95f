"""Images, each opened when its batch is asked for and prepared as the network's input spec says."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from PIL import Image, UnidentifiedImageError

from se_deploy import files
from se_deploy.data import prepared, preprocessing
from se_deploy.data.samples import Hashes, hash_of
from se_deploy.errors import BadData, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.protocols import Array
    from se_deploy.schema.input_spec import InputSpec

UNREADABLE: tuple[type[Exception], ...] = (*files.DAMAGED, Image.DecompressionBombError)
"""What Pillow raises for a file that is no whole image."""
_NO_IMAGE: tuple[type[Exception], ...] = (*UNREADABLE, BadData)  # the last: not even a file

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is decoded, whatever a file is called: Pillow's others are little tried, one starts a program."""

MOST_PIXELS = 1 << 26
"""Of an image of 8 bits a channel, 67 megapixels: it is held twice, in 4 bytes a pixel."""
MOST_WIDE_PIXELS = 1 << 24
"""Of one of 16 or 32 bits, which is scaled in double precision, and of a network's input."""
_LARGEST_SIDE = 1 << 14  # that an image is resized to


def decoder(file: IO[bytes]) -> Image.Image:
    """Return an image of which only the head was read. Raises: one of UNREADABLE, also for its size."""
    image = Image.open(file, formats=FORMATS)
    most = MOST_WIDE_PIXELS if image.mode.startswith(("I", "F")) else MOST_PIXELS
    if image.width * image.height > most:
        raise ValueError(f"it has {image.width}x{image.height} pixels, at most {most:,} are decoded")
    return image


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source: its name in messages, its bytes, and its class where it has one."""

    name: str
    content: Callable[[], bytes]
    label: int | None = None
    raw: tuple[int, int, int] | None = None  # (H, W, C) of bare pixels; None: a file Pillow knows

    def open(self, data: bytes) -> Image.Image:
        """Decode `data`; raises one of UNREADABLE."""
        if not data:
            raise ValueError("the file is empty")
        if self.raw is None:
            return decoder(io.BytesIO(data))
        height, width, channels = self.raw
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, channels)
        return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Images and the spec that turns each into a network's input."""

    images: tuple[SourceImage, ...]
    spec: InputSpec

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return float32, or uint8 frames, (N, C, H, W), or (N, H, W, C), as the spec says.

        Raises: BadData that names the image which cannot be read.
        """
        how = repr(replace(self.spec, name="", labels=()))
        return {self.spec.name: np.stack([self._sample(self.images[n], how) for n in numbers])}

    def _sample(self, image: SourceImage, how: str) -> Array:
        try:
            return _prepared(image, image.content(), self.spec, how)
        except UNREADABLE as e:
            raise unreadable(image.name, e) from e


def _prepared(image: SourceImage, data: bytes, spec: InputSpec, how: str) -> Array:
    """Return an image's sample. `how`: all of the spec that it depends on."""
    return prepared.of(data, f"{how} {image.raw}", lambda: preprocess(image.open(data), spec))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a first look at the chosen images found."""

    readable: tuple[int, ...]  # positions among the images that were looked at
    skipped: tuple[str, ...]  # names of those that were not readable
    hashes: Hashes  # of the readable ones


def inspect(images: Sequence[SourceImage], spec: InputSpec, *, skip_unreadable: bool) -> Inspection:
    """Decode each image, so that a broken one is known before any work is done.

    Where prepared images are kept (`data.kept`), its sample is kept at once and nothing decodes it again.

    Raises: BadData that names the first unreadable one, unless `skip_unreadable`; BadData where none is
    left, or the input takes no images.
    """
    _check(spec)
    how = repr(replace(spec, name="", labels=()))
    digest = hashlib.sha256(how.encode())
    size = spec.height * spec.width * spec.channels * np.dtype(np.float32).itemsize
    readable, skipped, each = [], [], []
    for position, image in enumerate(images):
        try:
            data = image.content()
            if prepared.has_room(size):
                _prepared(image, data, spec, how)
            else:
                decoded = image.open(data)
                # A JPEG decodes several times faster at a reduced size, and its whole stream is still read.
                decoded.draft("RGB", (spec.width, spec.height))
                decoded.load()
        except _NO_IMAGE as e:
            if not skip_unreadable:
                raise unreadable(image.name, e) from e
            skipped.append(image.name)
            continue
        readable.append(position)
        digest.update(f"{image.name}\0{len(data)}\0{image.label}\0".encode(errors="surrogatepass"))
        digest.update(data)
        each.append(hash_of(data))
    if not readable:
        raise BadData(
            f"none of {counted(len(images), 'image')} can be read, '{images[0].name}' among them",
            hint="look at the files: they may be truncated or no images at all",
        )
    return Inspection(tuple(readable), tuple(skipped), Hashes(digest.hexdigest(), tuple(each)))


def unreadable(
    name: str,
    reason: Exception,
    hint: str = "remove or replace it, or pass --skip-unreadable to go on without it",
) -> BadData:
    """Return the error that names an image which cannot be read."""
    why = files.reason_of(reason)
    if isinstance(reason, UnidentifiedImageError):  # its text holds a buffer's address, not the file's name
        why = f"it is none of {', '.join(FORMATS)}"
    return BadData(f"the image '{name}' cannot be read: {why}", hint=hint)


def preprocess(image: Image.Image, spec: InputSpec) -> Array:
    """Return one sample: (C, H, W), or (H, W, C) where `spec.layout` says so, of `spec.element`.

    Raises: BadData where no image has as many channels as the input, or is as large.
    """
    _check(spec)
    return preprocessing.to_sample(image, spec)


def _check(spec: InputSpec) -> None:
    """Raise BadData where no image can be made into what the input takes."""
    if spec.channels not in preprocessing.MODES:
        raise BadData(
            f"the input '{spec.name}' has {counted(spec.channels, 'channel')}, an image has 1, 3 or 4",
            hint="give the data as .npy or .npz, already prepared",
        )
    check_size(spec)


def check_size(spec: InputSpec) -> None:
    """Raise BadData where an input, or what an image is resized to for it, is larger than images are."""
    sides = (
        spec.height,
        spec.width,
        spec.height / spec.crop,
        spec.width / spec.crop,
        *(spec.resize_size or ()),
    )
    if max(sides) > _LARGEST_SIDE or spec.height * spec.width > MOST_WIDE_PIXELS:
        raise BadData(
            f"the input '{spec.name}' takes images of {spec.height}x{spec.width}, "
            f"cut from {spec.resize_size or f'1/{spec.crop:g} of it'}: no image is that large",
            hint="correct the input spec: --input-size, --resize and --crop",
        )
