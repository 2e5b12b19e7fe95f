"""Device memory for outputs whose size only the run itself knows, such as the boxes behind an NMS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from se_deploy.errors import DeviceFailed

if TYPE_CHECKING:
    from se_deploy.backends.tensorrt.cuda import Cuda


def output_allocator(trt: Any, cuda: Cuda) -> Any:  # noqa: ANN401  (the modules are untyped)
    """Return an allocator of the module's own class for all such outputs of one context.

    `shapes` and `pointer(name)` are those of the last run; `refused` is the device's error where it had no
    memory, which is to be raised after the run: nothing may be raised through TensorRT's own code.
    """

    class Outputs(trt.IOutputAllocator):  # type: ignore[misc]  # the base comes from the module given
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.refused: DeviceFailed | None = None
            self._memory: dict[str, tuple[int, int]] = {}  # name -> pointer, bytes

        def reallocate_output(self, name: str, memory: int | None, size: int, alignment: int) -> int:  # noqa: ARG002 - TensorRT's signature; cudaMalloc aligns to 256
            pointer, capacity = self._memory.get(name, (0, 0))
            if capacity >= size and pointer:
                return pointer
            try:
                grown = cuda.take(size)
            except DeviceFailed as e:
                self.refused = e
                return 0
            if pointer:
                cuda.give(pointer)
            self._memory[name] = (grown, max(1, size))
            return grown

        def reallocate_output_async(
            self,
            name: str,
            memory: int | None,
            size: int,
            alignment: int,
            stream: int,  # noqa: ARG002 - TensorRT's signature
        ) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ANN401
            self.shapes[name] = tuple(shape)

        def pointer(self, name: str) -> int:
            return self._memory[name][0]

    return Outputs()
