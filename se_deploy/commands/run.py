"""`run`: the whole flow on one screen, one directory, one report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import collector, data, extras, files, graph, locks, report, schema
from se_deploy.backends import keeping, registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.commands import (
    artifacts,
    benefit,
    build_engine,
    compilers,
    export,
    fp16,
    inspect,
    lowering,
    parity,
    plans,
    profile,
    quantize,
    reading,
    run_files,
    sampling,
    source,
    starting,
)
from se_deploy.commands.run_files import ENGINES, artifact_paths
from se_deploy.commands.run_prepared import Prepared
from se_deploy.commands.run_result import RunResult, drawing, machine, to_schema
from se_deploy.errors import BadData, BuildFailed, counted
from se_deploy.options import ImageOptions, RewriteOptions, RunOptions, SampleOptions, TargetOptions
from se_deploy.protocols import OVERALL, silent
from se_deploy.schema import input_spec, provenance

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.commands.build_engine import BuildResult
    from se_deploy.commands.export import ExportResult
    from se_deploy.commands.inspect import InspectResult
    from se_deploy.commands.parity import ParityResult
    from se_deploy.commands.profile import ProfileResult
    from se_deploy.commands.quantize import QuantizeResult
    from se_deploy.commands.source import Source
    from se_deploy.commands.starting import Start
    from se_deploy.options import CalibrationOptions, Precision
    from se_deploy.protocols import Progress

__all__ = [
    "ENGINES", "Prepared", "RunResult", "Said", "artifact_paths", "deployed", "machine", "prepared",
    "require_samples", "run", "to_schema",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a run was asked for, which every step needs."""

    model: str
    folder: Path
    options: RunOptions
    calibration: CalibrationOptions
    progress: Progress

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that the engines are tuned for."""
        return build_engine.tuned_for(self.options.engine.shapes)

    @property
    def observed(self) -> CalibrationOptions:
        """The data on which FP16 measures its ranges: without calibration data what parity is judged on."""
        if self.calibration.data is not None:
            return self.calibration
        return dataclasses.replace(self.calibration, data=self.options.data)


@data.kept()
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
    asked = _Asked(model, folder, options, calibration, progress)
    with locks.folder(folder):
        run_files.claim(folder, overwrite=overwrite)
        if not reading.is_onnx(model):
            extras.require("torch", f"'{model}'")
        build_engine.require_buildable(options.engine, options.target, options.precision)
        steps = _Steps(progress, 8)
        exported = _begin(asked, steps)
        with collector.only_new(drop_old=True):
            starts = _Starts(asked)
            done = _prepare(asked, exported, steps, starts)
            said = Said(verb, command or f"se-deploy {verb} {model} -o {folder}")
            return _deploy(asked, done, said, steps, starts)


@dataclass(frozen=True, slots=True)
class Said:
    """What a run is called in its report."""

    verb: str  # "run" or "demo"
    command: str  # as typed


@data.kept()
def prepared(
    model: str,
    folder: Path,
    *,
    calibration: CalibrationOptions,
    options: RunOptions,
    wider: Prepared | None = None,
) -> Prepared:
    """Do the half of `run` that needs no device: export and quantize into `folder`, replacing its files.

    `wider`: what the same gave for a wider precision, its files in `folder`; the rest is done.
    Raises: whatever a step raises.
    """
    require_samples(calibration, options)
    asked, steps = _Asked(model, folder, options, calibration, silent), _Steps(silent, 8)
    wider = None if wider is None else wider.moved(folder)
    return _prepare(asked, _begin(asked, steps, wider), steps, _Starts(asked), wider)


@data.kept()
def deployed(
    done: Prepared, folder: Path, *, calibration: CalibrationOptions, options: RunOptions, said: Said
) -> RunResult:
    """Do the other half, where the engine is to run: build, compare, time and report.

    `done` is what the first half gave, maybe in another process; its files are in `folder`. The network
    itself is loaded again where it did not come along.
    Raises: whatever a step raises.
    """
    done = done.moved(folder)
    taken = done.exported.source
    if taken.network is None and not reading.is_onnx(taken.spec):
        taken = dataclasses.replace(taken, network=source.load_network(taken.spec, options.network))
        done = dataclasses.replace(done, exported=dataclasses.replace(done.exported, source=taken))
    asked = _Asked(taken.spec, folder, options, calibration, silent)
    return _deploy(asked, done, said, _Steps(silent, 8), _Starts(asked))


def _begin(asked: _Asked, steps: _Steps, wider: Prepared | None = None) -> ExportResult:
    """Export the network, or load the file given, unless `wider` has."""
    files.claim_kept(asked.calibration.cache)
    steps.next()
    return _exported(asked, run_files.graphs(asked.folder)["onnx"]) if wider is None else wider.exported


def _prepare(
    asked: _Asked, exported: ExportResult, steps: _Steps, starts: _Starts, wider: Prepared | None = None
) -> Prepared:
    """Write the graphs of lower precision; `wider` has done a part of it."""
    precision = asked.options.precision
    paths = run_files.graphs(asked.folder)
    steps.next()
    notes = list(exported.warnings if wider is None else wider.warnings)
    written = [paths["onnx"].name] if wider is None else list(wider.written)
    if precision != "fp32" and paths["fp16"].name not in written:
        notes += _write_fp16(asked, exported.source, paths["fp16"])
        written.append(paths["fp16"].name)
    steps.next()
    quantized = None
    if precision == "int8":
        quantized = _write_int8(asked, paths, starts)
        written.append(paths["int8"].name)
        notes += quantized.warnings
    steps.next()
    return Prepared(exported, quantized, tuple(written), tuple(notes))


def _deploy(asked: _Asked, done: Prepared, said: Said, steps: _Steps, starts: _Starts) -> RunResult:
    """Build, compare, time and report."""
    taken = done.exported.source
    notes = list(done.warnings)
    written = [asked.folder / name for name in done.written]
    compiler = compilers.compiler_for(
        registry.chosen(asked.options.target.runtime), asked.options.target.targets
    )
    target = dataclasses.replace(asked.options.target, runtime=compiler.name)
    engines: dict[Precision, BuildResult] = {}
    for name in ENGINES[asked.options.precision]:
        engines[name] = _build(asked, name, target, engines.get("fp16"), starts)
        steps.next()
    portable = done.quantized and _weighed(asked, done.quantized, target, engines)
    inspection = _inspect(asked, taken, target)
    written += [built.engine for built in engines.values()]
    compared = _compare(asked, taken, written)
    steps.next()
    timed = _time(asked, taken, written)
    steps.next()
    notes += inspection.warnings
    for built in engines.values():
        notes += built.warnings
    if asked.options.data is None:
        notes.append("parity was judged on the calibration data: name other data with --data")
    notes += [*compared.warnings, *timed.warnings]
    result = RunResult(
        asked.folder,
        said.verb,
        said.command,
        dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        done.exported,
        inspection,
        portable,
        engines,
        compared,
        timed,
        tuple(dict.fromkeys(notes)),
    )
    run_files.remove_stale(asked.folder, result.files, Path(asked.model))
    _report(result, asked.progress)
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


class _Steps:
    """Counts the steps of the run for the overall bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def next(self) -> None:
        self._progress(OVERALL, self._done, self._total)
        self._done += 1


