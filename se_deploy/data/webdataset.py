"""WebDataset shards: tar files whose members share a name and differ in what follows its first dot."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import files
from se_deploy.data.images import SourceImage
from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

_LABEL_BYTES = 10  # of a class number: ImageNet-21k's have five digits
_HINT = "give an uncompressed .tar with members such as 000.jpg and 000.cls"


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some bytes of a file."""

    path: Path
    start: int
    size: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def images(shards: Sequence[Path], suffixes: Collection[str]) -> list[SourceImage]:
    """List the images of all shards, with the class that a `.cls` member gives. Raises: BadData."""
    found = []
    for shard in shards:
        members = _members(shard)
        labels = {}
        for member in members:
            key, _, suffix = _parts(member.name)
            if suffix == ".cls":
                text = _Slice(shard, member.offset_data, min(member.size, _LABEL_BYTES))().strip()
                if not text.isdigit() or len(text) == _LABEL_BYTES:
                    raise BadData(f"'{shard}:{member.name}' holds no class number", hint=_HINT)
                labels[key] = int(text)
        for member in members:
            key, name, suffix = _parts(member.name)
            if suffix.lower() in suffixes:
                content = _Slice(shard, member.offset_data, member.size)
                found.append(SourceImage(f"{shard.name}:{name}", content, labels.get(key)))
    return found


def _members(shard: Path) -> list[tarfile.TarInfo]:
    """List the files in an archive, each of which lies in it whole. Raises: BadData."""
    size = files.check_regular(shard, error=BadData)
    with (
        files.parsing(shard, "is no tar file", error=BadData, hint=_HINT),
        _Bounded(shard.open("rb", buffering=0)) as file,
        tarfile.open(fileobj=file, mode="r:") as archive,
    ):
        members = [m for m in archive.getmembers() if m.isreg() and not m.issparse()]
    for member in members:
        if not 0 <= member.size <= size - member.offset_data:
            raise BadData(
                f"'{shard}:{member.name}' says it has {member.size:,} bytes, '{shard}' ends before",
                hint=_HINT,
            )
    return members


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than is there: a head may say that terabytes follow."""

    def read(self, size: int | None = -1) -> bytes:
        """Return at most what is left; to ask for more would make room for it first."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _parts(name: str) -> tuple[str, str, str]:
    """Split a member's name into what its sample shares, the whole, and the last suffix."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", name, f".{extension.rpartition('.')[2]}" if dot else ""
