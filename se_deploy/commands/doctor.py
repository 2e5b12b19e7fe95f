"""What this machine can build and run, and the command that installs what is missing.

Every package is imported in a process of its own: a broken one is a line in the diagnosis, not a crash.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from se_deploy.schema import tool_version
from se_deploy.schema.results import Doctor, Finding

_TIMEOUT_S = 120  # a cold import of torch from a slow disk

_VERSION = "import {module} as m; print(json.dumps({{'version': getattr(m, '__version__', '')}}))"
_INSTALLED = "from importlib.metadata import version as v; print(json.dumps({{'version': v('{package}')}}))"
_PROBES = {
    "torch": _VERSION.format(module="torch"),
    "onnx": _VERSION.format(module="onnx"),
    "onnx-ir": _VERSION.format(module="onnx_ir"),
    "onnxsim": _VERSION.format(module="onnxsim"),
    "timm": _INSTALLED.format(package="timm"),
    "torchvision": _INSTALLED.format(package="torchvision"),
    "onnxruntime": """
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
""",
    "tensorrt-rtx": """
import tensorrt_rtx as m
targets = [n.lower() for n in m.ComputeCapability.__members__ if n.startswith('SM')]
print(json.dumps({'version': m.__version__, 'targets': targets}))
""",
    "tensorrt": """
import tensorrt as m
strong = hasattr(m.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED')
print(json.dumps({'version': m.__version__, 'strongly_typed': strong}))
""",
    "gpu": """
from cuda.bindings import runtime as m
error, count = m.cudaGetDeviceCount()
ok = error == m.cudaError_t.cudaSuccess and count
kinds = m.cudaDeviceAttr
major, minor = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
sm = ''.join(str(m.cudaDeviceGetAttribute(k, 0)[1]) for k in (major, minor)) if ok else None
name = m.cudaGetDeviceProperties(0)[1].name if ok else None
name = name.decode().rstrip(chr(0)) if isinstance(name, bytes) else name
print(json.dumps({'error': error.name, 'count': count or 0, 'sm': sm, 'name': name}))
""",
}

_INSTALL = {
    "torch": "pip install torch",
    "onnx": "pip install onnx",
    "onnx-ir": "pip install onnx-ir",
    "onnxsim": "pip install onnxsim",
    "timm": "pip install 'se-deploy[zoo]'",
    "torchvision": "pip install 'se-deploy[zoo]'",
    "onnxruntime": "pip install onnxruntime-gpu",
    "tensorrt-rtx": "pip install 'tensorrt-rtx>=1.7'",
    "tensorrt": "pip install 'se-deploy[tensorrt]'",
    "gpu": "install the NVIDIA driver; pip install cuda-bindings",
}
_JETSON_TENSORRT = (
    "sudo apt-get install python3-libnvinfer, then a virtual environment that sees it: "
    "python3 -m venv --system-site-packages .venv, with the system's own python3"
)
_JETPACK = {35: "5.1", 36: "6", 38: "7.0/7.1", 39: "7.2"}


@dataclass(frozen=True, slots=True)
class Probe:
    """What one process found: its answer, or the last line of its complaint."""

    answer: dict[str, Any] | None
    complaint: str = ""


def diagnose() -> Doctor:
    """Look at this machine: packages, providers, devices. Takes the time of importing torch once."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        found = dict(zip(_PROBES, pool.map(_probe, _PROBES.values()), strict=True))
    return conclude(found, jetson=_jetpack(Path("/etc/nv_tegra_release")))


def conclude(found: dict[str, Probe], *, jetson: str | None = None) -> Doctor:
    """Draw the conclusions from what every probe found; `jetson`: the JetPack's name, where it is one."""
    checks = [Finding(name="machine", state="ok", detail=_machine(jetson))]
    checks += [_check(name, probe, jetson) for name, probe in found.items()]
    build, run = [], []
    rtx, full, ort, gpu = (found[n].answer for n in ("tensorrt-rtx", "tensorrt", "onnxruntime", "gpu"))
    has_gpu = gpu is not None and gpu["count"] > 0
    if rtx is not None:
        build.append(f"TensorRT-RTX {rtx['version']} engines for {', '.join(rtx['targets'])}, without a GPU")
    if full is not None and full["strongly_typed"] and gpu is not None and has_gpu:
        build.append(f"TensorRT {full['version']} engines for this machine's {gpu['name']}")
    if ort is not None:
        run += [f"ONNX files by ONNX Runtime's {p.removesuffix('ExecutionProvider')}" for p in ort["works"]]
    if has_gpu:
        run += [f"{title} engines" for title, a in (("TensorRT-RTX", rtx), ("TensorRT", full)) if a]
    if found["torch"].answer is not None:
        run.append("networks by PyTorch")
    return Doctor(
        tool_version=tool_version(),
        warnings=(),
        checks=tuple(checks),
        can_build=tuple(build),
        can_run=tuple(run),
    )


def _probe(code: str) -> Probe:
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import json\n{code}"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(None, f"it did not answer within {_TIMEOUT_S} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return Probe(json.loads(lines[-1]))
    words = done.stderr.strip().splitlines() or [f"it ended with exit status {done.returncode}"]
    return Probe(None, words[-1])


def _check(name: str, probe: Probe, jetson: str | None) -> Finding:
    answer = probe.answer
    fix = _JETSON_TENSORRT if name == "tensorrt" and jetson else _INSTALL[name]
    if answer is None:
        missing = any(word in probe.complaint for word in ("No module named", "PackageNotFound"))
        state: Literal["missing", "broken"] = "missing" if missing else "broken"
        return Finding(name=name, state=state, detail=probe.complaint, fix=fix)
    if name == "gpu":
        if answer["count"]:
            return Finding(name=name, state="ok", detail=f"{answer['name']}, sm{answer['sm']}")
        complaint = f"no NVIDIA device can be used ({answer['error']})"
        return Finding(name=name, state="missing", detail=complaint, fix=fix)
    extra = ""
    if "works" in answer:
        extra = f", providers that start: {', '.join(answer['works'])}"
    if "targets" in answer:
        extra = f", builds for {', '.join(answer['targets'])}"
    if answer.get("strongly_typed") is False:
        complaint = f"{answer['version']}: no strongly typed networks"
        return Finding(name=name, state="broken", detail=complaint, fix="use TensorRT 10.3+")
    return Finding(name=name, state="ok", detail=f"{answer['version']}{extra}")


def _machine(jetson: str | None) -> str:
    words = [platform.platform(), f"Python {platform.python_version()}", f"{os.cpu_count()} cores"]
    return ", ".join([*words, jetson] if jetson else words)


def _jetpack(release: Path) -> str | None:
    """Read "# R36 (release), REVISION: 4.3, ..." as JetPack and L4T."""
    if not release.is_file():
        return None
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release.read_text("utf-8"))
    if match is None:
        return "Jetson of an unknown release"
    l4t = f"L4T {match[1]}.{match[2]}"
    jetpack = _JETPACK.get(int(match[1]))
    return f"JetPack {jetpack} ({l4t})" if jetpack else l4t
