"""Roofline cost of a layer left in float: what it takes longer in FP16 than in INT8, to rank layers by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.targets import figures, resolve_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.quantization.layers import Layer
    from se_deploy.targets import Device, Target

DEFAULT_DEVICE = "orin-nano"
"""Whose roofline ranks layers where no target was named: INT8 is mostly wanted for small Jetsons."""

_FP16_BYTES = 2
_OPERATIONS_PER_MAC = 2


def roofline_device(targets: Sequence[Target]) -> Device | None:
    """Return the device of the first target whose figures are known, or one that stands for a target.

    None where none of them has figures.
    """
    named = (target.device for target in targets)
    found = next((device for device in named if device is not None and device.has_figures), None)
    return found or next(filter(None, (figures(target.name) for target in targets)), None)


def fp16_overhead_ms(layer: Layer, device: Device | None) -> float:
    """Return about how much longer a layer takes in FP16 than in INT8, in ms per image.

    Without a device, a small Jetson's. Either precision takes what its bytes (input, weights, output) or its
    arithmetic take, whichever is longer. An estimate of the layer alone: what a compiler fuses and where it
    converts is not in it.
    """
    device = device or resolve_target(DEFAULT_DEVICE).device
    if not device or not device.memory_gb_s or not device.fp16_tflops or not device.int8_tops:
        raise ValueError(f"the figures of {device} are not known")
    operations = _OPERATIONS_PER_MAC * layer.macs
    # bytes over GB/s are 1e-6 ms, operations over TFLOPS 1e-9 ms
    fp16 = max(_FP16_BYTES * layer.elements / device.memory_gb_s / 1e6, operations / device.fp16_tflops / 1e9)
    int8 = max(layer.elements / device.memory_gb_s / 1e6, operations / device.int8_tops / 1e9)
    return fp16 - int8
