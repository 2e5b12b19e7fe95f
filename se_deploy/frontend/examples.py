"""What a torch module is fed for its export and checks: given arrays, or random ones of declared sizes."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from se_deploy import npy
from se_deploy.errors import BadData, BadInput
from se_deploy.frontend import torch_threads
from se_deploy.signature import BATCH, DeclaredInput, Feeding, free_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from se_deploy.protocols import Array

OUTPUT_NAME = "output"
EXAMPLE_BATCH = 2  # a batch of 1 is specialized by torch.export
_TRIED_SIZES = (64, 96, 128, 224, 48, 32, 256, 16, 8, 512)
"""For free dimensions that nobody gave a size: common sizes first, multiples of what networks stride by."""
_LARGEST_INTEGER = 4  # of random integer inputs: they are mostly lengths and indices of small tables
_LARGEST_EXAMPLE = 1 << 28  # bytes of one array
_MODULE_ATTRIBUTE = "example_inputs"


@dataclass(frozen=True, slots=True)
class Examples:
    """One batch for each positional input, and how the inputs are declared."""

    tensors: tuple[torch.Tensor, ...]
    declared: tuple[DeclaredInput, ...]  # () where one image size says it all
    warnings: tuple[str, ...] = ()


def examples_of(
    module: nn.Module, spec: str, feeding: Feeding, dims: tuple[int, ...] | None, seed: int
) -> Examples:
    """Return what `module` is fed: the arrays named, or random ones; sizes that nobody gave are tried out.

    `dims`: (C, H, W) or the like behind the batch, where neither `feeding` nor the module says more.
    Raises: BadInput where nothing says it or no tried size is accepted; BadData for an unreadable example.
    """
    arrays = _arrays(module, feeding)
    if not feeding.inputs and not arrays:
        if dims is None:
            raise BadInput(
                f"'{spec}' does not say what it is fed",
                hint="pass --input-size, as in 3x224x224 or 80x200, or --input NAME:DIMS for each input",
            )
        random = torch.randn(EXAMPLE_BATCH, *dims, generator=torch.Generator().manual_seed(seed))
        return Examples((random,), ())
    declared = feeding.inputs or tuple(_declared(name, array) for name, array in arrays.items())
    declared = _in_order(module, declared)
    sizes = {**_sizes(declared, arrays), **feeding.sizes}
    if sizes.get(BATCH, 1) == 1:  # a batch to plan for is none to export with
        sizes[BATCH] = EXAMPLE_BATCH
    unknown = [name for name in free_names(declared) if name not in sizes]
    if not unknown:
        return Examples(_tensors(declared, arrays, sizes, seed), declared)
    for size in _TRIED_SIZES:
        tried = {**sizes, **dict.fromkeys(unknown, size)}
        tensors = _tensors(declared, arrays, tried, seed)
        if _accepts(module, tensors):
            note = f"{', '.join(unknown)} = {size} was chosen for the export: name sizes with --opt-shapes"
            return Examples(tensors, declared, (note,))
    raise BadInput(
        f"'{spec}' takes none of the sizes {', '.join(map(str, _TRIED_SIZES))} for {', '.join(unknown)}",
        hint="say which with --opt-shapes NAME:DIMS, or give arrays with --example FILE.npz",
    )


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the element type as `--input` spells it."""
    return str(tensor.dtype).removeprefix("torch.")


def _arrays(module: nn.Module, feeding: Feeding) -> dict[str, Array]:
    if feeding.example is not None:
        return _read(feeding.example, feeding.inputs)
    given = getattr(module, _MODULE_ATTRIBUTE, None)
    if given is None or feeding.inputs:
        return {}
    values: Mapping[str, Any] = given() if callable(given) else given
    return {name: np.asarray(value) for name, value in values.items()}


def _read(path: Path, inputs: Sequence[DeclaredInput]) -> dict[str, Array]:
    one = path.suffix != ".npz"
    found = {"": npy.open_npy(path)} if one else npy.open_npz(path)
    for array in found.values():
        if math.prod(array.shape) * array.dtype.itemsize > _LARGEST_EXAMPLE:
            raise BadData(f"'{array.name}' has shape {array.shape}", hint="give one batch, not a data set")
    read = {name: array.whole() for name, array in found.items()}
    return {inputs[0].name if len(inputs) == 1 else "input": read[""]} if one else read


def _declared(name: str, array: Array) -> DeclaredInput:
    dims = (BATCH, *array.shape[1:]) if array.ndim else ()
    return DeclaredInput(name, dims, array.dtype.name)  # whatever the order of its bytes


