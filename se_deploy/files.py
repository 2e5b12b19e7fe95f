"""Files on disk: written whole or not at all, and known by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy.errors import CannotWrite, OutputExists

if TYPE_CHECKING:
    from collections.abc import Iterator


def claim(path: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that `path` may and can be written.

    Raises: OutputExists without `overwrite`; CannotWrite where the folder cannot be made or written.
    """
    if path.is_dir():
        raise CannotWrite(f"'{path}' is a folder, a file is to be written there", hint="name a file")
    if path.exists() and not overwrite:
        raise OutputExists(f"'{path}' exists already", hint="name another output, or pass --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CannotWrite(
            f"the folder of '{path}' cannot be made: {e.strerror}", hint="name another output"
        ) from e
    if not os.access(path.parent, os.W_OK):
        raise CannotWrite(f"the folder '{path.parent}' cannot be written", hint="name another output")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` only if the block ends well.

    Raises: CannotWrite where the folder cannot be written or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as e:
        raise CannotWrite(f"'{path}' cannot be written: {e.strerror}", hint="name another output") from e
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as e:
        raise CannotWrite(f"'{path}' cannot be written: {e.strerror}", hint="name another output") from e
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
