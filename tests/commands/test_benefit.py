"""Whether INT8 pays where no compiler plans: modelled, timed on a GPU at hand, or said to be unknown."""

import contextlib
import dataclasses
import functools
import json

import numpy as np
import pytest
from chain_graphs import FIRST, conv, float_conv, last, model, pair

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.backends.backend import Backend, SelfCheck
from se_deploy.backends.engine import Engine
from se_deploy.cli.main import main
from se_deploy.commands import benefit, lowering
from se_deploy.options import RewriteOptions
from se_deploy.plan import Kernel, Plan, PlanTensor
from se_deploy.profiling import latency
from se_deploy.protocols import TensorSpec
from se_deploy.targets import resolve_target

INT8 = model(FIRST + " r = Relu(a) " + last("r"), batch=1)
FLOAT = model(float_conv("x", "a") + " r = Relu(a) " + float_conv("r", "y"), batch=1)


def to(backend, *targets):
    return lowering.Destination(backend, tuple(map(resolve_target, targets)), RewriteOptions(names=()))


def device_only():
    """The backend whose compiler plans on its device only."""
    (found,) = [b for b in registry.every() if b.planning is not None and not b.planning.without_device]
    return found


def weighed(backend, *targets, **options):
    half = lowering.half(FLOAT)
    return benefit.weighed(INT8, half, to=to(backend, *targets), planner=None, **options)


def test_without_a_device_published_rules_model_both_plans():
    found = weighed(device_only(), "a10")
    assert found.known
    assert found.device.name == "a10"
    assert "modelled by published fusion rules" in found.reason
    maps = 8 * 14 * 14
    # INT8: quantize 4 + 1, a convolution 1 + 1, one 1 + 4 (the graph's output); FP16: 2 + 2 and 2 + 2
    assert (found.int8.kernels, found.int8.activation_bytes) == (3, 12 * maps)
    assert (found.fp16.kernels, found.fp16.activation_bytes) == (2, 8 * maps)
    assert not found.worth_it


def test_more_layers_pay_for_the_quantizer_at_the_input():
    body = FIRST + "".join(f" r{i} = Relu({a}) " + pair(f"r{i}", f"q{i}") + conv(f"q{i}", f"c{i}")
                           for i, a in enumerate(["a", "c0", "c1", "c2", "c3"]))  # fmt: skip
    deep = model(body + " y = Relu(c4) ", batch=1)
    floats = float_conv("x", "a") + "".join(
        f" r{i} = Relu({a}) " + float_conv(f"r{i}", f"c{i}")
        for i, a in enumerate(["a", "c0", "c1", "c2", "c3"])
    )
    half = lowering.half(model(floats + " y = Relu(c4) ", batch=1))
    found = benefit.weighed(deep, half, to=to(device_only(), "a10"), planner=None)
    assert found.int8.activation_bytes < found.fp16.activation_bytes


def test_no_figures_means_no_roofline():
    found = weighed(device_only())
    assert found.int8_ms is None
    assert "no figures are known" in found.reason


@pytest.mark.parametrize("backend", [None, *[b for b in registry.every() if b.engines is None]])
def test_what_nobody_can_say_is_unknown_and_fails_where_it_is_asked_for(backend):
    found = weighed(backend)
    assert not found.known
    assert found.failures == (found.reason,)
    assert "not known" in found.reason


def test_sizes_that_nobody_named_make_it_unknown():
    free = model(FIRST + " r = Relu(a) " + last("r"))
    for value in free.graph.inputs:
        value.shape = type(value.shape)([1, 8, None, None])
    found = benefit.weighed(free, free, to=to(device_only()), planner=None)
    assert not found.known
    assert "nobody named it" in found.reason


class Session:
    inputs = (TensorSpec("x", np.dtype(np.float32), (1, 8, 14, 14)),)

    def __init__(self, ms):
        self.ms = ms

    def time(self, feeds, calls):
        assert feeds["x"].shape == (1, 8, 14, 14)
        return np.full(calls, self.ms)


class Machine:
    """A compiler and a runtime for the GPU at hand, whose engines take as long as they say."""

    name, device, version = "toy", "toy", "1"

    def __init__(self, int8_ms, fp16_ms):
        self.times = {"int8": int8_ms, "fp16": fp16_ms}

    def build(self, model, options, *, progress):  # noqa: ARG002 - the protocol's
        kind = "int8" if "QuantizeLinear" in graph.ops(model) else "fp16"
        plan = Plan("toy", "1", "sm86", (Kernel("k", "k", (PlanTensor("t", "int8", (9,)),), (), ()),))
        return Engine(kind.encode(), plan, "toy", {}, 0.0)

    def close(self):
        pass

    @contextlib.contextmanager
    def open(self, path):
        yield Session(self.times[path.read_bytes().decode()])


def toy(machine, here="a10"):
    return Backend(
        "toy", "Toy", "-", SelfCheck("", lambda *_: None), runs=frozenset({"engine"}),
        runtime=lambda _: machine,
        engines=dataclasses.replace(
            device_only().engines, compiler=lambda: machine, here=lambda: here and resolve_target(here)
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("int8_ms", "fp16_ms", "pays"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_with_a_gpu_at_hand_it_is_timed_where_asked(int8_ms, fp16_ms, pays, monkeypatch):
    shortly = functools.partial(latency.measure, warmup_ms=1, duration_s=0.05)
    monkeypatch.setattr(latency, "measure", shortly)
    found = weighed(toy(Machine(int8_ms, fp16_ms)), timed=True)
    assert found.worth_it is pays
    assert (found.int8_ms, found.fp16_ms) == (int8_ms, fp16_ms)
    assert found.timed_on == "a10"
    assert "timed" in found.reason


def test_without_a_gpu_or_for_another_it_is_modelled():
    for here, targets in ((None, ()), ("a10", ("orin-nano",))):
        found = weighed(toy(Machine(1.0, 2.0), here), *targets, timed=True)
        assert found.timed_on is None
        assert "modelled" in found.reason


def test_required_benefit_that_nobody_knows_exits_3(tmp_path, capsys):
    graph.save(FLOAT, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((8, 8, 14, 14)).astype(np.float32))
    words = [
        str(tmp_path / "net.onnx"),
        "--calib-data",
        str(tmp_path / "x.npy"),
        "-o",
        str(tmp_path / "q.onnx"),
    ]
    with pytest.raises(SystemExit, match="3"):
        main(["quantize", *words, "--require-benefit"])
    assert "it is not known whether INT8 pays" in capsys.readouterr().err
    assert main(["quantize", *words, "--overwrite", "--json"], standalone_mode=False) in {0, None}
    assert "no runtime was named" in json.loads(capsys.readouterr().out)["worth_unknown"]
