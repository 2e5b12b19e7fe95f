"""A step that changes the answers is found, taken back where that helps, and never leaves with exit 0."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import needs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import use_graphs

from se_deploy import graph
from se_deploy.backends.onnxruntime.session import OrtRuntime
from se_deploy.cli import main
from se_deploy.commands import fp16, source, verifying
from se_deploy.commands.export import export, to_schema
from se_deploy.commands.run_result import RunResult
from se_deploy.frontend import simplify
from se_deploy.options import CalibrationOptions, RewriteOptions, TargetOptions
from se_deploy.passes import canonical, registry
from se_deploy.quantization import Fp16
from se_deploy.verification import Failure, Verified
from se_deploy.verification.verdict import NOT_FINITE

AVERAGE_POOL = "squeeze-average-pool"


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A file with one SE block whose squeeze is spelled as a mean, in the working directory."""
    monkeypatch.chdir(tmp_path)
    text = use_graphs.SE.replace("p = GlobalAveragePool(r)", "p = ReduceMean<axes = [2, 3]>(r)")
    graph.save(use_graphs.model(text), tmp_path / "net.onnx")
    return tmp_path


def doubled(model):
    """Double the network's answers: the last Gemm's factor."""
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    gemm.attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
    return 1


def answers(path, x):
    with OrtRuntime(threads=1, optimize=False).open(path) as session:
        return session.run({session.inputs[0].name: x})["y"]


def same(net, made):
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    np.testing.assert_allclose(answers(made, x), answers(net / "net.onnx", x), rtol=1e-5, atol=1e-6)


def run(capsys, *words):
    code = main([str(word) for word in words], standalone_mode=False)
    out, err = capsys.readouterr()
    return code or 0, out, err


def test_what_is_right_passes_and_says_on_which_inputs(net):
    result = export("net.onnx", net / "out.onnx")
    assert result.verified.passed
    assert not result.verified.taken_back
    assert {(one.name, one.dims[0]) for one in result.verified.inputs} == {("x", 2), ("x", 3)}
    assert to_schema(result).verified.passed is True
    assert to_schema(result).max_abs_error < 1e-5
    assert result.warnings == ()


def test_a_simplifier_that_changes_the_answers_is_taken_back(net, monkeypatch):
    doubling = "model.graph.node[-1].attribute.add(name='alpha', f=2.0, type=1)"
    bad = simplify._SIMPLIFY.replace("onnx.save(", f"{doubling}\nonnx.save(")
    monkeypatch.setattr(simplify, "_SIMPLIFY", bad)
    result = export("net.onnx", net / "out.onnx")
    (failure,) = result.verified.taken_back
    assert (failure.step, failure.output) == ("simplify", "y")
    assert failure.node
    assert result.verified.passed
    assert "GlobalAveragePool" in graph.ops(result.lowered.model)  # the other steps stay
    assert any("taken back" in warning for warning in result.warnings)
    same(net, net / "out.onnx")


@pytest.mark.parametrize("place", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))])
def test_a_pass_that_changes_the_answers_is_dropped_and_the_others_stay(net, monkeypatch, place):
    passes = [*canonical.PASSES]
    passes.insert(place, doubled)
    monkeypatch.setattr(canonical, "PASSES", tuple(passes))
    result = export("net.onnx", net / "out.onnx")
    (failure,) = result.verified.taken_back
    assert failure.step == "canonical form: doubled"
    assert failure.error > failure.limit
    assert "GlobalAveragePool" in graph.ops(result.lowered.model)
    same(net, net / "out.onnx")


def test_a_rewrite_that_changes_the_answers_is_dropped_and_the_others_stay(net, monkeypatch):
    right = registry._registered[AVERAGE_POOL]

    def spoiled(model, target):
        fired = right.edit(model, target)
        return bool(doubled(model)) if fired and getattr(target, "output", None) == "m" else fired

    monkeypatch.setitem(registry._registered, AVERAGE_POOL, dataclasses.replace(right, edit=spoiled))
    rewriting = RewriteOptions(names=(AVERAGE_POOL,))
    result = export("net.onnx", net / "out.onnx", target=TargetOptions(rewrites=rewriting))
    (failure,) = result.verified.taken_back
    assert failure.step == f"rewrite: {AVERAGE_POOL} at 'm'"
    others = [choice.site for choice in result.lowered.found.choices]
    assert others
    assert "m" not in others
    same(net, net / "out.onnx")


def test_a_step_that_was_taken_back_is_exit_three_under_strict(net, monkeypatch, capsys):
    monkeypatch.setattr(canonical, "PASSES", (*canonical.PASSES, doubled))
    code, out, err = run(capsys, "export", "net.onnx", "-o", "a.onnx", "--json")
    assert (code, json.loads(out)["verified"]["passed"]) == (0, True)
    assert "taken back" in err
    code, out, err = run(capsys, "export", "net.onnx", "-o", "b.onnx", "--json", "--strict")
    assert code == 3
    assert "canonical form: doubled" in err
    assert (net / "b.onnx").is_file()


