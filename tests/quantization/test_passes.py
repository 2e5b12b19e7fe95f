"""What a quantization costs, by what can be counted: graphs loaded, and samples that are run through them."""

import contextlib
from dataclasses import dataclass, field

import pytest
from ptq_graphs import dataset, network

from se_deploy import batching, quantization
from se_deploy.backends import registry
from se_deploy.backends.onnxruntime.session import OrtRuntime

CHOICES = 3  # evaluated on samples held back: weights rounded to nearest, by GPTQ, and with other biases
FLOAT_PASSES = 4  # reference of the samples held back, statistics, GPTQ's moments, mean outputs for biases


@dataclass
class Counting:
    """ONNX Runtime, and how many samples each graph that it loads is run on."""

    optimize: bool
    samples: list[int] = field(default_factory=list)

    @property
    def name(self):
        return "counting"

    @property
    def device(self):
        return "cpu"

    @contextlib.contextmanager
    def open(self, artifact):
        number = len(self.samples)
        self.samples.append(0)
        with OrtRuntime(threads=1, optimize=self.optimize, lean=self.optimize).open(artifact) as session:
            yield Counted(session, self.samples, number)


@dataclass
class Counted:
    session: object
    samples: list[int]
    number: int

    def run(self, feeds):
        self.samples[self.number] += batching.rows({k: a for k, a in feeds.items() if a.ndim})
        return self.session.run(feeds)


@pytest.mark.parametrize("form", ["tensorrt", "portable"])
def test_the_data_is_run_a_few_times_and_each_layer_once_on_its_own(tmp_path, form):
    float_runs, int8_runs = Counting(optimize=True), Counting(optimize=False)
    samples = dataset(tmp_path)
    made = quantization.quantize(
        network(),
        samples,
        runtime=int8_runs,
        fast=float_runs,
        options=quantization.QuantizeOptions(policy=registry.policy(form)),
    )
    layers = sum(node.op_type in {"Conv", "Gemm", "MatMul"} for node in made.model.graph)
    assert len(float_runs.samples) == FLOAT_PASSES
    assert len(int8_runs.samples) <= CHOICES + layers
    # One sample more where the size of a batch is found by running it.
    assert max(float_runs.samples + int8_runs.samples) <= made.samples + 1
