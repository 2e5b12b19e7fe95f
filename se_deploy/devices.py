"""What is known of GPUs and Jetson modules: compute capability, memory bandwidth, arithmetic, and from where.

A figure without a source is None: nothing is computed from a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from se_deploy.errors import BadInput


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or Jetson module; throughput is dense (no sparsity), for matrix units."""

    name: str
    title: str
    sm: int  # compute capability without its dot: 86 is 8.6
    memory_gb_s: float | None = None
    fp16_tflops: float | None = None  # FP16 with FP32 accumulation, what a convolution uses
    int8_tops: float | None = None
    dla_cores: int = 0
    source: str | None = None

    @property
    def is_jetson(self) -> bool:
        """Whether it is a Jetson module, which JetPack's own TensorRT builds for."""
        return self.sm in _JETSON_SMS


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine is built for: a compute capability, and the device where one was named."""

    name: str  # "sm86"
    sm: int
    device: Device | None = None


_JETSON_SMS = frozenset({53, 62, 72, 87, 101, 110})

DEVICES = (
    Device("t4", "T4", 75, 320, 65, 130, source="NVIDIA T4 datasheet"),
    Device("a100", "A100 40 GB", 80, 1555, 312, 624, source="NVIDIA A100 datasheet"),
    Device("rtx-3060", "GeForce RTX 3060 12 GB", 86, 360, 25.5, 102, source="GA10x whitepaper's formula"),
    Device("rtx-3090", "GeForce RTX 3090", 86, 936.2, 71, 285, source="GA102 whitepaper"),
    Device("a10", "A10", 86, 600, 125, 250, source="NVIDIA A10 datasheet"),
    Device("rtx-4090", "GeForce RTX 4090", 89, 1008, 165.2, 660.6, source="Ada whitepaper"),
    Device("l4", "L4", 89, 300, 121, 242, source="NVIDIA L4 datasheet"),
    Device("h100", "H100 SXM", 90, None, 989.5, 1979, source="NVIDIA H100 datasheet"),
    Device("rtx-5090", "GeForce RTX 5090", 120, 1792, 209.5, 838, source="Blackwell whitepaper"),
    Device("xavier-nx", "Jetson Xavier NX", 72, dla_cores=2),
    Device("agx-xavier", "Jetson AGX Xavier", 72, dla_cores=2),
    Device("orin-nano", "Jetson Orin Nano 8 GB", 87, 68, 10, 20, source="NVIDIA Jetson Orin Nano datasheet"),
    Device("orin-nano-super", "Jetson Orin Nano 8 GB Super", 87, 102, 17, 33, source="NVIDIA blog"),
    Device("orin-nx", "Jetson Orin NX 16 GB", 87, dla_cores=2),
    Device("agx-orin", "Jetson AGX Orin 64 GB", 87, None, 42.6, 85, 2, source="NVIDIA DLA software page"),
    Device("thor", "Jetson Thor T5000", 110),
)


def resolve_target(text: str) -> Target:
    """Turn "sm86", "8.6" or a device name such as "orin-nano" into a target.

    Raises: BadInput where it is neither.
    """
    word = text.strip().lower().replace(" ", "-").replace("_", "-")
    for device in DEVICES:
        if word in {device.name, device.title.lower().replace(" ", "-"), f"jetson-{device.name}"}:
            return Target(f"sm{device.sm}", device.sm, device)
    match = re.fullmatch(r"(?:sm-?)?(\d{1,2})\.?(\d)", word)
    if match:
        sm = int(match[1] + match[2])
        return Target(f"sm{sm}", sm)
    raise BadInput(
        f"'{text}' is no target: neither a compute capability nor a known device",
        hint=f"give one like sm86, or one of {', '.join(d.name for d in DEVICES)}",
    )
