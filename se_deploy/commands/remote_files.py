"""What travels to a device and back: each file, what belongs to it, and its name on both sides."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from se_deploy import files, locks, onnx_files
from se_deploy.backends import manifest as manifests
from se_deploy.commands import reading
from se_deploy.data import idx

if TYPE_CHECKING:
    from se_deploy.deploy.ssh import Host


@dataclass(frozen=True, slots=True)
class Read:
    """A file or folder that a command reads."""

    path: Path


@dataclass(frozen=True, slots=True)
class Written:
    """A file that a command writes, or a folder that it writes files into."""

    path: Path
    kept: bool = False  # a cache: it is read too where it is there, and replaced unasked
    folder: bool = False


class Layout:
    """Where everything lies in a folder of the device; files of one folder here share one there."""

    def __init__(self, folder: str) -> None:
        """`folder`: absolute, empty but for a folder `out`, and of letters that no shell reads."""
        self._folder = folder
        self._numbers: dict[Path, int] = {}  # of the folders here
        self._sent: dict[str, Path] = {}  # by place: "in/0/net.onnx"
        self._written: dict[str, Written] = {}
        self._given: dict[str, str] = {}  # path there -> path as it was given here

    def reading(self, path: Path) -> str:
        """Return the path that a file or folder will have there; what belongs to it goes along."""
        whole = _whole(path)
        for name in (whole.name, *_belongings(path)):
            place = self._place("in", whole.parent, name)
            self._sent[place] = whole.parent / name
            self._given[f"{self._folder}/{place}"] = str(path.parent / name)
        self._given[self._there("in", path)] = str(path)
        return self._there("in", path)

    def writing(self, written: Written) -> str:
        """Return the path that a file will be written to there."""
        whole = _whole(written.path)
        place = self._place("out", whole.parent, whole.name)
        self._written[place] = written
        if written.kept and whole.is_file():
            self._sent[place] = whole
        self._given[f"{self._folder}/{place}"] = str(written.path)
        if written.folder:  # "cat.png" and not "./cat.png", as the command writes it here
            self._given[f"{self._folder}/{place}/"] = f"{written.path / 'x'}"[:-1]
        return self._there("out", written.path)

    def send(self, host: Host) -> None:
        """Copy all that is read to the device. Raises: RemoteFailed."""
        with locks.scratch() as here:
            for place, path in self._sent.items():
                if path.is_dir():  # also one without files: what is wrong with it is said there
                    (Path(here) / place).mkdir(parents=True)
                # scp follows links to files, not to folders, so that nothing is copied here
                for file in [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]:
                    link = Path(here) / place / file.relative_to(path)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file)
            for place in self._written:
                (Path(here) / place).parent.mkdir(parents=True, exist_ok=True)
            for part in sorted(Path(here).iterdir()):
                host.upload(part, self._folder)

    def fetch(self, host: Host, *, overwrite: bool) -> None:
        """Bring back what was written, each file into its place once all of them are here.

        Raises: RemoteFailed; OutputExists, CannotWrite.
        """
        if not self._written:
            return
        with locks.scratch() as here:
            host.download(f"{self._folder}/out", Path(here))
            found = [p for p in sorted(Path(here).rglob("*")) if p.is_file() and not p.is_symlink()]
            targets = {path: self._target(path.relative_to(here).as_posix()) for path in found}
            wanted = {path: written for path, written in targets.items() if written is not None}
            for written in wanted.values():
                files.claim(written.path, overwrite=overwrite or written.kept)
            for path, written in wanted.items():
                with files.replacing(written.path) as part:
                    shutil.copyfile(path, part)

    def local(self, text: str) -> str:
        """Return a text with the device's paths as they were given here."""
        for there in sorted(self._given, key=len, reverse=True):
            text = text.replace(there, self._given[there])
        return text

    def locally(self, value: Any) -> Any:  # noqa: ANN401 - a value of a JSON object
        """Return a value of a JSON object with the device's paths as they were given here."""
        if isinstance(value, str):
            return self.local(value)
        if isinstance(value, list):
            return [self.locally(one) for one in value]
        if isinstance(value, dict):
            return {self.local(key): self.locally(one) for key, one in value.items()}
        return value

    def _there(self, root: str, path: Path) -> str:
        whole = _whole(path)
        return f"{self._folder}/{self._place(root, whole.parent, whole.name)}"

    def _place(self, root: str, parent: Path, name: str) -> str:
        return f"{root}/{self._numbers.setdefault(parent, len(self._numbers))}/{name}"

    def _target(self, place: str) -> Written | None:
        """Return where a file that came back belongs: at a name given or begun (OUT.json), or in a folder."""
        for named, written in self._written.items():
            rest = place.removeprefix(named)
            if written.folder and place.startswith(f"{named}/") and "/" not in rest[1:]:
                return Written(written.path / rest[1:])
            if place.startswith(named) and "/" not in rest and (not rest or rest.startswith(".")):
                return Written(written.path.with_name(written.path.name + rest), kept=written.kept)
        return None


def _whole(path: Path) -> Path:
    """Return `path` from the root, under its own name where it is a link."""
    return path.resolve() if path.name in {"", ".."} else path.parent.resolve() / path.name


def _belongings(path: Path) -> tuple[str, ...]:
    """Return what is read together with a file, by its names from the file's folder. Raises: BadModel."""
    if path.is_dir():
        return ()
    if reading.kind_of(path) == "engine":
        own = manifests.path_of(path)
        if not own.is_file():
            return ()
        onnx = path.with_name(Path(manifests.read(path).onnx).name)
        return (own.name, *((onnx.name, *onnx_files.weight_files(onnx)) if onnx.is_file() else ()))
    if path.suffix == ".onnx":
        return onnx_files.weight_files(path)
    labels = idx.labels_path(path)
    return () if labels is None else (labels.name,)
