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
    homes = _homes(plan)
    for place, kernel in enumerate(plan.layers):
        if kernel.host_only:
            continue
        moved = kernel.activation_bytes + sum(t.size_bytes for t in kernel.constants)
        operations = 2 * sum(macs.get(n, 0) for n in set(kernel.onnx_nodes) if homes[n] == place)
        rate = _rate_tops(kernel, device)
        seconds = max(moved / (device.memory_gb_s * 1e9), operations / (rate * 1e12))
        total += max(seconds * 1e3, launch_us / 1e3)
    return total


def _homes(plan: Plan) -> dict[str, int]:
    """Return the kernel that does each node's arithmetic, by its place in the plan: one, of all that name it.

    The first that holds constants, which are a layer's weights. A product of two activations (attention) has
    none, and a kernel that copies one of them names it too: then the one that reads the most tensors.
    """
    found: dict[str, tuple[tuple[bool, int], int]] = {}
    for place, kernel in enumerate(plan.layers):
        rank = (bool(kernel.constants), 0 if kernel.constants else len(kernel.inputs))
        for node in () if kernel.host_only else kernel.onnx_nodes:
            if node not in found or rank > found[node][0]:
                found[node] = rank, place
    return {node: place for node, (_, place) in found.items()}


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
