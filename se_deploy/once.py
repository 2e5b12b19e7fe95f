"""What takes long is made once: kept in a folder, by the hash of everything that it is made of.

Whoever needs the same at the same time waits for the one who makes it, where the system has locks and the
folder's file system keeps them; where not, both make it, and one whole file is left. Nothing else relies on
locks, which a shared file system may keep to each machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import files
from se_deploy.errors import CannotWrite
from se_deploy.schema import encode

try:
    import fcntl
except ImportError:  # Windows: nobody waits
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_PART, _LOCK, _KEPT = ".part", ".lock", ".kept"
_FORGOTTEN_S = 86_400.0  # a day: no file takes as long to write, so who began it was killed
_HASH_BYTES = 32  # of SHA-256, in front of what is kept

_folder: Path | None = None  # where this process keeps; one sweep's task at a time has one


@dataclass(frozen=True, slots=True)
class Made:
    """What was asked for, and whether it was there."""

    data: bytes
    kept: bool = False


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Keep what is made while the block runs in `folder`, made when first needed; None keeps nothing."""
    global _folder  # noqa: PLW0603 - one place for all of this process
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


def key_of(facts: Mapping[str, object]) -> str:
    """Return the SHA-256 of plain values by name: equal facts, equal key."""
    return hashlib.sha256(encode(dict(sorted(facts.items())), indent=None).encode()).hexdigest()


def made(key: str, make: Callable[[], bytes]) -> Made:
    """Return what `make` gives: what is kept under `key`, or made now and then kept.

    What is damaged is made again. Raises: whatever `make` raises, and nothing is kept; CannotWrite.
    """
    if _folder is None:
        return Made(make())
    path = _path(_folder, key)
    found = _read(path)
    if found is None:
        with _alone(path):
            found = _read(path)  # it was made while this process waited
            if found is None:
                data = make()
                publish(hashlib.sha256(data).digest() + data, path)
                return Made(data)
    return Made(found, kept=True)


def known(key: str) -> bytes | None:
    """Return what is kept under `key`; None where nothing whole is."""
    return None if _folder is None else _read(_path(_folder, key))


def publish(data: bytes, path: Path) -> None:
    """Write `data` whole or not at all, where several machines may write the same to `path` at once.

    Raises: CannotWrite.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        for left in path.parent.glob(f"*{_PART}"):
            with contextlib.suppress(OSError):  # gone already, or another user's: `path` is written
                if time.time() - left.stat().st_mtime > _FORGOTTEN_S:
                    left.unlink()
    except OSError as e:
        raise CannotWrite(
            f"'{path}' cannot be written: {files.reason_of(e)}", hint="name another folder with --store"
        ) from e


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}{_KEPT}"


def _read(path: Path) -> bytes | None:
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise CannotWrite(
            f"'{path}' cannot be read: {files.reason_of(e)}", hint="name another folder with --store"
        ) from e
    data = whole[_HASH_BYTES:]
    return data if hashlib.sha256(data).digest() == whole[:_HASH_BYTES] else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Be the only one on this machine, or on this file system, that makes `path` while the block runs.

    The lock's file goes at the end: who waits for it has it open, and then finds what was made.
    """
    lock = path.with_suffix(_LOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as e:
        raise CannotWrite(
            f"'{lock}' cannot be written: {files.reason_of(e)}", hint="name another folder with --store"
        ) from e
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)
