"""`run`: the whole flow on one screen, one directory, one report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import files, graph, locks, report, schema
from se_deploy.backends import keeping, registry
from se_deploy.backends import manifest as manifests
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands import (
    artifacts,
    build_engine,
    compilers,
    export,
    fp16,
    inspect,
    lowering,
    parity,
    profile,
    quantize,
    shapes,
    source,
)
from se_deploy.commands.lowering import Worth
from se_deploy.errors import BadData
from se_deploy.options import RunOptions, SampleOptions, TargetOptions
from se_deploy.protocols import OVERALL, silent
from se_deploy.schema import input_spec, provenance, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.commands.benefit import Unweighed
    from se_deploy.commands.build_engine import BuildResult
    from se_deploy.commands.export import ExportResult
    from se_deploy.commands.inspect import InspectResult
    from se_deploy.commands.parity import ParityResult
    from se_deploy.commands.profile import ProfileResult
    from se_deploy.commands.quantize import QuantizeResult
    from se_deploy.commands.source import Source
    from se_deploy.options import CalibrationOptions, Precision
    from se_deploy.protocols import Progress
    from se_deploy.tables.base import Grid

PACKAGES = (
    "timm", "torchvision", "onnx", "onnx-ir", "onnxscript", "onnxsim", "numpy", "pillow",
)  # fmt: skip
ENGINES: Mapping[Precision, tuple[Precision, ...]] = {
    "fp32": ("fp32",), "fp16": ("fp16",), "int8": ("fp16", "int8"),
}  # fmt: skip
"""Which engines a run builds, the one that the others are compared with first."""
_PRECISIONS: tuple[Precision, ...] = ("int8", "fp16", "fp32")  # narrow to wide
_GRAPHS: Mapping[Precision, tuple[str, ...]] = {
    "fp32": ("model.onnx",), "fp16": ("model.onnx", "model.fp16.onnx"),
    "int8": ("model.onnx", "model.fp16.onnx", "model.int8.onnx"),
}  # fmt: skip
"""Which ONNX files a run of that precision leaves beside its engines."""


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
            f"'{a.path}' is slower than PyTorch: {a.latency.p50_ms:.3g} ms"
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
        graphs = [self.folder / name for name in _GRAPHS[min(self.engines, key=_PRECISIONS.index)]]
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


@keeping.kept()
def run(
    model: str | Path,
    folder: str | Path,
    *,
    calibration: CalibrationOptions,
    options: RunOptions | None = None,
    overwrite: bool = False,
    command: str | None = None,
    verb: str = "run",
    progress: Progress = silent,
) -> RunResult:
    """Export, inspect, quantize, build, compare and time a network; leave everything in `folder`.

    `command`: what was typed, for the report.
    Raises: whatever a step raises; files that were finished before it stay.
    """
    model, folder = str(model), Path(folder)
    options = options or RunOptions()
    require_samples(calibration, options)
    with locks.folder(folder):
        return _fill(
            model,
            folder,
            calibration=calibration,
            options=options,
            overwrite=overwrite,
            command=command or f"se-deploy {verb} {model} -o {folder}",
            verb=verb,
            progress=progress,
        )


def _fill(
    model: str,
    folder: Path,
    *,
    calibration: CalibrationOptions,
    options: RunOptions,
    overwrite: bool,
    command: str,
    verb: str,
    progress: Progress,
) -> RunResult:
    """Do what `run` says, in a folder that no other run writes into."""
    precision, data = options.precision, options.data
    paths = _claim(folder, overwrite=overwrite)
    files.claim_kept(calibration.cache)
    steps = _Steps(progress, 8)

    steps.next()
    taken = source.read(
        model,
        options=options.network,
        calibration=calibration,
        verify=options.verify,
        progress=progress,
    )
    exported = _write_fp32(taken, paths["onnx"])
    steps.next()
    notes = list(exported.warnings)
    written = [paths["onnx"]]
    if precision != "fp32":
        seen = lowering.range_samples(taken.model, _with_data(calibration, data))
        progress("FP16 file", 0, 1)
        half = fp16.half(taken.model, samples=seen)
        graph.save(half.model, paths["fp16"])
        progress("FP16 file", 1, 1, f"{len(half.kept)} nodes stay in FP32")
        written.append(paths["fp16"])
        notes += [*half.warnings, *lowering.unchecked_notes(half.unchecked)]
    steps.next()
    quantized = None
    if precision == "int8":
        progress("INT8 file", 0, 1)
        quantized = quantize.quantize(
            paths["onnx"],
            paths["int8"],
            target=TargetOptions(sizes=build_engine.tuned_for(options.engine.shapes)),
            calibration=calibration,
            verify=options.verify,
            overwrite=True,
            progress=progress,
        )
        written.append(paths["int8"])
        notes += quantized.warnings
        progress("INT8 file", 1, 1, quantized.verified.summary)
    steps.next()
    target = options.target
    compiler = compilers.compiler_for(registry.chosen(target.runtime), target.targets)
    target = dataclasses.replace(target, runtime=compiler.name)
    engines: dict[Precision, BuildResult] = {}
    for name in ENGINES[precision]:
        progress(f"{name.upper()} engine", 0, 1)
        engines[name] = build_engine.build_engine(
            paths["onnx"],
            folder / f"model.{name}.engine",
            precision=name,
            target=target,
            engine=options.engine,
            calibration=_for_engine(calibration if name == "int8" else _with_data(calibration, data)),
            fp16_plan=engines["fp16"].built.plan if "fp16" in engines else None,
            verify=options.verify,
            overwrite=True,
            progress=progress,
        )
        progress(f"{name.upper()} engine", 1, 1, f"{engines[name].built.plan.kernels} kernels")
        steps.next()
    plans, plan_notes = inspect.planned(
        taken.model,
        taken.census,
        TargetOptions(targets=target.targets[:1], sizes=build_engine.tuned_for(options.engine.shapes)),
        progress,
    )
    inspection = inspect.InspectResult("model.onnx", taken.model, taken.census, plans, plan_notes)
    written += [built.engine for built in engines.values()]
    with _reference(model, taken, options, exact=True) as reference:
        compared = parity.parity(
            reference,
            written,
            data=data or _calibration_data(calibration, taken, folder),
            kinds=options.network.kinds,
            samples=SampleOptions(calibration.samples if data is None else None, calibration.skip_unreadable),
            host=options.host,
            relative_to=folder,
            progress=progress,
        )
    steps.next()
    with _reference(model, taken, options) as reference:
        timed = profile.profile(
            written,
            reference=reference,
            host=options.host,
            timing=dataclasses.replace(options.timing, sizes=build_engine.tuned_for(options.engine.shapes)),
            skip_missing=True,
            relative_to=folder,
            progress=progress,
        )
    steps.next()
    notes += plan_notes
    for built in engines.values():
        notes += built.warnings
    if data is None:
        notes.append("parity was judged on the calibration data: name other data with --data")
    notes += [*compared.warnings, *timed.warnings]
    result = RunResult(
        folder,
        verb,
        command,
        dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        exported,
        inspection,
        quantized,
        engines,
        compared,
        timed,
        tuple(dict.fromkeys(notes)),
    )
    _remove_stale(result, Path(model))
    progress("report", 0, 1)
    made = to_schema(result)
    page = report.html(made, _drawing(result.deployed))
    with files.together() as publish:
        publish(folder / "report.json").write_text(f"{schema.encode(made)}\n", "utf-8")
        publish(folder / "report.html").write_text(page, "utf-8", errors="backslashreplace")
    progress("report", 1, 1)
    steps.next()
    return result


def require_samples(calibration: CalibrationOptions, options: RunOptions) -> None:
    """Raise BadData where there is nothing to calibrate on, or nothing to compare on."""
    needed = options.precision == "int8" or options.data is None
    if calibration.data is None and not calibration.allow_random and needed:
        raise BadData(
            "there are no samples to calibrate or to compare on",
            hint="pass --calib-data: a folder of images, .npy/.npz, ...; for FP16 alone --data is enough",
        )


def artifact_paths(folder: Path, precision: Precision) -> tuple[Path, ...]:
    """Return every file that a run of this precision writes."""
    engines = [
        p for name in ENGINES[precision] for p in build_engine.files_of(folder / f"model.{name}.engine")
    ]
    return (*(folder / name for name in _GRAPHS[precision]), *engines, *_reports(folder))


def _reports(folder: Path) -> tuple[Path, ...]:
    return (folder / "report.json", folder / "report.html")


def _drawing(built: BuildResult) -> str | None:
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


def machine() -> results.Machine:
    """Return what this run ran on: processor, cores, Python and the packages that matter."""
    installed = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    brought = (name for backend in registry.every() for name in backend.packages)
    found = {name: installed[name] for name in (*brought, *PACKAGES) if name in installed}
    return results.Machine(
        platform=platform.platform(),
        cpu=artifacts.cpu_name(),
        cores=os.cpu_count(),
        python=sys.version.split()[0],
        packages=found,
    )


class _Steps:
    """Counts the steps of the run for the overall bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self) -> None:
        self._progress(OVERALL, self._done, self._total)
        self._done += 1


