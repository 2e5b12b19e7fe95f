"""WebDataset shards: tar files whose members share a name and differ in what follows its first dot."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy.data.images import SourceImage
from se_deploy.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

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
        try:
            with tarfile.open(shard, "r:") as archive:
                members = [m for m in archive.getmembers() if m.isfile()]
        except (tarfile.TarError, OSError) as e:
            raise BadData(f"'{shard}' is no tar file: {e}", hint=_HINT) from e
        labels = {}
        for member in members:
            key, _, suffix = _parts(member.name)
            if suffix == ".cls":
                text = _Slice(shard, member.offset_data, member.size)().strip()
                if not text.isdigit():
                    raise BadData(f"'{shard}:{member.name}' holds no class number", hint=_HINT)
                labels[key] = int(text)
        for member in members:
            key, name, suffix = _parts(member.name)
            if suffix.lower() in suffixes:
                content = _Slice(shard, member.offset_data, member.size)
                found.append(SourceImage(f"{shard.name}:{name}", content, labels.get(key)))
    return found


def _parts(name: str) -> tuple[str, str, str]:
    """Split a member's name into what its sample shares, the whole, and the last suffix."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", name, f".{extension.rpartition('.')[2]}" if dot else ""
