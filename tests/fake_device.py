"""A device for scripts that run in a process of their own: a TensorRT and a CUDA runtime library in a folder.

The library is C, so that a call with the wrong types fails here as it would there; its device memory is host
memory. The TensorRT module is fake_nvidia's with an engine that computes what `use_graphs.MEANS` does;
an engine file with "scalar" in it has a second input.
"""

# ruff: noqa: ARG002 - the bindings' own parameters, by their own names
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import fake_nvidia
import numpy as np
import pytest

CC = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: the CUDA library cannot be made")

CUDART = """
#include <stdlib.h>
#include <string.h>
static size_t taken = 0;
int cudaMalloc(void **pointer, size_t size) {
    const char *limit = getenv("FAKE_DEVICE_BYTES");
    if (limit && size > strtoull(limit, 0, 10)) return 2;
    *pointer = malloc(size); taken++; return 0;
}
int cudaFree(void *pointer) { free(pointer); taken--; return 0; }
int cudaMemcpy(void *target, const void *source, size_t size, int kind) {
    if (kind != 1 && kind != 2) return 1;
    memcpy(target, source, size); return 0;
}
size_t fake_taken(void) { return taken; }
"""

MODULE = """
import sys
import fake_device
module = fake_device.tensorrt(__name__, "{version}")
globals().update(vars(module))
"""


SIDES = (3, 8, 8)


class Classifier(fake_nvidia.ICudaEngine):
    """x: (N, 3, 8, 8) -> y: (N, 3), four times the mean of each channel, for N from 1 to 4."""

    def get_tensor_shape(self, name):
        return (-1, *SIDES) if name == "x" else (-1, 3)

    def create_execution_context(self, strategy=None, runtime_config=None):
        return Context(self._trt, None)


class Scaled(Classifier):
    """The same with a second input, a scalar that the scores are multiplied with."""

    num_io_tensors = 3

    def get_tensor_name(self, index):
        return ("x", "gain", "y")[index]

    def get_tensor_mode(self, name):
        modes = self._trt.TensorIOMode
        return modes.OUTPUT if name == "y" else modes.INPUT

    def get_tensor_shape(self, name):
        return () if name == "gain" else super().get_tensor_shape(name)

    def create_execution_context(self, strategy=None, runtime_config=None):
        return ScaledContext(self._trt, None)


class Context(fake_nvidia.IExecutionContext):
    def set_input_shape(self, name, shape):
        fits = 1 <= shape[0] <= 4 and tuple(shape[1:]) == SIDES
        self._shape = shape if fits else self._shape
        return fits

    def get_tensor_shape(self, name):
        return (self._shape[0], *SIDES) if name == "x" else (self._shape[0], 3)

    def execute_async_v3(self, stream_handle):
        assert stream_handle == 0
        batch = self._shape[0]
        x = np.ctypeslib.as_array((ctypes.c_float * (batch * 192)).from_address(self._address["x"]))
        y = np.ctypeslib.as_array((ctypes.c_float * (batch * 3)).from_address(self._address["y"]))
        y[:] = 4 * x.reshape(batch, 3, 64).mean(axis=2).ravel()
        return True


class ScaledContext(Context):
    def set_input_shape(self, name, shape):
        return tuple(shape) == () if name == "gain" else super().set_input_shape(name, shape)

    def execute_async_v3(self, stream_handle):
        done = super().execute_async_v3(stream_handle)
        y = np.ctypeslib.as_array((ctypes.c_float * (self._shape[0] * 3)).from_address(self._address["y"]))
        y *= ctypes.c_float.from_address(self._address["gain"]).value
        return done


def tensorrt(name, version):
    """The module, for scripts that make a `trt.Logger` of their own."""
    trt = types.ModuleType(name)
    made = fake_nvidia.tensorrt(version, rtx=name == "tensorrt_rtx")
    vars(trt).update({k: v for k, v in vars(made).items() if not k.startswith("__")})
    trt.__version__ = version
    held = fake_nvidia.recorded(version, rtx=name == "tensorrt_rtx")["classes"]

    class Logger(fake_nvidia.ILogger):
        def __init__(self, least):
            self.least = least

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log):
            assert log.least == Logger.ERROR

        def deserialize_cuda_engine(self, serialized_engine):
            if serialized_engine.endswith(b"stale"):
                return None
            if b"lean" in serialized_engine and not self.engine_host_code_allowed:
                return None
            kind = Scaled if b"scalar" in serialized_engine else Classifier
            return fake_nvidia.held(kind, held["ICudaEngine"])(trt, None)

    trt.Logger, trt.Runtime = Logger, fake_nvidia.held(Runtime, held["Runtime"])
    return trt


def make(folder: Path, *, module="tensorrt", version="10.3.0") -> dict[str, str]:
    """Lay the device out in `folder`; give the environment of a script that runs on it."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(MODULE.format(version=version))
    (folder / "cudart.c").write_text(CUDART)
    library = folder / "libcudart.so.12"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "cudart.c"], check=True)
    paths = os.pathsep.join([str(folder), str(Path(__file__).parent)])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(folder)}


def run(script: Path, *words: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script where no se_deploy can be imported."""
    code = (
        "import runpy, sys\n"
        "sys.modules['se_deploy'] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(script), *map(str, words)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