def _claim(folder: Path, *, overwrite: bool) -> dict[str, Path]:
    for path in (*_own(folder), *_reports(folder)):
        files.claim(path, overwrite=overwrite)
    return {"onnx": folder / "model.onnx", **{p: folder / f"model.{p}.onnx" for p in ("fp16", "int8")}}


def _remove_stale(result: RunResult, model: Path) -> None:
    """Remove what an earlier run left under a run's own names: it would pass for this one's."""
    for path in _own(result.folder):
        own = path in result.files or (path.exists() and model.exists() and path.samefile(model))
        if not own:
            path.unlink(missing_ok=True)


def _own(folder: Path) -> tuple[Path, ...]:
    """Return every artifact that a run of any precision may leave in `folder`."""
    engines = [folder / f"model.{name}.engine" for name in _PRECISIONS]
    sides = [p for e in engines for p in (manifests.path_of(e), build_engine.onnx_path(e))]
    return (*(folder / name for name in _GRAPHS["int8"]), *engines, *sides)


def _write_fp32(taken: Source, path: Path) -> ExportResult:
    graph.save(taken.model, path)
    done = lowering.as_it_stands(taken.model)
    warnings = (*taken.warnings, *taken.verified.warnings)
    return export.ExportResult(path, taken, done, "fp32", "auto", taken.verified, warnings)


