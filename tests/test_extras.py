"""What an install does without is named with the extra that brings it, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import plan_graphs
import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from se_deploy import extras
from se_deploy.errors import MissingRuntime

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def without(*absent, args, cwd):
    """Run a command where Python finds none of the `absent` modules: its exit code, stdout and stderr."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from se_deploy.cli import main\n"
        f"main({list(map(str, args))!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


NEEDS_TORCH = [
    ["networks"],
    ["demo", "-o", "out"],
    ["export", "se_deploy:se_resnet20", "-o", "o.onnx"],
    ["export", "timm:resnet18", "-o", "o.onnx"],
    ["export", "net.pt2", "-o", "o.onnx"],
    ["parity", "se_deploy:se_resnet20", "net.onnx", "--data", "x.npy"],
    ["profile", "net.onnx", "--reference", "se_deploy:se_resnet20"],
]


@pytest.fixture(scope="module")
def said_without_torch(tmp_path_factory):
    """The exit code and the JSON object of each of NEEDS_TORCH, by its words, out of one process."""
    folder = tmp_path_factory.mktemp("without_torch")
    ir.save(plan_graphs.se_net(), folder / "net.onnx")
    for name in ("x.npy", "net.pt2"):
        (folder / name).touch()
    code = (
        "import contextlib, io, json, sys\n"
        "sys.modules['torch'] = None\n"
        "from se_deploy.cli import main\n"
        "said = {}\n"
        f"for words in {NEEDS_TORCH!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        code = main([*words, '--json'], standalone_mode=False)\n"
        "    said[' '.join(words)] = (code, out.getvalue())\n"
        "print(json.dumps(said))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def net(tmp_path):
    ir.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("args", NEEDS_TORCH, ids=" ".join)
def test_what_needs_torch_says_which_extra(args, said_without_torch):
    code, out = said_without_torch[" ".join(args)]
    assert code == 1
    error = json.loads(out)["error"]
    assert error["kind"] == "MissingRuntime"
    assert "needs torch" in error["message"]
    assert error["hint"] == "pip install 'se-deploy[torch]'"


def test_torch_is_asked_for_before_what_builds_engines(tmp_path):
    code, out, _ = without("torch", "tensorrt", "tensorrt_rtx", args=["demo", "--json"], cwd=tmp_path)
    assert code == 1
    assert "needs torch" in json.loads(out)["error"]["message"]


@pytest.mark.parametrize(
    "args",
    [
        ["inspect", "net.onnx"],
        ["export", "net.onnx", "-o", "o.onnx"],
        pytest.param(["doctor"], marks=pytest.mark.slow),  # it tries every runtime, each in its process
    ],
    ids=" ".join,
)
def test_an_onnx_file_needs_no_torch(args, net):
    code, _, err = without("torch", "matplotlib", "timm", "torchvision", args=args, cwd=net.parent)
    assert code == 0, err


def test_without_a_runtime_for_graphs_each_extra_that_brings_one_is_named(net):
    code, out, _ = without("onnxruntime", args=["profile", net, "--json"], cwd=net.parent)
    assert code == 1
    error = json.loads(out)["error"]
    assert error["kind"] == "MissingRuntime"
    assert all(f"'se-deploy[{extra}]'" in error["hint"] for extra in ("cpu", "gpu", "jetson"))


def test_a_module_that_no_extra_brings_stays_a_defect():
    with pytest.raises(ModuleNotFoundError), extras.needed_for("this"):
        import no_such_module  # noqa: F401, PLC0415


def test_a_missing_part_of_an_installed_package_is_not_called_a_missing_package():
    with pytest.raises(ModuleNotFoundError), extras.needed_for("this", {"json": "pip install json"}):
        import json.no_such_part  # noqa: F401, PLC0415


def test_every_command_names_an_extra_that_there_is():
    for module, command in extras.INSTALL.items():
        extra = command.split("[")[1].split("]")[0]
        assert any(module in requirement for requirement in EXTRAS[extra]), module
    with pytest.raises(MissingRuntime), extras.needed_for("this", {"no_such_module": extras.install("cpu")}):
        import no_such_module  # noqa: F401, PLC0415


def test_the_core_and_the_tests_bring_neither_torch_nor_a_runtime():
    outside = ("torch", "onnxruntime", "tensorrt", "cuda", "se-deploy")
    assert not [one for one in PROJECT["dependencies"] + EXTRAS["test"] if one.startswith(outside)]


@pytest.mark.parametrize(
    ("system", "machine", "runtime"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
    ],
)
def test_all_brings_one_onnxruntime_to_every_platform(system, machine, runtime):
    """Two of them share a folder, and the one installed last breaks the other."""
    here = {"sys_platform": system, "platform_machine": machine}
    wanted = [Requirement(text) for text in EXTRAS["all"]]
    taken = [r.name for r in wanted if r.marker is None or r.marker.evaluate({**here, "extra": "all"})]
    assert [name for name in taken if name.startswith("onnxruntime")] == [runtime]


def test_no_extra_of_the_project_itself_stands_behind_a_marker():
    """The build backend writes such a requirement into the metadata without its marker."""
    nested = [
        Requirement(text) for texts in EXTRAS.values() for text in texts if text.startswith("se-deploy[")
    ]
    assert nested
    assert all(requirement.marker is None for requirement in nested)
