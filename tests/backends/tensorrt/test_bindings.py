"""The code and the fake runtime, held against what the real bindings have (scripts/record_bindings.py)."""

import ast
import inspect
import json
import re
from pathlib import Path

import fake_nvidia
import pytest

from backends.tensorrt.bindings_walk import KINDS, Walk
from se_deploy.backends.tensorrt import features, layouts
from se_deploy.options import EngineFeatures

FOLDER = Path(fake_nvidia.RECORDED)
VERSIONS = sorted(path.stem for path in FOLDER.glob("*.json"))
HAS = {version: json.loads((FOLDER / f"{version}.json").read_text("utf-8")) for version in VERSIONS}
SOURCES = Path(features.__file__).parent
RUNNER = SOURCES.parents[1] / "deploy" / "run_engine.py"
"""A script of its own, whose bare names are not bindings but for the module."""

WALKED = [*sorted(p for p in SOURCES.glob("*.py") if re.search(r"\btrt\.\w", p.read_text("utf-8"))), RUNNER]
FAKES = {
    **{version: fake_nvidia.tensorrt(has["version"]) for version, has in HAS.items() if "rtx" not in version},
    "rtx-1.7": fake_nvidia.tensorrt("1.7.1", rtx=True),
}


def walked(text, version, *, bare=frozenset(KINDS)):
    return Walk(HAS[version], bare).run(ast.parse(text))


def test_the_versions_are_those_that_the_code_is_for():
    assert VERSIONS == ["10.13", "10.16", "10.3", "10.7", "11.4", "rtx-1.7"]
    assert {path.name for path in WALKED} >= {"worker.py", "session.py", "loading.py", "outputs.py"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", WALKED, ids=lambda path: path.name)
def test_every_member_that_the_code_uses_is_there(path, version):
    bare = frozenset({"trt"}) if path == RUNNER else frozenset(KINDS)
    found = walked(path.read_text("utf-8"), version, bare=bare)
    assert found.missing == []
    assert found.used


def test_the_walk_sees_what_it_is_to_see():
    used = set().union(*(walked(path.read_text("utf-8"), v).used for path in WALKED for v in VERSIONS))
    assert used >= {
        "module.Builder", "Builder.create_network", "IBuilderConfig.set_timing_cache", "BuilderFlag.TF32",
        "IExecutionContext.set_output_allocator", "ICudaEngine.create_engine_inspector",
        "IRuntimeCache.deserialize", "IPluginRegistry.load_library", "Runtime.engine_host_code_allowed",
        "IRuntimeConfig.set_runtime_cache", "ITimingCache.serialize", "ITensor.allowed_formats",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("builder.platform_has_fast_int8", ["11.4", "rtx-1.7"]),
        ("trt.BuilderFlag.FP16", ["11.4", "rtx-1.7"]),
        ("config.num_compute_capabilities = 1", ["10.13", "10.16", "10.3", "10.7", "11.4"]),
        ("if hasattr(trt, 'ComputeCapability'):\n    config.num_compute_capabilities = 1", []),
        ("while 1:\n    if not hasattr(trt, 'IRuntimeCache'):\n        continue\n    trt.IRuntimeCache", []),
        ("engine.create_runtime_config() if hasattr(trt, 'IRuntimeConfig') else None", []),
        ("engine.create_runtime_config()", ["10.3", "10.7"]),
        ("engine.create_execution_context().set_output_alocator()", VERSIONS),
        ("trt.Runtime(log).deserialise_cuda_engine(x)", VERSIONS),
        ("self._engine.device_memory_size", ["11.4", "rtx-1.7"]),
    ],
)
def test_the_walk_finds_what_a_version_lacks(code, missing):
    assert [version for version in VERSIONS if walked(code, version).missing] == missing


