"""Spell the squeeze the way the target's compiler reads a map only once.

TensorRT-RTX lays maps out as NHWC and copies a whole map to NCHW before it computes GlobalAveragePool or
ReduceMean over axes (2, 3): one more kernel, one more read and one more write of the map per block. Two
spellings of the same mean avoid it. It does the same with signals (N, C, T) and clips (N, C, T, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.passes.editing import put_before, reduce_before
from se_deploy.passes.parts import SQUEEZED_RANKS, channels_last, channels_second, parts
from se_deploy.passes.registry import Refused, Tried, rewrite
from se_deploy.se_blocks.types import SEBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class _Squeeze:
    site: str
    node: ir.Node  # GlobalAveragePool, or a ReduceMean that is one
    dims: tuple[int | None, ...]  # of what it reads, (N, C, H, W), (N, C, T) or (N, C, T, H, W)

    @property
    def shape(self) -> tuple[object, ...]:
        """(C, H, W)."""
        return self.dims[1:]


def _poolings(model: ir.Model, blocks: Sequence[SEBlock]) -> Iterable[SEBlock | ir.Node]:
    """The blocks for their squeezes, and the network's other global poolings."""
    squeezes = {match.node for block in blocks if isinstance(match := _match(model, block), _Squeeze)}
    return (*blocks, *(node for node in model.graph if _is_mean(node) and node not in squeezes))


def _match(model: ir.Model, target: SEBlock | ir.Node) -> _Squeeze | Refused:
    node: ir.Node | None
    if isinstance(target, SEBlock):
        found = parts(model, target, SQUEEZED_RANKS)
        if isinstance(found, Refused):
            return found
        node, site = found.squeezed.producer(), target.output
    else:
        node, site = target, str(target.outputs[0].name)
    if node is None or not _is_mean(node):
        return Refused("its squeeze has another spelling than GlobalAveragePool already", taken=True)
    dims = graph.dims(node.inputs[0])
    if dims is None or len(dims) not in SQUEEZED_RANKS:
        return Refused("what it squeezes is no signal, map or clip of a known number of dimensions")
    return _Squeeze(site, node, dims)


def _match_static(model: ir.Model, target: SEBlock | ir.Node) -> _Squeeze | Refused:
    found = _match(model, target)
    if isinstance(found, Refused) or None not in found.dims[2:]:
        return found
    return Refused("it squeezes a map of a free size, which would be the kernel's")


def _is_mean(node: ir.Node) -> bool:
    """Whether `node` is GlobalAveragePool, or ReduceMean over all behind the channels that keeps its rank."""
    if node.op_type != "ReduceMean" or not graph.attribute(node, "keepdims", 1):
        return node.op_type == "GlobalAveragePool"
    given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = graph.ints(node, "axes") if given is None else given.tolist()
    dims = graph.dims(node.inputs[0])
    if not dims:
        return False
    return {axis % len(dims) for axis in axes} == {*range(2, len(dims))}


@rewrite(
    name="squeeze-average-pool",
    idea="squeeze as an average pooling of the whole map",
    where=_poolings,
    match=_match_static,
    after=("hoist-squeeze-1x1", "hoist-squeeze-kxk"),
    tried=Tried(forms=((),), turn=7),
)
def squeeze_average_pool(model: ir.Model, found: _Squeeze) -> None:  # noqa: ARG001 - one signature
    """Spell the squeeze as an average pooling whose window is the whole map.

    Before: GlobalAveragePool(x: (N, C, H, W)) -> (N, C, 1, 1)
    After:  AveragePool(x, kernel_shape = (H, W)), no padding -> (N, C, 1, 1)
    Proof:  there is one window, its H * W elements are the map's, and both divide their sum by H * W.
    Needs:  H and W known, for they become the kernel's size.
    """
    x, y = graph.input_of(found.node, 0), found.node.outputs[0]
    graph.replace(y, put_before(found.node, "AveragePool", [x], kernel_shape=found.dims[2:]))


@rewrite(
    name="squeeze-nhwc-mean",
    idea="squeeze as a mean in NHWC",
    where=_poolings,
    match=_match,
    after=("squeeze-average-pool",),
    tried=Tried(forms=((),), turn=7),
)
def squeeze_nhwc_mean(model: ir.Model, found: _Squeeze) -> None:
    """Spell the squeeze as a mean over the NHWC view of the map.

    Before: GlobalAveragePool(x: (N, C, H, W)) -> (N, C, 1, 1)
    After:  Transpose(x) -> (N, H, W, C), ReduceMean(axes = (1, 2)) -> (N, 1, 1, C), Transpose back
    Proof:  the transposes rename axes only; the mean runs over the same H * W elements of each channel. The
            same holds of (N, C, T) and (N, C, T, H, W).
    """
    node = found.node
    rank = len(found.dims)
    nhwc = put_before(node, "Transpose", [graph.input_of(node, 0)], perm=list(channels_last(rank)))
    mean = reduce_before(model, node, "ReduceMean", nhwc, range(1, rank - 1))
    graph.replace(node.outputs[0], put_before(node, "Transpose", [mean], perm=list(channels_second(rank))))
