"""Spell the squeeze the way the target's compiler reads a map only once.

TensorRT-RTX lays maps out as NHWC and copies a whole map to NCHW before it computes GlobalAveragePool or
ReduceMean over axes (2, 3): one more kernel, one more read and one more write of the map per block. Two
spellings of the same mean avoid it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy import graph
from se_deploy.passes.rewrites import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.se_blocks.types import SEBlock

AVERAGE_POOL = "squeeze-average-pool"
NHWC_MEAN = "squeeze-nhwc-mean"


def _pool(model: ir.Model, site: base.Site) -> ir.Node | None:
    """Give the pooling of a site: a block's squeeze, or the one that writes the tensor `at`."""
    if site.block is None:
        node = base.producer(model, site.at)
    else:
        found = base.parts(model, site.block)
        node = None if found is None else found.squeezed.producer()
    return node if node is not None and _is_mean(node) else None


def _is_mean(node: ir.Node) -> bool:
    """Whether `node` is GlobalAveragePool, or ReduceMean over height and width that keeps its rank."""
    if node.op_type != "ReduceMean" or not graph.attribute(node, "keepdims", 1):
        return node.op_type == "GlobalAveragePool"
    given = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = base.ints(node, "axes") if given is None else given.tolist()
    return {axis % base.SPATIAL_RANK for axis in axes} == {2, 3}


def _sites(name: str, model: ir.Model, blocks: Sequence[SEBlock], *, static: bool) -> tuple[base.Site, ...]:
    """List the blocks' squeezes and the network's other global poolings."""
    of_blocks = [base.Site(name, block.output, (), block) for block in blocks]
    squeezes = [_pool(model, site) for site in of_blocks]
    others = [node for node in model.graph if _is_mean(node) and node not in squeezes]
    found = []
    for site in (*of_blocks, *(base.Site(name, str(node.outputs[0].name)) for node in others)):
        node = _pool(model, site)
        shape = graph.dims(node.inputs[0]) if node is not None else None
        if shape is None or len(shape) != base.SPATIAL_RANK or (static and None in shape[2:]):
            continue
        found.append(base.Site(name, site.at, shape[1:], site.block))
    return tuple(found)


def average_pool_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the squeezes, and other global poolings, over a map of known height and width."""
    return _sites(AVERAGE_POOL, model, blocks, static=True)


def average_pool(model: ir.Model, site: base.Site) -> int:
    """Spell the squeeze as an average pooling whose window is the whole map.

    Before: GlobalAveragePool(x: (N, C, H, W)) -> (N, C, 1, 1)
    After:  AveragePool(x, kernel_shape = (H, W)), no padding -> (N, C, 1, 1)
    Proof:  there is one window, its H * W elements are the map's, and both divide their sum by H * W.
    Needs:  H and W known, for they become the kernel's size.
    """
    node = _pool(model, site)
    shape = graph.dims(node.inputs[0]) if node is not None else None
    if node is None or shape is None or None in shape[2:]:
        return 0
    x = base.input_of(node, 0)
    graph.replace(node.outputs[0], base.put_before(node, "AveragePool", [x], kernel_shape=shape[2:]))
    return 1


def nhwc_mean_sites(model: ir.Model, blocks: Sequence[SEBlock]) -> tuple[base.Site, ...]:
    """List the squeezes, and other global poolings, over a map of rank 4."""
    return _sites(NHWC_MEAN, model, blocks, static=False)


def nhwc_mean(model: ir.Model, site: base.Site) -> int:
    """Spell the squeeze as a mean over the NHWC view of the map.

    Before: GlobalAveragePool(x: (N, C, H, W)) -> (N, C, 1, 1)
    After:  Transpose(x) -> (N, H, W, C), ReduceMean(axes = (1, 2)) -> (N, 1, 1, C), Transpose back
    Proof:  the transposes rename axes only; the mean runs over the same H * W elements of each channel.
    """
    node = _pool(model, site)
    if node is None:
        return 0
    nhwc = base.put_before(node, "Transpose", [base.input_of(node, 0)], perm=[0, 2, 3, 1])
    mean = base.reduce_before(model, node, "ReduceMean", nhwc, (1, 2))
    graph.replace(node.outputs[0], base.put_before(node, "Transpose", [mean], perm=[0, 3, 1, 2]))
    return 1
