"""`profile` of an engine: device time and what surrounds it, on the device of fake_nvidia."""

import json

import fake_nvidia
import pytest
import use_graphs
from msgspec.structs import replace

from se_deploy.backends import manifest as manifests
from se_deploy.backends.tensorrt import cuda, loading
from se_deploy.cli import main
from se_deploy.schema.common import PlanBlock, PlanLayer
from se_deploy.schema.files import ShapeRange

QUICK = ("--warmup-ms", "0", "--duration-s", "0.01", "--iterations", "4", "--json")


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """An engine of full TensorRT whose plan has two layers, one of them an SE block's."""
    cudart = fake_nvidia.Cudart()
    monkeypatch.setattr(cuda, "api", lambda: cudart)
    monkeypatch.setattr(loading, "module", lambda _: fake_nvidia.tensorrt(cudart=cudart))
    onnx = use_graphs.save(tmp_path / "net.engine.onnx")
    path = tmp_path / "net.engine"
    path.write_bytes(b"a plan")
    layers = tuple(
        PlanLayer(name=name, kind="", inputs=(), outputs=(), onnx_nodes=(f"n_{name}",))
        for name in ("conv", "fc")
    )
    block = PlanBlock(output="m", verdict="fused", kernels=1, activation_bytes=1, reasons=(), layers=("fc",))
    plan = replace(use_graphs.plan("tensorrt"), layers=layers, blocks=(block,))
    shapes = {"x": ShapeRange((1, 3), (1, 3), (4, 3))}
    described = use_graphs.manifest(
        path, onnx, runtime="tensorrt", targets=("sm90",), plan=plan, shapes=shapes, input=None
    )
    manifests.write(described, manifests.path_of(path))
    return path


def profile(capsys, *words):
    code = main(["profile", *map(str, words)], standalone_mode=False)
    out, err = capsys.readouterr()
    return code or 0, out, err


def test_every_part_of_a_call_is_reported(engine, capsys):
    code, out, err = profile(capsys, engine, *QUICK)
    assert code == 0, err
    (one,) = json.loads(out)["artifacts"]
    assert (one["p50_ms"], one["h2d_ms"], one["d2h_ms"]) == (1.5, 1.5, 1.5)
    assert one["enqueue_ms"] > 0
    assert one["end_to_end_ms"] > 0
    assert one["cuda_graph"] is True
    assert one["layers"] == [
        {"name": "conv", "mean_ms": 0.25, "onnx_nodes": ["n_conv"], "block": None},
        {"name": "fc", "mean_ms": 0.75, "onnx_nodes": ["n_fc"], "block": "m"},
    ]
    assert one["se_share"] == 0.75
    assert one["streams"] is None


def test_batches_are_swept_and_streams_counted(engine, capsys):
    sweep = ("--batch-size", "1", "--batch-size", "4", "--streams", "2")
    code, out, err = profile(capsys, engine, *QUICK, *sweep, "--no-cuda-graph")
    assert code == 0, err
    found = json.loads(out)["artifacts"]
    assert [(one["batch"], one["streams"], one["cuda_graph"]) for one in found] == [
        (1, 2, False),
        (4, 2, False),
    ]
    assert all(one["streams_throughput_per_s"] > 0 for one in found)
    assert [one["shapes"]["x"] for one in found] == [[1, 3], [4, 3]]


def test_layers_that_the_manifest_does_not_name_leave_the_share_open(engine, capsys):
    described = manifests.check(engine).manifest
    (block,) = described.plan.blocks
    plan = replace(described.plan, blocks=(replace(block, layers=("another",)),))
    manifests.write(replace(described, plan=plan), manifests.path_of(engine))
    code, out, _ = profile(capsys, engine, *QUICK)
    said = json.loads(out)
    assert (code, said["artifacts"][0]["se_share"]) == (0, None)
    assert any("what the SE blocks take is not known" in warning for warning in said["warnings"])


def test_a_session_on_the_cpu_reports_what_it_can(engine, capsys):
    net = engine.with_name("net.engine.onnx")
    code, out, _ = profile(capsys, net, *QUICK, "--streams", "2", "--threads", "1")
    said = json.loads(out)
    (one,) = said["artifacts"]
    assert (code, one["end_to_end_ms"] > 0) == (0, True)
    keys = ("enqueue_ms", "h2d_ms", "d2h_ms", "se_share", "cuda_graph", "streams", "streams_throughput_per_s")
    assert {one[key] for key in keys} == {None}
    assert one["layers"] == []
    assert any("--streams has no use" in warning for warning in said["warnings"])


def test_people_see_what_surrounds_the_device_s_time(engine, capsys, monkeypatch):
    monkeypatch.chdir(engine.parent)
    code, out, _ = profile(capsys, engine.name, *QUICK[:-1])
    assert code == 0
    assert "Around the device's time" in out
    row = next(line for line in out.split("Around the device's time")[1].splitlines() if "net.engine" in line)
    assert "75.0" in row  # the SE blocks' share


def test_an_engine_of_another_gpu_is_refused_before_it_is_loaded(engine, capsys):
    described = manifests.check(engine).manifest
    manifests.write(replace(described, targets=("sm86", "sm89")), manifests.path_of(engine))
    code, out, _ = profile(capsys, engine, *QUICK)
    said = json.loads(out)["error"]
    assert code == 1
    assert "was built for sm86, sm89, and this machine's GPU is Fake GPU (sm90)" in said["message"]
    assert "--target sm90" in said["hint"]
