"""Says of each SE block whether its compiler fused it, and what every extra kernel comes from.

`fused`: the inner activation sits in its layer's kernel, the gate in the last layer's or in the scale's, a
following residual Add and its activation in the scale's kernel or in a convolution's, and no copy, cast,
transpose or shape kernel belongs to the block. `split` otherwise; `fallback` where a part left the
accelerator or ran in a higher precision than the graph asks for. Four kernels are the best plan known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from se_deploy import graph
from se_deploy.fusion.region import LAYERS, MOVES, QUANTIZERS, REDUCTIONS, SHAPES, Graph, Region
from se_deploy.plan import SIZE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.plan import Kernel, Plan, PlanTensor
    from se_deploy.se_blocks.types import SEBlock

_IMAGE_RANK = 4
_CANONICALIZE = "canonicalize the block (`se-deploy export` does)"
_FLOAT_GATE = "leave the gate in float (`se-deploy quantize` does)"


@dataclass(frozen=True, slots=True)
class FusionRules:
    """What one compiler can fuse, so that a verdict asks for no more."""

    epilogues: frozenset[str] | None = None  # kinds of kernels that its convolutions compute too; None: all
    fuses_pointwise: bool = True  # scale, residual Add and activation share a kernel
    free_copies: tuple[str, ...] = ()  # kinds of kernels that begin so are a layout that it wants
    wider: str = "a node in it stays in FP32, or the compiler has no narrower kernel"  # the cause
    respell: str | None = None  # the backend whose export respells a squeeze; None where that cannot help

    @property
    def squeeze_hint(self) -> str:
        """What makes the squeeze one kernel."""
        if self.respell is None:
            return _CANONICALIZE
        return f"respell the squeeze (`se-deploy export --runtime {self.respell}` does)"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one block in one plan; bytes per image, without constants."""

    output: str  # the block's identity
    verdict: Literal["fused", "split", "fallback"]
    kernels: int  # launches that compute the block, without convolutions that only carry its scale
    activation_bytes: int
    reasons: tuple[str, ...] = ()  # cause and what to do, of each thing that could be better, faults first
    layers: tuple[str, ...] = ()  # names of the kernels that are counted


def verdicts(
    plan: Plan, blocks: Sequence[SEBlock], model: ir.Model, rules: FusionRules
) -> tuple[Verdict, ...]:
    """Return a verdict on every block in `plan`, made for `model` by a compiler with these `rules`."""
    indexed, kernels = Graph(model), _Kernels(plan)
    return tuple(_verdict(block, indexed, kernels, rules) for block in blocks)


