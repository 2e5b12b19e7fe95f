"""What `check` is asked to judge: se-deploy.toml, or [tool.se-deploy] of pyproject.toml, as typed gates.

A configuration that is read wrongly passes silently, so every key is known or refused, and every file that
it names has to be there before anything is measured.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from se_deploy import files
from se_deploy.backends import registry
from se_deploy.commands.sweep_gate import SweepGate
from se_deploy.errors import BadInput
from se_deploy.options import (
    HostOptions,
    ImageOptions,
    Limits,
    NetworkOptions,
    SampleOptions,
    TargetOptions,
    TimingOptions,
)
from se_deploy.schema import config, convert
from se_deploy.targets import resolve_target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from se_deploy.options import Precision
    from se_deploy.schema.common import OutputKind

T = TypeVar("T", bound=Struct)

CONFIG, PYPROJECT = "se-deploy.toml", "pyproject.toml"
SECTIONS = ("parity", "fusion", "precision", "latency", "chain", "sweep")

_TIMING = TimingOptions()

_LARGEST_CONFIG = 1 << 20
"""Bytes of a configuration: pyproject.toml of large projects have some 100 KB."""
_KEY_PARTS = 32
_LONG_KEY = re.compile(rf"(?:^|[^\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){{{_KEY_PARTS}}}")


@dataclass(frozen=True, slots=True)
class ParityGate:
    """Candidates that have to give the reference's outputs on `data`."""

    reference: str
    candidates: tuple[Path, ...]
    data: Path
    kinds: Mapping[str, OutputKind]  # by output, where the guess is overruled
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
class ChainGate:
    """Q/DQ files whose INT8 layers have to follow on each other in INT8."""

    files: tuple[Path, ...]
    allow_breaks: int  # per file


@dataclass(frozen=True, slots=True)
class Gates:
    """Everything that a configuration asks for."""

    config: Path
    parity: tuple[ParityGate, ...] = ()
    fusion: tuple[FusionGate, ...] = ()
    precision: tuple[PrecisionGate, ...] = ()
    latency: tuple[LatencyGate, ...] = ()
    chain: tuple[ChainGate, ...] = ()
    sweep: tuple[SweepGate, ...] = ()


def read(file: Path | None = None) -> Gates:
    """Return the gates of `file`; where None, se-deploy.toml or else pyproject.toml of the working directory.

    Paths in it are relative to its own folder. Raises: BadInput that names the section and the key.
    """
    file = file or _found()
    values = _parsed(file)
    if file.name == PYPROJECT:
        tool = values.get("tool")
        values = tool.get("se-deploy", {}) if isinstance(tool, dict) else {}
    for section in values:
        if section not in SECTIONS:
            raise BadInput(
                f"'{file}' has a section '{section}', which is no gate",
                hint=f"the gates are {', '.join(SECTIONS)}",
            )
    gates = Gates(
        file,
        parity=tuple(_parity(*one) for one in _tables(file, values, "parity", config.ParityTable)),
        fusion=tuple(_fusion(*one) for one in _tables(file, values, "fusion", config.FusionTable)),
        precision=tuple(
            gate
            for one in _tables(file, values, "precision", config.PrecisionTable)
            for gate in _precision(*one)
        ),
        latency=tuple(_latency(*one) for one in _tables(file, values, "latency", config.LatencyTable)),
        chain=tuple(
            ChainGate(at.paths("files", table.files), table.allow_breaks)
            for table, at in _tables(file, values, "chain", config.ChainTable)
        ),
        sweep=tuple(
            SweepGate(
                at.path("folder", table.folder),
                at.path("against", table.against),
                table.max_accuracy_drop,
                table.max_slowdown,
            )
            for table, at in _tables(file, values, "sweep", config.SweepTable)
        ),
    )
    if not any((gates.parity, gates.fusion, gates.precision, gates.latency, gates.chain, gates.sweep)):
        raise BadInput(
            f"'{file}' lists nothing to check",
            hint=f"add a section: {', '.join(f'[{s}]' for s in SECTIONS)}",
        )
    return gates


def _exists(path: Path) -> bool:
    """Whether a path is there; False also for a name that nothing can have."""
    try:
        return path.exists()
    except OSError:
        return False


def _found() -> Path:
    for path in (Path(CONFIG), Path(PYPROJECT)):
        if path.is_file() and (path.name == CONFIG or "se-deploy" in _parsed(path).get("tool", {})):
            return path
    raise BadInput(
        f"there is nothing to check: no {CONFIG} and no [tool.se-deploy] in a {PYPROJECT} in this folder",
        hint="write one (see `se-deploy check --help`), or name it with --config",
    )


def _parsed(file: Path) -> dict[str, Any]:
    text = files.read_text(file, most=_LARGEST_CONFIG)
    hint = "correct the TOML at that line"
    if found := _LONG_KEY.search(text):  # Python's parser takes minutes for 100 KB of them
        line = text.count("\n", 0, found.start()) + 1
        raise BadInput(f"'{file}' has a key of more than {_KEY_PARTS} parts in line {line}", hint=hint)
    with files.parsing(file, "cannot be read", error=BadInput, hint=hint):
        values: dict[str, Any] = tomllib.loads(text)
    return values


