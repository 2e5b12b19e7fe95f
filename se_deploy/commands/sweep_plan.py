"""The cells of a sweep: networks x precisions x targets x batches, each with the hash of what goes in."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from se_deploy import files, once, onnx_files
from se_deploy.commands import reading
from se_deploy.errors import BadInput, BadModel
from se_deploy.options import (
    SEARCH_PLANS,
    CalibrationOptions,
    HostOptions,
    ImageOptions,
    NetworkOptions,
    RewriteOptions,
    RunOptions,
    TargetOptions,
    TimingOptions,
)
from se_deploy.schema import convert, tool_version
from se_deploy.schema.sweep import SweepFile, SweepNetwork
from se_deploy.sweeps import content
from se_deploy.targets import resolve_target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from se_deploy.schema.sweep import Batch, RunPrecision
    from se_deploy.targets import Target

T = TypeVar("T")

CELLS = "cells"
"""The folder of a sweep's folder that holds the cells' own."""

_LARGEST_FILE = 1 << 20  # bytes of a sweep.toml; a matrix of a thousand networks has some 100 KB
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")
_HASH_DIGITS = 8  # of a folder's name where two networks would share it


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what is run, and the files that go into it."""

    model: str
    precision: RunPrecision
    target: Target | None
    batch: int | None  # None: dynamic
    folder: str  # from the sweep's folder
    calibration: CalibrationOptions
    options: RunOptions
    files: Mapping[str, str] = field(default_factory=dict)  # inputs by the name that the cell uses: SHA-256
    key: str = ""  # of everything that goes in
    prepare_key: str = ""  # of what goes into the half that needs no device
    source_key: str = ""  # of the network as it is exported, in whatever precision
    kin: str = ""  # of what cells have alike that differ in their precision alone

    @property
    def command(self) -> str:
        """The command that does the same alone."""
        options, calibration = self.options, self.calibration
        network, rewrites, usual = options.network, options.target.rewrites, RunOptions()
        flags: list[tuple[str, object, object]] = [  # each with what it is by default
            ("--target", self.target.called if self.target else None, None),
            ("--batch", self.batch, None),
            ("--checkpoint", network.checkpoint, None),
            ("--input-size", _joined("x", network.input_size), None),
            ("--mean", _joined(",", network.image.mean), None),
            ("--std", _joined(",", network.image.std), None),
            ("--seed", network.seed, usual.network.seed),
            ("--calib-data", calibration.data, None),
            ("--calib-samples", calibration.samples, None),
            ("--calib-method", calibration.method, None),
            ("--data", options.data, None),
            ("--runtime", options.target.runtime, usual.target.runtime),
            ("--rewrites", _joined(",", rewrites.names or None), None),
            ("--search-plans", rewrites.search_plans, usual.target.rewrites.search_plans),
            ("--threads", options.host.threads, usual.host.threads),
            ("--warmup-ms", options.timing.warmup_ms, usual.timing.warmup_ms),
            ("--duration-s", options.timing.duration_s, usual.timing.duration_s),
            ("--iterations", options.timing.iterations, usual.timing.iterations),
        ]
        words = ["se-deploy", "run", self.model, "-o", self.folder, "--precision", self.precision]
        words += [word for flag, value, plain in flags if value != plain for word in (flag, str(value))]
        words += [f"--model-arg={key}={value!r}" for key, value in network.model_args.items()]
        words += ["--pretrained"] if network.pretrained else []
        words += ["--no-rewrites"] if rewrites.names == () else []
        words += ["--allow-random-calibration"] if calibration.allow_random else []
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a sweep runs, in the order written."""

    cells: tuple[Cell, ...]
    inputs: Mapping[str, Path]  # the files that go in, by SHA-256
    cell_seconds: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What flags say; each replaces what the file says."""

    models: tuple[str, ...] = ()
    precisions: tuple[RunPrecision, ...] = ()
    targets: tuple[str, ...] = ()
    batches: tuple[Batch, ...] = ()
    calib_data: Path | None = None
    data: Path | None = None
    cell_seconds: float | None = None


