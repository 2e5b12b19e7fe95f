from __future__ import annotations

import contextlib
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import use_graphs
from chain_graphs import FIRST, float_conv, last
from chain_graphs import model as chain_graph
from msgspec.structs import replace

from se_deploy import graph
from se_deploy.backends import manifest as manifests
from se_deploy.cli.main import main
from se_deploy.commands import artifacts
from se_deploy.commands import check as verb
from se_deploy.commands.profile import ProfileResult, Timed, profile
from se_deploy.errors import BadArtifact, BadData, BadInput, BadModel, MissingRuntime
from se_deploy.options import TimingOptions
from se_deploy.profiling.latency import Latency
from se_deploy.protocols import TensorSpec
from se_deploy.schema.common import PlanBlock

PARITY = '[parity]\nreference = "se.onnx"\ncandidates = ["se.onnx"]\ndata = "photos"\n'
FUSION = '[fusion]\nfiles = "se.onnx"\nruntime = "onnxruntime"\n'
PRECISION = '[precision]\nfiles = {"se.onnx" = "fp32"}\n'
LATENCY = '[latency]\nfiles = ["se.onnx"]\nmax_p50_ms = 1e6\nduration_s = 0\nwarmup_ms = 0\niterations = 2\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    use_graphs.save(tmp_path / "se.onnx", use_graphs.SE)
    use_graphs.save(tmp_path / "other.onnx")
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        use_graphs.noise(tmp_path / "photos" / f"{seed}.png", seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(folder, text):
    path = folder / "se-deploy.toml"
    path.write_text(text)
    return path


def check(folder, text):
    return verb.check(verb.read(configured(folder, text)))


def verdicts(result):
    return [(o.gate, o.name.rsplit("/", 1)[-1], o.passed) for o in result.outcomes]


def test_every_gate_passes_on_a_good_network(folder):
    result = check(folder, PARITY + FUSION + PRECISION + LATENCY)
    steady = result.profile[0].artifacts[0].latency.stable  # a busy machine's timing passes no gate
    assert verdicts(result) == [
        ("precision", "se.onnx", True),
        ("fusion", "se.onnx", True),
        ("parity", "se.onnx", True),
        ("latency", "se.onnx", steady),
    ]
    assert (result.passed, result.failures == []) == (steady, steady)
    assert all(outcome.details for outcome in result.outcomes)


def test_a_candidate_that_answers_differently_fails_and_the_others_are_judged(folder):
    result = check(folder, PARITY.replace('["se.onnx"]', '["other.onnx", "se.onnx"]') + PRECISION)
    assert [passed for _, _, passed in verdicts(result)] == [True, False, True]
    assert not result.passed
    assert all("parity of" in text and "other.onnx" in text for text in result.failures)


def test_limits_of_the_table_reach_parity(folder):
    loose = 'preset = "int8"\natol = {y = 1e9}\nmin_cosine = 0.0\nmin_top1 = 0\nsamples = 2\n'
    result = check(folder, PARITY.replace('["se.onnx"]', '"other.onnx"') + loose)
    assert result.passed
    assert result.parity[0].candidates[0].parity.samples == 2


def test_a_network_without_an_input_spec_takes_it_from_the_table(folder):
    use_graphs.save(folder / "se.onnx", use_graphs.SE, spec=None)
    with pytest.raises(BadData):
        check(folder, PARITY)
    assert check(folder, PARITY + 'input_size = "3x8x8"\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n').passed


def test_precision_is_held_against_the_file(folder):
    result = check(folder, PRECISION.replace("fp32", "int8"))
    assert verdicts(result) == [("precision", "se.onnx", False)]
    assert "FP32" in result.failures[0]
    assert "INT8" in result.failures[0]


def engine(folder, **fields):
    path = folder / "net.engine"
    path.write_bytes(b"vtrt" + bytes(64))
    made = use_graphs.manifest(path, folder / "se.onnx", **fields)
    manifests.write(made, manifests.path_of(path))
    return path


def block(verdict, output="m"):
    return PlanBlock(output=output, verdict=verdict, kernels=5, activation_bytes=1, reasons=("why",))


def test_an_engine_is_judged_by_its_manifest(folder):
    engine(folder, precision="fp32")
    text = '[precision]\nfiles = {"net.engine" = "fp16"}\n[fusion]\nfiles = "net.engine"\n'
    result = check(folder, text)
    assert verdicts(result) == [("precision", "net.engine", False), ("fusion", "net.engine", True)]
    assert "its plan runs in FP32, FP16 is required" in result.failures[0]


@pytest.mark.parametrize(
    ("found", "allowed", "passed"),
    [
        (["split", "fused"], 0, False),
        (["split", "fused"], 1, True),
        (["split", "split"], 1, False),
        (["fallback", "fused"], 9, False),
        (["split"] * 7, 6, False),
        (["fused"] * 2, 0, True),
    ],
)
def test_split_blocks_are_allowed_by_number_and_a_fallback_never(folder, found, allowed, passed):
    blocks = tuple(block(verdict, f"b{i}") for i, verdict in enumerate(found))
    engine(folder, plan=replace(use_graphs.plan("tensorrt-rtx"), blocks=blocks))
    result = check(folder, f'[fusion]\nfiles = "net.engine"\nallow_split = {allowed}\n')
    assert result.passed is passed
    if not passed:
        assert "why" in " ".join(result.failures)


def test_a_network_without_se_blocks_is_said_to_have_nothing_to_fuse(folder):
    result = check(folder, FUSION.replace("se.onnx", "other.onnx"))
    assert result.passed
    assert "no SE block" in result.warnings[0]


def test_a_graph_that_no_compiler_takes_is_an_error_and_no_pass(folder):
    text = use_graphs.MEANS.replace('["" : 17]', '["" : 17, "odd" : 1]').replace("Mul(f", "odd.Twist(f")
    use_graphs.save(folder / "se.onnx", text)
    with pytest.raises(MissingRuntime, match="no compiler"):
        check(folder, FUSION.replace('runtime = "onnxruntime"\n', ""))


def test_an_engine_that_is_not_the_one_described_is_an_error(folder):
    engine(folder).write_bytes(b"vtrt" + bytes(65))
    with pytest.raises(BadArtifact, match="sha256"):
        check(folder, '[precision]\nfiles = {"net.engine" = "fp16"}\n')
    engine(folder, plan=None)
    with pytest.raises(BadArtifact, match="no plan"):
        check(folder, '[fusion]\nfiles = "net.engine"\n')


def latency(p50, *, stable=True):
    return Latency(p50, p50, p50, p50, 0.0, 1e3 / p50, (p50,), stable)


def timed(p50, speedup=None, *, stable=True, reference=False):
    return Timed("net.onnx", "onnxruntime", "cpu", 1, latency(p50, stable=stable), speedup, reference)


@pytest.mark.parametrize(
    ("one", "limits", "words"),
    [
        (timed(2.0), {"max_p50_ms": 2.0}, None),
        (timed(2.1), {"max_p50_ms": 2.0}, "above 2 ms"),
        (timed(1.0, stable=False), {"max_p50_ms": 2.0}, "not judged: the timing is unstable"),
        (timed(1.0, stable=False), {}, None),
        (timed(1.0, None), {"min_speedup": 1.5}, "not judged"),
        (timed(1.0, 1.5), {"min_speedup": 1.5}, None),
        (timed(1.0, 1.4), {"min_speedup": 1.5}, "1.40 times"),
        (timed(9.0, reference=True), {"max_p50_ms": 1.0, "min_speedup": 2.0}, None),
        (timed(9.0), {}, None),
    ],
)
def test_latency_is_held_to_its_limits(one, limits, words):
    found = ProfileResult((one, timed(9.0, reference=True)), 1, ()).failures(**limits)
    assert len(found) == (words is not None)
    assert words is None or (words in found[0] and found[0].startswith("net.onnx: "))


def test_a_speed_up_needs_a_reference():
    with pytest.raises(BadInput, match="speed-up"):
        ProfileResult((timed(1.0),), 1, ()).failures(min_speedup=2)


class Counted:
    """A session of a known pace: `ms` a call whatever the batch, unless it is jittery."""

    def __init__(self, ms, *, frozen=None, jittery=False):
        self.ms, self.jittery, self.calls = ms, jittery, 0
        self.inputs = (TensorSpec("x", np.dtype(np.float32), (frozen, 3)),)
        self.outputs = (TensorSpec("y", np.dtype(np.float32), (frozen, 3)),)

    def time(self, _feeds, calls):
        number = self.calls + np.arange(calls)
        self.calls += calls
        return self.ms * np.where(self.jittery & (number % 2 == 1), 3.0, 1.0)


def profiled(reference, candidate, monkeypatch):
    """The candidate's entry and the warnings of a profile at batch 4."""
    opened = {
        name: artifacts.Opened(session, "onnxruntime", "cpu", "fp32", None, None, name=name)
        for name, session in (("reference", reference), ("candidate", candidate))
    }
    monkeypatch.setattr(artifacts, "opened", lambda name, **_: contextlib.nullcontext(opened[name]))
    timing = TimingOptions(warmup_ms=0, duration_s=0, iterations=8)
    result = profile(["candidate"], reference="reference", batch=4, timing=timing)
    return result.artifacts[1], result.warnings


@pytest.mark.parametrize(
    ("reference", "candidate", "speedup", "words"),
    [
        (Counted(8), Counted(2), 4.0, None),
        (Counted(8), Counted(2, frozen=1), 4.0, None),  # the reference is measured at batch 1 too
        (Counted(8, frozen=4), Counted(2, frozen=1), None, "runs 1 image a call and the reference 4"),
        (Counted(8), Counted(2, jittery=True), None, "unstable"),
        (Counted(8, jittery=True), Counted(2), None, "unstable"),
    ],
)
def test_a_speed_up_is_of_stable_timings_at_the_same_batch(reference, candidate, speedup, words, monkeypatch):
    one, warnings = profiled(reference, candidate, monkeypatch)
    assert one.speedup == speedup
    assert (words is None) == (not warnings)
    assert words is None or any(words in text for text in warnings)


@pytest.mark.parametrize(
    ("batch", "first", "timed"), [(1, 1, 1), (1, 8, 8), (8, 8, 8), (8, 1, 8), (4, 8, None)]
)
def test_the_batch_of_the_shapes_to_time_is_timed(batch, first, timed, monkeypatch):
    opened = artifacts.Opened(Counted(2), "onnxruntime", "cpu", "fp32", None, None, name="net")
    monkeypatch.setattr(artifacts, "opened", lambda _name, **_: contextlib.nullcontext(opened))
    timing = TimingOptions(warmup_ms=0, duration_s=0, iterations=8, sizes={"x": (first, 3)})
    if timed is None:
        with pytest.raises(BadInput, match="disagree: 4, 8"):
            profile(["net"], batch=batch, timing=timing)
        return
    (one,) = profile(["net"], batch=batch, timing=timing).artifacts
    assert (one.batch, one.shapes["x"][0]) == (timed, timed)


def test_latency_against_a_reference(folder):
    text = LATENCY.replace("max_p50_ms = 1e6", 'reference = "other.onnx"\nmin_speedup = 1e9')
    result = check(folder, text)
    assert verdicts(result) == [("latency", "se.onnx", False)]
    assert len(result.profile[0].artifacts) == 2


def test_arrays_of_tables_are_several_gates(folder):
    result = check(folder, PRECISION + (PARITY + 'preset = "fp16"\n').replace("[parity]", "[[parity]]") * 2)
    assert [gate for gate, _, _ in verdicts(result)] == ["precision", "parity", "parity"]
    assert [p.preset for p in verb.to_schema(result).parity] == ["fp16", "fp16"]


def test_paths_are_relative_to_the_configuration(folder, monkeypatch, tmp_path_factory):
    configured(folder, PARITY + PRECISION)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert verb.check(verb.read(folder / "se-deploy.toml")).passed


def test_network_options_and_specifications_reach_the_reference(folder):
    (folder / "nets.py").write_text("def net(**kwargs):\n    raise AssertionError\n")
    text = PARITY.replace("se.onnx", "nets.py:net", 1) + (
        'model_args = {num_classes = 3}\ninput_size = "3x8x8"\npretrained = true\nseed = 7\n'
        "mean = [0, 0, 0]\nstd = [1, 1, 1]\natol = 0.5\n"
    )
    (gate,) = verb.read(configured(folder, text)).parity
    assert gate.reference == f"{folder / 'nets.py'}:net"
    network = gate.network
    assert (network.model_args, network.input_size) == ({"num_classes": 3}, (3, 8, 8))
    assert (network.pretrained, network.seed) == (True, 7)
    assert (network.image.mean, gate.limits.atol) == ((0.0, 0.0, 0.0), (("", 0.5),))
    named = verb.read(configured(folder, PARITY.replace("se.onnx", "timm:resnet50", 1))).parity[0]
    assert named.reference == "timm:resnet50"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to check"),
        ("[speed]\nfiles = []\n", "'speed'"),
        (PARITY + "top1 = 1\n", "unknown field `top1`"),
        (PARITY.replace('reference = "se.onnx"\n', ""), "missing required field `reference`"),
        (PARITY.replace('"photos"', '"nowhere"'), "nowhere' does not exist"),
        (PARITY.replace('["se.onnx"]', "[]"), "'candidates'"),
        (PARITY + 'preset = "fp8"\n', "'preset' is \"fp8\": invalid enum value"),
        (PARITY + "min_top1 = true\n", "'min_top1' is true: expected `float | null`, got `bool`"),
        (PARITY + "samples = 0\n", "'samples' is 0: expected `int` >= 1"),
        (PARITY.replace('"photos"', "1"), "'data' is 1: expected `str`"),
        (PARITY + "pretrained = 1\n", "'pretrained' is 1: expected `bool`"),
        (PARITY + 'input_size = "3x?"\n', "'input_size' is \"3x?\": expected `str` matching regex"),
        (PARITY + "mean = 0.5\n", "'mean' is 0.5: expected `array | null`"),
        (PARITY + "model_args = 1\n", "'model_args' is 1: expected `object`"),
        (PARITY.replace("se.onnx", "nets.py:net", 1), "nets.py"),
        (FUSION + "allow_split = -1\n", "'allow_split' is -1: expected `int` >= 0"),
        ("parity = 3\n", "expected `object`, got `int`"),
        ("[precision]\nfiles = []\n", "'files': expected `object`"),
        ('[precision]\nfiles = {"se.onnx" = "fp8"}\n', "'files.se.onnx' is \"fp8\""),
        (LATENCY.replace("max_p50_ms = 1e6\n", ""), "sets no limit"),
        (LATENCY.replace("max_p50_ms = 1e6", "min_speedup = 2"), "without a reference"),
        ("[parity\n", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(folder, text, words):
    with pytest.raises(BadInput) as e:
        verb.read(configured(folder, text))
    assert words in e.value.message
    assert "se-deploy.toml" in e.value.message


def test_a_file_that_is_no_network_is_an_error_and_no_verdict(folder):
    (folder / "se.onnx").write_bytes(b"nothing")
    with pytest.raises(BadModel):
        check(folder, PRECISION)


def test_the_configuration_is_found_here_or_in_pyproject(folder):
    with pytest.raises(BadInput, match=r"no se-deploy\.toml"):
        verb.read()
    (folder / "pyproject.toml").write_text("[tool.other]\n")
    with pytest.raises(BadInput, match=r"no se-deploy\.toml"):
        verb.read()
    (folder / "pyproject.toml").write_text(PRECISION.replace("[precision]", "[tool.se-deploy.precision]"))
    assert verb.read().config.name == "pyproject.toml"
    assert verb.check(verb.read()).passed
    configured(folder, FUSION)
    assert verb.read().config.name == "se-deploy.toml"


def test_warnings_are_said_once(folder):
    twice = check(folder, (LATENCY * 2).replace("[latency]", "[[latency]]"))
    assert len(set(twice.warnings)) == len(twice.warnings)


def run(capsys, *args):
    code = main([str(a) for a in args], standalone_mode=False)
    out = capsys.readouterr()
    return code or 0, out.out, out.err


def test_the_command_judges_writes_junit_and_exits_with_3(folder, capsys):
    configured(folder, PARITY.replace('["se.onnx"]', '["other.onnx"]') + PRECISION)
    code, out, err = run(capsys, "check", "--json", "--junit", "v.xml")
    found = json.loads(out)
    assert (code, found["schema"], found["passed"]) == (3, "se-deploy/check/1", False)
    assert [(g["gate"], g["name"], g["passed"]) for g in found["gates"]] == [
        ("precision", "se.onnx", True),
        ("parity", "other.onnx", False),
    ]
    assert found["parity"][0]["candidates"][0]["path"] == "other.onnx"
    assert found["profile"] == []
    assert "failed: parity of other.onnx" in err
    root = ET.parse(folder / "v.xml").getroot()  # noqa: S314 - our own file
    cases = root.findall("testsuite[@name='gates']/testcase")
    assert [(case.get("name"), case.find("failure") is not None) for case in cases] == [
        ("se.onnx", False),
        ("other.onnx", True),
    ]


def test_the_command_passes_with_0_and_refuses_with_1_and_2(folder, capsys):
    assert run(capsys, "check")[0] == 1
    assert run(capsys, "check", "--config", "no.toml")[0] == 2
    configured(folder, PRECISION)
    code, out, err = run(capsys, "check", "-q")
    assert (code, err) == (0, "")
    assert "precision" in out
    (folder / "v.xml").touch()
    code, out, _ = run(capsys, "check", "--junit", "v.xml", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (1, "OutputExists")


def test_a_broken_int8_chain_fails_and_a_whole_one_passes(tmp_path):
    whole = FIRST + " r = Relu(a) " + last("r")
    broken = FIRST + " r = Relu(a) m = Mul(r, c_m) " + last("m")
    for name, body in (("whole", whole), ("broken", broken)):
        graph.save(chain_graph(body), tmp_path / f"{name}.onnx")
    config = tmp_path / "se-deploy.toml"
    config.write_text('[chain]\nfiles = ["whole.onnx", "broken.onnx"]\n')
    result = verb.check(verb.read(config))
    assert [(outcome.gate, outcome.passed) for outcome in result.outcomes] == [
        ("chain", True),
        ("chain", False),
    ]
    assert "docs.nvidia.com" in " ".join(result.failures)
    config.write_text('[chain]\nfiles = "broken.onnx"\nallow_breaks = 1\n')
    assert verb.check(verb.read(config)).passed


def test_a_float_file_cannot_pass_the_chain_gate(tmp_path):
    graph.save(chain_graph(float_conv("x", "y")), tmp_path / "float.onnx")
    (tmp_path / "se-deploy.toml").write_text('[chain]\nfiles = "float.onnx"\n')
    with pytest.raises(BadInput, match="is quantized"):
        verb.check(verb.read(tmp_path / "se-deploy.toml"))
