"""CIFAR-10 and CIFAR-100 as their authors ship them: binary records, or Python pickles.

A pickle can run any code when it is loaded. These are opened by an unpickler that knows only what the files
hold (a dictionary of numbers, bytes and one array of bytes) and refuses all else unread.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
_LABELS = (b"labels", b"fine_labels", "labels", "fine_labels")
_HINT = "give data_batch_1 or data_batch_1.bin of CIFAR-10, train or train.bin of CIFAR-100, or their folder"


@dataclass(frozen=True, slots=True)
class Batch:
    """One file: pixels (N, 3072) uint8, three planes each, and the fine labels (N,)."""

    name: str
    pixels: Array
    labels: IntArray


def files(path: Path) -> list[Path]:
    """Name the CIFAR files that `path` is or holds: all training files, else the test file; [] for none."""
    if path.is_file():
        return [path] if path.name.removesuffix(".bin") in _FILES else []
    for suffix in ("", ".bin"):
        found = [path / f"{name}{suffix}" for name in _FILES if (path / f"{name}{suffix}").is_file()]
        training = [p for p in found if not p.name.startswith("test")]
        if found:
            return training or found
    return []


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
    """Read one file. Raises: BadData where it is no CIFAR file."""
    return _binary(path) if path.suffix == ".bin" else _pickled(path)


def _binary(path: Path) -> Batch:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    many = path.stem in {"train", "test"}
    head = _LABEL_BYTES[100 if many else 10]
    if not data.size or data.size % (head + _PIXELS):
        raise BadData(f"'{path}' is not a whole number of CIFAR records", hint=_HINT)
    records = data.reshape(-1, head + _PIXELS)
    return Batch(path.name, records[:, head:], records[:, head - 1].astype(np.int64))


def _pickled(path: Path) -> Batch:
    try:
        content: Any = _Known(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels = content[b"data"] if b"data" in content else content["data"]
        labels = np.asarray(next(content[key] for key in _LABELS if key in content))
    except BadData:
        raise
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError,
            AttributeError, StopIteration) as e:  # fmt: skip
        raise BadData(f"'{path}' is no CIFAR file: {e or type(e).__name__}", hint=_HINT) from e
    fits = (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.shape[1:] == (_PIXELS,)
        and labels.shape == pixels.shape[:1]
        and labels.dtype.kind == "i"
    )
    if not fits:
        raise BadData(f"'{path}' does not hold CIFAR's pixels and labels", hint=_HINT)
    return Batch(path.name, pixels, labels.astype(np.int64))


class _Known(pickle.Unpickler):
    """Loads nothing but what an array of numbers is made of."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - what pickle declares
        """Return one of the four known objects. Raises: BadData for any other, before it is imported."""
        known = {
            "multiarray._reconstruct": np.empty(0).__reduce__()[0],
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "_codecs.encode": _encode,
        }
        key = f"{module}.{name}".removeprefix("numpy.core.").removeprefix("numpy._core.")
        if key not in known:
            raise BadData(f"a pickle names '{module}.{name}', which no CIFAR file does", hint=_HINT)
        return known[key]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Do what pickles of bytes by protocol 2 ask for, and nothing else."""
    if encoding != "latin1":
        raise BadData(f"a pickle asks for the encoding '{encoding}'", hint=_HINT)
    return text.encode("latin1")
