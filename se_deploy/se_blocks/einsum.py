"""Einsum as the operator that it is, where it is a product, a layer or a sum: then every step knows it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from se_deploy import graph

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_AXES_ARE_INPUTS = 13  # of Unsqueeze and ReduceSum, from this operator set on
_PLAIN = re.compile(r"([a-zA-Z]*)(?:,([a-zA-Z]*))?->([a-zA-Z]*)")
_MATRIX = 2  # axes


@dataclass(frozen=True, slots=True)
class _Terms:
    """The letters of each operand's axes and of the result's; none is twice in one of them."""

    operands: tuple[str, ...]
    result: str


def is_in(model: ir.Model) -> bool:
    """Whether a graph has an Einsum that `spell_out_einsum` would change."""
    return any(_spelled(node) for node in model.graph.all_nodes())


def spell_out_einsum(model: ir.Model) -> int:
    """Spell Einsum as Mul, MatMul or ReduceSum where it is one of them; its node's name stays.

    Before: Einsum("nchw,nc->nchw", x, gate); Einsum("nc,rc->nr", v, W); Einsum("nchw->nc", x)
    After:  Mul(x, Unsqueeze(gate, (2, 3)));  MatMul(v, Transpose(W));   ReduceSum(x, (2, 3))
    Needs: the axes in one order, no letter twice in a term; of a layer, two inner sizes known to be equal.
    """
    found = [node for node in model.graph.all_nodes() if _spelled(node)]
    for node in found:
        _replace(model, node)
    return len(found)


def _spelled(node: ir.Node) -> str | None:
    """Return the operator that an Einsum is; None where it is none of them, or no Einsum."""
    terms = _terms(node)
    if terms is None:
        return None
    if len(terms.operands) == 1:
        (given,) = terms.operands
        return "ReduceSum" if given != terms.result and _is_part(terms.result, given) else None
    a, b = terms.operands
    if terms.result in terms.operands and _is_part(a, terms.result) and _is_part(b, terms.result):
        return "Mul"
    return "MatMul" if _is_layer(node, a, b, terms.result) else None


def _terms(node: ir.Node) -> _Terms | None:
    if node.op_type != "Einsum" or node.domain not in {"", "ai.onnx"}:
        return None
    match = _PLAIN.fullmatch(str(graph.attribute(node, "equation", "")).replace(" ", ""))
    if match is None:
        return None
    operands = tuple(term for term in (match[1], match[2]) if term is not None)
    known = len(operands) == len(node.inputs) and all(value is not None for value in node.inputs)
    unique = all(len(set(term)) == len(term) for term in (*operands, match[3]))
    return _Terms(operands, match[3]) if known and unique else None


def _is_part(part: str, whole: str) -> bool:
    """Whether the letters of `part` stand in `whole`, in the same order."""
    rest = iter(whole)
    return all(letter in rest for letter in part)


def _is_layer(node: ir.Node, a: str, b: str, result: str) -> bool:
    """Whether it takes the last axis of the first operand through a matrix, the second."""
    if len(b) != _MATRIX or not a or not result or result[:-1] != a[:-1] or set(b) != {a[-1], result[-1]}:
        return False
    x, w = (graph.dims(value) for value in node.inputs)
    inner = None if x is None or len(x) != len(a) else x[-1]
    return inner is not None and w is not None and len(w) == len(b) and w[b.index(a[-1])] == inner


def _replace(model: ir.Model, node: ir.Node) -> None:
    terms, made = _terms(node), _spelled(node)
    if terms is None or made is None or node.graph is None:
        raise ValueError(f"'{node.name}' is no Einsum that can be spelled out")
    around = node.graph
    name, old = node.name, node.outputs[0]
    first, *others = [value for value in node.inputs if value is not None]
    before: list[ir.Node] = []
    if made == "ReduceSum":
        gone = [i for i, letter in enumerate(terms.operands[0]) if letter not in terms.result]
        new = _over_axes(model, "ReduceSum", first, gone, keepdims=0)
    else:
        factors = [first, *others]
        if made == "Mul":
            before = list(_widened(model, factors, terms))
        elif terms.operands[1][0] != terms.operands[0][-1]:
            before = [ir.node("Transpose", [factors[1]], attributes={"perm": [1, 0]})]
            factors[1] = before[0].outputs[0]
        new = ir.node(made, factors)
    around.insert_before(node, [*before, new])
    graph.replace(old, new.outputs[0])
    around.remove(node, safe=True)
    new.name = name


def _widened(model: ir.Model, factors: list[ir.Value], terms: _Terms) -> Iterator[ir.Node]:
    """Yield what gives the factor with fewer axes all of them; it takes that factor's place."""
    for i, term in enumerate(terms.operands):
        missing = [at for at, letter in enumerate(terms.result) if letter not in term]
        if missing:
            made = _over_axes(model, "Unsqueeze", factors[i], missing)
            factors[i] = made.outputs[0]
            yield made


def _over_axes(model: ir.Model, op: str, value: ir.Value, axes: Sequence[int], **attributes: int) -> ir.Node:
    if graph.opset(model) < _AXES_ARE_INPUTS:
        return ir.node(op, [value], attributes={**attributes, "axes": list(axes)})
    listed = graph.initializer(model, "einsum_axes", np.array(axes, np.int64))
    return ir.node(op, [value, listed], attributes=attributes)
