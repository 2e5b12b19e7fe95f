"""Evaluate a quantized graph by the float network's answers on samples that were not used to make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration
from se_deploy.quantization import qdq

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, Runtime
    from se_deploy.quantization.qdq import QuantizedLayer

_LEAST_POWER = 1e-30  # keeps quotients and logarithms finite: equal tensors have 300 dB


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Noise over signal of each tensor that was compared, and the accuracy where there are labels."""

    outputs: tuple[str, ...]  # of the graph; the other tensors are what its last layers write
    noise: Mapping[str, float]  # power of the error over the power of the tensor
    accuracy: float | None  # of the first output's largest entry, 0 to 1

    def sqnr_db(self) -> dict[str, float]:
        """Return the signal-to-quantization-noise ratio of every output, in dB."""
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
class Evaluator:
    """The float network's answers on the samples held back."""

    held: Samples
    runtime: Runtime
    trunk: ir.Model  # the float network, as far as it is compared, for the layers to be written into
    outputs: tuple[str, ...]
    tensors: tuple[str, ...]  # outputs first
    references: tuple[Mapping[str, Array], ...]  # batch by batch

    @classmethod
    def of(
        cls, model: ir.Model, last: tuple[str, ...], held: Samples, runtime: Runtime, fast: Runtime
    ) -> Evaluator:
        """Return the evaluator after one run of the float network by `fast`.

        `last` are tensors to compare beside the outputs; `runtime` will run the quantized graphs.
        """
        outputs = tuple(str(v.name) for v in model.graph.outputs)
        tensors = tuple(dict.fromkeys((*outputs, *last)))
        references = tuple(calibration.observe(model, tensors, held, fast))
        return cls(held, runtime, _trunk(model, tensors), outputs, tensors, references)

    def layers(self, quantized: Sequence[QuantizedLayer]) -> Evaluation:
        """Return the evaluation of the network with these layers in INT8."""
        return self(qdq.trial(self.trunk, quantized))

    def __call__(self, model: ir.Model) -> Evaluation:
        """Return the evaluation of a whole graph."""
        noise = dict.fromkeys(self.tensors, 0.0)
        power = dict.fromkeys(self.tensors, 0.0)
        answers = []
        for got, reference in zip(
            calibration.observe(model, self.tensors, self.held, self.runtime), self.references, strict=True
        ):
            for name, array in reference.items():
                exact = array.astype(np.float64)
                noise[name] += float(((exact - got[name]) ** 2).sum())
                power[name] += float((exact**2).sum())
            answers.append(got[self.outputs[0]])
        relative = {name: noise[name] / max(power[name], _LEAST_POWER) for name in self.tensors}
        return Evaluation(self.outputs, relative, self._accuracy(answers))

    def exact(self) -> Evaluation:
        """Return the float network's own evaluation: its accuracy is what a drop is measured from."""
        answers = [reference[self.outputs[0]] for reference in self.references]
        return Evaluation(self.outputs, dict.fromkeys(self.tensors, 0.0), self._accuracy(answers))

    def _accuracy(self, answers: Iterable[Array]) -> float | None:
        """Return the share of samples whose largest entry is their label; None without labels."""
        if self.held.labels is None:
            return None
        top = np.concatenate([answer.reshape(len(answer), -1).argmax(axis=1) for answer in answers])
        return float((top == self.held.labels[: len(top)]).mean())


def _trunk(model: ir.Model, tensors: tuple[str, ...]) -> ir.Model:
    """Return what computes `tensors`, without shapes that nothing needs: it is copied often."""
    trunk = calibration.with_outputs(model, tensors)
    trunk = trunk.clone() if trunk is model else trunk
    read = {value for node in trunk.graph if node.op_type in qdq.LAYERS for value in node.inputs}
    for node in trunk.graph:
        for value in node.outputs:
            if value not in read:
                value.shape = None
    return trunk


def _db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, _LEAST_POWER)))
