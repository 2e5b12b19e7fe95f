"""The worker's build, in this process: TensorRT-RTX for real, full TensorRT as fake_nvidia tells it."""

import fake_nvidia
import plan_graphs
import pytest

from se_deploy import graph
from se_deploy.backends.tensorrt import worker

REQUEST = {
    "onnx": "net.onnx",
    "engine": None,
    "targets": [],
    "shapes": {"x": [[1, 3], [1, 3], [4, 3]]},
    "workspace_bytes": None,
    "timing_cache": None,
}


def build(trt, **request):
    return worker.Builder(trt, lambda _: None).build(REQUEST | request)


@pytest.mark.parametrize(("version", "flag"), [("10.13.3", 2), ("11.4.0", 1)])
def test_networks_are_strongly_typed_in_10_and_11(version, flag):
    trt = fake_nvidia.tensorrt(version)
    assert build(trt)["ok"]
    assert trt.seen.flag == flag


def test_the_plan_of_full_tensorrt_comes_from_its_inspector():
    reply = build(fake_nvidia.tensorrt())
    assert "CaskConvolution" in reply["inspector"]
    assert reply["layers"] == ""
    assert build(fake_nvidia.tensorrt(loads=False))["inspector"] is None


def test_messages_are_counted_and_said_once():
    reply = build(fake_nvidia.tensorrt())
    assert (reply["warnings"], reply["skipped_tactics"]) == (["a warning"], 1)
    assert reply["errors"] == ["Thread context has not been set!"]


def test_a_refusal_gives_the_telling_line():
    reply = build(fake_nvidia.tensorrt(builds=False))
    assert not reply["ok"]
    assert reply["reason"] == "no tactics for node conv"


def test_a_graph_that_cannot_be_parsed_names_its_node():
    reply = build(fake_nvidia.tensorrt(), onnx="bad.onnx")
    assert (reply["ok"], reply["reason"]) == (False, "no importer (node 'n_m', Odd)")


def test_shapes_that_do_not_fit_are_a_refusal():
    reply = build(fake_nvidia.tensorrt(), shapes={"x": [[9, 3], [9, 3], [4, 3]]})
    assert not reply["ok"]


def test_without_a_device_full_tensorrt_says_so():
    reply = build(fake_nvidia.tensorrt(builds="no device"))
    assert not reply["ok"]
    assert "no NVIDIA device" in reply["reason"]


def test_the_timing_cache_is_read_and_written_whole(tmp_path):
    cache = tmp_path / "timing.cache"
    for before, after in ((b"", b"+tactic"), (b"+tactic", b"+tactic+tactic")):
        trt = fake_nvidia.tensorrt()
        assert build(trt, timing_cache=str(cache))["ok"]
        assert (trt.seen.cache, cache.read_bytes()) == (before, after)
    assert list(tmp_path.iterdir()) == [cache]


def test_workspace_and_shapes_reach_the_builder(tmp_path):
    trt = fake_nvidia.tensorrt()
    reply = build(trt, workspace_bytes=1 << 20, engine=str(tmp_path / "net.engine"))
    assert reply["ok"]
    assert trt.seen.workspace == 1 << 20
    assert trt.seen.shapes == {"x": ((1, 3), (1, 3), (4, 3))}
    assert (tmp_path / "net.engine").read_bytes() == b"an engine"


def test_capabilities_are_probed_and_not_read_off_a_version():
    said = worker.Builder(fake_nvidia.tensorrt(), print).capabilities()
    assert (said["version"], said["targets"], said["strongly_typed"]) == ("10.13.3", [], True)
    old = fake_nvidia.tensorrt("8.6.1")
    old.NetworkDefinitionCreationFlag = object
    assert worker.Builder(old, print).capabilities()["strongly_typed"] is False


def test_rtx_itself_builds_in_this_process_too(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    graph.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    sent = []
    builder = worker.Builder(trt, sent.append)
    shape = [1, plan_graphs.C, plan_graphs.SIDE, plan_graphs.SIDE]
    request = {"onnx": str(tmp_path / "net.onnx"), "targets": ["sm86"], "shapes": {"x": [shape] * 3}}
    reply = builder.build(REQUEST | request)
    assert reply["ok"]
    assert "correlation" in reply["layers"]
    assert sent[-1]["progress"][1:] == [sent[-1]["progress"][2]] * 2
    assert "sm86" in builder.capabilities()["targets"]