def _parity(table: config.ParityTable, at: _Where) -> ParityGate:
    limits = Limits(
        preset=table.preset,
        atol=_limits(table.atol),
        rtol=_limits(table.rtol),
        min_cosine=table.min_cosine,
        min_top1=table.min_top1,
        min_iou=table.min_iou,
    )
    image = ImageOptions(
        mean=table.mean,
        std=table.std,
        resize=table.resize,
        interpolation=table.interpolation,
        crop=table.crop,
        size=_dims(table.input_size),
    )
    return ParityGate(
        reference=at.network("reference", table.reference),
        candidates=at.paths("candidates", table.candidates),
        data=at.path("data", table.data),
        kinds=table.outputs,
        limits=limits,
        samples=SampleOptions(table.samples, table.skip_unreadable, table.seed),
        host=HostOptions(table.threads),
        network=_network(table, at, image),
    )


def _fusion(table: config.FusionTable, at: _Where) -> FusionGate:
    runtime = table.runtime or registry.AUTO
    if runtime not in registry.choices():
        raise at.refused("runtime", runtime, f"is none of {', '.join(registry.choices())}")
    try:
        targets = tuple(resolve_target(text) for text in _texts(table.target))
    except BadInput as e:
        raise at.refused("target", table.target, f"{e.message}; {e.hint}") from e
    return FusionGate(at.paths("files", table.files), TargetOptions(runtime, targets), table.allow_split)


def _precision(table: config.PrecisionTable, at: _Where) -> tuple[PrecisionGate, ...]:
    return tuple(PrecisionGate(at.path("files", file), wanted) for file, wanted in table.files.items())


def _latency(table: config.LatencyTable, at: _Where) -> LatencyGate:
    if table.max_p50_ms is None and table.min_speedup is None:
        raise BadInput(f"{at.table} sets no limit", hint="set max_p50_ms, or min_speedup with a reference")
    if table.min_speedup is not None and table.reference is None:
        raise BadInput(f"{at.table} sets min_speedup without a reference", hint='add reference = "timm:NAME"')
    return LatencyGate(
        files=at.paths("files", table.files),
        reference=None if table.reference is None else at.network("reference", table.reference),
        max_p50_ms=table.max_p50_ms,
        min_speedup=table.min_speedup,
        batch=table.batch,
        host=HostOptions(table.threads),
        timing=TimingOptions(
            _TIMING.warmup_ms if table.warmup_ms is None else table.warmup_ms,
            _TIMING.duration_s if table.duration_s is None else table.duration_s,
            table.iterations or _TIMING.iterations,
        ),
        network=_network(table, at, ImageOptions(size=_dims(table.input_size))),
    )


def _network(table: config.NetworkKeys, at: _Where, image: ImageOptions) -> NetworkOptions:
    return NetworkOptions(
        checkpoint=None if table.checkpoint is None else at.path("checkpoint", table.checkpoint),
        model_args=table.model_args,
        pretrained=table.pretrained,
        input_size=_dims(table.input_size),
        seed=table.seed,
        image=image,
    )


def _tables(file: Path, values: Mapping[str, Any], section: str, kind: type[T]) -> list[tuple[T, _Where]]:
    """Return the tables of a section with where they stand: one for [parity], several for [[parity]]."""
    written = values.get(section, [])
    tables = written if isinstance(written, list) else [written]
    several = len(tables) > 1
    found = []
    for n, table in enumerate(tables, 1):
        at = _Where(f"[{section}]{f' number {n}' if several else ''} of '{file}'", file.parent)
        hint = f"the keys of [{section}] are {', '.join(sorted(kind.__struct_fields__))}"
        found.append((convert(table, kind, what=at.table, error=BadInput, hint=hint), at))
    return found


@dataclass(frozen=True, slots=True)
class _Where:
    """A table of the configuration, as errors name it, and the folder that its paths are relative to."""

    table: str
    folder: Path

    def refused(self, key: str, value: object, why: str) -> BadInput:
        """Return the error for the value of a key."""
        return BadInput(f"{self.table}: {key} = {value!r}: {why}", hint=f"correct '{key}'")

    def path(self, key: str, text: str) -> Path:
        """Return a path that is there. Raises: BadInput."""
        path = self.folder / text
        if not _exists(path):
            why = f"'{path}' does not exist; paths are relative to the configuration's folder"
            raise self.refused(key, text, why)
        return path

    def paths(self, key: str, texts: str | tuple[str, ...]) -> tuple[Path, ...]:
        """Return one path or several. Raises: BadInput."""
        return tuple(self.path(key, text) for text in _texts(texts))

    def network(self, key: str, text: str) -> str:
        """Return a network specification, or the path of the file that it is. Raises: BadInput."""
        module, colon, name = text.rpartition(":")
        if module.endswith(".py"):
            return f"{self.path(key, module)}:{name}"
        is_file = not colon or Path(text).suffix in {".onnx", ".pt2", *registry.suffixes()}
        return str(self.path(key, text)) if is_file else text


def _texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _dims(size: str | tuple[int, ...] | None) -> tuple[int, ...] | None:
    return tuple(map(int, size.split("x"))) if isinstance(size, str) else size


def _limits(value: float | Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    """Return a limit by output name; "" stands for all."""
    if value is None:
        return ()
    return tuple(value.items()) if isinstance(value, Mapping) else (("", value),)
