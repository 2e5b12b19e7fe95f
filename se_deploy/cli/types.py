"""Notations of the command line: each is one click type that gives a value of the library."""

from __future__ import annotations

import ast
import math
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from se_deploy import signature
from se_deploy.backends import registry
from se_deploy.errors import BadInput
from se_deploy.options import OUTPUT_KINDS
from se_deploy.schema.common import OutputKind
from se_deploy.signature import DeclaredInput
from se_deploy.targets import DEVICES, Target, resolve_target

T = TypeVar("T")

_LAST_PORT = 65535

IN_PATH = click.Path(exists=True, path_type=Path)
IN_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
IN_DIR = click.Path(exists=True, file_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)
OUT_DIR = click.Path(file_okay=False, path_type=Path)

_UNITS = {
    "": 1, "B": 1, "K": 1 << 10, "KIB": 1 << 10, "M": 1 << 20, "MIB": 1 << 20, "G": 1 << 30, "GIB": 1 << 30,
    "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000,
}  # fmt: skip


class Notation(click.ParamType[T]):
    """A type whose name is how it is written, which `--help` shows as it is."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002 - click's signature
        """Return the name; click would put it in capitals, and CXHXW is no size."""
        return self.name


def _finite(kind: click.ParamType[float], value: float, param: click.Parameter | None) -> float:
    """Return a number. NaN keeps no limit and breaks none; fails for it, and for what has no end."""
    if not math.isfinite(value):
        kind.fail(f"{value} is no finite number", param)
    return value


class Number(click.types.FloatParamType):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's signature
        """Return the number."""
        return _finite(self, super().convert(value, param, ctx), param)


class NumberRange(click.FloatRange):
    """A finite number between two others."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - click's signature
        """Return the number."""
        return _finite(self, super().convert(value, param, ctx), param)


class Listed(Notation[T], ABC):
    """A notation that takes names, which help and completion list."""

    heavy = False  # whether it takes the import of graphs or backends to know the names

    @abstractmethod
    def listed(self) -> tuple[str, ...]:
        """Return the names that it takes."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the names that what was typed may become."""
        return [CompletionItem(name) for name in self.listed() if name.startswith(incomplete)]


class Model(click.ParamType[str]):
    """A network specification, or the file of an artifact, which must then be there."""

    name = "model"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as it is; refuse a path to a file that is not there, as click.Path does."""
        text = str(value)
        endings = (".onnx", ".pt2", *registry.suffixes())
        looks_like_a_file = text.endswith(endings) or (":" not in text and "/" in text)
        if looks_like_a_file and not Path(text).is_file():
            self.fail(f"File '{text}' does not exist.", param, ctx)
        return text

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Let the shell complete files: a network's name is not known without the zoo that has it."""
        return [CompletionItem(incomplete, type="file")]


class RuntimeName(click.ParamType[str]):
    """The name of a backend, or `auto`; which there are is asked when it is needed."""

    name = "runtime"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002 - click's signature
        """Return the names, as click.Choice does."""
        return f"[{'|'.join(registry.choices())}]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that what was typed may become."""
        return click.Choice(registry.choices()).shell_complete(ctx, param, incomplete)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; refuse what no backend is called, as click.Choice does."""
        if value == registry.AUTO:  # the default: nobody has to know which packages bring backends
            return registry.AUTO
        return str(click.Choice(registry.choices()).convert(str(value), param, ctx))


class TargetName(Listed[Target]):
    """A compute capability or a device: sm86, orin-nano."""

    name = "NAME"

    def listed(self) -> tuple[str, ...]:
        """Return the devices by name; every compute capability is taken too."""
        return tuple(device.name for device in DEVICES)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Target:  # noqa: ARG002 - click's signature
        """Return the target. Raises: BadInput, which names the devices that are known."""
        return value if isinstance(value, Target) else resolve_target(str(value))


class Dims(Notation[tuple[int, ...]]):
    """Sizes joined by `x` or `,`: 3x224x224."""

    name = "CxHxW"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the sizes, positive integers."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        dims = [int(size) for size in re.split("[x,]", text)] if re.fullmatch(r"\d+([x,]\d+)*", text) else [0]
        if 0 in dims:
            self.fail(f"'{text}' is no size; write it as 3x224x224", param, ctx)
        return tuple(dims)


class NamedDims(Notation[tuple[str, tuple[int, ...]]]):
    """An input's name and its sizes: input:1x3x224x224."""

    name = "name:1x3x224x224"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Return (name, sizes)."""
        if isinstance(value, tuple):
            return value
        name, colon, dims = str(value).rpartition(":")
        if not colon or not name:
            self.fail(f"'{value}' names no input; write it as input:1x3x224x224", param, ctx)
        return name, Dims().convert(dims, param, ctx)


class Declared(Notation[DeclaredInput]):
    """An input with its sizes, free ones by name, and its element type: feats:Nx80xT, lengths:N:int64."""

    name = "NAME:DIMS[:DTYPE]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> DeclaredInput:
        """Return the input that is declared."""
        if isinstance(value, DeclaredInput):
            return value
        try:
            return signature.parse(str(value))
        except BadInput as e:
            self.fail(f"{e.message}; {e.hint}", param, ctx)


class KindOfOutput(Notation[tuple[str, OutputKind]]):
    """An output and what it is compared as: boxes:boxes, out:mask."""

    name = "NAME:KIND"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, OutputKind]:
        """Return (output name, kind); the kind stands behind the last colon."""
        if isinstance(value, tuple):
            return value
        name, _, word = str(value).rpartition(":")
        found = [kind for kind in OUTPUT_KINDS if kind == word]
        if not name or not found:
            self.fail(f"'{value}' is no NAME:KIND; the kinds are {', '.join(OUTPUT_KINDS)}", param, ctx)
        return name, found[0]


class FolderOrKind(Notation["Path | tuple[str, OutputKind]"]):
    """What an output is, boxes:boxes; anything else is a folder, which -o is short for."""

    name = "NAME:KIND"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | tuple[str, OutputKind]:
        """Return (output name, kind) or the folder."""
        if isinstance(value, (tuple, Path)):
            return value
        word = str(value).rpartition(":")[2]
        if word in OUTPUT_KINDS:
            return KindOfOutput().convert(value, param, ctx)
        return OUT_DIR.convert(str(value), param, ctx)


class Where(Notation[str]):
    """Who works on tasks: this machine, or a Ray cluster."""

    name = "local|ray[://HOST:PORT]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; refuse what is none of the three."""
        text = str(value)
        if text not in {"local", "ray"} and not re.fullmatch(r"ray://(\[[^\]]+\]|[^:/\s]+):\d{1,5}", text):
            self.fail(f"'{text}' is neither local, ray nor ray://HOST:10001", param, ctx)
        return text


