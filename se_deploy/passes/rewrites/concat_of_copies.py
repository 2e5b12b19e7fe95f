"""Copy a map where it enters a concatenation, so that its other reader reads no slice of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.passes.convolution import convolution
from se_deploy.passes.editing import put_before
from se_deploy.passes.registry import Refused, Tried, every, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

_IDEMPOTENT = frozenset({"Relu"})


@dataclass(frozen=True, slots=True)
class _Shared:
    site: str
    node: ir.Node
    inputs: tuple[int, ...]  # of the concatenation, by number: those that are read elsewhere too

    @property
    def shape(self) -> tuple[object, ...]:
        """The shared parts'."""
        return tuple(graph.dims(self.node.inputs[i]) for i in self.inputs)


def _match(model: ir.Model, node: ir.Node) -> _Shared | Refused:  # noqa: ARG001 - one signature
    shared = []
    for i, value in enumerate(node.inputs):
        producer = value.producer() if value is not None else None
        if producer is None or producer.op_type not in _IDEMPOTENT or value is None:
            continue
        others = [use.node for use in value.uses() if use.node is not node]
        if any(_is_depthwise(n) for n in others):
            shared.append(i)
    if not shared:
        return Refused("no part comes straight out of a Relu and is read by a depthwise convolution too")
    return _Shared(str(node.outputs[0].name), node, tuple(shared))


def _is_depthwise(node: ir.Node) -> bool:
    conv = convolution(node)
    return not isinstance(conv, Refused) and conv.is_depthwise and conv.groups > 1


@rewrite(
    name="concat-of-copies",
    idea="copy into a concatenation",
    where=every("Concat"),
    match=_match,
    after=("concat-as-sum",),
    tried=Tried(turn=4),
)
def concat_of_copies(model: ir.Model, found: _Shared) -> None:  # noqa: ARG001 - one signature
    """Apply Relu once more where a map enters a concatenation.

    Before: r = Relu(c);  concat(r, ...);  depthwise(r)
    After:  r = Relu(c);  concat(Relu(r), ...);  depthwise(r)
    Proof:  Relu(Relu(c)) = max(max(c, 0), 0) = Relu(c), bit for bit.
    Needs:  the part comes straight out of a Relu and a depthwise convolution reads it too.
    TensorRT-RTX lets the producer write into the concatenation; its depthwise kernel cannot read a slice of
    it and works on a copy of twice the channels. The second Relu is a plain copy.
    """
    for i in found.inputs:
        copy = put_before(found.node, "Relu", [graph.input_of(found.node, i)])
        found.node.replace_input_with(i, copy)
