"""What can go wrong that the user can put right: one base class, a leaf per thing to do about it.

A message says what happened and where; the hint says what to do. Anything else (ValueError, assert) is a
defect of this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NOT_PRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What moves a terminal's cursor, colours or reading direction: all controls but tab and line feed."""


def printable(text: str) -> str:
    """Return `text` with its control characters escaped, as "\\x1b": names in files are other people's."""
    return _NOT_PRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def counted(number: int, noun: str, verb: tuple[str, str] | None = None) -> str:
    """Return a count with its noun, and the verb of one and of many: "1 node stays", "4 nodes stay"."""
    many = f"{noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}"
    words = f"{number} {noun if number == 1 else many}"
    return words if verb is None else f"{words} {verb[number != 1]}"


def meant(word: str, names: Iterable[str]) -> str:
    """Return "did you mean X? " for the name that `word` nearly is, as the beginning of a hint; else ""."""
    near = near_misses(word, names, 1)
    return f"did you mean '{near[0]}'? " if near else ""


def near_misses(word: str, names: Iterable[str], most: int) -> list[str]:
    """Return the names that `word` nearly is, the nearest first; case, `-` and `_` are no difference."""
    by_letters: dict[str, str] = {}
    for name in names:
        by_letters.setdefault(_letters(name), name)
    return [by_letters[near] for near in difflib.get_close_matches(_letters(word), by_letters, n=most)]


def same_letters(one: str, other: str) -> bool:
    """Whether two names differ in case, `-` and `_` at most."""
    return _letters(one) == _letters(other)


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def one_line(name: str) -> str:
    r"""Return `name` with its line feeds and tabs escaped too: what holds one name a line stays so."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


class SeDeployError(Exception):
    """An error that the user can act on; the command line prints it and exits with 1."""

    def __init__(self, message: str, *, hint: str) -> None:
        """`message`: what happened and where; `hint`: what to do about it."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def kind(self) -> str:
        """The class name, which `--json` prints as `error.kind`."""
        return type(self).__name__


class BadInput(SeDeployError):
    """An argument, a file or a directory that cannot be used as it is."""


class BadModel(BadInput):
    """An ONNX file, a checkpoint or a network specification that cannot be read."""


class BadData(BadInput):
    """Calibration or evaluation data that cannot be read or does not fit the network."""


class BadArtifact(BadInput):
    """An engine that this runtime cannot load, or a manifest that does not match it."""


class UnsupportedGraph(SeDeployError):
    """A graph outside what a step is defined for."""


class MissingRuntime(SeDeployError):
    """A package or a device that the request needs is not on this machine."""


class DeviceFailed(SeDeployError):
    """A GPU that is here refused a call: its memory is full, or the work on it failed."""


class RemoteFailed(SeDeployError):
    """A device that cannot be reached, lacks se-deploy, or whose line broke."""


class ExportFailed(SeDeployError):
    """Neither exporter of PyTorch could write the network as ONNX."""


class BuildFailed(SeDeployError):
    """The compiler refused the network; the message carries its own reason."""


class OutputExists(SeDeployError):
    """An output file is there already and `--overwrite` was not given."""


class CannotWrite(SeDeployError):
    """An output path that cannot be written."""


class StrictFailure(SeDeployError):
    """A warning that `--strict` turned into an error."""
