"""The power that a device draws, where something on this machine can read it: NVML, or a Jetson's sensors."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Meter = Callable[[], float | None]
    Samples = list[tuple[float, float]]

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that carry a whole Jetson module; where neither is there (AGX), the rails are added up."""

_FIRST_LINE_TRIES = 20  # a second, for a program that starts
_SUM_OF_SHUNTS = 7  # the sensor's seventh channel: no rail


_INTERVAL_S = 0.05  # the sensors' own averages are no finer
_RAIL = re.compile(r"(\w*(?:VDD|POM|VIN)\w*) (\d+)(?:mW)?/\d+(?:mW)?")
"""A rail in the line of tegrastats, in mW now and on average: "VDD_IN 5120mW/5000mW"."""


@contextlib.contextmanager
def meter(i2c: Path = Path("/sys/bus/i2c/devices")) -> Iterator[Meter | None]:
    """Yield a function that reads the power in watts now; None where nothing here can.

    NVML reads the first discrete GPU. On Jetson the module's rails are read, without its carrier board:
    from sysfs, and by tegrastats where sysfs does not show them.
    """
    found = _nvml() or _ina3221(i2c)
    if found is not None:
        yield found
        return
    with _tegrastats() as read:
        yield read


@contextlib.contextmanager
def sampled(watts: Meter | None) -> Iterator[Samples]:
    """Read `watts` beside what the block does; yield the readings: (seconds, watts), also from both ends."""
    samples: Samples = []
    done = threading.Event()

    def sample() -> None:
        if watts is not None and (reading := watts()) is not None:
            samples.append((time.perf_counter(), reading))

    def keep_sampling() -> None:
        while not done.wait(_INTERVAL_S):
            sample()

    sample()
    thread = threading.Thread(target=keep_sampling, daemon=True)
    if samples:  # a meter that does not read now is not asked again
        thread.start()
    try:
        yield samples
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()
            sample()


def mean_w(samples: Sequence[tuple[float, float]]) -> float | None:
    """Return the energy between the first and the last reading over the time between them, in watts."""
    if not samples:
        return None
    span_s = samples[-1][0] - samples[0][0]
    if not span_s:
        return samples[0][1]
    pairs = itertools.pairwise(samples)
    return sum((after - before) * (low + high) / 2 for (before, low), (after, high) in pairs) / span_s


def read_tegrastats(line: str) -> float | None:
    """Return the watts that a line of tegrastats shows now; None where it shows no rail."""
    rails = {name: int(milliwatts) / 1e3 for name, milliwatts in _RAIL.findall(line)}
    return next((rails[name] for name in TOTAL_RAILS if name in rails), sum(rails.values()) or None)


@contextlib.contextmanager
def _tegrastats() -> Iterator[Meter | None]:
    program = shutil.which("tegrastats")
    if program is None:
        yield None
        return
    latest: list[str] = []
    with subprocess.Popen(
        [program, "--interval", str(int(_INTERVAL_S * 1e3))], stdout=subprocess.PIPE, text=True
    ) as process:

        def listen() -> None:
            for line in process.stdout or ():
                latest[:] = [line]

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            for _ in range(_FIRST_LINE_TRIES):
                if latest:
                    break
                time.sleep(_INTERVAL_S)
            yield lambda: read_tegrastats(latest[0]) if latest else None
        finally:
            process.terminate()
            thread.join()


def _nvml() -> Meter | None:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        device = nvml.nvmlDeviceGetHandleByIndex(0)
        nvml.nvmlDeviceGetPowerUsage(device)
    except nvml.NVMLError:  # no driver, no device, or one that does not tell
        return None

    def read() -> float | None:
        try:
            return float(nvml.nvmlDeviceGetPowerUsage(device)) / 1e3  # mW
        except nvml.NVMLError:
            return None

    return read


def _ina3221(i2c: Path) -> Meter | None:
    rails = dict(_rails(i2c))
    if not rails:
        return None
    total = next((rails[name] for name in TOTAL_RAILS if name in rails), None)
    chosen = [total] if total is not None else list(rails.values())

    def read() -> float | None:
        try:
            return sum(_number(volts) * _number(amperes) for volts, amperes in chosen) / 1e6  # mV * mA
        except (OSError, ValueError):
            return None

    return read


def _rails(i2c: Path) -> list[tuple[str, tuple[Path, Path]]]:
    """Find (rail, (its voltage in mV, its current in mA)) of every sensor on the bus."""
    found = []
    for name in sorted(i2c.glob("*/name")):
        if "ina3221" not in name.read_text("utf-8"):
            continue
        for label in sorted(name.parent.glob("hwmon/hwmon*/in*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            rail = label.read_text("utf-8").strip()
            volts = label.with_name(f"in{channel}_input")
            amperes = label.with_name(f"curr{channel}_input")
            if rail != "NC" and int(channel) != _SUM_OF_SHUNTS and volts.exists() and amperes.exists():
                found.append((rail, (volts, amperes)))
    return found


def _number(path: Path) -> float:
    return float(path.read_text("utf-8"))
