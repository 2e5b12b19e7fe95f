"""Files that PyTorch writes, told apart by what they hold: one given in the place of another is named."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["TorchScript", "program", "pickle", "safetensors"]


@dataclass(frozen=True, slots=True)
class Described:
    """What a file is, as the end of "it is ...", and what to do with it."""

    what: str
    hint: str


_IN_PYTHON = "name its network in Python (timm:NAME, path/to/file.py:callable, ...)"
_SAID: dict[Kind, Described] = {
    "TorchScript": Described(
        "a TorchScript network (torch.jit.save)",
        f"{_IN_PYTHON} and give its weights with --checkpoint, or write ONNX from it: "
        "torch.onnx.export(torch.jit.load(FILE), EXAMPLE, OUT.onnx, dynamo=False)",
    ),
    "program": Described(
        "a program of torch.export",
        "give it to `se-deploy export`, with the ending .pt2, and work on the ONNX file that it writes",
    ),
    "pickle": Described(
        "what torch.save writes: weights, or a pickled network, which is never executed",
        f"{_IN_PYTHON} and give the weights, saved by torch.save(network.state_dict(), FILE), with "
        "--checkpoint",
    ),
    "safetensors": Described(
        "weights without a network (safetensors)",
        f"{_IN_PYTHON} and give the weights with --checkpoint",
    ),
}
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save's files began before they were archives: its magic number as a pickle."""


_ARCHIVE = b"PK\x03\x04"


def kind_of(path: Path) -> Kind | None:
    """Return what a file of PyTorch is, by its first bytes and its archive's names; None for any other."""
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
    if head == _LEGACY:
        return "pickle"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < path.stat().st_size:
        return "safetensors"
    if not head.startswith(_ARCHIVE):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = {inside for name in archive.namelist() for inside in (name, name.partition("/")[2])}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # a damaged archive: its reader says so
    if names & {"archive_format", "serialized_exported_program.json"}:
        return "program"
    if "data.pkl" not in names:
        return None
    return "TorchScript" if any(name.startswith("code/") for name in names) else "pickle"


def described(path: Path) -> Described | None:
    """Return what a file of PyTorch is and what to do with it instead; None for any other file."""
    kind = kind_of(path)
    return None if kind is None else _SAID[kind]
