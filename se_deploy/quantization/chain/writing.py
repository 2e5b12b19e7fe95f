"""What keeps a layer from writing INT8: its output is followed to its readers, through pointwise kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from se_deploy.errors import counted
from se_deploy.quantization.chain import kernels as fusing
from se_deploy.quantization.chain import reading, rules, spelling, storage
from se_deploy.quantization.chain.findings import Break, End

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from se_deploy.quantization.chain.kernels import Kernel, Kernels
    from se_deploy.quantization.chain.spelling import Weighted
    from se_deploy.quantization.chain.storage import Use


class Writing:
    """Follows what layers write in one graph, and collects what breaks or ends their chains."""

    def __init__(self, found: Kernels) -> None:
        """`found`: the graph's kernels."""
        self.breaks: list[Break] = []
        self.ends: list[End] = []
        self._found = found
        self._stored = found.storage
        self._order = {id(kernel): i for i, kernel in enumerate(found.all)}
        self._before_quantizers = _before_quantizers(found)

    def follow(self, layer: Weighted) -> None:
        """Follow the outputs of an INT8 layer to where they are quantized, or cannot be."""
        layers = (layer.name,)
        waiting = [self._found.of[layer.node]]
        seen = {id(waiting[0])}
        while waiting:
            kernel = waiting.pop()
            for value in self._found.outputs(kernel):
                behind = self._value(kernel, value, layers)
                if behind is not None and id(behind) not in seen:
                    seen.add(id(behind))
                    waiting.append(behind)

    def pads(self) -> None:
        """Look for paddings in front of quantizers, whatever they pad."""
        for kernel in self._found.all:
            if kernel.kind == "pad" and self._leads_to_quantizer(kernel):
                self._between(kernel, self._readers_of_quantized(kernel))

    def _value(self, kernel: Kernel, value: ir.Value, layers: tuple[str, ...]) -> Kernel | None:
        """Say why `value` is no INT8 tensor; return the pointwise kernel that alone reads it, to go on."""
        if self._found.emits_int8(kernel, value):
            return None
        if self._stored.written(value) is not None:
            self._not_emitted(kernel, layers)
            return None
        found = storage.uses(value)
        if self._is_joined_badly(found, layers):
            return None
        others = [use for use in found if not (use.node is not None and spelling.is_quantize(use.node))]
        if not others:
            self._quantizers_differ(value, layers)
            return None
        ends = [end for use in others if (end := self._end(use, layers)) is not None]
        if ends:
            self.ends += ends
            return None
        behind = {self._found.of[use.node] for use in others if use.node is not None}
        if len(behind) > 1 or len(others) < len(found):
            self._shared(value, others, layers, quantized=len(others) < len(found))
            return None
        return self._only(kernel, next(iter(behind)), others, layers)

    def _not_emitted(self, kernel: Kernel, layers: tuple[str, ...]) -> None:
        """Say why a kernel does not take in the quantizer behind it."""
        if kernel.kind == "layer" and kernel.residual is not None:
            name = str(kernel.residual.name)
            node = next(n for n in kernel.nodes if n.op_type == "Add" and kernel.residual in n.inputs)
            cause = f"the sum reads '{name}' in float, so that the layer before it writes floats"
            self.breaks.append(Break(str(node.name), cause, rules.RESIDUAL, layers, (name,), str(node.name)))
            return
        node = kernel.nodes[-1]
        cause = f"{node.op_type} runs in float between a layer and a quantizer: its input is not quantized"
        tensors = tuple(str(value.name) for value in self._found.inputs(kernel))
        self.breaks.append(Break(str(node.name), cause, rules.NOT_FUSED, layers, tensors, str(node.name)))

    def _is_joined_badly(self, found: Sequence[Use], layers: tuple[str, ...]) -> bool:
        for use in found:
            for join, own in use.joins:
                quantized = [v for v in storage.moved(join) if self._stored.dequantized(v) is not None]
                if not quantized:
                    continue
                asked = use.node if use.node is not None and spelling.is_quantize(use.node) else None
                cause = reading.unequal([own] if asked is None else [])
                tensors = [str(v.name) for v in quantized]
                if asked is not None and asked.inputs[0] is not None:
                    tensors.append(str(asked.inputs[0].name))
                reader = str(join.name) if asked is None else None
                tensors = [str(own.name)] if asked is None else tensors
                self.breaks.append(Break(str(join.name), cause, rules.CONCAT, layers, tuple(tensors), reader))
                return True
        return False

    def _quantizers_differ(self, value: ir.Value, layers: tuple[str, ...]) -> None:
        asked = fusing.quantizers_of(value)
        for node, one in asked:
            for cause, rule in reading.faults(one):
                self.breaks.append(Break(str(node.name), f"'{value.name}': {cause}", rule, layers))
                return
            if not one.per_tensor and one.scale is not None:
                cause = f"'{value.name}' has {counted(len(one.scale), 'scale')}"
                self.breaks.append(Break(str(node.name), cause, rules.PER_CHANNEL, layers))
                return
        scales = ", ".join(dict.fromkeys(f"{one.scale[0]:.4g}" for _, one in asked if one.scale))
        cause = f"'{value.name}' is quantized with different scales: {scales}"
        tensors = tuple(str(node.inputs[0].name) for node, _ in asked if node.inputs[0] is not None)
        self.breaks.append(Break(str(asked[-1][0].name), cause, rules.TWO_SCALES, layers, tensors))

    def _end(self, use: Use, layers: tuple[str, ...]) -> End | None:
        """Return why the chain ends at a reader whatever is quantized; None where it need not."""
        node = use.node
        if node is None:
            return End(str(use.read.name), "it is an output of the network", layers)
        kernel = self._found.of.get(node)
        if kernel is None:
            return End(str(node.name), f"{node.op_type} computes sizes from it", layers)
        if kernel.layer is not None and node is kernel.layer.node:
            return End(str(node.name), "this layer is in float", layers)
        if fusing.is_product(node):
            return End(str(node.name), f"{node.op_type} multiplies two activations in float", layers)
        if kernel.kind == "other" and node.op_type != "Resize":
            return End(str(node.name), f"{node.op_type} has no INT8 form", layers)
        if kernel.kind in {"pad", "pool", "other"} and not self._leads_to_quantizer(kernel):
            return End(str(node.name), f"what {node.op_type} writes is not quantized", layers)
        return None

    def _shared(
        self, value: ir.Value, others: Sequence[Use], layers: tuple[str, ...], *, quantized: bool
    ) -> None:
        """Say what reads a tensor in float while something else reads it quantized, or in another kernel."""
        mended = [use for use in others if self._wants_int8(use, quantized=quantized)]
        for use in others:
            if use not in mended and use.node is not None:
                cause = f"{use.node.op_type} reads it in float and something else does too"
                self.ends.append(End(str(use.node.name), cause, layers))
        if len(mended) < len(others):
            return
        for use in mended:
            assert use.node is not None  # noqa: S101 - an output of the network is an end
            is_sum = fusing.is_sum(use.node)
            cause = f"{'the sum' if is_sum else use.node.op_type} reads '{value.name}' in float"
            cause += ", a quantized one is read elsewhere" if quantized else ""
            rule = rules.RESIDUAL if is_sum else rules.NOT_FUSED
            name = str(use.node.name)
            self.breaks.append(Break(name, cause, rule, layers, (str(use.read.name),), name))

    def _wants_int8(self, use: Use, *, quantized: bool) -> bool:
        """Whether a reader is one that TensorRT has in INT8 as a matter of course: a sum or a pooling.

        A sum from which no way leads to a quantizer is not, unless what it reads is quantized anyway.
        """
        if use.node is None:
            return False
        kernel = self._found.of[use.node]
        if fusing.is_sum(use.node):
            return quantized or use.node in self._before_quantizers
        return kernel.kind != "pointwise" and self._leads_to_quantizer(kernel)

    def _only(
        self, maker: Kernel, kernel: Kernel, others: Sequence[Use], layers: tuple[str, ...]
    ) -> Kernel | None:
        """Say what the one kernel that reads a float does to the chain; return it where the chain goes on."""
        node = others[0].node
        assert node is not None  # noqa: S101 - an output of the network is an end
        quantized = self._leads_to_quantizer(kernel)
        if kernel.kind == "pad":
            return None  # `pads` has it
        if maker.kind == "layer" and quantized and all(map(fusing.is_affine, kernel.nodes)):
            self._between(kernel, layers)
            return None
        if kernel.kind in {"pool", "other"}:
            self._not_emitted(kernel, layers)
            return None
        sums = [use for use in others if use.node is not None and fusing.is_sum(use.node)]
        # Where other operators of the kernel read it too, the sum is a part of their function, as in GELU.
        if len(sums) == len(others) and quantized and self._is_residual(sums[0], kernel):
            name = str(sums[0].read.name)
            cause = f"the sum reads '{name}' in float"
            self.breaks.append(Break(str(node.name), cause, rules.RESIDUAL, layers, (name,), str(node.name)))
            return None
        if kernel.kind == "layer":
            self.ends.append(End(str(node.name), "the sum that it goes into is not quantized", layers))
            return None
        return kernel

    def _is_residual(self, use: Use, kernel: Kernel) -> bool:
        """Whether a value is the summand that comes from elsewhere: the one made first."""
        assert use.node is not None  # noqa: S101 - sums are nodes
        if kernel.kind == "layer":
            return True
        other = next(v for v in use.node.inputs if v is not None and v is not use.read)
        if self._stored.dequantized(other) is not None:
            return False
        return self._made(use.read) < self._made(other)

    def _made(self, value: ir.Value) -> int:
        maker = self._found.maker(value)
        return -1 if maker is None else self._order[id(maker)]

    def _between(self, kernel: Kernel, layers: tuple[str, ...]) -> None:
        ops = ", ".join(dict.fromkeys(node.op_type for node in self._up_to_quantizer(kernel)))
        cause = f"{ops} between the activation and its quantizer, as in a form that folds offsets or factors"
        self.breaks.append(Break(kernel.name, cause, rules.BETWEEN, layers))

    def _up_to_quantizer(self, kernel: Kernel) -> list[ir.Node]:
        """Return the nodes from `kernel` to the quantizer behind it."""
        behind = [n for k in self._affine_behind(kernel) for n in self._up_to_quantizer(k)]
        return [*kernel.nodes, *behind]

    def _affine_behind(self, kernel: Kernel) -> list[Kernel]:
        """Return the kernels of factors and sums per channel that read a padding."""
        if kernel.kind != "pad":
            return []
        nodes = [use.node for v in self._found.outputs(kernel) for use in storage.uses(v)]
        found = [self._found.of[node] for node in nodes if node is not None and node in self._found.of]
        return [k for k in dict.fromkeys(found) if all(map(fusing.is_affine, k.nodes))]

    def _leads_to_quantizer(self, kernel: Kernel) -> bool:
        """Whether what a kernel writes is quantized."""
        written = self._found.outputs(kernel)
        if any(fusing.quantizers_of(value) for value in written):
            return True
        return any(map(self._leads_to_quantizer, self._affine_behind(kernel)))

    def _readers_of_quantized(self, kernel: Kernel) -> tuple[str, ...]:
        """Return the layers that read what is quantized behind `kernel`."""
        names = [
            name
            for value in self._found.outputs(kernel)
            for node, _ in fusing.quantizers_of(value)
            for name in self._layers_behind(node)
        ]
        return tuple(names) + tuple(
            n for k in self._affine_behind(kernel) for n in self._readers_of_quantized(k)
        )

    def _layers_behind(self, quantize: ir.Node) -> list[str]:
        pairs = [u.node for u in storage.uses(quantize.outputs[0]) if u.node is not None]
        behind = [u.node for node in pairs for v in node.outputs for u in storage.uses(v)]
        kernels = [self._found.of[node] for node in behind if node is not None and node in self._found.of]
        return [kernel.layer.name for kernel in kernels if kernel.layer is not None]


def _before_quantizers(found: Kernels) -> set[ir.Node]:
    """Return the nodes from which a way leads to a quantizer of activations."""
    values = [value for kernel in found.all for value in found.outputs(kernel)]
    waiting = [node for value in values for node, _ in fusing.quantizers_of(value)]
    seen = set(waiting)
    while waiting:
        makers = {v.producer() for v in waiting.pop().inputs if v is not None} - {None} - seen
        fresh = [node for node in makers if node is not None]
        seen.update(fresh)
        waiting += fresh
    return seen
