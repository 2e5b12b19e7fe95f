"""What keeps a layer from reading INT8: input or weights that are not quantized, or not as TensorRT can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.errors import counted
from se_deploy.quantization.chain import rules, spelling, storage
from se_deploy.quantization.chain.findings import Break

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from se_deploy.quantization.chain.spelling import Quantizer, Weighted
    from se_deploy.quantization.chain.storage import Storage


def reading_breaks(layer: Weighted, stored: Storage) -> Iterator[Break]:
    """Yield what keeps `layer` from reading INT8; nothing for a layer that is wholly in float."""
    given = stored.dequantized(layer.data)
    names = (layer.name,)
    if given is None and layer.stored is None:
        return
    if given is None:
        joined = _mixed(layer.data, stored)
        if joined is not None:
            yield Break(*joined, rules.CONCAT, names)
            return
        cause = f"its weights are quantized, its input '{layer.data.name}' is not"
        yield Break(layer.name, cause, rules.HALF_QUANTIZED, names)
        return
    if layer.stored is None:
        cause = f"its input '{layer.data.name}' is quantized, its weights are not"
        yield Break(layer.name, cause, rules.HALF_QUANTIZED, names)
        return
    for what, one in ((f"its input '{layer.data.name}'", given), ("its weights", layer.stored)):
        for cause, rule in faults(one):
            yield Break(layer.name, f"{what}: {cause}", rule, names)
    if layer.bias is not None and layer.bias.dtype != spelling.INT8:
        cause = f"its bias: the integers are {layer.bias.dtype}, not INT8; as floats it costs nothing"
        yield Break(layer.name, cause, rules.INTEGER_TYPE, names)
    if not layer.along_outputs:
        blocks = f"for blocks of {layer.stored.block} " if layer.stored.block else ""
        cause = (
            f"its weights have scales {blocks}along axis {layer.stored.axis}, not one for each output channel"
        )
        yield Break(layer.name, cause, rules.WEIGHT_SCALES, names)
    if not given.per_tensor and given.scale is not None:
        cause = f"its input '{layer.data.name}' has {counted(len(given.scale), 'scale')}"
        yield Break(layer.name, cause, rules.PER_CHANNEL, names)


def faults(one: Quantizer) -> Iterator[tuple[str, rules.Rule]]:
    """Yield why TensorRT makes no INT8 tensor by this quantizer, with the rule."""
    if one.zero is None:
        yield "the zero point is computed", rules.ZERO_POINT
    elif one.zero != (0,):
        shown = ", ".join(map(str, one.zero[:3]))
        yield f"the zero point is {shown}{', ...' if len(one.zero) > 3 else ''}, not 0", rules.ZERO_POINT  # noqa: PLR2004
    if one.dtype != spelling.INT8:
        yield f"the integers are {one.dtype}, not INT8", rules.INTEGER_TYPE
    if one.scale is None:
        yield "the scale is computed", rules.SCALE
    elif not all(0 < scale < float("inf") for scale in one.scale):
        yield "a scale is 0, negative or not finite", rules.SCALE


def _mixed(value: ir.Value, stored: Storage) -> tuple[str, str] | None:
    """Return the Concat that `value` comes from, and why it is not INT8; None where there is none."""
    node = value.producer()
    while node is not None and storage.commutes(node):
        given = storage.moved(node)
        if node.op_type == "Concat":
            quantized = {v: stored.dequantized(v) for v in given}
            bare = [v for v, found in quantized.items() if found is None]
            if len(bare) < len(given):
                return str(node.name), unequal(bare)
            return None
        node = given[0].producer() if given else None
    return None


def unequal(bare: list[ir.Value]) -> str:
    """Return why a Concat of quantized tensors is not INT8; `bare` are its inputs that are not quantized."""
    if bare:
        return f"its input '{bare[0].name}' is not quantized, others are"
    return "it joins tensors of different scales"
