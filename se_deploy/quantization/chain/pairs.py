"""Pairs of Q/DQ where they keep operators apart that would fuse: in an activation, a gate, before a sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.quantization.chain import kernels as fusing
from se_deploy.quantization.chain import reading, rules, spelling, storage
from se_deploy.quantization.chain.findings import Break

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from se_deploy.quantization.chain.kernels import Kernel, Kernels

_BOUNDED = frozenset({"Clip", "HardSigmoid", "Sigmoid", "Tanh"})
_OF_ACTIVATIONS = fusing.ACTIVATIONS | {"Pow"}  # that of GELU by Tanh
_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})  # of which activations are spelled


def misplaced(found: Kernels) -> Iterator[Break]:
    """Yield the pairs of Q/DQ inside an activation, inside a gate, or in front of a fusible sum."""
    for quantize in dict.fromkeys(q for k in found.all for v in found.outputs(k) for q in _quantizers(v)):
        value = quantize.inputs[0]
        maker = None if value is None else found.maker(value)
        if value is None or maker is None:
            continue
        for node in _behind(quantize):
            rule = _rule(found, maker, value, node)
            if rule is not None:
                read = [found.maker(_pair_of(v) or v) for v in fusing.activations(node)]
                layers = [n for k in (maker, *read) if k is not None for n in _layers_before(found, k)]
                names = tuple(dict.fromkeys(layers))
                yield Break(str(quantize.name), _cause(rule, value, node), rule, names)


def joined(found: Kernels) -> Iterator[Break]:
    """Yield the Concats of quantized tensors of different scales in front of a quantizer."""
    for kernel in found.all:
        node = kernel.nodes[0]
        if node.op_type != "Concat" or node.domain:
            continue
        given = storage.moved(node)
        asked = [found.storage.dequantized(v) for v in given]
        behind = fusing.quantizers_of(node.outputs[0])
        if None in asked or not behind or all(storage.same(asked[0], one) for one in asked):
            continue
        sources = [one for v in given if (one := _pair_of(v)) is not None]
        makers = [maker for one in sources if (maker := found.maker(one)) is not None]
        layers = dict.fromkeys(n for maker in makers for n in _layers_before(found, maker))
        tensors = dict.fromkeys(
            str(v.name) for v in (*sources, *(q.inputs[0] for q, _ in behind)) if v is not None
        )
        yield Break(str(node.name), reading.unequal([]), rules.CONCAT, tuple(layers), tuple(tensors))


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [node for node in fusing.readers(value) if spelling.is_quantize(node)]


def _behind(quantize: ir.Node) -> list[ir.Node]:
    """Return what reads the dequantized tensor."""
    pairs = [node for node in fusing.readers(quantize.outputs[0]) if spelling.is_dequantize(node)]
    return list(dict.fromkeys(reader for node in pairs for reader in fusing.readers(node.outputs[0])))


def _rule(found: Kernels, maker: Kernel, value: ir.Value, node: ir.Node) -> rules.Rule | None:
    """Return the rule that a pair on `value`, read by `node`, breaks; None where it is in its place."""
    last = maker.nodes[-1]
    inside = rules.INSIDE_GATE if fusing.is_pooled(value) else rules.INSIDE_ACTIVATION
    raw = last.op_type in _ARITHMETIC or (maker.layer is not None and last.op_type in spelling.LAYERS)
    read = fusing.activations(node)
    if node.op_type in _OF_ACTIVATIONS and len(read) == 1:
        return inside if raw else None
    if node.op_type == "Mul" and len(read) == 2 and (last.op_type in _BOUNDED or fusing.is_pooled(value)):  # noqa: PLR2004
        return inside
    fuses = maker.kind in {"layer", "pointwise"} and fusing.is_sum(node)
    if fuses and len(fusing.readers(value)) == 1 and len(_behind(_quantizers(value)[0])) == 1:
        other = next((v for v in read if _pair_of(v) is not value), None)
        if (
            other is not None
            and found.storage.dequantized(other) is not None
            and _is_later(found, maker, other)
        ):
            return rules.EXTRA_PAIR
    return None


def _is_later(found: Kernels, maker: Kernel, other: ir.Value) -> bool:
    """Whether the other summand is there already when `maker` runs."""
    before = _pair_of(other)
    kernel = None if before is None else found.maker(before)
    return kernel is None or found.all.index(kernel) < found.all.index(maker)


def _pair_of(value: ir.Value) -> ir.Value | None:
    """Return what was quantized where `value` is the output of a pair, operators between that commute."""
    node = value.producer()
    while node is not None and not spelling.is_quantize(node):
        if not (spelling.is_dequantize(node) or storage.commutes(node)) or node.inputs[0] is None:
            return None
        node = node.inputs[0].producer()
    return None if node is None else node.inputs[0]


def _layers_before(found: Kernels, maker: Kernel) -> tuple[str, ...]:
    """Return the layers whose outputs reach a kernel through pointwise kernels."""
    names: dict[str, None] = {}
    waiting, seen = [maker], {id(maker)}
    while waiting:
        kernel = waiting.pop()
        if kernel.layer is not None:
            names[kernel.layer.name] = None
            continue
        if kernel.kind != "pointwise":
            continue
        for value in found.inputs(kernel):
            before = found.maker(_pair_of(value) or value)
            if before is not None and id(before) not in seen:
                seen.add(id(before))
                waiting.append(before)
    return tuple(names)


def _cause(rule: rules.Rule, value: ir.Value, node: ir.Node) -> str:
    if rule is rules.EXTRA_PAIR:
        return f"a pair on '{value.name}' keeps the kernel that makes it from taking the sum in"
    where = "a gate" if rule is rules.INSIDE_GATE else "an activation"
    return f"a pair on '{value.name}' is inside of {where}: {node.op_type} reads it"