@pytest.mark.parametrize("path", WALKED, ids=lambda path: path.name)
def test_no_binding_goes_by_a_name_that_is_not_walked(path):
    """Every untyped parameter is one of KINDS, or is no binding; so is what a binding's method gives."""
    tree = ast.parse(path.read_text("utf-8"))
    plain = {"send", "severity", "shape", "loaded"}  # a callable, an enum's member, a shape, a dataclass
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            untyped = {
                a.arg for a in function.args.args if ast.unparse(a.annotation or ast.Tuple([])) == "Any"
            }
            assert untyped <= {*KINDS, *plain}, function.name
        if isinstance(function, ast.Assign) and isinstance(function.value, ast.Call):
            for version in VERSIONS:
                given = Walk(HAS[version]).kind(function.value)
                if given not in {None, "Logger"}:  # which is only handed on
                    names = {ast.unparse(t).removeprefix("self.").lstrip("_") for t in function.targets}
                    assert {KINDS.get(name) for name in names} == {given}, ast.unparse(function)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_flag_and_format_by_name_is_there(version):
    flags = {feature.flag for feature in features.FEATURES if feature.flag}
    assert flags <= set(HAS[version]["enums"]["BuilderFlag"])
    assert {*layouts.FORMATS, layouts.LINEAR} <= set(HAS[version]["enums"]["TensorFormat"])
    assert features.level_name("ampere-plus") in HAS[version]["enums"]["HardwareCompatibilityLevel"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_has_what_the_bindings_have_and_no_more(version):
    fake, has = FAKES[version], HAS[version]
    for name, members in has["classes"].items():
        cls = getattr(fake, name, None)
        if cls is None or name in fake_nvidia.INHERITED:
            continue
        assert {m for m in vars(cls) if not m.startswith("_")} <= set(members), name
    for name, members in has["enums"].items():
        assert {m: int(v) for m, v in getattr(fake, name).__members__.items()} == members


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fakes_methods_are_called_as_the_bindings_are(version):
    fake, has = FAKES[version], HAS[version]
    checked = 0
    for name, members in has["classes"].items():
        for member, signature in members.items():
            method = vars(getattr(fake, name, object)).get(member)
            if signature is None or not inspect.isfunction(method):
                continue
            assert any(_takes(method, overload) for overload in signature.split(" | ")), (name, member)
            checked += 1
    assert checked > 30


def _takes(method, overload):
    """Whether a method takes the parameters of an overload, by name and by place."""
    named = [n.rstrip("=") for n in re.match(r"\((.*?)\)", overload)[1].split(", ") if n]
    shape = inspect.signature(method)
    try:
        shape.bind(None, *named)
        shape.bind(None, **dict.fromkeys(named))
    except TypeError:
        return False
    return True


def test_no_member_of_the_fake_is_in_no_version():
    made = fake_nvidia._classes(FAKES["11.4"], None, loads=True, builds=True, starts=True)
    for name, cls in made.items():
        recorded = set().union(*(HAS[version]["classes"].get(name, ()) for version in VERSIONS))
        assert {m for m in vars(cls) if not m.startswith("_")} <= recorded or name in fake_nvidia.INHERITED, (
            name
        )


def test_setting_what_is_not_there_is_refused_as_the_bindings_do():
    config = FAKES["10.13"].Builder(fake_nvidia.ILogger()).create_builder_config()
    with pytest.raises(AttributeError, match="no 'num_compute_capabilities'"):
        config.num_compute_capabilities = 1


def test_cuda_calls_are_those_of_the_real_bindings():
    cudart = pytest.importorskip("cuda.bindings.runtime")
    for path in (SOURCES / "cuda.py", SOURCES / "gpu.py", SOURCES / "session.py", SOURCES / "worker.py"):
        for name in set(re.findall(r"\b(cuda[A-Z]\w+)", path.read_text("utf-8"))) - {"cudaError"}:
            owners = (cudart, cudart.cudaDeviceAttr, cudart.cudaError_t, cudart.cudaMemcpyKind)
            modes = (cudart.cudaStreamCaptureMode,)
            assert any(hasattr(owner, name) for owner in (*owners, *modes)), f"{path.name}: {name}"


def test_nothing_is_asked_for_unasked():
    assert features.flags(EngineFeatures()) == []
