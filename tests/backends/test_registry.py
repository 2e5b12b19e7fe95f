"""What every built-in backend promises by its value, whether or not its library is here."""

import re
import subprocess
import sys

import pytest

from se_deploy.backends import registry
from se_deploy.backends.backend import SessionOptions
from se_deploy.backends.engine import Engine
from se_deploy.errors import BadInput
from se_deploy.plan import Plan

BACKENDS = {backend.name: backend for backend in registry.every()}


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_backend_can_do_what_it_says(backend):
    assert re.search("pip install", backend.install)
    assert (backend.runtime is not None) == bool(backend.runs)
    assert bool(backend.suffixes) == ("engine" in backend.runs)
    if backend.runtime is not None:
        assert backend.runtime(SessionOptions()).name == backend.name
    if backend.planning is not None and backend.planning.decides_rewrites:
        assert backend.planning.without_device
    compile(backend.check.code, backend.name, "exec")
    assert backend.form().policy in registry.policies().values()


@pytest.mark.parametrize("name", [name for name, backend in BACKENDS.items() if backend.engines is not None])
def test_an_engine_comes_with_the_vendors_own_commands(name):
    engines = BACKENDS[name].engines
    built = Engine(b"", Plan(name, "10.3", "sm86", ()), name, {}, 0.0)
    assert "--onnx=net.onnx --saveEngine=net.engine" in engines.command("net.engine", "net.onnx", built)
    assert engines.load_command("net.engine").endswith("--loadEngine=net.engine")
    assert "10.3" in engines.needs("10.3", ["sm86"])


def test_an_engines_ending_says_who_may_run_it():
    assert {backend.name for backend in registry.of_suffix(".engine")} == {"tensorrt-rtx", "tensorrt"}
    assert registry.of_suffix(".onnx") == ()
    with pytest.raises(BadInput, match="ONNX Runtime runs no engines"):
        registry.engine_runtime(registry.get("onnxruntime"))


def test_auto_is_nobodys_name():
    assert registry.chosen("auto") is None
    assert registry.chosen("onnxruntime") is registry.get("onnxruntime")


def test_looking_backends_up_imports_nothing_that_they_run_on():
    code = (
        "import sys\nfrom se_deploy.backends import registry\nlist(registry.every())\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
