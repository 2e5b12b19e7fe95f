"""The order in which the data flows: a module imports only what stands above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import se_deploy

PACKAGE = Path(se_deploy.__file__).parent
ORDER = [
    "errors", "files", "shipped", "schema", "plan", "targets", "roofline", "protocols", "batching",
    "signature",
    "options", "graph", "networks", "frontend", "se_blocks", "passes", "data", "calibration", "quantization",
    "advice", "fusion", "comparison", "backends", "verification",
    "profiling", "deploy", "report", "commands", "pytest_plugin", "cli",
]  # fmt: skip
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "numpy", "onnx_ir", "matplotlib", "rich")


def modules():
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
    )


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "se_deploy":
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from (
                name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
            )


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up(path):
    own = ORDER.index(part(path))
    below = {name for name in imported(path) if ORDER.index(name) > own}
    assert not below, f"{part(path)} imports {sorted(below)}, which come after it"


def test_every_module_has_its_place():
    assert {part(path) for path in modules()} <= set(ORDER)


def test_torch_is_imported_only_where_pytorch_is_the_subject():
    allowed = {"networks", "frontend", "backends"}
    users = {
        part(path)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "torch" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch")
    }
    assert users <= allowed


@pytest.mark.parametrize(
    "command", [[], ["export"], ["run"], ["inspect"], ["quantize"], ["check"], ["predict"]]
)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\n"
        "from se_deploy.cli import main\n"
        f"main({[*command, '--help']!r}, standalone_mode=False)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage:" in done.stdout
