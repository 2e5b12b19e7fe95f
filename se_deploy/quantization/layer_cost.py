"""Roofline cost of a layer left in float: what it takes longer in FP16 than in INT8, to rank layers by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.targets import typical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.quantization.layers import Layer
    from se_deploy.targets import Device, Target

_DEFAULT_TARGET = "sm87"  # Jetson Orin: the devices that INT8 is mostly wanted for
_FP16_BYTES = 2
_OPERATIONS_PER_MAC = 2


def roofline_device(targets: Sequence[Target]) -> Device | None:
    """Return the first target's device whose figures are known; None where no target names one."""
    named = (target.device for target in targets)
    return next((device for device in named if device is not None and _known(device)), None)


def fp16_overhead_ms(layer: Layer, device: Device | None) -> float:
    """Return about how much longer a layer takes in FP16 than in INT8, in ms per image.

    Without a device, a small Jetson's. Either precision takes what its bytes (input, weights, output) or its
    arithmetic take, whichever is longer. An estimate of the layer alone: what a compiler fuses and where it
    converts is not in it.
    """
    device = device if device is not None and _known(device) else typical(_DEFAULT_TARGET)
    if not device.memory_gb_s or not device.fp16_tflops or not device.int8_tops:
        raise ValueError(f"the figures of {device.title} are not known")
    operations = _OPERATIONS_PER_MAC * layer.macs
    # bytes over GB/s are 1e-6 ms, operations over TFLOPS 1e-9 ms
    fp16 = max(_FP16_BYTES * layer.elements / device.memory_gb_s / 1e6, operations / device.fp16_tflops / 1e9)
    int8 = max(layer.elements / device.memory_gb_s / 1e6, operations / device.int8_tops / 1e9)
    return fp16 - int8


def _known(device: Device) -> bool:
    return None not in {device.memory_gb_s, device.fp16_tflops, device.int8_tops}
