"""NumPy's files, .npy and .npz: the head is read and held against the file, the rows when they are asked for.

Rows are read by their place in the file, not through a memory map: mapped pages count as this process's
memory, and a calibration must not grow with its number of samples. A compressed array is unpacked once, to a
temporary file: to seek in it would unpack all before, for each batch again.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import struct
import tempfile
import threading
import warnings
import weakref
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

from se_deploy import files
from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from se_deploy.protocols import Array

_NUMBERS = "fiub"  # numpy's kinds: float, int, unsigned, bool
_MOST_UNPACKED = 200
"""Times the size of its archive that an array may unpack to; images do to 2 times, masks to 50."""
_UNPACKED = frozenset({zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2})
"""Methods that need a megabyte to unpack; LZMA takes what the member's own head asks for, up to 4 GiB."""
_SMALL_BYTES = 1 << 26  # which any archive may unpack to
_MOST_HEAD = 1 << 14  # bytes; numpy itself refuses heads above 10,000
_ZIP_HEAD, _ZIP_NAME_LENGTH = 30, 26  # bytes of a member's own head, and where in it the name's length is
HINT = "save it with numpy.save or numpy.savez as numbers, one sample per entry of the first axis"
_BLOCK_BYTES = 1 << 22


class Content:
    """The bytes of a file, read at any place by any thread: of one by its path, or of an unnamed one."""

    def __init__(self, file: Path | IO[bytes]) -> None:
        """`file`, where it is open, belongs to this from here on and is closed with it."""
        self._file, self._turn = file, threading.Lock()
        if not isinstance(file, Path):
            weakref.finalize(self, file.close)

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Yield the open file; others wait for an unnamed one."""
        if isinstance(self._file, Path):
            with self._file.open("rb") as file:
                yield file
        else:
            with self._turn:
                yield self._file

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, fewer where the file ends."""
        with self.opened() as file:
            file.seek(start)
            return file.read(size)


@dataclass(frozen=True, slots=True)
class NpyFile:
    """One array in .npy form: some bytes of a file."""

    name: str
    content: Content
    start: int  # where the first row begins
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool = False  # columns first: then it has no rows to read

    def rows(self, numbers: Sequence[int]) -> Array:
        """Read these rows: (len(numbers), *shape[1:])."""
        out = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        size = out[:1].nbytes
        with self.content.opened() as file:
            for i, number in enumerate(numbers):
                file.seek(self.start + number * size)
                row = file.read(size)
                if len(row) < size:
                    raise BadData(f"'{self.name}' ends in the middle of entry {number}", hint=HINT)
                out[i] = np.frombuffer(row, self.dtype).reshape(self.shape[1:])
        return out

    def whole(self) -> Array:
        """Read all of it. Raises: BadData where the file ends before."""
        size = math.prod(self.shape) * self.dtype.itemsize
        data = self.content.read(self.start, size)
        if len(data) < size:
            raise BadData(f"'{self.name}' ends in the middle", hint=HINT)
        read = np.frombuffer(data, self.dtype)
        made: Array = read.reshape(self.shape, order="F" if self.fortran else "C").copy()
        return made


def open_npy(path: Path) -> NpyFile:
    """Read the head of a .npy file. Raises: BadData."""
    size = files.check_regular(path, error=BadData)
    return _head(str(path), Content(path), 0, size)


def open_npz(path: Path) -> dict[str, NpyFile]:
    """Read the heads of all arrays in an .npz file. Raises: BadData."""
    files.check_regular(path, error=BadData)
    with (
        files.parsing(path, "is no .npz file", error=BadData, hint=HINT),
        path.open("rb") as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        return {
            member.filename.removesuffix(".npy"): _head(
                f"{path}:{member.filename}", *_member(path, archive, member)
            )
            for member in members
        }


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Content, int, int]:
    """Return the file that holds an array, where it begins there, and its size in bytes."""
    size = path.stat().st_size
    with archive.open(member) as packed:  # refuses what the archive's own head says otherwise
        if member.compress_type != zipfile.ZIP_STORED:
            if member.compress_type not in _UNPACKED:
                raise BadData(
                    f"'{path}:{member.filename}' is compressed by a method that may take gigabytes of memory",
                    hint="save it with numpy.savez or numpy.savez_compressed",
                )
            if member.file_size > max(_MOST_UNPACKED * size, _SMALL_BYTES):
                raise BadData(
                    f"'{path}:{member.filename}' unpacks to {member.file_size:,} bytes, from {size:,}",
                    hint="save it with numpy.savez, which does not compress",
                )
            unpacked = tempfile.TemporaryFile(prefix="se-deploy-")  # noqa: SIM115 - closed with its content
            content = Content(unpacked)
            shutil.copyfileobj(packed, unpacked, _BLOCK_BYTES)
            return content, 0, unpacked.tell()
    content = Content(path)
    name, extra = struct.unpack("<HH", content.read(member.header_offset + _ZIP_NAME_LENGTH, 4))
    start = member.header_offset + _ZIP_HEAD + name + extra
    return content, start, min(member.file_size, size - start)


def _head(name: str, content: Content, at: int, size: int) -> NpyFile:
    """Read the head of the array in `size` bytes of `content` from `at`, and hold its shape against them."""
    with files.parsing(name, "is no .npy array", error=BadData, hint=HINT), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of what it finds in a head that is none
        head = io.BytesIO(content.read(at, min(size, _MOST_HEAD)))
        version = npy.read_magic(head)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(head)
        start = head.tell()
    if dtype.hasobject:
        raise BadData(f"'{name}' holds pickled Python objects, which are never loaded", hint=HINT)
    if dtype.kind not in _NUMBERS:
        raise BadData(f"'{name}' holds {dtype}, not numbers", hint=HINT)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - start:
        raise BadData(f"'{name}' says it holds {shape} of {dtype}, its file has {size:,} bytes", hint=HINT)
    return NpyFile(name, content, at + start, dtype, shape, fortran and len(shape) > 1)
