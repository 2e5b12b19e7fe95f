"""`profile`: latency of artifacts, and against a reference."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy import verification
from se_deploy.backends import manifest as manifests
from se_deploy.backends import registry
from se_deploy.commands import artifacts, reading, shapes
from se_deploy.commands.parity import name_of
from se_deploy.errors import BadInput, MissingRuntime, counted
from se_deploy.options import HostOptions, NetworkOptions, TimingOptions
from se_deploy.profiling import latency, power
from se_deploy.protocols import CallCost, CostedSession, QueuedSession, silent
from se_deploy.report import units
from se_deploy.schema import finite, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.protocols import Arrays, Progress
    from se_deploy.schema.files import Manifest
    from se_deploy.tables.base import Grid


_HOST_BOUND = 0.9
"""Where launching takes this part of a call's time, the device may wait for the host between calls."""


@dataclass(frozen=True, slots=True)
class _Measure:
    """For how long to measure, and on which random inputs."""

    timing: TimingOptions
    seed: int

    def latency(self, one: artifacts.Opened, size: int) -> latency.Latency:
        has_meter = registry.get(one.runtime).has_power_meter
        with power.meter() if has_meter else contextlib.nullcontext() as watts:
            return latency.measure(
                one.session,
                self.feeds(one, size),
                warmup_ms=self.timing.warmup_ms,
                duration_s=self.timing.duration_s,
                iterations=self.timing.iterations,
                watts=watts,
            )

    def cost(self, one: artifacts.Opened, size: int) -> CallCost:
        """Return what surrounds the device's time, where the session can tell."""
        if not isinstance(one.session, CostedSession):
            return CallCost()
        return one.session.cost(self.feeds(one, size), self.timing.iterations)

    def feeds(self, one: artifacts.Opened, size: int) -> Arrays:
        return verification.noise(one.session.inputs, self.shapes(one, size), image=one.image, seed=self.seed)

    def shapes(self, one: artifacts.Opened, size: int) -> shapes.Shapes:
        """Settle the sizes to time; those that the user named count for the inputs that have them."""
        inputs, sizes = one.session.inputs, self.timing.sizes
        named = {spec.name: (size, *sizes[spec.name][1:]) for spec in inputs if spec.name in sizes}
        return shapes.settled(inputs, "a latency", batch=size, image=one.image, named=named)


@dataclass(frozen=True, slots=True)
class _Reference:
    """The open reference and its latency by batch size, measured where an artifact needs it."""

    opened: artifacts.Opened
    measure: _Measure
    measured: dict[int, latency.Latency]

    def speedup(self, name: str, size: int, one: latency.Latency, notes: list[str]) -> float | None:
        """Return how many times as fast as the reference `one` is, by medians at the same batch, `size`.

        None, with a note, where the reference cannot run that batch or either timing is unstable.
        """
        if size not in self.measured:
            if artifacts.batch_size(self.opened.session, size) != size:
                frozen = next(iter(self.measured))
                notes.append(
                    f"{name}: no speed-up is known, it runs {counted(size, 'image')} a call and the "
                    f"reference {frozen}"
                )
                return None
            self.measured[size] = self.measure.latency(self.opened, size)
        base = self.measured[size]
        if not one.stable:  # which a warning says already
            return None
        if not base.stable:
            notes.append(f"{name}: no speed-up is known, for the reference's timing is unstable")
            return None
        return base.p50_ms / one.p50_ms  # medians: what the rule of stability is about


@dataclass(frozen=True, slots=True)
class Timed:
    """One artifact of `profile`."""

    path: str
    runtime: str
    device: str
    batch: int
    latency: latency.Latency
    speedup: float | None  # the reference's median over this one's at the same batch; None where unstable
    reference: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the inputs that were timed
    cost: CallCost = field(default_factory=CallCost)
    layers: tuple[results.LayerTime, ...] = ()
    streams: int | None = None
    streams_throughput_per_s: float | None = None

    def failures(
        self, *, max_p50_ms: float | None = None, min_speedup: float | None = None
    ) -> tuple[str, ...]:
        """Return in words which limits it does not keep; the reference is held to none.

        An unstable timing keeps no limit: it is not judged, and a gate on it does not pass.
        """
        if self.reference:
            return ()
        if max_p50_ms is None and min_speedup is None:
            return ()
        if not self.latency.stable:
            return (f"not judged: the timing is unstable ({self.latency.rule})",)
        found = []
        p50 = self.latency.p50_ms
        if max_p50_ms is not None and not p50 <= max_p50_ms:
            found.append(f"the median is {units.milliseconds(p50)}, above {max_p50_ms:g} ms")
        if min_speedup is not None:
            if self.speedup is None:
                found.append("not judged: no speed-up is known, see the warnings")
            elif not self.speedup >= min_speedup:
                found.append(
                    f"it is {self.speedup:.2f} times as fast as the reference, below {min_speedup:g}"
                )
        return tuple(found)


