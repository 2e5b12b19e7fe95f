"""MNIST's IDX files, plain or gzip, with the labels found beside the images by their name."""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
from typing import IO, TYPE_CHECKING

import numpy as np

from se_deploy import files
from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from se_deploy.data.samples import IntArray

_UNSIGNED_BYTES = 8  # the only element type of MNIST and its kin
_IMAGE_RANKS = (3, 4)
_GZIP = b"\x1f\x8b"
_MOST_UNPACKED = 100
"""Times its own size that a gzip file may unpack to; MNIST does to 5 times."""
_SMALL_BYTES = 1 << 22  # which any file may unpack to
MOST_HELD_BYTES = 1 << 30
"""Of all chosen images together: EMNIST's 697,932, the most there are in this format, have 0.9 GB."""
_BYTES_EACH = 512  # of the objects around each image
_HINT = "give the -images-idx3-ubyte file of MNIST or one like it, plain or .gz"


def is_idx(path: Path) -> bool:
    """Whether it is one by the name: `*idx3-ubyte`, `*.idx3-ubyte.gz`, `*.idx`, ..."""
    name = path.name.removesuffix(".gz")
    return name.endswith(("-ubyte", ".idx", ".idx3", ".idx4"))


def shape(path: Path) -> tuple[int, ...]:
    """Read the head: (count, H, W) or (count, H, W, C). Raises: BadData."""
    with _open(path) as file:
        return _head(path, file)


def pixels(path: Path, numbers: list[int]) -> dict[int, bytes]:
    """Read the chosen images' bytes in one pass through the file. Raises: BadData where it ends early."""
    found = {}
    with _open(path) as file:
        _, *size = _head(path, file)
        start, step = file.tell(), math.prod(size)
        for number in numbers:
            file.seek(start + number * step)
            data = file.read(step)
            if len(data) < step:
                raise BadData(f"'{path}' ends in the middle of image {number}", hint=_HINT)
            found[number] = data
    return found


def labels_path(path: Path) -> Path | None:
    """Return the file of labels beside a file of images, by its name; None where there is none."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    if name == path.name:
        return None
    stem = name.removesuffix(".gz")
    return next((p for p in (path.with_name(stem), path.with_name(f"{stem}.gz")) if p.exists()), None)


def check_held(path: Path, count: int, size: int) -> None:
    """Raise BadData where `count` images of `size` bytes are more than should be held."""
    if size < 1 or count * (size + _BYTES_EACH) > MOST_HELD_BYTES:
        raise BadData(
            f"'{path}' holds images of {size:,} bytes, and {count:,} of them are too many to hold",
            hint="choose some with --calib-samples or --samples, or save them as .npy",
        )


def labels_beside(path: Path, count: int) -> IntArray | None:
    """Read the labels of `path` from the file beside it whose name says so; None where there is none.

    Raises: BadData where it is there and does not fit.
    """
    beside = labels_path(path)
    if beside is None:
        return None
    with _open(beside) as file:
        found = _head(beside, file)
        data = file.read(count + 1)
    if found != (count,) or len(data) != count:
        raise BadData(f"'{beside}' holds labels of shape {found}, '{path}' {count} images", hint=_HINT)
    return np.frombuffer(data, np.uint8).astype(np.int64)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open plain or gzip by the file's first bytes, and say which file a decoding error is in."""
    files.check_regular(path, error=BadData)
    with files.parsing(path, "cannot be read", error=BadData, hint=_HINT), path.open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        if not zipped:
            yield file
            return
        with gzip.open(file) as unzipped:
            yield unzipped  # type: ignore[misc]  # GzipFile reads bytes; typeshed calls it no IO


def _head(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    """Read the sizes, and hold them against the file's own. Raises: BadData."""
    magic = file.read(4)
    if len(magic) < len(b"\0\0\x08\x03") or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTES:
        raise BadData(f"'{path}' is no IDX file of unsigned bytes", hint=_HINT)
    if magic[3] not in (1, *_IMAGE_RANKS):
        raise BadData(f"'{path}' has {magic[3]} dimensions, images have 3 or 4", hint=_HINT)
    data = file.read(4 * magic[3])
    if len(data) < 4 * magic[3]:
        raise BadData(f"'{path}' ends in its head", hint=_HINT)
    found = struct.unpack(f">{magic[3]}I", data)
    size = path.stat().st_size
    most = max(_MOST_UNPACKED * size, _SMALL_BYTES) if isinstance(file, gzip.GzipFile) else size
    if math.prod(found) > most:
        dims = "x".join(map(str, found))
        raise BadData(f"'{path}' says it holds {dims} bytes, and has {size:,}", hint=_HINT)
    return found
