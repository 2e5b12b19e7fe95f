"""Evaluate a quantized graph by the float network's answers on samples that were not used to make it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from se_deploy import calibration, data
from se_deploy.quantization import qdq

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

    from se_deploy.data import Samples
    from se_deploy.protocols import Array, FloatArray, Runtime
    from se_deploy.quantization.qdq import QuantizedLayer

_SURE = 1.96  # standard errors of many samples: right 39 times out of 40
_SURE_OF_FEW = (2.4, 2.8)
"""More of them, over the samples less one and over its square, where few samples say how large a standard
error is: the first terms of Student's distribution."""
_LEAST_POWER = 1e-30  # keeps quotients and logarithms finite: equal tensors have 300 dB


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Noise over signal of each tensor that was compared, and the accuracy where there are labels."""

    outputs: tuple[str, ...]  # of the graph; the other tensors are what its last layers write
    noise: Mapping[str, float]  # power of the error over the power of the tensor
    accuracy: float | None  # of the first output's largest entry, 0 to 1
    by_sample_db: FloatArray = field(default_factory=lambda: np.zeros(0))  # (N,) over what `score_db` is of

    def sqnr_db(self) -> dict[str, float]:
        """Return the signal-to-quantization-noise ratio of every output, in dB."""
        return {name: _db(self.noise[name]) for name in self.outputs}

    @property
    def score_db(self) -> float:
        """One number to compare two graphs by: the mean over the last layers' outputs, in dB.

        Not the graph's outputs where there are others: a softmax's are 0 or 1 on most samples, and say how
        the few doubtful ones went.
        """
        return float(np.mean([_db(self.noise[name]) for name in _last(self.noise, self.outputs)]))

    def surely_better(self, plain: Evaluation) -> bool:
        """Whether it beats the plain one on the same samples by more than they differ in saying so."""
        return surely_better([self], [plain])

    @property
    def total_noise(self) -> float:
        """Sum of the relative noise over all tensors: what single layers add up to."""
        return sum(self.noise.values())


def surely_better(tried: Sequence[Evaluation], plain: Sequence[Evaluation]) -> bool:
    """Whether one way beats the plain one by more than the samples differ in saying so.

    Each is evaluated on one part of the samples or more, both on the same ones. Both the whole error and the
    mean over the samples must be better, the latter by about two of its standard errors: few samples with
    large errors decide the former, and often by chance.
    """
    gain = np.concatenate(
        [one.by_sample_db - other.by_sample_db for one, other in zip(tried, plain, strict=True)]
    )
    free = len(gain) - 1
    if free < 1:
        return False
    sure = _SURE + _SURE_OF_FEW[0] / free + _SURE_OF_FEW[1] / free**2
    doubt = float(gain.std()) / np.sqrt(free)
    whole = np.mean([one.score_db for one in tried]) > np.mean([one.score_db for one in plain])
    return bool(whole and gain.mean() > sure * doubt)


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

    def on(self, held: Samples, fast: Runtime) -> Evaluator:
        """Return the evaluator on other samples, after one run of the float network by `fast`."""
        references = tuple(calibration.observe(self.trunk, self.tensors, held, fast))
        return replace(self, held=held, references=references)

    def of_equal(self, model: ir.Model) -> Evaluator:
        """Return the evaluator of a network that computes the tensors compared, equal but for rounding."""
        return replace(self, trunk=_trunk(model, self.tensors))

    def layers(self, quantized: Sequence[QuantizedLayer]) -> Evaluation:
        """Return the evaluation of the network with these layers in INT8."""
        return self(qdq.trial(self.trunk, quantized))

    def __call__(self, model: ir.Model) -> Evaluation:
        """Return the evaluation of a whole graph."""
        noise = dict.fromkeys(self.tensors, 0.0)
        power = dict.fromkeys(self.tensors, 0.0)
        last = _last(self.tensors, self.outputs)
        answers, by_sample = [], []
        for got, reference in zip(
            calibration.observe(model, self.tensors, self.held, self.runtime), self.references, strict=True
        ):
            for name, array in reference.items():
                exact = array.astype(np.float64)
                noise[name] += float(((exact - got[name]) ** 2).sum())
                power[name] += float((exact**2).sum())
            answers.append(got[self.outputs[0]])
            by_sample.append(np.mean([_sample_db(reference[name], got[name]) for name in last], axis=0))
        relative = {name: noise[name] / max(power[name], _LEAST_POWER) for name in self.tensors}
        return Evaluation(self.outputs, relative, self._accuracy(answers), np.concatenate(by_sample))

    def exact(self) -> Evaluation:
        """Return the float network's own evaluation: its accuracy is what a drop is measured from."""
        answers = [reference[self.outputs[0]] for reference in self.references]
        noise = dict.fromkeys(self.tensors, 0.0)
        perfect = np.full(self.held.count, _db(0.0))
        return Evaluation(self.outputs, noise, self._accuracy(answers), perfect)

    def _accuracy(self, answers: Iterable[Array]) -> float | None:
        """Return the share of samples whose largest entry is their label; None without labels that fit."""
        if self.held.labels is None:
            return None
        rows = [answer.reshape(len(answer), -1) for answer in answers]
        if data.doubt(self.held.labels, self.held.counted, rows[0].shape[1]):
            return None
        top = np.concatenate([row.argmax(axis=1) for row in rows])
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


def _last(tensors: Iterable[str], outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tensors that graphs are compared by: those of the last layers, else the outputs."""
    return tuple(name for name in tensors if name not in outputs) or outputs


def _sample_db(exact: Array, got: Array) -> FloatArray:
    """Return the SQNR of each sample, (N,); of the whole where the first axis has no samples."""
    wanted = exact.astype(np.float64).reshape(len(exact) if exact.ndim else 1, -1)
    noise = ((wanted - got.reshape(wanted.shape)) ** 2).sum(axis=1)
    power = np.maximum((wanted**2).sum(axis=1), _LEAST_POWER)
    db: FloatArray = -10 * np.log10(np.maximum(noise / power, _LEAST_POWER))
    return db


def _db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, _LEAST_POWER)))
