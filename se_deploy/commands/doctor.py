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
from typing import TYPE_CHECKING, Any, Literal

from se_deploy import extras
from se_deploy.backends import registry
from se_deploy.backends.backend import Backend
from se_deploy.errors import SeDeployError, counted
from se_deploy.schema import tool_version
from se_deploy.schema.results import Doctor, Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from se_deploy.backends.backend import Findings

_TIMEOUT_S = 120  # a cold import of torch from a slow disk

_VERSION = "import {module} as m; print(json.dumps({{'version': getattr(m, '__version__', '')}}))"
_INSTALLED = "from importlib.metadata import version as v; print(json.dumps({{'version': v('{package}')}}))"
_PACKAGES = {
    "onnx": (_VERSION.format(module="onnx"), "pip install onnx"),
    "onnx-ir": (_VERSION.format(module="onnx_ir"), "pip install onnx-ir"),
    "onnxsim": (_VERSION.format(module="onnxsim"), "pip install onnxsim"),
    **{
        name: (_INSTALLED.format(package=name), extras.INSTALL[name])
        for name in ("onnxscript", "safetensors", "timm", "torchvision", "matplotlib")
    },
}
"""What is needed besides backends: how to look for it, and how to install it."""

_GPU = "gpu"
_GPU_PROBE = """
from cuda.bindings import runtime as m
error, count = m.cudaGetDeviceCount()
ok = error == m.cudaError_t.cudaSuccess and count
kinds = m.cudaDeviceAttr
major, minor = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
sm = ''.join(str(m.cudaDeviceGetAttribute(k, 0)[1]) for k in (major, minor)) if ok else None
name = m.cudaGetDeviceProperties(0)[1].name if ok else None
name = name.decode().rstrip(chr(0)) if isinstance(name, bytes) else name
driver, bindings = m.cudaDriverGetVersion()[1], m.cudaRuntimeGetVersion()[1]
print(json.dumps({'error': error.name, 'count': count or 0, 'sm': sm, 'name': name, 'driver': driver,
                  'bindings': bindings}))
"""
_BINDINGS = f"{extras.install('gpu')}; on a Jetson: {extras.install('jetson')}"
_DRIVER = "install the NVIDIA driver"
_OLD_DRIVER = "cudaErrorInsufficientDriver"
"""What the bindings answer where the driver is older than they are, and where there is none."""
_JETPACK = {35: "5.1", 36: "6", 38: "7.0/7.1", 39: "7.2"}


@dataclass(frozen=True, slots=True)
class Probe:
    """What one process found: its answer, or the last line of its complaint."""

    answer: dict[str, Any] | None
    complaint: str = ""


def doctor() -> Doctor:
    """Look at this machine: packages, backends, devices. Takes the time of importing torch once."""
    names = registry.names()
    loaded = {name: _loaded(name) for name in names}
    codes = {name: code for name, (code, _) in _PACKAGES.items()}
    codes |= {name: one.check.code for name, one in loaded.items() if isinstance(one, Backend)}
    codes[_GPU] = _GPU_PROBE
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        found = dict(zip(codes, pool.map(_probe, codes.values()), strict=True))
    return conclude(found, loaded, jetson=_jetpack(Path("/etc/nv_tegra_release")))


def _loaded(name: str) -> Backend | SeDeployError:
    try:
        return registry.get(name)
    except SeDeployError as e:
        return e


def conclude(
    found: Mapping[str, Probe],
    backends: Mapping[str, Backend | SeDeployError],
    *,
    jetson: str | None = None,
) -> Doctor:
    """Draw the conclusions from what every probe found.

    `backends`: by name, or why one could not be loaded; `jetson`: the JetPack's name, where it is one.
    """
    checks = [Finding(name="machine", state="ok", detail=_machine(jetson))]
    checks += [_package(name, found[name]) for name in _PACKAGES]
    answer = found[_GPU].answer
    gpu = str(answer["name"]) if answer and answer["count"] else None
    build: list[str] = []
    run: list[str] = []
    for name, backend in backends.items():
        if isinstance(backend, SeDeployError):
            checks.append(Finding(name=name, state="broken", detail=backend.message, fix=backend.hint))
            continue
        check, findings = _backend(backend, found[name], gpu, jetson)
        checks.append(check)
        if findings is not None:
            build += findings.can_build
            run += findings.can_run
    checks.append(_gpu(found[_GPU]))
    return Doctor(
        tool_version=tool_version(),
        warnings=(),
        checks=tuple(checks),
        can_build=tuple(build),
        can_run=tuple(run),
        gpus=_gpus(found[_GPU]),
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


def _package(name: str, probe: Probe) -> Finding:
    if probe.answer is None:
        return _absent(name, probe.complaint, _PACKAGES[name][1])
    return Finding(name=name, state="ok", detail=str(probe.answer["version"]))


def _backend(
    backend: Backend, probe: Probe, gpu: str | None, jetson: str | None
) -> tuple[Finding, Findings | None]:
    if probe.answer is None:
        fix = (backend.install_on_jetson if jetson else None) or backend.install
        return _absent(backend.name, probe.complaint, fix), None
    findings = backend.check.read(probe.answer, gpu)
    state: Literal["ok", "broken"] = "ok" if findings.fix is None else "broken"
    return Finding(name=backend.name, state=state, detail=findings.detail, fix=findings.fix), findings


def _gpu(probe: Probe) -> Finding:
    answer = probe.answer
    if answer is None:
        return _absent(_GPU, probe.complaint, _BINDINGS)
    if answer["count"]:
        return Finding(name=_GPU, state="ok", detail=f"{answer['name']}, sm{answer['sm']}")
    driver, bindings = (_cuda(answer[of]) for of in ("driver", "bindings"))
    if answer["error"] == _OLD_DRIVER and answer["driver"]:
        complaint = f"the driver (CUDA up to {driver}) is too old for the bindings (CUDA {bindings})"
        fix = f"pip install 'cuda-bindings=={driver.partition('.')[0]}.*', or install a newer driver"
        return Finding(name=_GPU, state="broken", detail=complaint, fix=fix)
    if not answer["driver"]:
        return Finding(name=_GPU, state="missing", detail="no NVIDIA driver", fix=_DRIVER)
    complaint = f"no NVIDIA device can be used ({answer['error']})"
    return Finding(name=_GPU, state="missing", detail=complaint, fix=_DRIVER)


def _gpus(probe: Probe) -> int:
    return int(probe.answer["count"]) if probe.answer else 0


def _cuda(version: int) -> str:
    """Return a CUDA version as people write it: 12060 is 12.6."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _absent(name: str, complaint: str, fix: str) -> Finding:
    missing = any(word in complaint for word in ("No module named", "PackageNotFound"))
    return Finding(name=name, state="missing" if missing else "broken", detail=complaint, fix=fix)


def _machine(jetson: str | None) -> str:
    words = [platform.platform(), f"Python {platform.python_version()}", counted(os.cpu_count() or 1, "core")]
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
