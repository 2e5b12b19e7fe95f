"""ONNX Runtime: runs ONNX files, and plans them for its CPU provider."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from se_deploy import extras
from se_deploy.backends.backend import Backend, Findings, Form, Planning, SelfCheck, Triton

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from se_deploy.backends.backend import SessionOptions
    from se_deploy.protocols import Planner, Runtime
    from se_deploy.targets import Target

_PROBE = """
import contextlib, io
from importlib.metadata import distributions
import onnxruntime as m
from onnx import TensorProto, helper
m.set_default_logger_severity(4)
value = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node('Relu', ['x'], ['y'])], 'g', [value('x')], [value('y')])
opsets = [helper.make_opsetid('', 17)]
model = helper.make_model(graph, ir_version=8, opset_imports=opsets).SerializeToString()
options = m.SessionOptions()
options.log_severity_level = 4
if 'CUDAExecutionProvider' in m.get_available_providers():
    with contextlib.redirect_stdout(io.StringIO()):
        m.preload_dlls()
there = [p for p in m.get_available_providers() if p != 'AzureExecutionProvider']  # that calls a service
works = [p for p in there if p == 'CPUExecutionProvider' or
         m.InferenceSession(model, options, providers=[p]).get_providers()[0] == p]
installed = sorted({d.name for d in distributions() if (d.name or '').lower().startswith('onnxruntime')})
print(json.dumps({'version': m.__version__, 'works': works, 'installed': installed}))
"""
_DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime")
_INSTALL = {
    "onnxruntime": f"{extras.install('cpu')} or, for an NVIDIA GPU, {extras.install('gpu')}; "
    f"on a Jetson: {extras.install('jetson')}; never two of them"
}
_EPILOGUES = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu", "Clip", "HardSwish"})
"""What its CPU convolutions compute themselves; it has a kernel apart for anything else."""


def _runtime(options: SessionOptions) -> Runtime:
    with extras.needed_for("an ONNX graph", _INSTALL):
        from se_deploy.backends.onnxruntime.session import CPU, CUDA, OrtRuntime

    return OrtRuntime(
        threads=options.threads,
        optimize=not options.exact,
        lean=options.lean,
        provider=CUDA if options.device == "cuda" else CPU,
    )


@contextlib.contextmanager
def _planner(target: Target | None) -> Iterator[Planner]:  # noqa: ARG001 - the CPU is its one target
    with extras.needed_for("a plan for the CPU", _INSTALL):
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
    several = [name for name in answer["installed"] if name in _DISTRIBUTIONS]
    return Findings(
        f"{answer['version']}, providers that start: {', '.join(works)}{_clash(several)}",
        can_run=tuple(f"ONNX files by ONNX Runtime's {p.removesuffix('ExecutionProvider')}" for p in works),
        fix=f"pip uninstall -y {' '.join(several)}, then {_INSTALL['onnxruntime']}" if several[1:] else None,
    )


def _clash(installed: Sequence[str]) -> str:
    """Return what is wrong with several distributions; "" for one."""
    return (
        f"; {' and '.join(installed)} write into one folder: the one installed last is half of each"
        if installed[1:]
        else ""
    )


BACKEND = Backend(
    name="onnxruntime",
    title="ONNX Runtime",
    install=_INSTALL["onnxruntime"],
    packages=_DISTRIBUTIONS,
    check=SelfCheck(_PROBE, _read),
    runs=frozenset({"onnx"}),
    runtime=_runtime,
    planning=Planning(_planner),
    triton=Triton("onnxruntime_onnx", "onnxruntime", "model.onnx"),
    form=_form,
)
