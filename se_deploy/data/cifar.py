"""CIFAR-10 and CIFAR-100 in their authors' binary records.

The same data comes as Python pickles too. Those are refused: a pickle can run any code when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import files as disk
from se_deploy.data.images import SourceImage
from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from se_deploy.data.samples import IntArray
    from se_deploy.protocols import Array

SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_LABEL_BYTES = {10: 1, 100: 2}  # in front of each binary record; CIFAR-100: coarse, then fine
_FILES = (
    *(f"data_batch_{n}" for n in range(1, 6)), "train", "test_batch", "test",
)  # fmt: skip
_HINT = "give data_batch_1.bin of CIFAR-10, train.bin of CIFAR-100, or their folder"
_PICKLED_HINT = "download its binary version (cifar-10-binary.tar.gz), or save the images as .npy"


@dataclass(frozen=True, slots=True)
class Batch:
    """One file: pixels (N, 3072) uint8, three planes each, and the fine labels (N,)."""

    name: str
    pixels: Array
    labels: IntArray


def files(path: Path) -> list[Path]:
    """Return the CIFAR files that `path` is or holds: all training files, else the test file; [] for none.

    Raises: BadData for the pickled form.
    """
    if path.is_file():
        if path.name in _FILES:
            raise _pickled(path)
        return [path] if path.name.removesuffix(".bin") in _FILES else []
    binary = [path / f"{name}.bin" for name in _FILES if (path / f"{name}.bin").is_file()]
    pickled = [path / name for name in _FILES if (path / name).is_file()]
    if pickled and not binary:
        raise _pickled(pickled[0])
    return [p for p in binary if not p.name.startswith("test")] or binary


def _pickled(path: Path) -> BadData:
    return BadData(f"'{path}' is a Python pickle of CIFAR, which could run code", hint=_PICKLED_HINT)


def images(paths: Sequence[Path], numbers: Sequence[int], counts: Sequence[int]) -> Iterator[SourceImage]:
    """Yield the chosen images, numbered through all files in order."""
    start = 0
    for path, count in zip(paths, counts, strict=True):
        inside = [n - start for n in numbers if start <= n < start + count]
        start += count
        if not inside:
            continue
        batch = read(path)
        for n in inside:
            planes = batch.pixels[n].reshape(3, SIDE, SIDE)
            data = np.ascontiguousarray(planes.transpose(1, 2, 0)).tobytes()
            yield SourceImage(
                f"{path.name}[{n}]",
                lambda data=data: data,  # type: ignore[misc]  # the default binds this image's bytes
                int(batch.labels[n]),
                (SIDE, SIDE, 3),
            )


def read(path: Path) -> Batch:
    """Return the images of one file. Raises: BadData where it is no CIFAR file."""
    data = np.frombuffer(disk.read_bytes(path, error=BadData), np.uint8)
    many = path.stem in {"train", "test"}
    head = _LABEL_BYTES[100 if many else 10]
    if not data.size or data.size % (head + _PIXELS):
        raise BadData(f"'{path}' is not a whole number of CIFAR records", hint=_HINT)
    records = data.reshape(-1, head + _PIXELS)
    return Batch(path.name, records[:, head:], records[:, head - 1].astype(np.int64))
