"""The power that a device draws, where something on this machine can read it: NVML, or Jetson's INA3221."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Meter = Callable[[], float | None]

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that carry a whole Jetson module; where neither is there (AGX), the rails are added up."""

_SUM_OF_SHUNTS = 7  # the sensor's seventh channel: no rail


def meter(i2c: Path = Path("/sys/bus/i2c/devices")) -> Meter | None:
    """Return a function that reads the power in watts now; None where nothing here can.

    NVML reads the first discrete GPU. On Jetson the module's rails are read, without its carrier board.
    """
    return _nvml() or _ina3221(i2c)


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
