"""What a run found: its verdicts, its recommendation, and `report.json`."""

from __future__ import annotations

import functools
import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import report
from se_deploy.commands import (
    artifacts,
    build_engine,
    export,
    inspect,
    packages,
    parity,
    profile,
    quantize,
    shapes,
)
from se_deploy.commands.lowering import Worth
from se_deploy.commands.run_files import GRAPHS, PRECISIONS
from se_deploy.report import units
from se_deploy.schema import input_spec, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from se_deploy.commands.benefit import Unweighed
    from se_deploy.commands.build_engine import BuildResult
    from se_deploy.commands.export import ExportResult
    from se_deploy.commands.inspect import InspectResult
    from se_deploy.commands.parity import ParityResult
    from se_deploy.commands.profile import ProfileResult
    from se_deploy.commands.quantize import QuantizeResult
    from se_deploy.options import Precision
    from se_deploy.tables.base import Grid


@dataclass(frozen=True, slots=True, repr=False)
class RunResult(Shown):
    """Everything that a run found, and where its files are."""

    folder: Path
    verb: str  # "run" or "demo"
    command: str  # as typed, for the report
    date: str  # ISO 8601, UTC
    export: ExportResult
    inspection: InspectResult
    quantize: QuantizeResult | None  # None where INT8 was not asked for
    engines: dict[Precision, BuildResult]  # one for each entry of ENGINES
    parity: ParityResult
    profile: ProfileResult
    warnings: tuple[str, ...]

    @property
    def failures(self) -> dict[str, tuple[str, ...]]:
        """What failed, by verdict; an empty tuple is a pass."""
        slow = [
            f"'{a.path}' is slower than PyTorch: {units.milliseconds(a.latency.p50_ms)}"
            for a in self.profile.artifacts
            if a.path == "model.onnx" and a.speedup is not None and a.speedup < 1 and self._timed_well
        ]
        return {
            "parity": tuple(text for c in self.parity.candidates for text in c.failures),
            "fusion": self.deployed.fusion_failures,
            "precision": tuple(text for e in self.engines.values() for text in e.precision_failures),
            "latency": tuple(slow),
        }

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Return where a NaN or inf appears that the source does not have: it fails without a gate."""
        verdicts = [self.export.verified, *(built.verified for built in self.engines.values())]
        verdicts += [self.quantize.verified] if self.quantize else []
        return tuple(f.text for verdict in verdicts for f in verdict.failures if f.is_not_finite)

    @property
    def verdicts(self) -> dict[str, bool | None]:
        """Pass or fail per verdict; None for a latency that was too unstable to judge."""
        found: dict[str, bool | None] = {name: not texts for name, texts in self.failures.items()}
        if not self._timed_well:
            found["latency"] = None
        return found

    @property
    def _timed_well(self) -> bool:
        judged = [a for a in self.profile.artifacts if a.reference or a.path == "model.onnx"]
        return all(a.latency.stable for a in judged)

    @property
    def recommended(self) -> Precision | None:
        """The engine to deploy: INT8 only where its plan is cheaper; None where none passes its verdicts."""
        worth = self._worth
        cheaper = worth is not None and worth.worth_it
        order = sorted(self.engines, key=lambda name: (name == "int8") != cheaper)
        return next((name for name in order if not self._against(name)), None)

    @property
    def _worth(self) -> Worth | Unweighed | None:
        """INT8 against FP16: by the times of both engines where they were steady, else as planned."""
        if "int8" not in self.engines:
            return None
        worth = self.engines["int8"].worth
        timed = {a.path: a for a in self.profile.artifacts if a.latency.stable}
        int8, fp16 = (timed.get(self.engines[name].engine.name) for name in ("int8", "fp16"))
        if int8 is None or fp16 is None:
            return worth
        return Worth(
            self.engines["int8"].built.plan,
            self.engines["fp16"].built.plan,
            None,
            int8.latency.p50_ms,
            fp16.latency.p50_ms,
            timed_on=int8.device,
        )

    @property
    def deployed(self) -> BuildResult:
        """The engine that the run's verdicts are of: the recommended one, else the first."""
        name = self.recommended
        return self.engines[next(iter(self.engines)) if name is None else name]

    def _against(self, name: Precision) -> tuple[str, ...]:
        """Return what speaks against deploying an engine: its parity and its precision."""
        measured = [c for c in self.parity.candidates if c.path == self.engines[name].engine.name]
        failures = [text for c in measured for text in c.failures]
        return (*failures, *self.engines[name].precision_failures)

    @property
    def files(self) -> list[Path]:
        """The artifacts that this run wrote, sorted by name."""
        built = [p for e in self.engines.values() for p in (e.engine, e.manifest, e.onnx)]
        graphs = [self.folder / name for name in GRAPHS[min(self.engines, key=PRECISIONS.index)]]
        return sorted([*graphs, *built])

    @property
    def recommendation(self) -> str:
        """Which engine to deploy and why, in one sentence; never one that fails a verdict."""
        name = self.recommended
        if name is None:
            causes = "; ".join(f"{one.upper()}: {self._against(one)[0]}" for one in self.engines)
            return f"deploy none of these engines: {causes}"
        if "int8" not in self.engines:
            return f"deploy the {name.upper()} engine: the only one that was asked for"
        worth = self._worth
        why = worth.reason if worth else "no compiler could plan both forms on this machine"
        if worth is not None and worth.worth_it != (name == "int8"):
            other: Precision = "fp16" if name == "int8" else "int8"
            why = f"the {other.upper()} engine is planned to be cheaper, but fails: {self._against(other)[0]}"
        return f"deploy the {name.upper()} engine: {why}"

    def tables(self) -> Sequence[Grid | str]:
        """Return what the command line prints of it."""
        from se_deploy.tables import runs  # noqa: PLC0415 - rich where something is shown

        return runs.run(to_schema(self), self.folder)