@dataclass(frozen=True, slots=True, repr=False)
class ProfileResult(Shown):
    """Latencies, the reference first where there is one."""

    artifacts: tuple[Timed, ...]
    threads: int
    warnings: tuple[str, ...]

    def failures(
        self, *, max_p50_ms: float | None = None, min_speedup: float | None = None
    ) -> tuple[str, ...]:
        """Return which artifact keeps which limit not. Raises: BadInput for a speed-up over no reference."""
        if min_speedup is not None and not any(artifact.reference for artifact in self.artifacts):
            raise BadInput(
                "no speed-up is known: nothing was measured beside the artifacts",
                hint="name one with --reference",
            )
        return tuple(
            f"{artifact.path}: {text}"
            for artifact in self.artifacts
            for text in artifact.failures(max_p50_ms=max_p50_ms, min_speedup=min_speedup)
        )

    def tables(self) -> Sequence[Grid]:
        """Return what the command line prints of it."""
        from se_deploy.tables import measurements  # noqa: PLC0415 - rich where something is shown

        made = to_schema(self)
        return measurements.profiled(made)


def profile(
    files: Sequence[str | Path],
    *,
    reference: str | Path | artifacts.Opened | None = None,
    batch: int = 1,
    batches: Sequence[int] = (),
    host: HostOptions | None = None,
    timing: TimingOptions | None = None,
    network: NetworkOptions | None = None,
    skip_missing: bool = False,
    relative_to: Path | None = None,
    progress: Progress = silent,
) -> ProfileResult:
    """Measure the latency of artifacts, and of the reference for the speed-up.

    `batches`: several in place of `batch`, each timed. `timing.sizes` are shapes by input, for what the files
    leave free. `skip_missing` turns an artifact that
    cannot run here (an engine without a GPU) into a warning.
    Raises: MissingRuntime, BadArtifact, BadModel; BadInput where there is nothing to measure, or where a
    size is free that nobody named.
    """
    host, network = host or HostOptions(), network or NetworkOptions()
    named = [*([reference] if reference else []), *files]
    if not named:
        raise BadInput("there is nothing to measure", hint="name an ONNX file or an engine")
    timed: list[Timed] = []
    inputs: set[str] = set()
    notes = artifacts.unused(network)
    measure = _Measure(timing or TimingOptions(), network.seed)
    sweep = tuple(batches) or (_batch(batch, measure.timing.sizes),)
    with contextlib.ExitStack() as stack:
        base: _Reference | None = None
        for done, artifact in enumerate(named):
            progress("profile", done, len(named))
            name = name_of(artifact, relative_to)
            is_reference = reference is not None and done == 0
            with contextlib.ExitStack() as own:

                def opened(one: str | Path | artifacts.Opened, at: contextlib.ExitStack) -> artifacts.Opened:
                    return at.enter_context(artifacts.opened(one, host=host, network=network))

                try:  # the reference stays open: it may be asked for another batch
                    one = opened(artifact, stack if is_reference else own)
                except MissingRuntime as e:
                    if not skip_missing:
                        raise
                    notes.append(f"{name} was not timed: {e.message}")
                    continue
                inputs |= {spec.name for spec in one.session.inputs}
                if done == len(named) - 1:  # a shape is of any of the artifacts, and the last has no excuse
                    shapes.refuse_unknown(inputs, measure.timing.sizes)
                sessions = [one]
                if measure.timing.streams > 1 and not is_reference:
                    if isinstance(one.session, QueuedSession):
                        sessions += [opened(artifact, own) for _ in range(measure.timing.streams - 1)]
                    else:
                        notes.append(f"{name}: --streams has no use, it runs on no stream of a device")
                sizes = dict.fromkeys(artifacts.batch_size(one.session, size) for size in sweep)
                for size in sizes:
                    found = _timed(name, artifact, sessions, size, measure)
                    if is_reference:
                        measured = {} if base is None else base.measured
                        base = _Reference(one, measure, {**measured, size: found.latency})
                    notes += [f"{name}: {note}" for note in _doubts(found)]
                    speedup = None
                    if base is not None and not is_reference:
                        speedup = base.speedup(name, size, found.latency, notes)
                    timed.append(dataclasses.replace(found, speedup=speedup, reference=is_reference))
    progress("profile", len(named), len(named))
    if any(not one.latency.stable for one in timed):
        notes.append(f"timings: {latency.RULE}")
    return ProfileResult(tuple(timed), host.threads, tuple(notes))


