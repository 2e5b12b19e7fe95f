"""What `check` is asked to judge: se-deploy.toml, or [tool.se-deploy] of pyproject.toml, as typed gates.

A configuration that is read wrongly passes silently, so every key is known or refused, and every file that
it names has to be there before anything is measured.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from se_deploy.backends import registry
from se_deploy.errors import BadInput
from se_deploy.options import (
    INTERPOLATIONS,
    PRECISIONS,
    RESIZES,
    HostOptions,
    ImageOptions,
    Limits,
    NetworkOptions,
    SampleOptions,
    TargetOptions,
    TimingOptions,
)
from se_deploy.targets import resolve_target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from se_deploy.options import Precision
    from se_deploy.targets import Target

T = TypeVar("T")
Name = TypeVar("Name", bound=str)

CONFIG, PYPROJECT = "se-deploy.toml", "pyproject.toml"
SECTIONS = ("parity", "fusion", "precision", "latency")

_TIMING = TimingOptions()


@dataclass(frozen=True, slots=True)
class ParityGate:
    """Candidates that have to give the reference's outputs on `data`."""

    reference: str
    candidates: tuple[Path, ...]
    data: Path
    limits: Limits
    samples: SampleOptions
    host: HostOptions
    network: NetworkOptions


@dataclass(frozen=True, slots=True)
class FusionGate:
    """Files whose SE blocks have to fuse."""

    files: tuple[Path, ...]
    target: TargetOptions
    allow_split: int  # blocks per file and compiler; a fallback never passes


@dataclass(frozen=True, slots=True)
class PrecisionGate:
    """One file and the precision that it has to run in."""

    file: Path
    precision: Precision


@dataclass(frozen=True, slots=True)
class LatencyGate:
    """Files that have to be fast, by themselves or against a reference."""

    files: tuple[Path, ...]
    reference: str | None
    max_p50_ms: float | None
    min_speedup: float | None
    batch: int
    host: HostOptions
    timing: TimingOptions
    network: NetworkOptions


@dataclass(frozen=True, slots=True)
class Gates:
    """Everything that a configuration asks for."""

    config: Path
    parity: tuple[ParityGate, ...] = ()
    fusion: tuple[FusionGate, ...] = ()
    precision: tuple[PrecisionGate, ...] = ()
    latency: tuple[LatencyGate, ...] = ()


def read(config: Path | None = None) -> Gates:
    """Read `config`; where None, se-deploy.toml or else pyproject.toml of the working directory.

    Paths in it are relative to its own folder. Raises: BadInput that names the section and the key.
    """
    config = config or _found()
    values = _parsed(config)
    if config.name == PYPROJECT:
        tool = values.get("tool")
        values = tool.get("se-deploy", {}) if isinstance(tool, dict) else {}
    for section in values:
        if section not in SECTIONS:
            raise BadInput(
                f"'{config}' has a section '{section}', which is no gate",
                hint=f"the gates are {', '.join(SECTIONS)}",
            )
    gates = Gates(
        config,
        parity=tuple(_parity(table) for table in _tables(config, values, "parity")),
        fusion=tuple(_fusion(table) for table in _tables(config, values, "fusion")),
        precision=tuple(g for table in _tables(config, values, "precision") for g in _precision(table)),
        latency=tuple(_latency(table) for table in _tables(config, values, "latency")),
    )
    if not (gates.parity or gates.fusion or gates.precision or gates.latency):
        raise BadInput(
            f"'{config}' lists nothing to check",
            hint=f"add a section: {', '.join(f'[{s}]' for s in SECTIONS)}",
        )
    return gates


def _found() -> Path:
    for path in (Path(CONFIG), Path(PYPROJECT)):
        if path.is_file() and (path.name == CONFIG or "se-deploy" in _parsed(path).get("tool", {})):
            return path
    raise BadInput(
        f"there is nothing to check: no {CONFIG} and no [tool.se-deploy] in a {PYPROJECT} in this folder",
        hint="write one (see `se-deploy check --help`), or name it with --config",
    )