def read(file: Path | None, asked: Asked, packages: Mapping[str, str]) -> Matrix:
    """Return the matrix of a sweep.toml, of flags, or of both. Paths in the file are relative to its folder.

    `packages`: versions of what computes, which go into every cell's key.
    Raises: BadInput that names the key, or the file that is not there.
    """
    table = SweepFile() if file is None else _parsed(file)
    folder = Path() if file is None else file.parent
    networks = [SweepNetwork(model=name) for name in asked.models]
    if not networks:
        networks = [SweepNetwork(model=name) for name in _many(table.models)] + list(table.network)
        networks = [_placed(one, folder) for one in networks]
    if not networks:
        raise BadInput(
            "the sweep has no network", hint="name some with --model, or `models = [...]` in sweep.toml"
        )
    targets: list[Target | None] = [resolve_target(name) for name in asked.targets or _many(table.targets)]
    batches: Sequence[Batch] = asked.batches or _many(table.batches)
    precisions: Sequence[RunPrecision] = asked.precisions or _many(table.precisions)
    calib_data = asked.calib_data or _path(table.calib_data, folder)
    data = asked.data or _path(table.data, folder)
    cells = [
        _cell(one, precision, target, batch, table=table, calib_data=calib_data, data=data)
        for one in networks
        for precision in dict.fromkeys(precisions)
        for target in dict.fromkeys(targets or [None])
        for batch in dict.fromkeys(batches)
    ]
    hashed = _Hashes()
    return Matrix(
        tuple(_keyed(cell, hashed, packages) for cell in _named(cells)),
        hashed.paths,
        asked.cell_seconds or table.cell_seconds,
    )


def _parsed(file: Path) -> SweepFile:
    text = files.read_text(file, most=_LARGEST_FILE)
    with files.parsing(file, "is no TOML", error=BadInput, hint="see docs/sweeps.md for one that is"):
        values = tomllib.loads(text)
    hint = "docs/sweeps.md lists the keys; `se-deploy schema sweep-file` is their schema"
    return convert(values, SweepFile, what=f"'{file}'", error=BadInput, hint=hint)


def _joined(between: str, values: Sequence[object] | None) -> str | None:
    return None if values is None else between.join(map(str, values))


def _many(value: T | tuple[T, ...]) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,)


def _path(name: str | None, folder: Path) -> Path | None:
    return None if name is None else Path(os.path.relpath(folder / name))


def _placed(one: SweepNetwork, folder: Path) -> SweepNetwork:
    """Return a network whose paths are seen from the working directory."""
    from msgspec.structs import replace  # noqa: PLC0415 - beside its only use

    moved = {
        key: os.path.relpath(folder / value)
        for key in ("checkpoint", "calib_data", "data")
        if (value := getattr(one, key)) is not None
    }
    path, colon, rest = one.model.rpartition(".py:")
    if colon:
        moved["model"] = f"{os.path.relpath(folder / path)}.py:{rest}"
    elif reading.is_onnx(one.model) or one.model.endswith(".pt2"):
        moved["model"] = os.path.relpath(folder / one.model)
    return replace(one, **moved)


def _cell(
    one: SweepNetwork,
    precision: RunPrecision,
    target: Target | None,
    batch: Batch,
    *,
    table: SweepFile,
    calib_data: Path | None,
    data: Path | None,
) -> Cell:
    timing = TimingOptions()
    size = one.input_size
    dims = None if size is None else tuple(map(int, size.split("x"))) if isinstance(size, str) else size
    size_of_batch = None if batch == "dynamic" else batch
    names = None if table.rewrites is True else table.rewrites or ()
    return Cell(
        one.model,
        precision,
        target,
        size_of_batch,
        folder="",
        calibration=CalibrationOptions(
            data=Path(one.calib_data) if one.calib_data else calib_data,
            samples=table.calib_samples,
            method=table.calib_method,
            allow_random=table.allow_random_calibration,
            seed=one.seed,
        ),
        options=RunOptions(
            precision=precision,
            data=Path(one.data) if one.data else data,
            target=TargetOptions(
                table.runtime,
                () if target is None else (target,),
                RewriteOptions(names, SEARCH_PLANS if table.search_plans is None else table.search_plans),
            ),
            network=NetworkOptions(
                checkpoint=Path(one.checkpoint) if one.checkpoint else None,
                model_args=one.model_args,
                pretrained=one.pretrained,
                input_size=dims,
                batch=size_of_batch,
                seed=one.seed,
                image=ImageOptions(mean=one.mean, std=one.std, size=dims),
            ),
            host=HostOptions(one.threads),
            timing=TimingOptions(
                timing.warmup_ms if table.warmup_ms is None else table.warmup_ms,
                timing.duration_s if table.duration_s is None else table.duration_s,
                table.iterations or timing.iterations,
            ),
        ),
    )