def _timed(
    name: str,
    artifact: str | Path | artifacts.Opened,
    sessions: Sequence[artifacts.Opened],
    size: int,
    measure: _Measure,
) -> Timed:
    """Time one artifact at one batch; `sessions`: as many as there are streams, open on it."""
    one = sessions[0]
    measured = measure.latency(one, size)
    cost = measure.cost(one, size)
    throughput = None
    if len(sessions) > 1:
        queues = [
            s.session.queue(measure.feeds(s, size)) for s in sessions if isinstance(s.session, QueuedSession)
        ]
        throughput = latency.throughput_per_s(queues, size, measure.timing.duration_s)
    return Timed(
        name,
        one.runtime,
        one.device,
        size,
        measured,
        speedup=None,
        shapes=measure.shapes(one, size),
        cost=cost,
        layers=_layers(cost, _manifest(artifact)),
        streams=len(sessions) if throughput is not None else None,
        streams_throughput_per_s=throughput,
    )


def _doubts(found: Timed) -> Iterator[str]:
    """Yield what a reader of the figures must know."""
    if not found.latency.stable:
        yield "the timing is unstable, do not rely on it"
    yield from found.cost.notes
    enqueue = found.cost.enqueue_ms
    if enqueue is not None and enqueue > _HOST_BOUND * found.latency.p50_ms:
        yield (
            f"the host takes {units.milliseconds(enqueue)} to launch a call of "
            f"{units.milliseconds(found.latency.p50_ms)}: the time may be the host's, not the "
            "device's; time a larger batch"
        )
    if found.cost.layers and found.layers and all(layer.block is None for layer in found.layers):
        yield "what the SE blocks take is not known: the manifest names none of the layers that were timed"


def _manifest(artifact: str | Path | artifacts.Opened) -> Manifest | None:
    """Return the manifest of an engine that has one."""
    if isinstance(artifact, artifacts.Opened) or reading.kind_of(artifact) != "engine":
        return None
    path = Path(artifact)
    return manifests.read(path) if manifests.path_of(path).is_file() else None


def _layers(cost: CallCost, manifest: Manifest | None) -> tuple[results.LayerTime, ...]:
    """Put to each layer its ONNX nodes and its SE block, as the engine's manifest has them."""
    plan = None if manifest is None else manifest.plan
    nodes = {} if plan is None else {layer.name: layer.onnx_nodes for layer in plan.layers}
    blocks = {} if plan is None else {name: b.output for b in plan.blocks for name in b.layers}
    return tuple(
        results.LayerTime(name=name, mean_ms=ms, onnx_nodes=nodes.get(name, ()), block=blocks.get(name))
        for name, ms in cost.layers
    )


def _se_share(layers: Sequence[results.LayerTime]) -> float | None:
    """Return the SE blocks' part of the layers' time; None where no layer is known to be of one."""
    total = sum(layer.mean_ms for layer in layers)
    own = [layer.mean_ms for layer in layers if layer.block is not None]
    return sum(own) / total if own and total else None


def _batch(asked: int, sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the batch to time: as asked, else as the shapes given have it. Raises: BadInput for both."""
    given = {shape[0] for shape in sizes.values() if shape and shape[0] != 1}
    if not given - {asked}:
        return asked
    if asked != 1 or len(given) > 1:
        batches = ", ".join(map(str, sorted({asked, *given})))
        raise BadInput(f"the shapes to time and the batch disagree: {batches}", hint="name one batch")
    return given.pop()


def to_schema(result: ProfileResult) -> results.Profile:
    """Return what `profile --json` prints."""
    return results.Profile(
        tool_version=tool_version(),
        warnings=result.warnings,
        threads=result.threads,
        artifacts=tuple(map(_timing, result.artifacts)),
    )


def _timing(timed: Timed) -> results.Timing:
    t = timed.latency
    return results.Timing(
        path=timed.path,
        runtime=timed.runtime,
        device=timed.device,
        batch=timed.batch,
        p50_ms=t.p50_ms,
        p90_ms=t.p90_ms,
        p99_ms=t.p99_ms,
        mean_ms=t.mean_ms,
        std_ms=t.std_ms,
        throughput_per_s=t.throughput_per_s,
        samples=len(t.samples_ms),
        stable=t.stable,
        power_w=finite(t.power_w),
        energy_mj=finite(t.energy_mj),
        speedup_vs_reference=timed.speedup,
        enqueue_ms=timed.cost.enqueue_ms,
        h2d_ms=timed.cost.h2d_ms,
        d2h_ms=timed.cost.d2h_ms,
        end_to_end_ms=timed.cost.end_to_end_ms,
        layers=timed.layers,
        shapes=timed.shapes,
        se_share=_se_share(timed.layers),
        cuda_graph=timed.cost.cuda_graph,
        streams=timed.streams,
        streams_throughput_per_s=timed.streams_throughput_per_s,
    )