def _parsed(config: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = tomllib.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise BadInput(f"'{config}' cannot be read: {e}", hint="correct the TOML at that line") from e
    return values


def _parity(table: _Table) -> ParityGate:
    gate = ParityGate(
        reference=table.need("reference", table.network),
        candidates=table.need("candidates", table.paths),
        data=table.need("data", table.path),
        limits=Limits(
            preset=table.take("preset", _one_of(PRECISIONS), None),
            atol=table.take("atol", _limits, ()),
            rtol=table.take("rtol", _limits, ()),
            min_cosine=table.take("min_cosine", _number, None),
            min_top1=table.take("min_top1", _number, None),
        ),
        samples=SampleOptions(
            table.take("samples", _count, None),
            table.take("skip_unreadable", _flag, False),
            table.take("seed", _whole, 0),
        ),
        host=_host(table),
        network=_network(
            table,
            ImageOptions(
                mean=table.take("mean", _numbers, None),
                std=table.take("std", _numbers, None),
                resize=table.take("resize", _one_of(RESIZES), None),
                interpolation=table.take("interpolation", _one_of(INTERPOLATIONS), None),
                crop=table.take("crop", _number, None),
                size=table.take("input_size", _dims, None),
            ),
        ),
    )
    table.end()
    return gate


def _fusion(table: _Table) -> FusionGate:
    gate = FusionGate(
        files=table.need("files", table.paths),
        target=TargetOptions(
            table.take("runtime", _one_of(registry.choices()), registry.AUTO),
            table.take("target", _targets, ()),
        ),
        allow_split=table.take("allow_split", _whole, 0),
    )
    table.end()
    return gate


def _precision(table: _Table) -> list[PrecisionGate]:
    def required(value: object) -> list[PrecisionGate]:
        if not isinstance(value, dict) or not value:
            raise _Unfit('is no table such as {"net.engine" = "fp16"}')
        named = _one_of(PRECISIONS)
        return [PrecisionGate(table.path(f), named(p)) for f, p in value.items()]

    gates = table.need("files", required)
    table.end()
    return gates


def _latency(table: _Table) -> LatencyGate:
    gate = LatencyGate(
        files=table.need("files", table.paths),
        reference=table.take("reference", table.network, None),
        max_p50_ms=table.take("max_p50_ms", _number, None),
        min_speedup=table.take("min_speedup", _number, None),
        batch=table.take("batch", _count, 1),
        host=_host(table),
        timing=TimingOptions(
            table.take("warmup_ms", _number, _TIMING.warmup_ms),
            table.take("duration_s", _number, _TIMING.duration_s),
            table.take("iterations", _count, _TIMING.iterations),
        ),
        network=_network(table, ImageOptions(size=table.take("input_size", _dims, None))),
    )
    table.end()
    if gate.max_p50_ms is None and gate.min_speedup is None:
        raise BadInput(f"{table.where} sets no limit", hint="set max_p50_ms, or min_speedup with a reference")
    if gate.min_speedup is not None and gate.reference is None:
        raise BadInput(
            f"{table.where} sets min_speedup without a reference", hint='add reference = "timm:NAME"'
        )
    return gate


def _host(table: _Table) -> HostOptions:
    return HostOptions(table.take("threads", _whole, 0))


def _network(table: _Table, image: ImageOptions) -> NetworkOptions:
    return NetworkOptions(
        checkpoint=table.take("checkpoint", table.path, None),
        model_args=table.take("model_args", _mapping, {}),
        pretrained=table.take("pretrained", _flag, False),
        input_size=table.take("input_size", _dims, None),
        seed=table.take("seed", _whole, 0),
        image=image,
    )


def _tables(config: Path, values: Mapping[str, Any], section: str) -> list[_Table]:
    """Give the tables of a section: one for [parity], several for [[parity]]."""
    found = values.get(section, [])
    tables = found if isinstance(found, list) else [found]
    if not all(isinstance(table, dict) for table in tables):
        raise BadInput(f"'{section}' of '{config}' is no table", hint=f"write it as [{section}]")
    several = len(tables) > 1
    return [
        _Table(f"[{section}]{f' number {n}' if several else ''} of '{config}'", table, config.parent)
        for n, table in enumerate(tables, 1)
    ]


class _Unfit(Exception):
    """What is wrong with a key's value; the table says where it stands."""


class _Table:
    """One table of the configuration: gives its keys, and refuses what nobody asked for."""

    def __init__(self, where: str, values: Mapping[str, Any], folder: Path) -> None:
        self.where = where
        self._values, self._folder = values, folder
        self._known: set[str] = set()

    def take(self, key: str, read: Callable[[Any], T], default: T) -> T:
        """Give a key's value, `default` where it is not set."""
        self._known.add(key)
        return self.need(key, read) if key in self._values else default

    def need(self, key: str, read: Callable[[Any], T]) -> T:
        """Give a key's value. Raises: BadInput where it is not set, or not what `read` takes."""
        self._known.add(key)
        if key not in self._values:
            raise BadInput(f"{self.where} has no '{key}'", hint=f"add {key} = ...")
        try:
            return read(self._values[key])
        except _Unfit as e:
            raise BadInput(
                f"{self.where}: {key} = {self._values[key]!r}: {e}", hint=f"correct '{key}'"
            ) from e

    def end(self) -> None:
        """Refuse the keys that were never asked for. Raises: BadInput."""
        for key in self._values:
            if key not in self._known:
                raise BadInput(
                    f"{self.where} has an unknown key '{key}'",
                    hint=f"the keys are {', '.join(sorted(self._known))}",
                )

    def path(self, value: object) -> Path:
        """Give a path as seen from the configuration's folder."""
        path = self._folder / _text(value)
        if not path.exists():
            raise _Unfit(f"'{path}' does not exist; paths are relative to the configuration's folder")
        return path

    def paths(self, value: object) -> tuple[Path, ...]:
        """Give one path or a list of them."""
        return tuple(self.path(text) for text in _texts(value))

    def network(self, value: object) -> str:
        """Give a network specification, or the path of the file that it is."""
        text = _text(value)
        module, colon, name = text.rpartition(":")
        if module.endswith(".py"):
            return f"{self.path(module)}:{name}"
        return (
            text
            if colon and Path(text).suffix not in {".onnx", ".pt2", *registry.suffixes()}
            else str(self.path(text))
        )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _Unfit("is no text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _Unfit("is empty")
    return tuple(_text(one) for one in values)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise _Unfit("is no number from 0 up")
    return float(value)


def _numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(type(one) in (int, float) for one in value):
        raise _Unfit("is no list of numbers")
    return tuple(float(one) for one in value)


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:  # a bool is an int, too
        raise _Unfit("is no whole number from 0 up")
    return value


def _count(value: object) -> int:
    if not (count := _whole(value)):
        raise _Unfit("is no whole number from 1 up")
    return count


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("is neither true nor false")
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Unfit("is no table such as {num_classes = 10}")
    return value


def _dims(value: object) -> tuple[int, ...]:
    """Read "3x224x224", or [3, 224, 224]."""
    if isinstance(value, str) and all(word.isdecimal() for word in value.split("x")):
        value = [int(word) for word in value.split("x")]
    if not isinstance(value, list) or not value:
        raise _Unfit('is no size; write it as "3x224x224"')
    return tuple(_count(one) for one in value)


def _limits(value: object) -> tuple[tuple[str, float], ...]:
    """Read a limit for every output, or a table with one for each by name; "" stands for all."""
    if isinstance(value, dict):
        return tuple((name, _number(one)) for name, one in value.items())
    return (("", _number(value)),)


def _targets(value: object) -> tuple[Target, ...]:
    try:
        return tuple(resolve_target(text) for text in _texts(value))
    except BadInput as e:
        raise _Unfit(f"{e.message}; {e.hint}") from e


def _one_of(names: tuple[Name, ...]) -> Callable[[object], Name]:
    def read(value: object) -> Name:
        for name in names:
            if value == name:
                return name
        raise _Unfit(f"is none of {', '.join(names)}")

    return read
