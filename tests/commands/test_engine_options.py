"""Options of a build, from the command line to the manifest."""
# ruff: noqa: ARG002 - a stand-in has the parameters of what it stands for

import dataclasses
import json

import needs
import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends import manifest as manifests
from se_deploy.backends import registry
from se_deploy.backends.engine import BuildOptions, Engine
from se_deploy.cli import engine_options, main, options
from se_deploy.commands import fastest
from se_deploy.commands.build_engine import build_engine
from se_deploy.errors import BadInput
from se_deploy.options import (
    EngineFeatures,
    EngineOptions,
    RewriteOptions,
    RunOptions,
    TargetOptions,
)
from se_deploy.plan import Plan
from se_deploy.schema.files import ShapeRange

IMAGE = f"{plan_graphs.C}x{plan_graphs.SIDE}x{plan_graphs.SIDE}"
AS_IT_IS = TargetOptions("tensorrt-rtx", rewrites=RewriteOptions(names=()))


@pytest.fixture
def net(tmp_path):
    graph.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def given(**shapes):
    empty = {"min_shapes": (), "opt_shapes": (), "max_shapes": ()}
    return empty | {f"{k}_shapes": v for k, v in shapes.items()}


def test_an_input_that_is_named_again_is_of_the_next_profile():
    said = given(
        min=(("x", (1, 3)), ("x", (5, 3))),
        opt=(("x", (2, 3)), ("x", (8, 3))),
        max=(("x", (4, 3)), ("z", (9,))),
    )
    first, second = engine_options.profiles(said)
    assert first == {"x": ShapeRange((1, 3), (2, 3), (4, 3)), "z": ShapeRange((9,), (9,), (9,))}
    assert second == {"x": ShapeRange((5, 3), (8, 3), (4, 3)), "z": ShapeRange((9,), (9,), (9,))}
    assert engine_options.profiles(given()) == [{}]
    assert options.tuned(said) == {"x": (2, 3)}


@needs.RTX
def test_options_reach_the_engine_and_its_manifest(net, tmp_path):
    features = EngineFeatures(tf32=True, optimization_level=2, io_formats={"x": "HWC"})
    shapes = [{"x": ShapeRange(*((n, *map(int, IMAGE.split("x"))),) * 3)} for n in (1, 8)]
    asked = EngineOptions(shapes[0], more_shapes=(shapes[1],), features=features)
    made = build_engine(net, tmp_path / "net.engine", engine=asked, target=AS_IT_IS, verify=False)
    read = manifests.check(tmp_path / "net.engine").manifest
    assert (read.features.tf32, read.features.optimization_level) == (True, 2)
    assert read.features.io_formats == {"x": "HWC"}
    assert [profile["x"].opt[0] for profile in read.more_shapes] == [8]
    assert "--profile=1" in read.trtexec
    assert next(k for k in made.built.plan.layers if not k.host_only).kind == "correlation", "no copy first"


@needs.RTX
def test_fp16_inputs_and_outputs(net, tmp_path):
    asked = EngineOptions(io="fp16")
    made = build_engine(net, tmp_path / "net.engine", precision="fp16", engine=asked, target=AS_IT_IS)
    assert {
        value.dtype.name for value in (*made.lowered.model.graph.inputs, *made.lowered.model.graph.outputs)
    } == {"FLOAT16"}
    assert made.verified.passed
    with pytest.raises(BadInput, match="--io fp16 is for FP32 files"):
        build_engine(net, tmp_path / "other.engine", engine=asked, target=AS_IT_IS)


@needs.RTX
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--io-format", "image:HWC8"], "'image', which is no input or output of the network"),
        (["--dla-core", "0"], "--dla-core: TensorRT-RTX"),
        (["--best-of", "2"], "--best-of: TensorRT-RTX"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_and_nothing_is_written(net, tmp_path, capsys, words, said):
    build = [
        "build-engine",
        str(net),
        "-o",
        str(tmp_path / "e.engine"),
        "--runtime",
        "tensorrt-rtx",
        "--json",
    ]
    assert main([*build, *words], standalone_mode=False) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert said in error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_a_format_that_tensorrt_lacks_is_a_usage_error(net, tmp_path, capsys):
    build = ["build-engine", str(net), "-o", str(tmp_path / "e.engine"), "--io-format", "x:HWC7"]
    assert main(build, standalone_mode=False) == 2
    assert "the formats are LINEAR" in capsys.readouterr().err


class Counted:
    """A compiler whose builds differ, and a runtime that finds one of them the fastest."""

    def __init__(self, times):
        self.times, self.made = times, 0

    def build(self, model, options, *, progress):
        self.made += 1
        ranges = {"x": ShapeRange((1, 3), (2, 3), (4, 3))}
        return Engine(bytes([self.made]), Plan("toy", "1", "here", ()), "toy", ranges, 0.0)

    def open(self, path):
        return Session(self.times[path.read_bytes()[0] - 1])


@dataclasses.dataclass
class Session:
    ms: float
    inputs = ()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(("times", "best"), [((3.0, 1.0, 2.0), 2), ((1.0, 2.0, 3.0), 1), ((5.0,), 1)])
def test_of_several_builds_the_fastest_is_kept(monkeypatch, times, best):
    counted = Counted(times)
    monkeypatch.setattr(registry, "engine_runtime", lambda *_: counted)
    monkeypatch.setattr(fastest.verification, "noise", lambda *_, **__: {})
    monkeypatch.setattr(
        fastest.latency,
        "measure",
        lambda session, *_, **__: dataclasses.make_dataclass("L", ["p50_ms"])(session.ms),
    )
    asked = BuildOptions(features=EngineFeatures(best_of=len(times)))
    kept = fastest.built(registry.get("tensorrt"), counted, plan_graphs.se_net(), asked)
    assert (kept.data, counted.made) == (bytes([best]), len(times))
    assert bool(kept.warnings) == (len(times) > 1)
    assert all("the fastest of 3 builds was kept: 1 ms, the others" in note for note in kept.warnings)


@needs.RTX
def test_bf16_from_the_command_line_to_the_manifest(net, tmp_path, capsys):
    build = [
        "build-engine",
        str(net),
        "-o",
        str(tmp_path / "e.engine"),
        "--runtime",
        "tensorrt-rtx",
        "--bf16",
    ]
    assert main([*build, "--no-rewrites", "--json"], standalone_mode=False) in {0, None}
    said = json.loads(capsys.readouterr().out)
    assert (said["requested_precision"], said["found_precision"]) == ("bf16", "bf16")
    assert said["verified"]["passed"]
    assert said["rounding"] == "rounded at the plan's kernel boundaries"
    assert manifests.check(tmp_path / "e.engine").manifest.precision == "bf16"
    assert main([*build, "--target", "sm75", "--overwrite", "--json"], standalone_mode=False) == 1
    assert "sm75 has no BF16" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_run_goes_to_no_bf16():
    with pytest.raises(BadInput, match="not to BF16") as caught:
        RunOptions(precision="bf16")
    assert "build-engine --bf16" in caught.value.hint