class _Kernels:
    """A plan with its kernels by ONNX node and by the tensors that they read."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.launches = [kernel for kernel in plan.layers if not kernel.host_only]
        self.by_node: dict[str, list[int]] = {}
        self.readers: dict[str, set[int]] = {}
        self.makers: dict[str, set[int]] = {}
        for i, kernel in enumerate(self.launches):
            for node in kernel.onnx_nodes:
                self.by_node.setdefault(node, []).append(i)
            for tensor in kernel.inputs:
                self.readers.setdefault(tensor.name, set()).add(i)
            for tensor in kernel.outputs:
                self.makers.setdefault(tensor.name, set()).add(i)

    def of(self, nodes: frozenset[str]) -> set[int]:
        return {i for node in nodes for i in self.by_node.get(node, ())}

    def with_copies(self, own: set[int]) -> set[int]:
        """Add the kernels that compute no node and that only kernels of `own` read."""
        own = set(own)
        for i in range(len(self.launches) - 1, -1, -1):
            kernel = self.launches[i]
            readers = {r for tensor in kernel.outputs for r in self.readers.get(tensor.name, ())}
            if not kernel.onnx_nodes and readers and readers <= own:
                own.add(i)
        return own


def _verdict(block: SEBlock, indexed: Graph, kernels: _Kernels, rules: FusionRules) -> Verdict:
    region = indexed.region(block)
    if region is None:
        body = graph.in_body(indexed.model, block.nodes)
        gone = "it is no tensor of this graph: the block was rewritten away, or the graph is another one"
        reason = gone if body is None else f"{body}, whose kernels are not told apart"
        return Verdict(block.output, "split", 0, 0, (f"'{block.output}': {reason}",))
    judged = _Evaluator(region, indexed, kernels, rules)
    higher = judged.higher_precision()
    faults = (*higher, *judged.extras(), *judged.apart())
    counted = [kernels.launches[i] for i in judged.own if i not in judged.carriers]
    return Verdict(
        block.output,
        "fallback" if higher else "split" if faults else "fused",
        len(counted),
        sum(kernel.activation_bytes for kernel in counted),
        tuple(dict.fromkeys((*faults, *(judged.advice() if rules.fuses_pointwise else ())))),
        tuple(kernel.name for kernel in counted),
    )


class _Evaluator:
    """One block in one plan: finds what is not as it could be."""

    def __init__(self, region: Region, indexed: Graph, kernels: _Kernels, rules: FusionRules) -> None:
        self.region = region
        self.indexed = indexed
        self.kernels = kernels
        self.rules = rules
        computing = kernels.of(region.nodes)
        self.carriers = {i for i in computing if self._carries_only_the_scale(i)}
        self.own = sorted(kernels.with_copies(computing - self.carriers) | self.carriers)

    def _carries_only_the_scale(self, index: int) -> bool:
        """Whether the kernel is a convolution of the network, and no layer of the block."""
        nodes = set(self.kernels.launches[index].onnx_nodes)
        return self._has_layer(index) and not nodes & set(self.region.layers)

    def higher_precision(self) -> list[str]:
        """Kernels that compute in wider floats than the graph has at the block."""
        asked = self._asked_float()
        reasons = []
        for i in self.own:
            kernel = self.kernels.launches[i]
            read = [t for t in kernel.inputs if _is_wider(t, asked) and not self._dequantized(t)]
            wide = read + [t for t in kernel.outputs if _is_wider(t, asked)]
            if wide and kernel.onnx_nodes and not kernel.opaque:  # at whose edges other types may be
                reasons.append(
                    f"{self._title(kernel)} works on {wide[0].dtype}, the graph asks for {asked}: "
                    f"{self.rules.wider}"
                )
        return reasons

    def advice(self) -> list[str]:
        """What costs the block without being part of it: the kernels that give its map."""
        feeds = [t for i in self.own for t in self.kernels.launches[i].inputs]
        makers = {m for t in feeds for m in self.kernels.makers.get(t.name, ())} - set(self.own)
        reasons = []
        for i in sorted(makers):
            kernel = self.kernels.launches[i]
            if self._turns_layout(kernel) and not self._has_layer(i) and kernel.onnx_nodes:
                reasons.append(
                    f"{self._title(kernel)} before the block is apart from its convolution and turns NHWC to "
                    f"NCHW for the squeeze: {self.rules.squeeze_hint}"
                )
        wide = [t for t in feeds if _is_wider(t, self._asked_float()) and self._dequantized(t)]
        wide += [t for i in makers for t in self.kernels.launches[i].inputs if self._dequantized(t)]
        if any(_is_wider(t, self._asked_float()) for t in wide):
            reasons.append(
                f"{wide[0].dtype} map out of an INT8 convolution with per-channel weights before the block: "
                "quantize its weights per tensor for this target"
            )
        return reasons

    def extras(self) -> list[str]:
        """Kernels that a fused block does not have, each with its cause."""
        reasons, squeezes = [], []
        layers: dict[str, int] = {}
        for i in self.own:
            kernel = self.kernels.launches[i]
            nodes = set(kernel.onnx_nodes) & self.region.nodes
            if not kernel.onnx_nodes:
                reasons += self._copy(kernel)
            elif nodes & set(self.region.squeeze):
                squeezes.append(i)
            elif nodes & self.region.scale or self.region.end in nodes:
                continue
            elif found := nodes & set(self.region.layers):
                for name in found:
                    layers[name] = layers.get(name, 0) + 1
            else:
                reasons += self._other(kernel, nodes)
        if len(squeezes) > 1:
            reasons.append(f"the squeeze takes {len(squeezes)} kernels: {self.rules.squeeze_hint}")
        return reasons + [self._taken_apart(name, count) for name, count in layers.items() if count > 1]

    def _taken_apart(self, name: str, count: int) -> str:
        """Return why a layer has several kernels: odd channels are padded, a tiny product is spelled out."""
        for i in self.kernels.by_node[name]:
            kernel = self.kernels.launches[i]
            before, after = (t[0].dims[1:2] if t else () for t in (kernel.inputs, kernel.outputs))
            if not kernel.constants and before and after and before[0] + 1 == after[0]:
                return (
                    f"the {before[0]} channels into layer '{name}' are padded to {after[0]} in a kernel of "
                    "their own: use an even number of them"
                )
        return f"layer '{name}' is taken apart into {count} kernels: write it as a 1x1 Conv, {_CANONICALIZE}"

    def apart(self) -> list[str]:
        """Activations, gate and residual that sit in kernels of their own."""
        with_layer = self.kernels.of(frozenset(self.region.layers))
        with_scale = self.kernels.of(self.region.scale | {self.region.end})
        reasons = [
            f"the inner activation ({what}) has a kernel of its own: {_CANONICALIZE}"
            for what in self._apart_from(with_layer, self.region.inner)
        ]
        reasons += [
            f"the gate ({what}) is neither in its layer's kernel nor in the scale's: {_CANONICALIZE}"
            for what in self._apart_from(with_layer | with_scale, self.region.gate)
        ]
        return [*reasons, *self._behind(with_scale)] if self.rules.fuses_pointwise else reasons

    def _behind(self, with_scale: set[int]) -> list[str]:
        """Kernels of the residual Add and its activation that are neither the scale's nor a convolution."""
        where = self.kernels.of(frozenset(self.region.after)) - with_scale
        pointwise = [self.kernels.launches[i] for i in sorted(where) if not self._has_layer(i)]
        return [
            f"{self._title(kernel)} behind the scale has a kernel of its own: keep scale, residual Add and "
            "activation next to each other, in one precision"
            for kernel in pointwise
        ]

    def _apart_from(self, fine: set[int], nodes: frozenset[str]) -> list[str]:
        """Title the kernels that compute some of `nodes` and are not among `fine`."""
        where = sorted(self.kernels.of(nodes) - fine)
        kernels = [self.kernels.launches[i] for i in where]
        known = self.rules.epilogues
        return [self._title(k) for k in kernels if known is None or k.kind in known]

    def _has_layer(self, index: int) -> bool:
        nodes = self.kernels.launches[index].onnx_nodes
        return any(self._is_layer(name) for name in nodes)

    def _is_layer(self, name: str) -> bool:
        """Whether a node is a layer; an Einsum of the block that is none of its layers pools or scales."""
        node = self.indexed.nodes.get(name)
        if node is None or node.op_type not in LAYERS:
            return False
        return node.op_type != "Einsum" or name not in self.region.nodes or name in self.region.layers

    def _copy(self, kernel: Kernel) -> list[str]:
        """Return what a kernel without ONNX nodes does for the block."""
        if kernel.kind.startswith(self.rules.free_copies):
            return []
        readers = {r for t in kernel.outputs for r in self.kernels.readers.get(t.name, ())}
        reader = next((self._title(self.kernels.launches[r]) for r in sorted(readers)), "its reader")
        source, result = (kernel.inputs or kernel.outputs)[0], kernel.outputs[0]
        if source.dtype != result.dtype:
            return [f"cast {source.dtype} to {result.dtype} before {reader}: give the block one precision"]
        way = (
            f" {source.layout.upper()} to {result.layout.upper()}" if source.layout and result.layout else ""
        )
        return [f"copy{way} before {reader}: {self.rules.squeeze_hint}"]

    def _other(self, kernel: Kernel, nodes: set[str]) -> list[str]:
        """Return what a kernel of the block does that is neither squeeze, layer nor scale."""
        ops = {self.indexed.nodes[name].op_type for name in nodes}
        name = min(nodes, key=self._place)
        if ops <= QUANTIZERS:
            return [f"quantization kernel from '{name}' inside the block: {_FLOAT_GATE}"]
        if nodes <= self.region.inner | self.region.gate:
            return []  # `apart` says it
        if ops <= SHAPES | QUANTIZERS:
            return [f"shape kernel from '{name}' ({self._title(kernel)}): {_CANONICALIZE}"]
        if ops <= MOVES:
            return [f"{self._title(kernel)} '{name}' has a kernel of its own: {_CANONICALIZE}"]
        if ops & REDUCTIONS:
            return [
                f"the squeeze takes a kernel more, {self._title(kernel)} '{name}': {self.rules.squeeze_hint}"
            ]
        if not self.rules.fuses_pointwise:
            return []
        return [f"{self._title(kernel)} '{name}' has a kernel of its own: {_CANONICALIZE}"]

    def _asked_float(self) -> str:
        """Return the float type that the graph has at the block's output."""
        value = self.indexed.values.get(self.indexed.nodes[self.region.end].outputs[0].name or "")
        dtype = None if value is None or value.dtype is None else value.dtype.name.lower()
        return {"float16": "float16", "bfloat16": "bfloat16"}.get(dtype or "", "float32")

    def _dequantized(self, tensor: PlanTensor) -> bool:
        """Whether `tensor` is what an INT8 convolution gives in float."""
        makers = [self.kernels.launches[i] for i in self.kernels.makers.get(tensor.name, ())]
        return any(t.dtype == "int8" for kernel in makers for t in kernel.inputs)

    def _turns_layout(self, kernel: Kernel) -> bool:
        given = {t.layout for t in kernel.inputs if len(t.dims) == _IMAGE_RANK}
        return given == {"nhwc"} and any(t.layout == "nchw" for t in kernel.outputs)

    def _title(self, kernel: Kernel) -> str:
        nodes = [self.indexed.nodes[n] for n in kernel.onnx_nodes if n in self.indexed.nodes]
        telling = [n.op_type for n in nodes if n.op_type not in SHAPES | QUANTIZERS] or [
            n.op_type for n in nodes
        ]
        return "+".join(telling) or kernel.name

    def _place(self, name: str) -> int:
        return self.indexed.order[self.indexed.nodes[name]]


def _is_wider(tensor: PlanTensor, asked: str) -> bool:
    return tensor.dtype in {"float32", "float64"} and SIZE_BYTES[tensor.dtype] > SIZE_BYTES[asked]