def drawing(built: BuildResult) -> str | None:
    """Return the network of an engine as SVG with its SE blocks and kernels; None where it is too large."""
    kernels = [layer.onnx_nodes for layer in built.built.plan.layers if not layer.host_only]
    return report.network_svg(built.lowered.model, built.lowered.blocks, kernels)


def to_schema(result: RunResult) -> results.Run:
    """Return `report.json`, which `run --json` and `demo --json` print."""
    taken = result.export.source
    kind = results.Demo if result.verb == "demo" else results.Run
    engines: dict[str, results.BuildEngine] = {
        name: build_engine.to_schema(built) for name, built in result.engines.items()
    }
    weights = taken.model.graph.initializers.values()
    built = next(iter(result.engines.values())).built
    return kind(
        tool_version=tool_version(),
        warnings=result.warnings,
        command=result.command,
        date=result.date,
        network=results.Network(
            spec=taken.spec,
            weights=taken.network.weights if taken.network else "in the ONNX file",
            params=sum(value.const_value.size for value in weights if value.const_value),
            macs=sum(shapes.macs(taken.model, built.plan).values()),
            input=input_spec.read(taken.model.metadata_props),
        ),
        machine=machine(),
        report="report.html",
        artifacts={path.name.removeprefix("model."): path.name for path in result.files},
        sizes={path.name: path.stat().st_size for path in result.files},
        export=export.to_schema(result.export),
        inspect=inspect.to_schema(result.inspection),
        quantize=quantize.to_schema(result.quantize) if result.quantize else None,
        build_engines=engines,
        build_engine=build_engine.to_schema(result.deployed),
        parity=parity.to_schema(result.parity, with_pictures=True),
        profile=profile.to_schema(result.profile),
        verdicts=results.Verdicts(**result.verdicts),
        recommendation=result.recommendation,
    )


@functools.cache
def machine() -> results.Machine:
    """Return what this run ran on: processor, cores, Python and the packages that matter."""
    return results.Machine(
        platform=platform.platform(),
        cpu=artifacts.cpu_name(),
        cores=os.cpu_count(),
        python=sys.version.split()[0],
        packages=packages.versions(),
    )
