"""Judge a quantized graph by the float network's answers on samples that were not used to make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, Runtime

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
        """One number to compare two graphs by: the mean over outputs and last layers, in dB.

        The last layers' own outputs count because a softmax's are 0 or 1 on most samples: alone, they say
        how the few doubtful samples went.
        """
        return float(np.mean([_db(value) for value in self.noise.values()]))

    @property
    def total_noise(self) -> float:
        """Sum of the relative noise over all tensors: what single layers add up to."""
        return sum(self.noise.values())


@dataclass(frozen=True, slots=True)
class Judge:
    """The float network's answers on the samples held back."""

    held: Samples
    runtime: Runtime
    outputs: tuple[str, ...]
    tensors: tuple[str, ...]  # outputs first
    wanted: tuple[Mapping[str, Array], ...]  # batch by batch

    @classmethod
    def of(cls, model: ir.Model, last: tuple[str, ...], held: Samples, runtime: Runtime) -> Judge:
        """Run the float network once; `last` are tensors to compare beside the outputs."""
        outputs = tuple(str(v.name) for v in model.graph.outputs)
        tensors = tuple(dict.fromkeys((*outputs, *last)))
        wanted = tuple(calibration.observe(model, tensors, held, runtime))
        return cls(held, runtime, outputs, tensors, wanted)

    def __call__(self, model: ir.Model) -> Judgement:
        """Compare `model`."""
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


def _db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, _TINY)))
