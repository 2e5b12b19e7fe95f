"""The GPU at hand, asked without a session and without an error where there is none."""

from __future__ import annotations

from dataclasses import dataclass

from se_deploy.backends.tensorrt import cuda
from se_deploy.errors import MissingRuntime


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the first device of this machine says of itself."""

    name: str
    sm: int  # compute capability without its dot: 86 is 8.6
    memory_gb_s: float | None  # peak, from memory clock and bus width; None where the driver says neither


def here() -> Gpu | None:
    """Return this machine's first NVIDIA device; None where it, its driver or the bindings are missing."""
    try:
        api = cuda.api()
    except MissingRuntime:
        return None
    error, count = api.cudaGetDeviceCount()
    if error != api.cudaError_t.cudaSuccess or not count:
        return None
    kinds = api.cudaDeviceAttr
    major, minor, clock_khz, bus_bits = (
        _attribute(api, kind)
        for kind in (
            kinds.cudaDevAttrComputeCapabilityMajor,
            kinds.cudaDevAttrComputeCapabilityMinor,
            kinds.cudaDevAttrMemoryClockRate,
            kinds.cudaDevAttrGlobalMemoryBusWidth,
        )
    )
    name = api.cudaGetDeviceProperties(0)[1].name
    # Two transfers a clock, as memory of every kind in use has.
    bandwidth = 2 * clock_khz * 1e3 * bus_bits / 8 / 1e9
    return Gpu(
        name.decode().rstrip("\0") if isinstance(name, bytes) else str(name),
        10 * major + minor,
        bandwidth or None,
    )


def _attribute(api: object, kind: object) -> int:
    error, value = api.cudaDeviceGetAttribute(kind, 0)  # type: ignore[attr-defined]  # untyped bindings
    return int(value) if error == api.cudaError_t.cudaSuccess else 0  # type: ignore[attr-defined]
