"""Several steps in one object: `run`, `demo`, `check`, `report`, and a dry run."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType, field

from se_deploy.schema.common import Count, GateName, Result
from se_deploy.schema.input_spec import InputSpec
from se_deploy.schema.results.inspected import Inspect
from se_deploy.schema.results.measured import Parity, Profile
from se_deploy.schema.results.written import BuildEngine, Export, Quantize


class Network(Struct, frozen=True, kw_only=True):
    """The network of a run."""

    spec: str | None = None
    weights: str | None = None
    params: Count | None = None
    macs: Count | None = None
    input: InputSpec | None = None


class Machine(Struct, frozen=True, kw_only=True):
    """What a run ran on."""

    platform: str | None = None
    cpu: str | None = None
    cores: Count | None = None
    python: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


class Verdicts(Struct, frozen=True, kw_only=True):
    """Pass or fail of each gate; null where it was not judged."""

    parity: bool | None = None
    fusion: bool | None = None
    precision: bool | None = None
    latency: bool | None = None


class Run(Result, frozen=True, kw_only=True, tag="se-deploy/run/1"):
    """Everything that a run measured: `report.json`; what was not asked for is null."""

    report: str
    artifacts: Mapping[str, str]
    command: str | None = None
    date: str | None = None
    network: Network | None = None
    machine: Machine | None = None
    sizes: Mapping[str, Count] = field(default_factory=dict)
    export: Export | None = None
    inspect: Inspect | None = None
    quantize: Quantize | None = None
    build_engines: Mapping[str, BuildEngine] = field(name="build-engines", default_factory=dict)
    build_engine: BuildEngine | None = field(name="build-engine", default=None)
    parity: Parity | None = None
    profile: Profile | None = None
    verdicts: Verdicts | None = None
    recommendation: str | None = None
    folder: str | UnsetType = UNSET  # where `report` found it; not part of the file


class Demo(Run, frozen=True, kw_only=True, tag="se-deploy/demo/1"):
    """A run of the shipped network on the shipped digits."""


class Gate(Struct, frozen=True, kw_only=True):
    """One gate's verdict on one file: why it failed, or what was measured."""

    gate: GateName
    name: str
    passed: bool | None
    details: tuple[str, ...]


class Check(Result, frozen=True, kw_only=True, tag="se-deploy/check/1"):
    """Every gate of a configuration, and the measurements behind them."""

    config: str
    passed: bool
    gates: tuple[Gate, ...]
    parity: tuple[Parity, ...]
    profile: tuple[Profile, ...]


class Report(Result, frozen=True, kw_only=True, tag="se-deploy/report/1"):
    """Runs side by side, each with the folder that it was found in."""

    runs: tuple[Run | Demo, ...]


class DryRun(Result, frozen=True, kw_only=True, tag="se-deploy/dry-run/1"):
    """What a command would do with --dry-run, which does nothing: its steps in order, and its files."""

    command: str
    steps: tuple[str, ...]
    writes: tuple[str, ...]
