"""What is known of GPUs and Jetson modules: compute capability, memory bandwidth, arithmetic, and from where.

A figure that no source is known for is None, and nothing is computed from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from se_deploy.errors import BadInput, meant


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or Jetson module; arithmetic is that of the matrix units without sparsity."""

    name: str
    title: str
    sm: int  # compute capability without its dot: 86 is 8.6
    memory_gb_s: float | None = None
    fp16_tflops: float | None = None  # accumulated in FP32, as convolutions are
    int8_tops: float | None = None
    fp32_tflops: float | None = None  # of the CUDA cores: TF32 is another precision, which Turing lacks
    dla_cores: int = 0
    source: str | None = None  # of the figures

    @property
    def has_figures(self) -> bool:
        """Whether a roofline can be computed of it."""
        return None not in {self.memory_gb_s, self.fp16_tflops, self.int8_tops, self.fp32_tflops}


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine is built for: a compute capability, and the device where one was named."""

    name: str  # "sm86"
    sm: int
    device: Device | None = None

    @property
    def called(self) -> str:
        """The name that it was given: the device's where one was named, else the capability's."""
        return self.name if self.device is None else self.device.name


_LIGHTNING = "NVIDIA data sheets, by way of Lightning's table; FP32 as CUDA cores x 2 x boost clock"
_ORIN_NANO = (
    "NVIDIA's AI TOPS (sparse INT8), halved for dense, quartered for FP16; published bandwidth; FP32 as CUDA "
    "cores x 2 x clock"
)

DEVICES = (
    Device("t4", "Tesla T4", 75, 320, 65, 130, 8.1, source=_LIGHTNING),
    Device("a100", "A100 40 GB", 80, 1555, 312, 624, 19.5, source=_LIGHTNING),
    Device(
        "rtx-3060", "GeForce RTX 3060 12 GB", 86, 360, 25.5, 102, 12.7, source="28 SM x 512 FMA x 1.777 GHz"
    ),
    Device("rtx-3090", "GeForce RTX 3090", 86, 936.2, 71, 285, 35.6, source="82 SM x 512 FMA x 1.695 GHz"),
    Device("a10", "A10", 86, 600, 125, 250, 31.2, source=f"{_LIGHTNING}; INT8 as twice FP16"),
    Device("rtx-4090", "GeForce RTX 4090", 89, 1008, 165.2, 660.6, 82.6, source="hmc-tech.com's comparison"),
    Device("l4", "L4", 89, 300, 121, 242, 30.3, source=_LIGHTNING),
    Device(
        "h100", "H100 SXM", 90, 3350, 989.5, 1979, 66.9, source=f"{_LIGHTNING}; bandwidth by its data sheet"
    ),
    Device(
        "rtx-5090", "GeForce RTX 5090", 120, 1792, 209.5, 838, 104.9, source="published FP16 rate, halved"
    ),
    Device("xavier-nx", "Jetson Xavier NX", 72, dla_cores=2),
    Device("agx-xavier", "Jetson AGX Xavier", 72, dla_cores=2),
    Device("orin-nano", "Jetson Orin Nano 8 GB", 87, 68, 10, 20, 1.3, source=_ORIN_NANO),
    Device("orin-nano-super", "Jetson Orin Nano 8 GB Super", 87, 102, 17, 33, 2.1, source=_ORIN_NANO),
    Device("orin-nx", "Jetson Orin NX 16 GB", 87, dla_cores=2),
    Device("agx-orin", "Jetson AGX Orin 64 GB", 87, None, 42.6, 85, 5.3, 2, "NVIDIA's DLA software page"),
    Device("thor", "Jetson Thor T5000", 110),
)
"""Bandwidths and rates that could not be traced to a source are left out: Xavier, Orin NX, Thor, and the
bandwidth of AGX Orin."""


def resolve_target(text: str) -> Target:
    """Turn "sm86", "8.6" or a device name such as "orin-nano" into a target.

    Raises: BadInput where it is neither, or names a DLA, which takes no part in this.
    """
    word = re.sub(r"[\s_]+", "-", text.strip().lower())
    for device in DEVICES:
        title = device.title.lower().replace(" ", "-")
        if word in {device.name, title, f"jetson-{device.name}", f"geforce-{device.name}"}:
            return Target(f"sm{device.sm}", device.sm, device)
    match = re.fullmatch(r"(?:sm-?)?(\d{1,2})\.?(\d)", word)
    if match:
        sm = int(match[1] + match[2])
        return Target(f"sm{sm}", sm)
    if "dla" in word:
        raise BadInput(
            f"'{text}': engines for the DLA are not built, it cannot run the SE gate between its layers",
            hint="build for the GPU of the module: --target orin-nx or agx-orin on the device itself",
        )
    names = [device.name for device in DEVICES]
    raise BadInput(
        f"'{text}' is no target: neither a compute capability nor a known device",
        hint=f"{meant(word, names)}give one like sm86, or one of {', '.join(names)}",
    )


def figures(target: str) -> Device | None:
    """Return a device that stands for a plan's target ("sm86"): the slowest of it whose figures are known.

    None where there is none: the figures of another capability would be another device's.
    """
    alike = [d for d in DEVICES if f"sm{d.sm}" == target and d.has_figures]
    return min(alike, key=lambda d: d.fp16_tflops or 0.0, default=None)
