"""ONNX Runtime: runs ONNX files, and plans them for its CPU provider."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from se_deploy.backends.backend import Backend, Findings, Form, Planning, SelfCheck, Triton

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from se_deploy.backends.backend import SessionOptions
    from se_deploy.protocols import Planner, Runtime
    from se_deploy.targets import Target

_PROBE = """
import onnxruntime as m
from onnx import TensorProto, helper
m.set_default_logger_severity(4)
value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'g', [value('x')], [value('y')])
opsets = [helper.make_opsetid('', 17)]
model = helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()
options = m.SessionOptions()
options.log_severity_level = 4
works = [p for p in m.get_available_providers() if p == 'CPUExecutionProvider' or
         m.InferenceSession(model, options, providers=[p]).get_providers()[0] == p]
print(json.dumps({'version': m.__version__, 'works': works}))
"""
_EPILOGUES = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu", "Clip", "HardSwish"})
"""What its CPU convolutions compute themselves; it has a kernel apart for anything else."""


def _runtime(options: SessionOptions) -> Runtime:
    from se_deploy.backends.onnxruntime.session import CPU, CUDA, OrtRuntime

    return OrtRuntime(
        threads=options.threads,
        optimize=not options.exact,
        lean=options.lean,
        provider=CUDA if options.device == "cuda" else CPU,
    )


@contextlib.contextmanager
def _planner(target: Target | None) -> Iterator[Planner]:  # noqa: ARG001 - the CPU is its one target
    from se_deploy.backends.onnxruntime.planner import OrtPlanner

    yield OrtPlanner()


def _form() -> Form:
    from se_deploy.fusion import FusionRules
    from se_deploy.passes.registry import Scope

    return Form(
        fusion=FusionRules(
            epilogues=_EPILOGUES,
            fuses_pointwise=False,
            free_copies=("nchwc.Reorder",),  # its blocked layout, which its convolutions want
            wider="its CPU provider has no such kernel",
            respell=None,
        ),
        scope=Scope.LESS_WORK,
        constant_weights=True,
    )


def _read(answer: Mapping[str, Any], gpu: str | None) -> Findings:  # noqa: ARG001 - each provider was tried
    works = [str(provider) for provider in answer["works"]]
    return Findings(
        f"{answer['version']}, providers that start: {', '.join(works)}",
        can_run=tuple(f"ONNX files by ONNX Runtime's {p.removesuffix('ExecutionProvider')}" for p in works),
    )


BACKEND = Backend(
    name="onnxruntime",
    title="ONNX Runtime",
    install="pip install onnxruntime-gpu",
    packages=("onnxruntime-gpu", "onnxruntime"),
    check=SelfCheck(_PROBE, _read),
    runs=frozenset({"onnx"}),
    runtime=_runtime,
    planning=Planning(_planner),
    triton=Triton("onnxruntime_onnx", "onnxruntime", "model.onnx"),
    form=_form,
)
