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
    FP32 counts as FP32, not as TF32: engines are built without TF32 unless it is asked for.
    An estimate from a plan, to compare two plans by; not a latency.
    """
    if not device.has_figures or device.memory_gb_s is None:
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
        rate = _rate_tops(kernel, device)
        seconds = max(moved / (device.memory_gb_s * 1e9), operations / (rate * 1e12))
        total += max(seconds * 1e3, launch_us / 1e3)
    return total


def _rate_tops(kernel: Kernel, device: Device) -> float:
    """Return the rate of a kernel by what it reads: INT8, FP16 and BF16, or FP32."""
    types = {tensor.dtype for tensor in kernel.inputs}
    rate = device.fp32_tflops
    if types & {"float16", "bfloat16"}:
        rate = device.fp16_tflops
    if "int8" in types:
        rate = device.int8_tops
    if rate is None:
        raise ValueError(f"the figures of {device.title} are not known")
    return rate
