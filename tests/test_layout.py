"""The order in which the data flows: a module imports only what stands above it."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import plan_graphs
import pytest

import se_deploy
from se_deploy import graph
from se_deploy.backends import registry

PACKAGE = Path(se_deploy.__file__).parent
ORDER = [
    "errors", "extras", "collector", "locks", "files", "torch_files", "shipped", "schema", "once", "plan",
    "targets", "roofline", "protocols", "batching", "signature", "npy",
    "options", "onnx_files", "shape_inference", "graph", "opsets", "networks", "frontend", "se_blocks",
    "passes", "data", "calibration", "quantization", "advice", "fusion", "comparison", "backends",
    "verification", "profiling", "deploy", "report", "tables", "sweeps", "commands", "pytest_plugin", "cli",
]  # fmt: skip
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "numpy", "onnx_ir", "matplotlib", "rich")


def modules():
    return sorted(
        path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
    )


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def nodes_of(path):
    """Every node of a module's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"))))


def imported(path):
    for node in nodes_of(path):
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


def dotted(path):
    parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports_of_modules():
    """Every module and the modules that it imports, at the top, for types or when called."""
    paths = {dotted(path): path for path in modules()}
    found = {}
    for name, path in paths.items():
        nodes = [n for n in nodes_of(path) if isinstance(n, ast.ImportFrom)]
        named = {(n.module or "", alias.name) for n in nodes for alias in n.names}
        each = {f"{module}.{one}" if f"{module}.{one}" in paths else module for module, one in named}
        found[name] = (each & paths.keys()) - {name}
    return found


def test_modules_import_each_other_in_no_circle():
    left = dict(imports_of_modules())
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other, or what does: {sorted(left)}"


BACKENDS = tuple(
    f"se_deploy.backends.{path.parent.name}" for path in sorted((PACKAGE / "backends").glob("*/__init__.py"))
)


def test_a_backend_is_imported_by_itself_only():
    for name, needs in imports_of_modules().items():
        reached = {folder for folder in BACKENDS for one in needs if f"{one}.".startswith(f"{folder}.")}
        assert not {folder for folder in reached if not f"{name}.".startswith(f"{folder}.")}, name


def test_nothing_outside_backends_names_one():
    names = set(registry.names()) - {registry.reference().name}  # "torch" is a module's name too
    named = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in modules()
        if part(path) != "backends"
        for node in nodes_of(path)
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not named


def test_temporary_files_are_made_where_a_rerun_cleans_them():
    made = {"TemporaryDirectory", "mkdtemp", "NamedTemporaryFile", "mkstemp"}
    makers = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute) and node.attr in made
    }
    assert makers == {"locks.py", "files.py"}


def test_torch_is_imported_only_where_pytorch_is_the_subject():
    allowed = {"networks", "frontend", "backends"}
    users = {
        part(path)
        for path in modules()
        for node in nodes_of(path)
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "torch" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch")
    }
    assert users <= allowed


def test_help_imports_nothing_heavy():
    commands = [[], ["export"], ["run"], ["inspect"], ["quantize"], ["check"], ["predict"], ["sweep"]]
    code = (
        "import sys\n"
        "from se_deploy.cli import main\n"
        f"for command in {commands!r}:\n"
        "    main([*command, '--help'], standalone_mode=False)\n"
        f"    print(command, [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{command} []" for command in commands]
    assert done.stdout.count("Usage:") == len(commands)


def test_a_look_at_a_file_reads_no_data_and_asks_no_package(tmp_path):
    graph.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    unused = ("torch", "onnxruntime", "tensorrt_rtx", "matplotlib", "PIL", "se_deploy.data")
    code = (
        "import sys\n"
        "from importlib import metadata\n"
        "asked = []\n"
        "metadata.entry_points = lambda **group: asked.append(group) or ()\n"
        "from se_deploy.cli import main\n"
        f"assert main(['inspect', {str(tmp_path / 'net.onnx')!r}], standalone_mode=False) == 0\n"
        f"print([m for m in {unused!r} if m in sys.modules], asked)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] []"