class _Starts:
    """What `quantize` and the engines start from: the exported file, read and verified once for each data."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._known: dict[tuple[CalibrationOptions, bool], Start | None] = {}

    def of(self, calibration: CalibrationOptions, *, sampled: bool) -> Start | None:
        """Return a start; None where the network is in lower precision, which each step takes or refuses."""
        key = (dataclasses.replace(calibration, cache=None), sampled)
        if key not in self._known:
            self._known[key] = self._started(calibration, sampled=sampled)
        return self._known[key]

    def _started(self, calibration: CalibrationOptions, *, sampled: bool) -> Start | None:
        path = run_files.graphs(self._asked.folder)["onnx"]
        read = reading.converted(reading.load_onnx(path, ImageOptions()), str(path))
        if reading.is_quantized(read.model) or reading.precision_of(read.model) != "fp32":
            return None
        return starting.start(
            read,
            calibration,
            sampled=sampled,
            sizes=self._asked.sizes,
            verify=self._asked.options.verify,
            progress=self._asked.progress,
        )


def _exported(asked: _Asked, path: Path) -> ExportResult:
    taken = source.read(
        asked.model,
        options=asked.options.network,
        calibration=asked.calibration,
        compared_on=asked.options.data,
        verify=asked.options.verify,
        accept=functools.partial(build_engine.check_names, asked.options.engine),
        progress=asked.progress,
    )
    graph.save(taken.model, path)
    done = lowering.as_it_stands(taken.model)
    warnings = (*taken.warnings, *taken.verified.warnings)
    return export.ExportResult(path, taken, done, "fp32", "auto", taken.verified, warnings)


def _write_fp16(asked: _Asked, taken: Source, path: Path) -> tuple[str, ...]:
    """Write the FP16 file and return what must be said of it."""
    seen = sampling.range_samples(taken.model, asked.observed)
    asked.progress("FP16 file", 0, 1)
    half = fp16.half(taken.model, samples=seen)
    graph.save(half.model, path)
    asked.progress("FP16 file", 1, 1, f"{counted(len(half.kept), 'node', ('stays', 'stay'))} in FP32")
    return (*half.warnings, *lowering.unchecked_notes(half.unchecked))


def _write_int8(asked: _Asked, paths: Mapping[str, Path], starts: _Starts) -> QuantizeResult:
    asked.progress("INT8 file", 0, 1)
    quantized = quantize.quantize(
        paths["onnx"],
        paths["int8"],
        target=TargetOptions(sizes=asked.sizes),
        calibration=asked.calibration,
        verify=asked.options.verify,
        overwrite=True,
        start=starts.of(asked.calibration, sampled=True),
        progress=asked.progress,
    )
    asked.progress("INT8 file", 1, 1, quantized.verified.summary)
    return quantized


def _weighed(
    asked: _Asked, quantized: QuantizeResult, target: TargetOptions, engines: Mapping[Precision, BuildResult]
) -> QuantizeResult:
    """Return the portable INT8 file with what it would cost where the INT8 engine runs, beside that one."""
    if not isinstance(engines["int8"].worth, lowering.Worth):
        return quantized
    asked.progress("portable INT8 form", 0, 1)
    half = engines["fp16"]
    to = lowering.destination(
        dataclasses.replace(target, rewrites=RewriteOptions(names=()), sizes=asked.sizes)
    )
    with lowering.planner_for(to) as planner:
        try:
            worth = benefit.weighed(
                quantized.lowered.model,
                lowering.half(quantized.lowered.rewritten),
                to=to,
                planner=planner,
                built=lowering.Planned(half.built.plan, half.lowered.model),
            )
        except BuildFailed as e:
            worth = benefit.Unweighed(f"the compiler takes no portable form: {e.message}")
    asked.progress("portable INT8 form", 1, 1, "planned")
    return dataclasses.replace(quantized, worth=worth)


def _build(
    asked: _Asked, name: Precision, target: TargetOptions, half: BuildResult | None, starts: _Starts
) -> BuildResult:
    """Build the engine of one precision; INT8 is weighed against the plan of the FP16 engine, `half`."""
    asked.progress(f"{name.upper()} engine", 0, 1)
    calibration = asked.calibration if name == "int8" else asked.observed
    built = build_engine.build_engine(
        asked.folder / "model.onnx",
        asked.folder / f"model.{name}.engine",
        precision=name,
        target=target,
        engine=asked.options.engine,
        calibration=_for_engine(calibration),
        fp16=lowering.Planned(half.built.plan, half.lowered.model) if half else None,
        verify=asked.options.verify,
        overwrite=True,
        start=starts.of(calibration, sampled=name == "int8" or calibration.data is not None),
        progress=asked.progress,
    )
    asked.progress(f"{name.upper()} engine", 1, 1, counted(built.built.plan.kernels, "kernel"))
    return built


def _inspect(asked: _Asked, taken: Source, target: TargetOptions) -> InspectResult:
    first = TargetOptions(targets=target.targets[:1], sizes=asked.sizes)
    found, notes = plans.planned(taken.model, taken.census, first, asked.progress)
    return inspect.InspectResult("model.onnx", taken.model, taken.census, found, notes)


def _compare(asked: _Asked, taken: Source, written: Sequence[Path]) -> ParityResult:
    options, calibration = asked.options, asked.calibration
    limit = calibration.samples if options.data is None else None
    with _reference(asked.model, taken, options, exact=True) as reference:
        return parity.parity(
            reference,
            written,
            data=options.data or _calibration_data(calibration, taken, asked.folder),
            kinds=options.network.kinds,
            samples=SampleOptions(limit, calibration.skip_unreadable),
            host=options.host,
            relative_to=asked.folder,
            progress=asked.progress,
        )


def _time(asked: _Asked, taken: Source, written: Sequence[Path]) -> ProfileResult:
    with _reference(asked.model, taken, asked.options) as reference:
        return profile.profile(
            written,
            reference=reference,
            host=asked.options.host,
            timing=dataclasses.replace(asked.options.timing, sizes=asked.sizes),
            skip_missing=True,
            relative_to=asked.folder,
            progress=asked.progress,
        )


def _report(result: RunResult, progress: Progress) -> None:
    progress("report", 0, 1)
    made = to_schema(result)
    page = report.html(made, drawing(result.deployed))
    with files.together() as publish:
        publish(result.folder / "report.json").write_text(f"{schema.encode(made)}\n", "utf-8")
        publish(result.folder / "report.html").write_text(page, "utf-8", errors="backslashreplace")
    progress("report", 1, 1)


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

    samples = sampling.calibration_samples(taken.model, calibration)
    path = folder / "random-calibration.npz"
    np.savez(path, allow_pickle=False, **next(samples.batches(samples.count)))
    return path
