"""Arrays on disk that are samples already: .npy and .npz, read slice by slice.

Rows are read with seek and read, not through a memory map: mapped pages count as this process's memory, and
a calibration must not grow with its number of samples.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from se_deploy.protocols import Array, TensorSpec

LABEL_KEYS = ("labels", "label", "y")
_HINT = "save it with numpy.save or numpy.savez as numbers, one sample per entry of the first axis"
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class NpyFile:
    """One array in .npy form, in a file of its own or inside an .npz."""

    name: str
    open: Callable[[], IO[bytes]]
    start: int  # where the first row begins
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def rows(self, numbers: Sequence[int]) -> Array:
        """Read these rows: (len(numbers), *shape[1:])."""
        out = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        size = out[:1].nbytes
        with self.open() as file:
            for i, number in enumerate(numbers):
                file.seek(self.start + number * size)
                row = file.read(size)
                if len(row) < size:
                    raise BadData(f"'{self.name}' ends in the middle of entry {number}", hint=_HINT)
                out[i] = np.frombuffer(row, self.dtype).reshape(self.shape[1:])
        return out


@dataclass(frozen=True, slots=True)
class ArraySource:
    """One array per input; the first axis counts samples."""

    arrays: Mapping[str, NpyFile]
    dtypes: Mapping[str, np.dtype[np.generic]]  # what the graph takes

    def fetch(self, numbers: Sequence[int]) -> dict[str, Array]:
        """Return these entries of every array in the graph's own types."""
        return {
            name: array.rows(numbers).astype(self.dtypes[name], copy=False)
            for name, array in self.arrays.items()
        }


@dataclass(frozen=True, slots=True)
class _Member:
    """Opens one file inside a zip archive."""

    path: Path
    name: str

    def __call__(self) -> IO[bytes]:
        return zipfile.ZipFile(self.path).open(self.name)


def open_npy(path: Path) -> NpyFile:
    """Read the head of a .npy file. Raises: BadData."""
    return _head(str(path), lambda: path.open("rb"))


def open_npz(path: Path) -> dict[str, NpyFile]:
    """Read the heads of all arrays in an .npz file. Raises: BadData."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as e:
        raise BadData(f"'{path}' is no .npz file: {e}", hint=_HINT) from e
    return {
        member.removesuffix(".npy"): _head(f"{path}:{member}", _Member(path, member)) for member in members
    }


def check(source: ArraySource, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Check every array against the input it is for; give warnings.

    Raises: BadData for a wrong rank or dimension, an element type that is no number, or counts that differ.
    """
    warnings = []
    counts = {array.shape[0] if array.shape else 0 for array in source.arrays.values()}
    if len(counts) != 1 or 0 in counts:
        described = ", ".join(f"{name} {array.shape}" for name, array in source.arrays.items())
        raise BadData(f"the arrays do not hold the same number of samples: {described}", hint=_HINT)
    for spec in specs:
        array = source.arrays[spec.name]
        wanted = spec.dims[1:]
        fits = len(array.shape) == len(spec.dims) and all(
            want is None or have == want for have, want in zip(array.shape[1:], wanted, strict=True)
        )
        if not fits:
            shown = ", ".join("?" if d is None else str(d) for d in ("N", *wanted))
            raise BadData(
                f"'{array.name}' has shape {array.shape}, the input '{spec.name}' takes ({shown})",
                hint="the first axis counts samples, the others must be the input's",
            )
        if array.dtype.kind not in "fiub":
            raise BadData(f"'{array.name}' holds {array.dtype}, not numbers", hint=_HINT)
        if array.dtype.kind != "f" and spec.dtype.kind == "f":
            warnings.append(
                f"'{array.name}' holds {array.dtype} and is fed as {spec.dtype} unchanged: "
                "it must be normalized already"
            )
    return tuple(warnings)


def digest(source: ArraySource, numbers: Sequence[int]) -> str:
    """Hash the chosen entries and refuse what is not finite, a few megabytes at a time.

    Raises: BadData that names the array and the entry with NaN or infinity.
    """
    whole = hashlib.sha256()
    for name, array in source.arrays.items():
        whole.update(f"{name}\0{array.dtype.str}\0{array.shape[1:]}\0{len(numbers)}\0".encode())
        size = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        step = max(1, _BLOCK_BYTES // max(1, size))
        for start in range(0, len(numbers), step):
            rows = array.rows(numbers[start : start + step])
            if array.dtype.kind == "f" and not np.isfinite(rows).all():
                bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))[0]
                refuse_not_finite(
                    rows, f"'{array.name}' holds NaN or infinity in entry {numbers[start + bad]}"
                )
            refuse_loss(rows, array.name, name, source.dtypes[name])
            whole.update(rows.tobytes())
    return whole.hexdigest()


def refuse_not_finite(rows: Array, what: str) -> None:
    """Raise BadData with the text `what` where numbers are not finite."""
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise BadData(what, hint="find out where it comes from: ranges measured on it mean nothing")


def refuse_loss(rows: Array, file: str, name: str, taken: np.dtype[np.generic]) -> None:
    """Refuse numbers that the integer input `name` cannot hold: cast to it they would be others.

    Raises: BadData.
    """
    if taken.kind not in "iu" or np.can_cast(rows.dtype, taken):
        return
    low, high = np.iinfo(taken.name).min, np.iinfo(taken.name).max
    lost = (rows < low) | (rows > high) | (rows != np.trunc(rows))
    if lost.any():
        raise BadData(
            f"'{file}' holds {rows[lost][0]:g}, the input '{name}' takes {taken}",
            hint=f"save whole numbers from {low} to {high}; prepared images are for a network of floats",
        )


def _head(name: str, opened: Callable[[], IO[bytes]]) -> NpyFile:
    try:
        with opened() as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
        raise BadData(f"'{name}' is no .npy array: {e}", hint=_HINT) from e
    if dtype.hasobject:
        raise BadData(f"'{name}' holds pickled Python objects, which are never loaded", hint=_HINT)
    if fortran and len(shape) > 1:
        raise BadData(f"'{name}' is stored in Fortran order", hint="save numpy.ascontiguousarray(array)")
    return NpyFile(name, opened, start, dtype, shape)
