"""How long one call takes: percentiles of device time after a warm-up, and whether to trust them.

Pure: it asks a session for times and does sums. A timing is called stable by a stated rule, because a median
from a machine that was busy, or that changed its clocks half-way, is worth nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy.profiling import power

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from se_deploy.protocols import Arrays, FloatArray, Queue, Session

WARMUP_MS = 200.0
DURATION_S = 3.0
ITERATIONS = 10
"""trtexec's own defaults, so that the figures compare."""

RULE = (
    "stable means that the medians of both halves differ by at most 5 %, and that the middle half of the "
    "times spans at most 10 % of the median"
)
_DRIFT, _SPREAD, _FEWEST = 0.05, 0.10, 4
_QUEUED = 50  # calls of a queue between two waits: the wait's gap is lost among them
_CHUNKS = 100  # how many times at least the clock is looked at within the duration
_WARMUP_CALLS = 3  # at least: first calls compile kernels and fill caches


@dataclass(frozen=True, slots=True)
class Latency:
    """Time per call in ms, as measured; percentiles interpolate between samples."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    throughput_per_s: float  # images: batch over mean
    samples_ms: tuple[float, ...]
    stable: bool
    power_w: float | None = None  # mean while measuring; None where nothing here can read it
    energy_mj: float | None = None  # per image
    rule: str = RULE


def measure(
    session: Session,
    feeds: Arrays,
    *,
    warmup_ms: float = WARMUP_MS,
    duration_s: float = DURATION_S,
    iterations: int = ITERATIONS,
    watts: Callable[[], float | None] | None = None,
) -> Latency:
    """Time calls of `session` on `feeds` for `duration_s`, and at least `iterations` of them.

    The batch is the feeds' first axis. `watts` reads the device's power, see `power.meter`: it is asked
    while the device works, and the energy over the wall time is the power.
    """
    call_ms = _warm_up(session, feeds, warmup_ms)
    chunk = max(1, int(duration_s * 1e3 / max(call_ms, 1e-3) / _CHUNKS))
    times: list[FloatArray] = []
    with power.sampled(watts) as samples:
        start = time.perf_counter()
        while sum(map(len, times)) < iterations or time.perf_counter() - start < duration_s:
            times.append(session.time(feeds, chunk))
    return summarize(np.concatenate(times), batch=batch_of(feeds), power_w=power.mean_w(samples))


def throughput_per_s(queues: Sequence[Queue], batch: int, duration_s: float) -> float:
    """Return the images a second of several queues that share a device, each with calls waiting."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < duration_s or not calls:
        for queue in queues:
            for _ in range(_QUEUED):
                queue.launch()
        for queue in queues:
            queue.wait()
        calls += _QUEUED * len(queues)
    return calls * batch / (time.perf_counter() - start)


def batch_of(feeds: Arrays) -> int:
    """Return the feeds' first axis."""
    return next((array.shape[0] for array in feeds.values() if array.ndim), 1)


def summarize(times: FloatArray, *, batch: int = 1, power_w: float | None = None) -> Latency:
    """Sum up `times`, the ms of each call in the order they were made, shape (calls,)."""
    p50, p90, p99 = (float(p) for p in np.percentile(times, (50, 90, 99)))
    mean = float(times.mean())
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=mean,
        std_ms=float(times.std()),
        throughput_per_s=batch * 1e3 / mean if mean else 0.0,
        samples_ms=tuple(float(t) for t in times),
        stable=is_stable(times),
        power_w=power_w,
        energy_mj=None if power_w is None else power_w * mean / batch,
    )


def is_stable(times: FloatArray) -> bool:
    """Judge `times` (calls,) by RULE; fewer than four calls are never stable."""
    if len(times) < _FEWEST:
        return False
    middle = len(times) // 2
    first, second = np.median(times[:middle]), np.median(times[middle:])
    low, median, high = np.percentile(times, (25, 50, 75))
    return bool(abs(second - first) <= _DRIFT * median and high - low <= _SPREAD * median)


def _warm_up(session: Session, feeds: Arrays, warmup_ms: float) -> float:
    """Call for `warmup_ms`, at least _WARMUP_CALLS times; give the last call's ms."""
    start, calls, last = time.perf_counter(), 0, 0.0
    while calls < _WARMUP_CALLS or (time.perf_counter() - start) * 1e3 < warmup_ms:
        last = float(session.time(feeds, 1)[0])
        calls += 1
    return last