class HostPort(Notation[tuple[str, int]]):
    """A host and a port: 192.168.7.1:6379, [fd00::1]:6379."""

    name = "HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return (host, port)."""
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
            self.fail(f"'{value}' is no address; write it as 192.168.7.1:6379", param, ctx)
        return host.strip("[]"), int(port)


class Tag(Notation[str]):
    """What a worker works for: a device's name, a compute capability, or a word of one's own."""

    name = "NAME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word."""
        if not re.fullmatch(r"[A-Za-z0-9._-]+", str(value)):
            self.fail(f"'{value}' is no name of letters, digits, dots and hyphens", param, ctx)
        return str(value)


class Batch(Notation[int | None]):
    """A batch size, or `dynamic` (None)."""

    name = "N|dynamic"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the size; None where dynamic."""
        text = str(value)
        if text == "dynamic":
            return None
        if not text.isdecimal() or int(text) < 1:
            self.fail(f"'{text}' is neither a positive number nor 'dynamic'", param, ctx)
        return int(text)


class Bytes(Notation[int]):
    """A number of bytes with a unit: 2GiB."""

    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value))
        if not match or match[2].upper() not in _UNITS:
            self.fail(f"'{value}' is no size in bytes; write it as 2GiB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


class KeyValue(Notation[tuple[str, object]]):
    """An argument of the network's constructor: num_classes=10."""

    name = "key=value"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, object]:
        """Return (key, value), the value as Python reads it where it can."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.isidentifier():
            self.fail(f"'{value}' is no argument; write it as num_classes=10", param, ctx)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return key, text


class Limit(Notation[tuple[str, float]]):
    """A tolerance, for every output or for one: 1e-3 or logits:1e-3."""

    name = "[name:]VALUE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Return (output name or "", value)."""
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).rpartition(":")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"'{value}' is no number; write it as 1e-3 or output:1e-3", param, ctx)


class Share(Notation[float]):
    """A share, as a percentage or as a fraction: 10% or 0.1."""

    name = "SHARE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the fraction, between 0 and 1."""
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"'{text}' is no share; write it as 10%", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"'{text}' is not between 0% and 100%", param, ctx)
        return share


class Floats(Notation[tuple[float, ...]]):
    """Numbers joined by commas: 0.485,0.456,0.406."""

    name = "A,B,C"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(number) for number in str(value).split(","))
        except ValueError:
            numbers = (math.nan,)
        if not all(map(math.isfinite, numbers)):
            self.fail(f"'{value}' are no numbers; write them as 0.485,0.456,0.406", param, ctx)
        return numbers


class Pattern(Notation[str]):
    """A regular expression."""

    name = "REGEX"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the expression; refuse what is none before any work."""
        text = str(value)
        try:
            re.compile(text)
        except re.error as e:
            self.fail(f"'{text}' is no regular expression: {e}; write it as in '^stem'", param, ctx)
        return text


class PolicyName(Listed[str]):
    """A placement of Q/DQ nodes by name."""

    name = "NAME"
    heavy = True

    def listed(self) -> tuple[str, ...]:
        """Return the portable one and those of backends."""
        return tuple(registry.policies())

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        """Return the name. Raises: BadInput, before any work, where there is no such policy."""
        return registry.policy(str(value)).name


class RewriteNames(Listed[tuple[str, ...]]):
    """Rewrites joined by commas."""

    name = "A,B"
    heavy = True

    def listed(self) -> tuple[str, ...]:
        """Return every rewrite, in the order in which they are applied."""
        from se_deploy.passes import rewrites

        return rewrites.names()

    def convert(
        self,
        value: object,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        return tuple(name.strip() for name in str(value).split(",") if name.strip())
