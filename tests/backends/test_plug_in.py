"""A backend from a package that is not ours: one entry point, and every command knows it."""

import json
import shutil
import textwrap

import numpy as np
import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends import registry
from se_deploy.cli import main
from se_deploy.commands import doctor
from se_deploy.errors import BadInput, MissingRuntime

TOY = '''
"""Runs .toy files, which are ONNX files; plans one kernel a node."""

import contextlib

from se_deploy.backends.backend import Backend, Findings, Planning, SelfCheck
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.plan import Kernel, Plan, PlanTensor


class Runtime:
    name, device = "toy", "toy device"

    def open(self, artifact):
        return OrtRuntime(threads=1).open(artifact)


class Planner:
    def plan(self, model):
        return Plan("toy", "3.1", "toy-target", tuple(kernel(node) for node in model.graph))


def kernel(node):
    inputs, outputs = (tuple(PlanTensor(v.name, "float32", (-1, 1)) for v in ends if v is not None)
                       for ends in (node.inputs, node.outputs))
    return Kernel(node.name, node.op_type, inputs, outputs, (node.name,))


@contextlib.contextmanager
def planner(target):
    yield Planner()


BACKEND = Backend(
    name="toy",
    title="Toy",
    install="pip install toy-compiler",
    check=SelfCheck(
        "print(json.dumps({'version': '3.1'}))",
        lambda answer, gpu: Findings(answer["version"], can_run=("toys by Toy",)),
    ),
    runs=frozenset({"engine"}),
    runtime=lambda options: Runtime(),
    suffixes=(".toy",),
    planning=Planning(planner),
)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    def install(code, name="toy"):
        site = tmp_path / "site"
        info = site / "toy_compiler-3.1.dist-info"
        info.mkdir(parents=True)
        (site / "toy_compiler.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-compiler\nVersion: 3.1\n")
        (info / "entry_points.txt").write_text(f"[se_deploy.backends]\n{name} = toy_compiler:BACKEND\n")
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(__import__("sys").modules, "toy_compiler", raising=False)
        registry.forget()

    yield install
    monkeypatch.undo()
    registry.forget()


@pytest.fixture
def files(tmp_path):
    onnx, toy, data = tmp_path / "net.onnx", tmp_path / "net.toy", tmp_path / "x.npy"
    graph.save(plan_graphs.se_net(), onnx)
    shutil.copy(onnx, toy)
    np.save(data, np.random.default_rng(0).standard_normal((4, 32, 14, 14), np.float32))
    return onnx, toy, data


@pytest.fixture
def se_deploy(capsys):
    def run(*words):
        assert main([str(word) for word in (*words, "--json")], standalone_mode=False) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_commands_use_it(install, files, se_deploy):
    onnx, toy, data = files
    install(TOY)
    (plan,) = se_deploy("inspect", onnx, "--plan", "--runtime", "toy")["plans"]
    assert (plan["runtime"], plan["version"], plan["target"]) == ("toy", "3.1", "toy-target")
    assert len(plan["blocks"]) == 1
    assert "toy" in {plan["runtime"] for plan in se_deploy("inspect", onnx, "--plan")["plans"]}
    (candidate,) = se_deploy("parity", onnx, toy, "--data", data)["candidates"]
    assert (candidate["passed"], candidate["evaluated"]) == (True, "engine")
    (timed,) = se_deploy("profile", toy, "--duration-s", 0, "--warmup-ms", 0)["artifacts"]
    assert (timed["runtime"], timed["device"]) == ("toy", "toy device")


def test_doctor_knows_it(install, monkeypatch, se_deploy):
    monkeypatch.setattr(registry, "_BUILT_IN", ())  # importing torch once more would say nothing of the toy
    monkeypatch.setattr(doctor, "_PACKAGES", {})
    install(TOY)
    found = se_deploy("doctor")
    check = next(check for check in found["checks"] if check["name"] == "toy")
    assert (check["state"], check["detail"]) == ("ok", "3.1")
    assert "toys by Toy" in found["can_run"]


def test_it_is_a_choice_without_being_imported(install, capsys):
    install("raise AssertionError('a choice needs no import')")
    assert "toy" in registry.choices()
    assert main(["inspect", "--help"], standalone_mode=False) == 0
    assert "|toy]" in capsys.readouterr().out


def test_one_that_fails_is_named_and_stops_no_command(install, files, se_deploy):
    onnx, *_ = files
    install("import no_such_module")
    with pytest.raises(MissingRuntime, match="'toy' of the package 'toy-compiler' cannot be loaded"):
        registry.get("toy")
    found = se_deploy("inspect", onnx, "--plan")
    assert "onnxruntime" in {plan["runtime"] for plan in found["plans"]}
    assert any("no plan from toy" in warning for warning in found["warnings"])


def test_a_value_that_is_no_backend_is_refused(install):
    install("BACKEND = 3")
    with pytest.raises(MissingRuntime, match="brings no backend 'toy'"):
        registry.get("toy")


def test_no_package_replaces_a_built_in_one(install):
    install(TOY.replace('name="toy"', 'name="onnxruntime"'), name="onnxruntime")
    assert registry.get("onnxruntime").title == "ONNX Runtime"


def test_an_unknown_name_lists_the_known():
    with pytest.raises(BadInput) as caught:
        registry.get("none")
    assert "onnxruntime" in caught.value.hint
    with pytest.raises(BadInput, match="'torch' is no runtime"):
        registry.chosen("torch")