def nan(model, **_):
    made = model.clone()
    gemm = next(node for node in made.graph if node.op_type == "Gemm")
    gemm.attributes["alpha"] = ir.AttrFloat32("alpha", float("nan"))
    return Fp16(made, (), ())


def worse(model, **_):
    made = model.clone()
    doubled(made)
    return Fp16(made, (), ())


@pytest.mark.parametrize("verb", ["export", pytest.param("build-engine", marks=needs.RTX)])
def test_a_new_nan_is_exit_three_and_says_where_it_begins(net, monkeypatch, capsys, verb):
    monkeypatch.setattr(fp16, "to_fp16", nan)
    words = (verb, "net.onnx", "-o", "out.engine", "--fp16", "--json", "--no-rewrites")
    code, out, err = run(capsys, *words)
    (failure,) = json.loads(out)["verified"]["failures"]
    assert code == 3
    assert (failure["step"], failure["output"], failure["error"]) == ("fp16", "y", None)
    assert failure["node"]
    assert "not finite" in err


def test_a_missed_preset_is_a_warning_and_a_gate_where_asked_for(net, monkeypatch, capsys):
    monkeypatch.setattr(fp16, "to_fp16", worse)
    code, out, err = run(capsys, "export", "net.onnx", "-o", "a.onnx", "--fp16", "--json")
    verified = json.loads(out)["verified"]
    assert (code, verified["passed"]) == (0, False)
    assert verified["failures"][0]["preset"] == "fp16"
    assert "warning: fp16: 'y' has largest error" in err
    for flag in (("--gate", "parity"), ("--strict",)):
        code, *_ = run(capsys, "export", "net.onnx", "-o", "a.onnx", "--fp16", "--overwrite", *flag)
        assert code == 3


def test_no_verify_compares_nothing_and_says_so(net, monkeypatch, capsys):
    monkeypatch.setattr(canonical, "PASSES", (*canonical.PASSES, doubled))
    code, out, err = run(capsys, "export", "net.onnx", "-o", "a.onnx", "--json", "--no-verify")
    verified = json.loads(out)["verified"]
    assert code == 0
    assert (verified["passed"], verified["skipped"], verified["inputs"]) == (False, True, [])
    assert "--no-verify" in err


def test_an_exporter_that_changes_the_answers_cannot_be_taken_back(net):
    given = graph.load(net / "net.onnx")
    truth = graph.load(net / "net.onnx")
    doubled(given)
    exact = OrtRuntime(threads=1, optimize=False)
    check = verifying.checker(given, lambda: exact.open(truth))
    form = verifying.canonical_form(given, check)
    (failure,) = form.verified.wrong
    assert failure.step == "export"
    assert not form.verified.passed
    assert not form.verified.taken_back  # the steps after it are innocent
    assert form.checker.verify(form.model, "rewrites").passed


def test_a_graph_of_chance_is_no_success_and_no_step_is_to_blame(net, capsys):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,3,8,8] y)
        { a = RandomNormalLike(x) b = Add(x, a) y = Relu(b) }"""
    onnx.save(onnx.parser.parse_model(text), "chance.onnx")
    code, out, _ = run(capsys, "export", "chance.onnx", "-o", "a.onnx", "--json")
    verified = json.loads(out)["verified"]
    assert code == 3
    assert {failure["step"] for failure in verified["failures"]} == {"the source itself"}
    assert not verified["taken_back"]


def test_the_users_data_is_run_too(net):
    np.save("data.npy", np.ones((20, 3, 8, 8), np.float32))
    taken = source.read("net.onnx", calibration=CalibrationOptions(data=net / "data.npy"))
    assert ("data", (8, 3, 8, 8)) in {(one.kind, one.dims) for one in taken.verified.inputs}


@needs.RTX
def test_a_canonical_graph_that_build_engine_makes_is_compared(net, monkeypatch, capsys):
    monkeypatch.setattr(canonical, "PASSES", (*canonical.PASSES, doubled))
    code, out, _ = run(capsys, "build-engine", "net.onnx", "-o", "net.engine", "--json", "--no-rewrites")
    verified = json.loads(out)["verified"]
    assert code == 0
    assert verified["taken_back"][0]["step"] == "canonical form: doubled"
    same(net, net / "net.engine.onnx")
    assert onnx.load(net / "net.engine.onnx").graph.node


def test_a_run_fails_without_a_gate_on_what_is_not_finite_and_on_nothing_else():
    def verdict(*measures):
        failures = [Failure("fp16", "n", "y", measure, None, 0.0, "fp16") for measure in measures]
        return SimpleNamespace(verified=Verified(failures=tuple(failures)))

    def wrong(export, quantized, *engines):
        result = SimpleNamespace(export=export, quantize=quantized, engines=dict(enumerate(engines)))
        return len(RunResult.not_finite.fget(result))

    fine, missed, nan_there = verdict(), verdict("largest error on noise"), verdict(f"{NOT_FINITE} on noise")
    assert wrong(fine, None, missed, missed) == 0
    assert wrong(fine, missed, fine) == 0
    assert wrong(nan_there, None, fine) == wrong(fine, nan_there, fine) == wrong(fine, None, nan_there) == 1
