"""Record what the Python bindings of TensorRT have: tests hold the code and the fake runtime against it.

    python scripts/record_bindings.py [--keep DIR]

One JSON file a version in tests/fixtures/bindings: the module's names, every enumeration with its numbers,
and the members of the classes that this package touches, methods with their parameters and result as the
docstrings give them. The bindings' wheels come from PyPI without the libraries that they need (several GB): a
stub library, made with gcc, has each symbol that is missing and does nothing. So a member that is listed is
there; what it does is not known from this.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "fixtures" / "bindings"
WHEELS = {
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.7": "tensorrt-cu12-bindings==10.7.0",
    "10.13": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4": "tensorrt-cu13-bindings==11.4.0.106",
    "rtx-1.7": "tensorrt-rtx-cu13-bindings==1.7.1.116",
}
"""JetPack 6's, the ends of the line of 10, what has a runtime configuration first, the newest of both."""

CLASSES = (
    "Builder", "Dims", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory",
    "ILogger", "INetworkDefinition", "IOptimizationProfile", "IOutputAllocator", "IPluginRegistry",
    "IProfiler", "IProgressMonitor", "IRuntimeCache", "IRuntimeConfig", "ITensor", "ITimingCache",
    "Logger", "OnnxParser", "OnnxParserRefitter", "ParserError", "Refitter", "Runtime",
)  # fmt: skip
"""Classes that the code touches, or that something it touches gives."""

_DUMP = """
import importlib, inspect, json, sys, warnings
warnings.simplefilter("ignore")
module = importlib.import_module(sys.argv[1])
found = {"version": module.__version__, "names": [], "enums": {}, "classes": {}, "functions": {}}
for name in sorted(n for n in dir(module) if not n.startswith("_")):
    value = getattr(module, name)
    if inspect.ismodule(value):
        continue
    found["names"].append(name)
    if hasattr(value, "__members__"):
        found["enums"][name] = {k: int(v) for k, v in value.__members__.items()}
    elif inspect.isclass(value):
        members = {}
        for member in sorted(m for m in dir(value) if not m.startswith("_")):
            try:
                at = inspect.getattr_static(value, member)
            except AttributeError:
                continue
            bound = getattr(value, member, at)
            members[member] = (bound.__doc__ or "") if callable(bound) else None
        found["classes"][name] = members
    elif callable(value):
        found["functions"][name] = value.__doc__ or ""
print(json.dumps(found))
"""


def main() -> None:
    """Record every version of WHEELS."""
    parser = argparse.ArgumentParser(description="record the members of TensorRT's bindings")
    parser.add_argument("--keep", type=Path, help="folder for the wheels, used again where they are there")
    kept = parser.parse_args().keep
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, requirement in WHEELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = (kept or Path(scratch)) / name
            recorded = record(requirement, folder)
        path = FOLDER / f"{name}.json"
        path.write_text(written(recorded), "utf-8")
        print(f"{path.relative_to(ROOT)}: {requirement}, {path.stat().st_size / 1e3:.0f} kB")


def written(recorded: dict[str, object]) -> str:
    """Return JSON with one class or enumeration a line, so that a diff shows what changed in which."""
    lines = []
    for key, value in recorded.items():
        text = json.dumps(value)
        if isinstance(value, dict):
            inner = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in value.items())
            text = f"{{\n  {inner}\n }}"
        lines.append(f"{json.dumps(key)}: {text}")
    body = ",\n ".join(lines)
    return f"{{\n {body}\n}}\n"


def record(requirement: str, folder: Path) -> dict[str, object]:
    """Return what the bindings of `requirement` have, from their wheel, unpacked in `folder`."""
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "-d", str(folder), requirement], check=True)
        wheels = list(folder.glob("*.whl"))
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder)
    (library,) = folder.glob("tensorrt*_bindings/*.so")
    stubs = folder / "stubs"
    stub(library, stubs)
    environment = os.environ | {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", _DUMP, library.parent.name],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    return {
        "wheel": requirement,
        "version": found["version"],
        "python": platform.python_version(),
        "names": found["names"],
        "enums": found["enums"],
        "classes": {
            name: {member: _signature(doc) for member, doc in found["classes"][name].items()}
            for name in CLASSES
            if name in found["classes"]
        },
        "functions": {name: _signature(doc) for name, doc in found["functions"].items()},
    }


def stub(library: Path, folder: Path) -> None:
    """Write a library for each of TensorRT's that `library` needs; they have its missing symbols."""
    folder.mkdir(exist_ok=True)
    dynamic = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(\S+)\]", dynamic)
    symbols = subprocess.run(
        ["readelf", "-W", "--dyn-syms", library], check=True, capture_output=True, text=True
    ).stdout
    missing = re.findall(r"FUNC\s+GLOBAL\s+DEFAULT\s+UND\s+(\w*(?:Infer|Onnx|PluginRegistry)\w*)\s", symbols)
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in sorted(set(missing))))
    for name in needed:
        if re.match(r"lib(nvinfer|nvonnxparser|tensorrt)", name):
            soname = f"-Wl,-soname,{name}"
            subprocess.run(["gcc", "-shared", "-fPIC", soname, "-o", folder / name, source], check=True)


def _signature(doc: str | None) -> str | None:
    """Return "(cache, ignore_mismatch) -> bool" of a method's docstring; None for an attribute.

    Overloads are joined by " | "; "()" where a method's docstring has no signature.
    """
    if doc is None:
        return None
    lines = re.findall(r"^(?:\d+\. )?\w+\((.*)\)(?: -> (.+))?$", doc, re.MULTILINE)
    shown = [f"({', '.join(_names(taken))}) -> {_short(given or 'None')}" for taken, given in lines]
    return " | ".join(dict.fromkeys(s for s in shown if "*args" not in s)) or "()"


def _names(parameters: str) -> list[str]:
    """Return the names of parameters, without `self`; one with a default keeps a "=" behind it."""
    depth, parts = 0, [""]
    for letter in parameters:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    named = [(part.split(":")[0].strip(), "=" if " = " in part else "") for part in parts if part.strip()]
    return [f"{name}{default}" for name, default in named if name != "self"]


def _short(kind: str) -> str:
    """Return a type's name without the modules in front of it."""
    return re.sub(r"[\w.]+\.(\w+)", r"\1", kind.strip())


if __name__ == "__main__":
    main()
