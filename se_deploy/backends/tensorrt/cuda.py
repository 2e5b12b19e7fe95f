"""The few CUDA runtime calls that an engine needs, each checked: the bindings return errors, never raise."""

from __future__ import annotations

import importlib
import itertools
from typing import TYPE_CHECKING, Any

from se_deploy import extras
from se_deploy.errors import DeviceFailed, MissingRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

    from se_deploy.protocols import Array


class Cuda:
    """The first device of this machine, with one stream and the memory taken on it."""

    def __init__(self) -> None:
        """Raises: MissingRuntime where there are no bindings, no driver or no device; DeviceFailed."""
        self.api = api()
        count = self._asked("cudaGetDeviceCount")
        if not count:
            raise MissingRuntime("this machine has no NVIDIA device", hint=_HINT)
        self.call("cudaSetDevice", 0)
        self.stream: int = self.call("cudaStreamCreateWithFlags", self.api.cudaStreamNonBlocking)
        self._taken: set[int] = set()

    @property
    def name(self) -> str:
        """The device's name."""
        name = self.call("cudaGetDeviceProperties", 0).name
        return name.decode().rstrip("\0") if isinstance(name, bytes) else str(name)

    def call(self, function: str, *args: object) -> Any:  # noqa: ANN401  (the bindings are untyped)
        """Call a function of the runtime API and give its result. Raises: DeviceFailed with its error."""
        error, *results = getattr(self.api, function)(*args)
        if error != self.api.cudaError_t.cudaSuccess:
            full = error == self.api.cudaError_t.cudaErrorMemoryAllocation
            raise DeviceFailed(
                f"CUDA: {function} failed with {error.name}",
                hint="free memory on the device, or use a smaller batch" if full else _FAILED,
            )
        return results[0] if len(results) == 1 else tuple(results)

    def take(self, size_bytes: int) -> int:
        """Take device memory; `close` gives it back."""
        pointer = int(self.call("cudaMalloc", max(1, size_bytes)))
        self._taken.add(pointer)
        return pointer

    def give(self, pointer: int) -> None:
        """Free device memory."""
        self._taken.discard(pointer)
        self.call("cudaFree", pointer)

    def upload(self, array: Array, pointer: int) -> None:
        """Copy a contiguous host array to the device, in stream order."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, pointer: int, array: Array) -> None:
        """Copy from the device into a contiguous host array, in stream order."""
        kind = self.api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, self.stream)

    def synchronize(self) -> None:
        """Wait until the stream is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Time what `work` puts on the stream, between two events on the device."""
        before, after = self.call("cudaEventCreate"), self.call("cudaEventCreate")
        try:
            self.call("cudaEventRecord", before, self.stream)
            work()
            self.call("cudaEventRecord", after, self.stream)
            self.call("cudaEventSynchronize", after)
            return float(self.call("cudaEventElapsedTime", before, after))
        finally:
            self.call("cudaEventDestroy", before)
            self.call("cudaEventDestroy", after)

    def gaps_ms(self, work: Callable[[], None], calls: int) -> list[float]:
        """Time `calls` calls of `work` that are queued at once, with an event between each two.

        The device goes from one to the next without waiting for the host, as long as the host launches
        faster than the device computes. A call before the first event fills the queue.
        """
        events = [self.call("cudaEventCreate") for _ in range(calls + 1)]
        try:
            if calls > 1:  # a single call is long, or not looked at closely
                work()
            self.call("cudaEventRecord", events[0], self.stream)
            for event in events[1:]:
                work()
                self.call("cudaEventRecord", event, self.stream)
            self.synchronize()
            return [
                float(self.call("cudaEventElapsedTime", before, after))
                for before, after in itertools.pairwise(events)
            ]
        finally:
            for event in events:
                self.call("cudaEventDestroy", event)

    def capture(self, work: Callable[[], None]) -> int:
        """Record what `work` puts on the stream as a graph; give its executable form.

        Where `work` fails the recording ends with it, and the stream is of use again.
        """
        mode = self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        except BaseException:
            _, graph = self.api.cudaStreamEndCapture(self.stream)
            if graph:
                self.api.cudaGraphDestroy(graph)
            self.api.cudaGetLastError()  # a broken recording leaves its error for the next call to find
            raise
        graph = self.call("cudaStreamEndCapture", self.stream)
        try:
            executable: int = self.call("cudaGraphInstantiate", graph, 0)
            return executable
        finally:
            self.call("cudaGraphDestroy", graph)

    def close(self) -> None:
        """Free everything that was taken.

        What fails here is not raised: after an error of the device every call fails, and the first was said.
        """
        self.api.cudaStreamSynchronize(self.stream)
        for pointer in tuple(self._taken):
            self._taken.discard(pointer)
            self.api.cudaFree(pointer)
        self.api.cudaStreamDestroy(self.stream)

    def _asked(self, function: str) -> int:
        error, count = getattr(self.api, function)()
        if error == self.api.cudaError_t.cudaSuccess:
            return int(count)
        if error == self.api.cudaError_t.cudaErrorNoDevice:
            return 0
        if error == self.api.cudaError_t.cudaErrorInsufficientDriver:  # said without any driver too
            self._refuse_old_driver()
        raise MissingRuntime(f"no CUDA driver: {error.name}", hint=_HINT)

    def _refuse_old_driver(self) -> None:
        """Raise MissingRuntime where a driver is older than the bindings; return where there is none."""
        driver, bindings = (self.call(f) for f in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"))
        if driver:
            raise MissingRuntime(
                f"the driver is too old for these bindings: it knows CUDA up to {_release(driver)}, they are "
                f"of CUDA {_release(bindings)}",
                hint=f"pip install 'cuda-bindings=={driver // _MAJOR}.*', or install a newer driver",
            )


_MAJOR, _MINOR = 1000, 10  # CUDA writes 12.6 as 12060


def _release(version: int) -> str:
    return f"{version // _MAJOR}.{version % _MAJOR // _MINOR}"


_FAILED = "try again; where it fails again, build the engine again on this device, and see `nvidia-smi`"
_HINT = "run on a machine with an NVIDIA GPU and its driver; `se-deploy doctor` says what is here"


def api() -> Any:  # noqa: ANN401  (the bindings are untyped)
    """Import the runtime API. Raises: MissingRuntime with the install command."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as e:
        raise MissingRuntime(
            f"the CUDA bindings cannot be used: {e}",
            hint=f"{extras.install('gpu')}, on a Jetson {extras.install('jetson')}; see `se-deploy doctor`",
        ) from e