def _named(cells: Iterable[Cell]) -> Iterable[Cell]:
    """Give every cell a folder that says what it is; a hash tells networks apart that would share one.

    All of those have it, so that a folder is the same network's in whatever order they are written: `check`
    holds a sweep against an earlier one by folders. What is written twice is one cell.
    """
    cells = list(cells)
    owners: dict[str, set[str]] = {}
    for cell in cells:
        owners.setdefault(_slug(cell.model), set()).add(_facts(cell))
    seen: set[str] = set()
    for cell in cells:
        network, name = _facts(cell), _slug(cell.model)
        if len(owners[name]) > 1:
            name = f"{name}-{once.key_of({'network': network})[:_HASH_DIGITS]}"
        words = [cell.precision, *([cell.target.called] if cell.target else [])]
        words += [f"batch{cell.batch}"] if cell.batch is not None else []
        folder = f"{CELLS}/{name}/{'-'.join(words)}"
        if folder not in seen:
            seen.add(folder)
            yield dataclasses.replace(cell, folder=folder)


def _slug(model: str) -> str:
    return _SLUG.sub("_", model).strip("._") or "network"


def _facts(cell: Cell) -> str:
    """Return what tells two networks of a matrix apart, as text; the batch is part of the matrix."""
    network = dataclasses.replace(cell.options.network, batch=None)
    return repr((cell.model, network, cell.calibration, cell.options.data, cell.options.host))


class _Hashes:
    """Hashes of files and folders, each read once."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """Return the SHA-256. Raises: BadInput where nothing is there."""
        if path not in self._known:
            self._known[path] = content.sha256(path)
            self.paths[self._known[path]] = path
        return self._known[path]


def _keyed(cell: Cell, hashed: _Hashes, packages: Mapping[str, str]) -> Cell:
    """Return the cell with the hashes of its files, and the keys of its two halves."""
    named = [
        *_files_of(cell.model),
        cell.options.network.checkpoint,
        cell.calibration.data,
        cell.options.data,
    ]
    found = {path.as_posix(): hashed.of(path) for path in named if path is not None}
    module = _module_file(cell.model)
    facts: dict[str, object] = {
        "tool": tool_version(),
        "packages": dict(packages),
        "files": found,
        "module": None if module is None else files.sha256(module),
        "network": repr((cell.model, cell.options.network)),
        "precision": cell.precision,
        "calibration": repr(cell.calibration),
        "data": str(cell.options.data),
        "threads": cell.options.host.threads,
    }
    own = {"target": repr(cell.options.target), "timing": repr(cell.options.timing)}
    return dataclasses.replace(
        cell,
        files=found,
        key=once.key_of({**facts, **own}),
        prepare_key=once.key_of(facts),
        source_key=once.key_of({**facts, "precision": None}),
        kin=once.key_of({**facts, **own, "precision": None}),
    )


def _files_of(model: str) -> list[Path]:
    """Return the files of a network: none of a zoo's; of an ONNX file its weights too."""
    path, colon, _ = model.rpartition(".py:")
    if colon:
        return [Path(f"{path}.py")]
    if reading.is_onnx(model):
        try:
            weights = onnx_files.weight_files(Path(model)) if Path(model).exists() else ()
        except BadModel:  # its cells say so
            weights = ()
        return [Path(model), *(Path(model).parent / name for name in weights)]
    return [Path(model)] if model.endswith(".pt2") else []


def _module_file(model: str) -> Path | None:
    """Return the source of `package.module:callable`; None for everything else, and where there is none."""
    name, colon, _ = model.partition(":")
    if not colon or ".py:" in model or not re.fullmatch(r"\w+(\.\w+)*", name):
        return None
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))  # where a network is imported from too
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:  # its cells say so
        return None
    finally:
        sys.path[:] = before
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None
