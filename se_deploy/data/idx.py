"""MNIST's IDX files, plain or gzip, with the labels found beside the images by their name."""

from __future__ import annotations

import contextlib
import gzip
import struct
from typing import IO, TYPE_CHECKING

import numpy as np

from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from se_deploy.data.samples import IntArray

_UNSIGNED_BYTES = 8  # the only element type of MNIST and its kin
_IMAGE_RANKS = (3, 4)
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
    wanted, found = set(numbers), {}
    with _open(path) as file:
        count, *size = _head(path, file)
        step = int(np.prod(size))
        for number in range(min(count, max(wanted) + 1)):
            data = file.read(step)
            if len(data) < step:
                raise BadData(f"'{path}' ends in the middle of image {number}", hint=_HINT)
            if number in wanted:
                found[number] = data
    return found


def labels_path(path: Path) -> Path | None:
    """Return the file of labels beside a file of images, by its name; None where there is none."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    if name == path.name:
        return None
    stem = name.removesuffix(".gz")
    return next((p for p in (path.with_name(stem), path.with_name(f"{stem}.gz")) if p.exists()), None)


def labels_beside(path: Path, count: int) -> IntArray | None:
    """Read the labels of `path` from the file beside it whose name says so; None where there is none.

    Raises: BadData where it is there and does not fit.
    """
    beside = labels_path(path)
    if beside is None:
        return None
    with _open(beside) as file:
        found = _head(beside, file)
        data = file.read()
    if found != (count,) or len(data) != count:
        raise BadData(f"'{beside}' holds labels of shape {found}, '{path}' {count} images", hint=_HINT)
    return np.frombuffer(data, np.uint8).astype(np.int64)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open plain or gzip by the file's first bytes, and say which file a decoding error is in."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not zipped:
                yield file
                return
            with gzip.open(file) as unzipped:
                yield unzipped  # type: ignore[misc]  # GzipFile reads bytes; typeshed calls it no IO
    except (gzip.BadGzipFile, EOFError, OSError) as e:
        raise BadData(f"'{path}' cannot be read: {e}", hint=_HINT) from e


def _head(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < len(b"\0\0\x08\x03") or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTES:
        raise BadData(f"'{path}' is no IDX file of unsigned bytes", hint=_HINT)
    data = file.read(4 * magic[3])
    if len(data) < 4 * magic[3]:
        raise BadData(f"'{path}' ends in its head", hint=_HINT)
    found = struct.unpack(f">{magic[3]}I", data)
    if len(found) not in (1, *_IMAGE_RANKS):
        raise BadData(f"'{path}' has {len(found)} dimensions, images have 3 or 4", hint=_HINT)
    return found