def _in_order(module: nn.Module, declared: tuple[DeclaredInput, ...]) -> tuple[DeclaredInput, ...]:
    """Return the inputs in the order of forward's parameters, where they carry their names."""
    parameters = list(inspect.signature(module.forward).parameters)
    if not all(one.name in parameters for one in declared):
        return declared
    return tuple(sorted(declared, key=lambda one: parameters.index(one.name)))


def _sizes(declared: Sequence[DeclaredInput], arrays: Mapping[str, Array]) -> dict[str, int]:
    """Return the sizes of free dimensions that the arrays say. Raises: BadInput where they disagree."""
    sizes: dict[str, int] = {}
    for one in declared:
        array = arrays.get(one.name)
        if array is None:
            continue
        fits = array.ndim == len(one.dims) and all(
            isinstance(dim, str) or dim == size for dim, size in zip(one.dims, array.shape, strict=True)
        )
        if not fits:
            shape = "x".join(map(str, array.shape))
            raise BadInput(
                f"the example for '{one.name}' has shape {shape}, it is declared as {one}",
                hint="give an array of these dimensions, or declare others with --input",
            )
        for axis, name in one.free.items():
            if sizes.setdefault(name, array.shape[axis]) != array.shape[axis]:
                raise BadInput(
                    f"the examples disagree on {name}: {sizes[name]} and {array.shape[axis]}",
                    hint="give arrays of equal sizes where --input names one dimension",
                )
    if sizes.get(BATCH) == 1:
        del sizes[BATCH]  # the array is repeated
    return sizes


def _tensors(
    declared: Sequence[DeclaredInput], arrays: Mapping[str, Array], sizes: Mapping[str, int], seed: int
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(_tensor(one, arrays.get(one.name), one.sized(sizes), generator) for one in declared)


def _tensor(
    one: DeclaredInput, array: Array | None, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, one.dtype)
    if array is not None:
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        given = torch.from_numpy(native.reshape(array.shape)).to(dtype)
        return given if tuple(given.shape) == shape else given.expand(shape).contiguous()
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    largest = 256 if dtype is torch.uint8 else _LARGEST_INTEGER + 1
    return torch.randint(0 if dtype is torch.uint8 else 1, largest, shape, generator=generator).to(dtype)


def _accepts(module: nn.Module, tensors: tuple[torch.Tensor, ...]) -> bool:
    try:
        with torch.no_grad():
            module(*tensors)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError):
        return False
    return True


@torch_threads.limited(1)
def answer_of(module: nn.Module, examples: tuple[torch.Tensor, ...], spec: str) -> Any:  # noqa: ANN401
    """Return what a module gives for its examples. Raises: BadInput where it does not take them.

    BadInput, too, where what it gives holds no tensor, or something else than tensors.
    """
    try:
        with torch.no_grad():
            answer = module(*examples)
    except (RuntimeError, ValueError, AssertionError, TypeError) as e:
        shapes = ", ".join("x".join(map(str, x.shape)) for x in examples)
        raise BadInput(
            f"'{spec}' does not accept an input of {shapes}: {str(e).splitlines()[0]}",
            hint="pass --input-size, as in 3x224x224",
        ) from e
    if not tensors_of(answer):
        raise BadInput(f"'{spec}' returns no tensor", hint="return what it computes from forward()")
    return answer


def tensors_of(answer: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401 - modules return what they like
    """Return the tensors that a module gives, in order; None stands for an output that is not there.

    Raises: BadInput for anything but tensors, in dicts, lists and tuples or not.
    """
    if isinstance(answer, torch.Tensor):
        return (answer,)
    if answer is None:
        return ()
    if not isinstance(answer, (dict, list, tuple)):
        raise BadInput(
            f"the network returns a {type(answer).__name__} among its outputs",
            hint="return tensors from forward(), in a dict, list or tuple where there are several",
        )
    values = answer.values() if isinstance(answer, dict) else answer
    return tuple(tensor for value in values for tensor in tensors_of(value))


def output_names(answer: Any) -> tuple[str, ...]:  # noqa: ANN401 - modules return what they like
    """Return the names of a module's outputs: its own where it returns a dict."""
    if isinstance(answer, dict):
        parts = {str(key): len(tensors_of(value)) for key, value in answer.items()}
        single = {str(key) for key, value in answer.items() if isinstance(value, torch.Tensor)}
        return tuple(k if k in single else f"{k}_{i}" for k, count in parts.items() for i in range(count))
    count = len(tensors_of(answer))
    return (OUTPUT_NAME,) if count == 1 else tuple(f"{OUTPUT_NAME}_{i}" for i in range(count))
