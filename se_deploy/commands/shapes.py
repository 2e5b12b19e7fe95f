"""The sizes behind a figure: named by the user or by the file, never silently 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import onnx_ir as ir

from se_deploy import batching, graph
from se_deploy.errors import BadData, BadInput, meant
from se_deploy.frontend import image_input
from se_deploy.protocols import TensorSpec
from se_deploy.schema import input_spec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import numpy as np

    from se_deploy.plan import Plan
    from se_deploy.protocols import Planner
    from se_deploy.schema.input_spec import InputSpec

Shapes = dict[str, tuple[int, ...]]
"""The dimensions of every input, by name."""


def settled(
    inputs: Sequence[TensorSpec],
    figure: str,
    *,
    batch: int = 1,
    image: InputSpec | None = None,
    named: Mapping[str, Sequence[int]] | None = None,
) -> Shapes:
    """Return the shape of every input: `named` by the user, else its own, free sizes by the input spec.

    A free first dimension is `batch`; `figure` is what the sizes are for.
    Raises: BadInput where a size is free that nobody named, or where `named` does not fit.
    """
    named = named or {}
    refuse_unknown([spec.name for spec in inputs], named)
    if image is not None and len(inputs) == 1:
        image = msgspec.structs.replace(image, name=inputs[0].name)  # an engine's manifest may lack the name
    return {
        spec.name: _given(spec, named[spec.name]) if spec.name in named else _own(spec, figure, batch, image)
        for spec in inputs
    }


def names(values: Iterable[ir.Value]) -> list[str]:
    """Return what values are called."""
    return [str(value.name) for value in values]


def refuse_unknown(inputs: Collection[str], named: Iterable[str]) -> None:
    """Raise BadInput where a shape was named for what is no input."""
    for name in named:
        if name not in inputs:
            raise BadInput(
                f"--opt-shapes (or --min-shapes, --max-shapes) names '{name}', which is no input",
                hint=f"{meant(name, inputs)}the inputs: {', '.join(inputs)}",
            )


def at(model: ir.Model, sizes: Mapping[str, Sequence[int]], *, batch: bool) -> ir.Model:
    """Return a copy whose inputs have these sizes; a free first dimension stays free unless `batch`."""

    def fix_sizes(copy: ir.Model) -> int:
        for value in copy.graph.inputs:
            known, size = value.shape, list(sizes[str(value.name)])
            if known is not None and size:
                first = size[0] if batch or isinstance(known[0], int) else known[0]
                value.shape = ir.Shape([first, *size[1:]])
        for node in copy.graph.all_nodes():
            for value in node.outputs:
                value.shape = None  # inferred anew: what was free there is known now
        return 1

    return graph.rewrite(model, fix_sizes).model


def macs(model: ir.Model, plan: Plan) -> dict[str, int]:
    """Return each node's multiply-accumulates per image by name, at the sizes that `plan` was made for."""
    sizes = dict(plan.shapes)
    if sizes and are_free(tensor_specs(model)):
        model = at(model, sizes, batch=False)
    return {str(node.name): graph.macs(node) for node in model.graph} | _macs_of_heads(model)


def _macs_of_heads(model: ir.Model) -> dict[str, int]:
    """Return those of products of two activations whose heads lie along the batch, (N * heads, T, D)."""
    inputs = tensor_specs(model)
    if are_free(inputs) or not any(_is_of_activations(node) for node in model.graph):
        return {}
    count = batching.frozen(inputs)
    sizes = {v.name: tuple(1 if d is None else d for d in v.dims) for v in inputs}
    one = model if count else at(model, sizes, batch=True)
    found = {}
    for node in filter(_is_of_activations, one.graph):
        rows = (graph.dims(node.outputs[0]) or (None,))[0]
        found[str(node.name)] = graph.macs(node) * ((rows or 1) // (count or 1) or 1)
    return found


def _is_of_activations(node: ir.Node) -> bool:
    """Whether a node is a MatMul of two activations with one axis in front of the matrices."""
    y = graph.dims(node.outputs[0]) if node.op_type == "MatMul" else None
    computed = (value is not None and graph.constant(value) is None for value in node.inputs)
    return y is not None and len(y) == 3 and all(computed)  # noqa: PLR2004


def are_free(inputs: Sequence[TensorSpec]) -> bool:
    """Whether a size besides the batch is free."""
    return any(None in spec.dims[1:] for spec in inputs)


class SizedPlanner:
    """A planner whose plans are counted per image, at the sizes that the user or the file named."""

    def __init__(self, planner: Planner, named: Mapping[str, Sequence[int]] | None = None) -> None:
        """`named`: shapes by input, as of --opt-shapes."""
        self._planner, self._named = planner, dict(named or {})

    def plan(self, model: ir.Model) -> Plan:
        """Plan `model`. Raises: BuildFailed; BadInput where a size is free that nobody named."""
        inputs = tensor_specs(model)
        sizes = settled(inputs, "a plan", image=input_spec.read(model.metadata_props), named=self._named)
        fixed = model
        if are_free(inputs):
            fixed = at(model, sizes, batch=False)  # a plan for any batch is another than that for one
        return self._planner.plan(fixed).per_image(sizes, images(fixed))


def images(model: ir.Model) -> int:
    """Return how many samples a graph is frozen to; 1 where the batch is free, or where there is none."""
    count = batching.frozen(tensor_specs(model))
    outputs = {(graph.dims(value) or (None,))[0] for value in model.graph.outputs}
    return count if count is not None and outputs == {count} else 1


def tensor_specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    """Return the graph's inputs as a session would. Raises: BadData for an input without a type."""
    return tuple(
        TensorSpec(str(value.name), _dtype(value), graph.dims(value) or ()) for value in model.graph.inputs
    )


def _dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None:
        raise BadData(
            f"input '{value.name}' has no element type",
            hint="give the input an element type in the ONNX file",
        )
    return value.dtype.numpy()


def _given(spec: TensorSpec, sizes: Sequence[int]) -> tuple[int, ...]:
    fits = len(sizes) == len(spec.dims) and all(d in {None, n} for d, n in zip(spec.dims, sizes, strict=True))
    if not fits:
        raise BadInput(
            f"--opt-shapes gives '{spec.name}' the shape {_text(sizes)}, it takes {_text(spec.dims)}",
            hint="give one number for each dimension, the fixed ones as they are",
        )
    return tuple(sizes)


def _own(spec: TensorSpec, figure: str, batch: int, image: InputSpec | None) -> tuple[int, ...]:
    dims = list(spec.dims)
    if dims and dims[0] is None:
        dims[0] = batch
    if image is not None and image.name == spec.name and len(dims) == 1 + len(image.shape):
        dims[1:] = [d if d is not None else n for d, n in zip(dims[1:], image.dims, strict=True)]
    if None in dims:
        example = "x".join("?" if d is None else str(d) for d in dims)
        raise BadInput(
            f"{figure} depends on the size of input '{spec.name}', {_text(spec.dims)}, and nobody named it",
            hint=f"give it: --input-size {_as_flag(spec)} or --opt-shapes {spec.name}:{example}, "
            "with numbers for the question marks",
        )
    return tuple(d for d in dims if d is not None)


def _as_flag(spec: TensorSpec) -> str:
    """Return the sizes behind the batch as --input-size takes them: channels first, whatever the layout."""
    taken = image_input.of_inputs((spec,))
    return _text(taken.dims if isinstance(taken, image_input.ImageInput) else spec.dims[1:])


def _text(dims: Sequence[int | None]) -> str:
    return "x".join("?" if d is None else str(d) for d in dims) or "scalar"
