"""`profile`: latency of artifacts, and against a reference."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from se_deploy.commands import artifacts
from se_deploy.commands.parity import name_of
from se_deploy.commands.results import Json, Timed, head
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.frontend.simplify import random_feeds
from se_deploy.profiling import latency, power
from se_deploy.protocols import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.options import ImageOptions, NetworkOptions
    from se_deploy.protocols import Progress


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """Latencies, the reference first where there is one."""

    artifacts: tuple[Timed, ...]
    threads: int
    warnings: tuple[str, ...]

    def failures(
        self, *, max_p50_ms: float | None = None, min_speedup: float | None = None
    ) -> tuple[str, ...]:
        """Say which artifact does not keep which limit. Raises: BadInput without a reference to compare."""
        return tuple(
            f"{artifact.path}: {text}"
            for artifact in self.artifacts
            for text in artifact.failures(max_p50_ms=max_p50_ms, min_speedup=min_speedup)
        )

    def json(self) -> Json:
        """The object of the contract."""
        return {
            **head("profile", self.warnings),
            "threads": self.threads,
            "artifacts": [artifact.json() for artifact in self.artifacts],
        }


def profile(
    files: Sequence[str | Path],
    *,
    reference: str | artifacts.Opened | None = None,
    batch: int = 1,
    threads: int = 0,
    device: str = "cpu",
    warmup_ms: float = 200,
    duration_s: float = 3,
    iterations: int = 10,
    skip_missing: bool = False,
    relative_to: Path | None = None,
    network: NetworkOptions | None = None,
    image: ImageOptions | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> ProfileResult:
    """Measure the latency of artifacts, and of the reference for the speed-up.

    `skip_missing` turns an artifact that cannot run here (an engine without a GPU) into a warning.
    Raises: MissingRuntime, BadArtifact, BadModel; BadInput where there is nothing to measure.
    """
    named = [*([reference] if reference else []), *files]
    if not named:
        raise BadInput("there is nothing to measure", hint="name an ONNX file or an engine")
    timed: list[Timed] = []
    notes: list[str] = []
    base: float | None = None
    for done, artifact in enumerate(named):
        progress("profile", done, len(named))
        name = name_of(artifact, relative_to)
        with contextlib.ExitStack() as stack:
            try:
                one = stack.enter_context(
                    artifacts.opened(
                        str(artifact) if isinstance(artifact, Path) else artifact,
                        threads=threads,
                        device=device,
                        network=network,
                        image=image,
                    )
                )
            except MissingRuntime as e:
                if not skip_missing:
                    raise
                notes.append(f"{name} was not timed: {e.message}")
                continue
            size = artifacts.batch_size(one.session, batch)
            feeds = random_feeds(one.session.inputs, batch=size, seed=seed)
            measured = latency.measure(
                one.session,
                feeds,
                warmup_ms=warmup_ms,
                duration_s=duration_s,
                iterations=iterations,
                watts=power.meter() if one.runtime in {"tensorrt", "tensorrt-rtx"} else None,
            )
        is_reference = reference is not None and done == 0
        base = measured.p50_ms if is_reference else base
        speedup = None if base is None or is_reference else base / measured.p50_ms
        if not measured.stable:
            notes.append(f"{name}: the timing is unstable, do not rely on it ({measured.rule})")
        timed.append(Timed(name, one.runtime, one.device, size, measured, speedup, is_reference))
    progress("profile", len(named), len(named))
    return ProfileResult(tuple(timed), threads, tuple(notes))
