"""What leaving a layer in FP16 costs: an estimate by a device's roofline, to rank layers by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.targets import resolve_target, typical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from se_deploy.quantization.layers import Layer
    from se_deploy.targets import Device


def device_of(targets: Sequence[str]) -> Device | None:
    """Give the first target's device whose figures are known; None where no target names one."""
    named = (resolve_target(target).device for target in targets)
    return next((device for device in named if device is not None and _known(device)), None)


def added_ms(layer: Layer, device: Device | None) -> float:
    """Estimate what a layer takes longer in FP16 than in INT8, in ms per image; device None: a small Jetson.

    Either takes what its bytes (input, weights, output) or its arithmetic take, whichever is longer. An
    estimate of the layer alone: what a compiler fuses and where it converts is not in it.
    """
    device = device if device is not None and _known(device) else typical("sm87")
    if not device.memory_gb_s or not device.fp16_tflops or not device.int8_tops:
        raise ValueError(f"the figures of {device.title} are not known")
    operations = 2 * layer.macs
    half = max(2 * layer.elements / device.memory_gb_s / 1e6, operations / device.fp16_tflops / 1e9)
    whole = max(layer.elements / device.memory_gb_s / 1e6, operations / device.int8_tops / 1e9)
    return half - whole


def _known(device: Device) -> bool:
    return None not in {device.memory_gb_s, device.fp16_tflops, device.int8_tops}
