"""PyTorch, eager: the reference that every artifact is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from se_deploy.backends.sessions import checked, end_to_end_ms, wall_times
from se_deploy.errors import BadInput, MissingRuntime
from se_deploy.frontend import torch_threads
from se_deploy.frontend.examples import tensors_of
from se_deploy.frontend.zoo import Network
from se_deploy.protocols import CallCost, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from se_deploy.backends.backend import SessionOptions
    from se_deploy.protocols import Array, Arrays, FloatArray


def open_network(network: Network | torch.nn.Module, options: SessionOptions) -> TorchSession:
    """Return a session over a network, or over a module of one input and one output.

    Raises: BadInput for anything else; MissingRuntime without the device.
    """
    if isinstance(network, Network):
        return TorchSession(
            network.module,
            network.input_names,
            network.output_names,
            examples=network.examples,
            answer=network.answer,
            dims=[tuple(d if isinstance(d, int) else None for d in one.dims) for one in network.inputs],
            threads=options.threads,
            device=options.device,
        )
    if not isinstance(network, torch.nn.Module):
        raise BadInput(f"PyTorch runs modules, not {network!r}", hint="give a network or an nn.Module")
    return TorchSession(network, ("input",), ("output",), threads=options.threads, device=options.device)


class TorchSession:
    """A module in eval mode (protocols.Session)."""

    def __init__(
        self,
        module: torch.nn.Module,
        input_names: Sequence[str],
        output_names: Sequence[str],
        *,
        examples: Sequence[torch.Tensor] = (),
        answer: Any = None,  # noqa: ANN401 - modules return what they like
        dims: Sequence[tuple[int | None, ...]] | None = None,
        threads: int = 0,
        device: str = "cpu",
    ) -> None:
        """`examples`: one batch for each input, which says shapes and types; `answer`: what it gives.

        `dims`: the inputs' dimensions, None where free; where it is None the batch of each is.

        Raises: MissingRuntime where PyTorch has no such device.
        """
        if device != "cpu" and not torch.cuda.is_available():
            raise MissingRuntime(f"PyTorch has no '{device}' here", hint="`se-deploy doctor`, or use the CPU")
        self._module = module.to(device)
        if module.training:  # a module out of torch.export is never training, and refuses to be asked
            module.eval()
        self._threads = threads
        self._device = torch.device(device)
        self._output_names = tuple(output_names)
        self._inputs = tuple(_specs(input_names, examples, dims))
        answers = self._example_outputs(examples) if answer is None else tensors_of(answer)
        self._outputs = tuple(_specs(output_names, answers))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` must be fed; free in every dimension where no example was given."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        return self._outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Compute every output for one batch. Raises: BadInput where the feeds do not fit."""
        with torch.no_grad(), torch_threads.limited(self._threads):
            results = tensors_of(self._module(*self._tensors(feeds)))
        arrays = (result.detach().cpu().numpy().copy() for result in results)
        return dict(zip(self._output_names, arrays, strict=True))

    def time(self, feeds: Arrays, calls: int) -> FloatArray:
        """Time each call in ms, shape (calls,): inputs are on the device before, outputs stay there."""
        tensors = self._tensors(feeds)

        def call() -> None:
            self._module(*tensors)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        with torch.inference_mode(), torch_threads.limited(self._threads):
            return wall_times(call, calls)

    def cost(self, feeds: Arrays, calls: int) -> CallCost:
        """Return what PyTorch can tell of a call: its time from host arrays to host arrays."""
        return CallCost(end_to_end_ms=end_to_end_ms(self.run, feeds, calls))

    def _tensors(self, feeds: Arrays) -> list[torch.Tensor]:
        known = [spec for spec in self._inputs if spec.dims]
        arrays = checked(feeds, known) if known else dict(feeds)
        tensors = [torch.from_numpy(arrays[spec.name]) for spec in self._inputs]
        return [tensor.to(self._device, copy=True) for tensor in tensors]  # a network may write into them

    def _example_outputs(self, examples: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if not examples:
            return ()
        with torch.no_grad():
            return tensors_of(self._module(*(example.to(self._device) for example in examples)))


def _specs(
    names: Sequence[str],
    tensors: Sequence[torch.Tensor],
    dims: Sequence[tuple[int | None, ...]] | None = None,
) -> list[TensorSpec]:
    if not tensors:
        return [TensorSpec(name, _dtype(torch.zeros(())), ()) for name in names]
    known = dims or [(None, *tensor.shape[1:]) if tensor.ndim else () for tensor in tensors]
    return [
        TensorSpec(name, _dtype(tensor), shape)
        for name, tensor, shape in zip(names, tensors, known, strict=True)
    ]


def _dtype(tensor: torch.Tensor) -> np.dtype[Any]:
    return torch.zeros((), dtype=tensor.dtype).numpy().dtype
