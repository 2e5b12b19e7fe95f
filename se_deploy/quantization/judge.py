"""Judge a quantized graph by the float network's answers on samples that were not used to make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration
from se_deploy.quantization import qdq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, Runtime
    from se_deploy.quantization.qdq import QuantizedLayer

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Judgement:
    """Noise over signal of each tensor that was compared, and the accuracy where there are labels."""

    outputs: tuple[str, ...]  # of the graph; the other tensors are what its last layers give
    noise: Mapping[str, float]  # power of the error over the power of the tensor
    accuracy: float | None  # of the first output's largest entry, 0 to 1

    def sqnr_db(self) -> dict[str, float]:
        """Give signal over noise of every output, in dB."""
        return {name: _db(self.noise[name]) for name in self.outputs}

    @property
    def score_db(self) -> float:
        """One number to compare two graphs by: the mean over the last layers' outputs, in dB.

        Not the graph's outputs where there are others: a softmax's are 0 or 1 on most samples, and say how
        the few doubtful ones went.
        """
        last = [name for name in self.noise if name not in self.outputs] or self.outputs
        return float(np.mean([_db(self.noise[name]) for name in last]))

    @property
    def total_noise(self) -> float:
        """Sum of the relative noise over all tensors: what single layers add up to."""
        return sum(self.noise.values())


@dataclass(frozen=True, slots=True)
class Judge:
    """The float network's answers on the samples held back."""

    held: Samples
    runtime: Runtime
    bare: ir.Model  # the float network, as far as it is compared, for the layers to be written into
    outputs: tuple[str, ...]
    tensors: tuple[str, ...]  # outputs first
    wanted: tuple[Mapping[str, Array], ...]  # batch by batch

    @classmethod
    def of(
        cls, model: ir.Model, last: tuple[str, ...], held: Samples, runtime: Runtime, fast: Runtime
    ) -> Judge:
        """Run the float network once, by `fast`; `last` are tensors to compare beside the outputs."""
        outputs = tuple(str(v.name) for v in model.graph.outputs)
        tensors = tuple(dict.fromkeys((*outputs, *last)))
        wanted = tuple(calibration.observe(model, tensors, held, fast))
        return cls(held, runtime, _bare(model, tensors), outputs, tensors, wanted)

    def layers(self, quantized: Sequence[QuantizedLayer]) -> Judgement:
        """Judge the network with these layers in INT8."""
        return self(qdq.trial(self.bare, quantized))

    def __call__(self, model: ir.Model) -> Judgement:
        """Judge a whole graph."""
        noise = dict.fromkeys(self.tensors, 0.0)
        power = dict.fromkeys(self.tensors, 0.0)
        right, seen = 0, 0
        for got, wanted in zip(
            calibration.observe(model, self.tensors, self.held, self.runtime), self.wanted, strict=True
        ):
            for name, array in wanted.items():
                exact = array.astype(np.float64)
                noise[name] += float(((exact - got[name]) ** 2).sum())
                power[name] += float((exact**2).sum())
            if self.held.labels is not None:
                answer = got[self.outputs[0]]
                labels = self.held.labels[seen : seen + len(answer)]
                seen += len(labels)
                right += int((answer.reshape(len(answer), -1).argmax(axis=1) == labels).sum())
        relative = {name: noise[name] / max(power[name], _TINY) for name in self.tensors}
        return Judgement(self.outputs, relative, right / seen if seen else None)

    def exact(self) -> Judgement:
        """Judge the float network itself: its accuracy is what a drop is measured from."""
        right, seen = 0, 0
        for wanted in self.wanted:
            answer = wanted[self.outputs[0]]
            if self.held.labels is not None:
                labels = self.held.labels[seen : seen + len(answer)]
                seen += len(labels)
                right += int((answer.reshape(len(answer), -1).argmax(axis=1) == labels).sum())
        return Judgement(self.outputs, dict.fromkeys(self.tensors, 0.0), right / seen if seen else None)


def _bare(model: ir.Model, tensors: tuple[str, ...]) -> ir.Model:
    """Give what makes `tensors`, without the shapes that nothing needs: trials copy and write it often."""
    bare = calibration.observed(model, tensors)
    bare = bare.clone() if bare is model else bare
    read = {value for node in bare.graph if node.op_type in qdq.LAYERS for value in node.inputs}
    for node in bare.graph:
        for value in node.outputs:
            if value not in read:
                value.shape = None
    return bare


def _db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, _TINY)))
