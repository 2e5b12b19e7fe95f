"""Keep a wide 1x1 convolution a convolution, so that a compiler copies no map for a matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.passes.convolution import Conv, convolution
from se_deploy.passes.editing import put_before
from se_deploy.passes.registry import Refused, Tried, every, rewrite

if TYPE_CHECKING:
    import onnx_ir as ir

_FC = 256  # TensorRT-RTX makes a matrix product of a 1x1 convolution from this many channels on


@dataclass(frozen=True, slots=True)
class _Wide:
    site: str
    conv: Conv

    @property
    def shape(self) -> tuple[object, ...]:
        """Weights, height and width."""
        return (*self.conv.weights.shape, *(graph.dims(self.conv.y) or ())[2:])


def _match(model: ir.Model, node: ir.Node) -> _Wide | Refused:  # noqa: ARG001 - one signature
    conv = convolution(node)
    if isinstance(conv, Refused):
        return conv
    shape = graph.dims(conv.y)
    if shape is not None and shape[2:] == (1, 1):
        return Refused("its map is one pixel")
    if min(conv.weights.shape[:2]) < _FC // 2 or max(conv.weights.shape[:2]) < _FC:
        return Refused(f"it has fewer than {_FC // 2} or {_FC} channels")
    if not conv.is_pointwise or conv.groups != 1 or conv.dilations != (1, 1):
        return Refused("it is no 1x1 convolution of one group, or has a dilation already")
    return _Wide(str(conv.y.name), conv)


@rewrite(
    name="pointwise-as-convolution",
    idea="keep a wide 1x1 convolution a convolution",
    where=every("Conv"),
    match=_match,
    after=("add-as-concat", "concat-as-sum", "hoist-squeeze-1x1"),
    tried=Tried(turn=1),
)
def pointwise_as_convolution(model: ir.Model, found: _Wide) -> None:  # noqa: ARG001 - one signature
    """Keep a 1x1 convolution a convolution by giving it a dilation.

    Before: Conv(x; W: (O, C, 1, 1), dilations = (1, 1))
    After:  Conv(x; W: (O, C, 1, 1), dilations = (2, 2))
    Proof:  dilation is the distance between taps; a 1x1 kernel has one tap.
    Needs:  kernel 1x1, stride 1, no padding, one group.
    TensorRT-RTX turns wide undilated ones into matrix products and copies the map to their layout; a
    convolution reads the map as it lies and takes bias, Add and Relu into its epilogue.
    """
    conv = found.conv
    attributes = {name: attr.value for name, attr in conv.node.attributes.items()}
    attributes["dilations"] = [2, 2]
    inputs = [v for v in conv.node.inputs if v is not None]
    graph.replace(conv.y, put_before(conv.node, "Conv", inputs, **attributes))
