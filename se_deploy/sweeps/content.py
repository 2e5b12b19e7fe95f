"""Files and folders by what they hold: hashed, packed for the way to another machine, unpacked there."""

from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

from se_deploy import files
from se_deploy.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def unpack(data: bytes, path: Path) -> None:
    """Write what `packed` gave to `path`: a file, or a folder. Raises: BadInput for other data."""
    try:
        _unpack(data, path)
    except tarfile.TarError as e:
        raise BadInput(
            f"what a task made cannot be unpacked: {e}",
            hint="with --store, remove it there, and it is made again",
        ) from e


def _unpack(data: bytes, path: Path) -> None:
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


def _members(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file
