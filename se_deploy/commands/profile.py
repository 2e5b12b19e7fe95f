"""`profile`: latency of artifacts, and against a reference."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from se_deploy import verification
from se_deploy.backends import registry
from se_deploy.commands import artifacts, shapes
from se_deploy.commands.parity import name_of
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.options import HostOptions, NetworkOptions, TimingOptions
from se_deploy.profiling import latency, power
from se_deploy.protocols import silent
from se_deploy.schema import finite, results, tool_version
from se_deploy.tables.shown import Shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from se_deploy.protocols import Progress
    from se_deploy.tables.base import Grid


@dataclass(frozen=True, slots=True)
class _Measure:
    """For how long to measure, and on which random inputs."""

    timing: TimingOptions
    seed: int

    def latency(self, one: artifacts.Opened, size: int) -> latency.Latency:
        return latency.measure(
            one.session,
            verification.noise(one.session.inputs, self.shapes(one, size), image=one.image, seed=self.seed),
            warmup_ms=self.timing.warmup_ms,
            duration_s=self.timing.duration_s,
            iterations=self.timing.iterations,
            watts=power.meter() if registry.get(one.runtime).has_power_meter else None,
        )

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
                    f"{name}: no speed-up is known, it runs {size} images a call and the reference {frozen}"
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
            found.append(f"the median is {p50:.4g} ms, above {max_p50_ms:g} ms")
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
        return [measurements.profile(made)]


def profile(
    files: Sequence[str | Path],
    *,
    reference: str | Path | artifacts.Opened | None = None,
    batch: int = 1,
    host: HostOptions | None = None,
    timing: TimingOptions | None = None,
    network: NetworkOptions | None = None,
    skip_missing: bool = False,
    relative_to: Path | None = None,
    progress: Progress = silent,
) -> ProfileResult:
    """Measure the latency of artifacts, and of the reference for the speed-up.

    `timing.sizes` are shapes by input, for what the files leave free. `skip_missing` turns an artifact that
    cannot run here (an engine without a GPU) into a warning.
    Raises: MissingRuntime, BadArtifact, BadModel; BadInput where there is nothing to measure, or where a
    size is free that nobody named.
    """
    host, network = host or HostOptions(), network or NetworkOptions()
    named = [*([reference] if reference else []), *files]
    if not named:
        raise BadInput("there is nothing to measure", hint="name an ONNX file or an engine")
    timed: list[Timed] = []
    notes = artifacts.unused(network)
    measure = _Measure(timing or TimingOptions(), network.seed)
    batch = _batch(batch, measure.timing.sizes)
    with contextlib.ExitStack() as stack:
        base: _Reference | None = None
        for done, artifact in enumerate(named):
            progress("profile", done, len(named))
            name = name_of(artifact, relative_to)
            opening = artifacts.opened(artifact, host=host, network=network)
            is_reference = reference is not None and done == 0
            with contextlib.ExitStack() as own:
                try:  # the reference stays open: it may be asked for another batch
                    one = (stack if is_reference else own).enter_context(opening)
                except MissingRuntime as e:
                    if not skip_missing:
                        raise
                    notes.append(f"{name} was not timed: {e.message}")
                    continue
                size = artifacts.batch_size(one.session, batch)
                measured = measure.latency(one, size)
                used = measure.shapes(one, size)
            if is_reference:
                base = _Reference(one, measure, {size: measured})
            if not measured.stable:
                notes.append(f"{name}: the timing is unstable, do not rely on it")
            speedup = None if base is None or is_reference else base.speedup(name, size, measured, notes)
            timed.append(Timed(name, one.runtime, one.device, size, measured, speedup, is_reference, used))
    progress("profile", len(named), len(named))
    if any(not one.latency.stable for one in timed):
        notes.append(f"timings: {latency.RULE}")
    return ProfileResult(tuple(timed), host.threads, tuple(notes))


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
        shapes=timed.shapes,
    )
