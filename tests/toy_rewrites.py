"""Rewrites that exist in tests only; `tests/passes/conftest.py` takes them out of the registry again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from se_deploy import graph
from se_deploy.passes.registry import Refused, Scope, Tried, every, every_block, rewrite


@dataclass(frozen=True, slots=True)
class Toy:
    site: str
    node: object
    shape: tuple = ()


def drop_identities(
    *, scope=Scope.BY_PLAN, after=(), tried=None, name="toy-drop-identity", only=None, alike=True
):
    """Register a rewrite about nodes: an Identity is left out.

    `only`: the tensors where it is possible, all where None; `alike`: whether all sites are of one kind.
    """

    def match(model, node):
        del model
        if node.outputs[0].is_graph_output():
            return Refused("it names an output")
        site = node.outputs[0].name
        if only is not None and site not in only:
            return Refused("it is another one's")
        return Toy(site, node, () if alike else (site,))

    @rewrite(
        name=name, idea="no identities", where=every("Identity"), match=match, scope=scope,
        after=after, tried=tried or Tried(turn=1),
    )  # fmt: skip
    def drop_identity(model, found):
        del model
        found.node.outputs[0].replace_all_uses_with(found.node.inputs[0])


def clip_first_block():
    """Register a rewrite about blocks: the first one's Relu is a Clip, any other is refused."""

    def match(model, block):
        if block.output != "y1":
            return Refused("a toy is for the first block")
        relu = next((n for n in model.graph if n.op_type == "Relu" and n.outputs[0].name == "a1"), None)
        return Refused("it has a Clip already") if relu is None else Toy(block.output, relu)

    @rewrite(name="toy-clip", idea="Relu as Clip", where=every_block, match=match, tried=Tried(forms=((),)))
    def clip(model, found):
        low = graph.initializer(model, "low", np.zeros((), np.float32))
        node = ir.node("Clip", [found.node.inputs[0], low])
        found.node.graph.insert_before(found.node, node)
        graph.replace(found.node.outputs[0], node.outputs[0])


def respell(name, op_type, by, *, turn, after=()):
    """Register a rewrite of the node that writes `i1`: where it is an `op_type` it becomes a `by`."""

    def match(model, node):
        del model
        found = node.outputs[0].name == "i1"
        return Toy("i1", node) if found else Refused("it is another one's")

    @rewrite(name=name, idea="a toy", where=every(op_type), match=match, after=after, tried=Tried(turn=turn))
    def respelled(model, found):
        del model
        node = ir.node(by, [found.node.inputs[0]])
        found.node.graph.insert_before(found.node, node)
        graph.replace(found.node.outputs[0], node.outputs[0])


def refuse_blocks(name, *, taken):
    """Register a rewrite about blocks that is possible nowhere, because of an Identity or of none."""

    def match(model, block):
        del block
        return Refused("Identity" if "Identity" in graph.ops(model) else "none", taken)

    @rewrite(
        name=name, idea="a toy", where=every_block, match=match, tried=Tried(), after=("toy-drop-identity",)
    )
    def never(model, found):
        raise AssertionError


def take_in_outputs(name):
    """Register a rewrite about blocks without an Identity: the output gets another name, the site's."""

    def match(model, block):
        mul = next((n for n in model.graph if n.outputs[0].name == block.output), None)
        if mul is None:
            return Refused("its output is gone")
        if f"i{block.output[1:]}" in graph.values(model):
            return Refused("an Identity is before it")
        return Toy(f"in-{block.output}", mul)

    @rewrite(
        name=name, idea="a toy", where=every_block, match=match, tried=Tried(), after=("toy-drop-identity",)
    )
    def take_in(model, found):
        del model
        found.node.outputs[0].name = found.site
