import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_deploy.profiling import latency
from se_deploy.protocols import TensorSpec


class FakeSession:
    """Gives the times that it was told, round and round; counts its calls."""

    inputs = (TensorSpec("x", np.dtype(np.float32), (None, 3)),)
    outputs = ()

    def __init__(self, times):
        self.times = times
        self.calls = 0

    def run(self, feeds):  # noqa: ARG002
        return {}

    def time(self, feeds, calls):  # noqa: ARG002
        given = [self.times[(self.calls + i) % len(self.times)] for i in range(calls)]
        self.calls += calls
        return np.array(given)


FEEDS = {"x": np.zeros((4, 3), np.float32)}
MS = st.floats(0.01, 1000)


def measure(times, **limits):
    return latency.measure(FakeSession(times), FEEDS, **({"warmup_ms": 0, "duration_s": 0} | limits))


def test_percentiles_and_throughput_of_known_times():
    found = latency.summarize(np.arange(1.0, 101.0), batch=4)
    assert (found.p50_ms, found.mean_ms) == (50.5, 50.5)
    assert found.p90_ms == pytest.approx(90.1)
    assert found.p99_ms == pytest.approx(99.01)
    assert found.throughput_per_s == pytest.approx(4 * 1000 / 50.5)


@given(st.lists(MS, min_size=1, max_size=60))
def test_percentiles_are_in_order_and_within_the_samples(times):
    found = latency.summarize(np.array(times))
    assert min(times) <= found.p50_ms <= found.p90_ms <= found.p99_ms <= max(times)
    assert found.samples_ms == tuple(times)


@given(st.integers(1, 40))
def test_at_least_the_iterations_asked_for_are_measured(iterations):
    assert len(measure([2.0], iterations=iterations).samples_ms) >= iterations


def test_warm_up_calls_are_not_measured():
    session = FakeSession([500.0, 500.0, 500.0] + [1.0] * 200)
    found = latency.measure(session, FEEDS, warmup_ms=0, duration_s=0, iterations=20)
    assert max(found.samples_ms) == 1.0


def test_the_batch_is_the_feeds_first_axis():
    assert measure([2.0]).throughput_per_s == pytest.approx(4 * 1000 / 2)


@pytest.mark.parametrize(
    ("times", "stable"),
    [
        ([1.0] * 40, True),
        ([1.0, 1.04] * 20, True),
        ([1.0] * 38 + [70.0, 70.0], True),
        ([1.0] * 20 + [1.2] * 20, False),
        ([1.0] * 20 + [1.06] * 20, False),
        ([1.0, 1.5] * 20, False),
        ([1.0] * 3, False),
    ],
    ids=["even", "noise", "rare spikes", "clocks fell", "clocks fell a little", "two modes", "too few"],
)
def test_stable_means_no_drift_and_no_spread(times, stable):
    assert latency.summarize(np.array(times)).stable is stable


@given(st.lists(MS, min_size=4, max_size=50), st.floats(0.1, 10))
def test_stability_does_not_depend_on_the_unit(times, factor):
    array = np.array(times)
    low, median, high = np.percentile(array, (25, 50, 75))
    margin = abs((high - low) - 0.1 * median)
    halves = [np.median(half) for half in (array[: len(array) // 2], array[len(array) // 2 :])]
    if min(margin, abs(abs(halves[0] - halves[1]) - 0.05 * median)) > 1e-9 * median:
        assert latency.is_stable(array) == latency.is_stable(array * factor)


def test_power_is_energy_over_time_and_energy_is_per_image():
    found = measure([2.0], iterations=3, watts=lambda: 15.0)
    assert found.power_w == pytest.approx(15.0)
    assert found.energy_mj == pytest.approx(15.0 * 2.0 / 4)
    assert measure([2.0]).power_w is None
    assert measure([2.0], watts=lambda: None).power_w is None


class CountingQueue:
    launched = waited = 0

    def launch(self):
        self.launched += 1

    def wait(self):
        self.waited += 1


def test_throughput_counts_the_calls_of_every_queue():
    queues = [CountingQueue(), CountingQueue()]
    start = time.perf_counter()
    found = latency.throughput_per_s(queues, 8, duration_s=0.01)
    assert queues[0].launched == queues[1].launched > 0
    assert all(queue.waited for queue in queues)
    images = 8 * sum(queue.launched for queue in queues)
    assert images / (time.perf_counter() - start) <= found <= images / 0.01
