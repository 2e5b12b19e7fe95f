"""What a plan takes at least on a device: its bytes over bandwidth or its arithmetic over rate.

An estimate from a plan, to compare two plans by; not a latency. It stands above the steps that choose by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from se_deploy.plan import Kernel, Plan
    from se_deploy.targets import Device

LAUNCH_US = 1.0
"""What a kernel costs at least in an estimate: an assumption, not a measurement, that breaks ties."""


def roofline_ms(
    plan: Plan, macs: Mapping[str, int], device: Device, *, launch_us: float = LAUNCH_US
) -> float | None:
    """Estimate the ms of one image: a kernel takes what its bytes or its arithmetic take, at least a launch.

    `macs`: multiply-accumulates by ONNX node name. None where the device's figures are not known.
    An estimate from a plan, to compare two plans by; not a latency.
    """
    if device.memory_gb_s is None or device.fp16_tflops is None:
        return None
    total = 0.0
    counted: set[str] = set()
    for kernel in plan.layers:
        if kernel.host_only:
            continue
        nodes = set(kernel.onnx_nodes) - counted if kernel.constants else set()
        counted |= nodes
        moved = kernel.activation_bytes + sum(t.size_bytes for t in kernel.constants)
        operations = 2 * sum(macs.get(node, 0) for node in nodes)
        rate = _rate_tops(kernel, device.fp16_tflops, device.int8_tops)
        seconds = max(moved / (device.memory_gb_s * 1e9), operations / (rate * 1e12))
        total += max(seconds * 1e3, launch_us / 1e3)
    return total


def _rate_tops(kernel: Kernel, fp16: float, int8: float | None) -> float:
    """Return the rate of a kernel by what it reads: INT8, FP16, or FP32 as TF32, half of FP16."""
    types = {tensor.dtype for tensor in kernel.inputs}
    if "int8" in types and int8 is not None:
        return int8
    return fp16 if types & {"int8", "float16", "bfloat16"} else fp16 / 2
