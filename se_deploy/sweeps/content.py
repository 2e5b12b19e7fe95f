"""Files and folders by what they hold: hashed, packed for the way to another machine, unpacked there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import time
import uuid
from typing import TYPE_CHECKING

from se_deploy import files
from se_deploy.errors import BadInput, CannotWrite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


_PART = ".part"
_FORGOTTEN_S = 86_400.0  # a day: no file takes as long to write, so who began it was killed


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder: of its files' names and hashes. Raises: BadInput."""
    if not path.is_dir():
        return files.sha256(path)
    digest = hashlib.sha256()
    for name, file in _members(path):
        digest.update(f"{files.sha256(file)} {name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def packed(path: Path) -> bytes:
    """Return a file or a folder as a tar archive; equal content gives equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        members = _members(path) if path.is_dir() else [("", path)]
        for name, file in members:
            entry = tarfile.TarInfo(name or ".")
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                archive.addfile(entry, content)
    return buffer.getvalue()


def keep(data: bytes, path: Path) -> None:
    """Write `data` whole or not at all, where several machines may write the same to `path` at once.

    Nothing here relies on locks, which a shared file system may keep to each machine.
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


def unpack(data: bytes, path: Path) -> None:
    """Write what `packed` gave to `path`: a file, or a folder."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for entry in archive:
            content = archive.extractfile(entry)
            if content is None or not (path / entry.name).resolve().is_relative_to(path.resolve()):
                raise BadInput(
                    f"an archive holds '{entry.name}', which is no file of it", hint="pack it anew"
                )
            file = path if entry.name == "." else path / entry.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.read())
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # an empty folder
        path.mkdir()


def key_of(facts: Mapping[str, object]) -> str:
    """Return the SHA-256 of plain values by name: equal facts, equal key."""
    from se_deploy.schema import encode  # noqa: PLC0415 - the one place that needs it

    return hashlib.sha256(encode(dict(sorted(facts.items())), indent=None).encode()).hexdigest()


def _members(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file
