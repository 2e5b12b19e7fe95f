"""The GPU at hand, as the CUDA runtime of fake_nvidia tells it."""

import fake_nvidia
import pytest

from se_deploy.backends.tensorrt import cuda, gpu
from se_deploy.errors import MissingRuntime


@pytest.fixture
def machine(monkeypatch):
    cudart = fake_nvidia.Cudart()
    monkeypatch.setattr(cuda, "api", lambda: cudart)
    return cudart


def test_it_says_its_name_capability_and_bandwidth(machine):
    found = gpu.here()
    assert (found.name, found.sm) == ("Fake GPU", 90)
    assert found.memory_gb_s == pytest.approx(3352, rel=1e-3)


def test_what_the_driver_does_not_say_is_not_known(machine):
    del machine.attributes[36]
    assert gpu.here().memory_gb_s is None


def test_no_device_no_driver_and_no_bindings_are_no_gpu(machine, monkeypatch):
    machine.count = 0
    assert gpu.here() is None
    machine.count, machine.error = None, fake_nvidia.Error.cudaErrorInsufficientDriver
    assert gpu.here() is None

    def missing():
        raise MissingRuntime("no bindings", hint="")

    monkeypatch.setattr(cuda, "api", missing)
    assert gpu.here() is None