def _with_data(calibration: CalibrationOptions, data: Path | None) -> CalibrationOptions:
    """Let FP16 measure its ranges on what parity is judged on, where there is no calibration data."""
    return calibration if calibration.data is not None else dataclasses.replace(calibration, data=data)


def _for_engine(calibration: CalibrationOptions) -> CalibrationOptions:
    """The target's form has scales of its own, and so a cache of its own."""
    path = calibration.cache
    if path is None:
        return calibration
    return dataclasses.replace(calibration, cache=path.with_name(f"{path.stem}.engine{path.suffix}"))


@contextlib.contextmanager
def _reference(
    model: str, taken: Source, options: RunOptions, *, exact: bool = False
) -> Iterator[artifacts.Opened]:
    """Open PyTorch where the network came from it, else the ONNX file given, read as the flags say."""
    if taken.network is None:
        given = artifacts.opened(model, exact=exact, host=options.host, network=options.network)
        with given as one:
            yield dataclasses.replace(one, name=model)
        return
    session = registry.network_session(taken.network, SessionOptions(threads=options.host.threads))
    yield artifacts.Opened(
        session,
        registry.reference().name,
        artifacts.cpu_name(),
        "fp32",
        taken.outside or input_spec.read(taken.model.metadata_props),
        None,
        name=taken.spec,
        random_weights=provenance.are_random(taken.network.weights),
    )


def _calibration_data(calibration: CalibrationOptions, taken: Source, folder: Path) -> Path:
    """Return the calibration data's path; random calibration is written out, so that parity can read it."""
    if calibration.data is not None:
        return calibration.data
    import numpy as np  # noqa: PLC0415 - only for this case

    samples = lowering.calibration_samples(taken.model, calibration)
    path = folder / "random-calibration.npz"
    np.savez(path, allow_pickle=False, **next(samples.batches(samples.count)))
    return path
