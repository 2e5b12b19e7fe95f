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
    "profiles": [{"x": [[1, 3], [1, 3], [4, 3]]}],
    "workspace_bytes": None,
    "timing_cache": None,
    "flags": [],
    "optimization_level": None,
    "compatibility": None,
    "dla_core": None,
    "formats": {},
    "plugins": [],
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
    reply = build(fake_nvidia.tensorrt(), profiles=[{"x": [[9, 3], [9, 3], [4, 3]]}])
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


@pytest.mark.parametrize(
    ("found", "builds", "said", "kept"),
    [
        (b"of another device", True, "is not of this device and version: it is replaced", b"+tactic"),
        (b"junk", True, "is not of this device and version: it is replaced", b"+tactic"),
        (b"good", "no cache", "was not written: there is none", b"good"),
    ],
)
def test_a_refused_timing_cache_loses_no_engine(tmp_path, found, builds, said, kept):
    cache, engine = tmp_path / "timing.cache", tmp_path / "net.engine"
    cache.write_bytes(found)
    reply = build(fake_nvidia.tensorrt(builds=builds), timing_cache=str(cache), engine=str(engine))
    assert (reply["ok"], engine.read_bytes(), cache.read_bytes()) == (True, b"an engine", kept)
    assert any(said in warning for warning in reply["warnings"])


def test_a_timing_cache_that_cannot_be_written_loses_no_engine(tmp_path):
    reply = build(fake_nvidia.tensorrt(), timing_cache=str(tmp_path / "none" / "timing.cache"))
    assert reply["ok"]
    assert any("was not written: No such file" in warning for warning in reply["warnings"])


@pytest.mark.parametrize(("flags", "on"), [([], False), (["TF32"], True)])
@pytest.mark.parametrize("version", ["10.3.0", "10.7.0", "10.13.3", "10.16.1", "11.4.0"])
def test_tf32_is_off_unless_asked_for(version, flags, on):
    trt = fake_nvidia.tensorrt(version)
    assert build(trt, flags=flags)["ok"]
    assert bool(trt.seen.settings["flags"] & 1 << trt.BuilderFlag.TF32) == on


def test_options_reach_the_builder():
    trt = fake_nvidia.tensorrt()
    asked = {"optimization_level": 5, "compatibility": "AMPERE_PLUS", "dla_core": 1}
    reply = build(
        trt, flags=["REFIT", "SPARSE_WEIGHTS"], formats={"x": "HWC8"}, plugins=["boxes.so"], **asked
    )
    assert reply["ok"]
    seen, flag = trt.seen.settings, trt.BuilderFlag
    assert seen["builder_optimization_level"] == 5
    assert seen["hardware_compatibility_level"] == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert (seen["DLA_core"], seen["default_device_type"]) == (1, trt.DeviceType.DLA)
    assert seen["flags"] == 1 << flag.REFIT | 1 << flag.SPARSE_WEIGHTS | 1 << flag.GPU_FALLBACK
    assert trt.seen.tensors["x"].allowed_formats == 1 << trt.TensorFormat.HWC8
    assert trt.libraries == ["boxes.so"]


def test_a_plug_in_library_is_loaded_once_for_many_builds():
    trt = fake_nvidia.tensorrt()
    server = worker.Builder(trt, lambda _: None)
    for _ in range(2):
        assert server.build(REQUEST | {"plugins": ["boxes.so"]})["ok"]
    assert trt.libraries == ["boxes.so"]


def test_each_profile_reaches_the_builder():
    trt = fake_nvidia.tensorrt()
    profiles = [{"x": [[1, 3]] * 3}, {"x": [[8, 3]] * 3}]
    assert build(trt, profiles=profiles)["ok"]
    assert trt.seen.profiles == [{"x": ((1, 3),) * 3}, {"x": ((8, 3),) * 3}]


@pytest.mark.parametrize(
    ("request_has", "said"),
    [
        ({"dla_core": 2}, "--dla-core 2: this device has 2 DLA cores"),
        ({"plugins": ["boxes.txt"]}, "plug-ins"),
    ],
)
def test_what_the_device_lacks_is_refused(request_has, said):
    reply = build(fake_nvidia.tensorrt(), **request_has)
    assert not reply["ok"]
    assert said in reply["reason"]


def test_a_runtime_that_does_not_start_leaves_the_plan_unread():
    reply = build(fake_nvidia.tensorrt(starts=False))
    assert (reply["ok"], reply["inspector"]) == (True, None)


def test_workspace_and_shapes_reach_the_builder(tmp_path):
    trt = fake_nvidia.tensorrt()
    reply = build(trt, workspace_bytes=1 << 20, engine=str(tmp_path / "net.engine"))
    assert reply["ok"]
    assert trt.seen.workspace == 1 << 20
    assert trt.seen.profiles == [{"x": ((1, 3), (1, 3), (4, 3))}]
    assert (tmp_path / "net.engine").read_bytes() == b"an engine"


def test_capabilities_are_probed_and_not_read_off_a_version():
    said = worker.Builder(fake_nvidia.tensorrt(), print).capabilities()
    assert (said["version"], said["targets"], said["strongly_typed"]) == ("10.13.3", [], True)
    old = fake_nvidia.tensorrt("10.3.0")
    old.NetworkDefinitionCreationFlag = object
    assert worker.Builder(old, print).capabilities()["strongly_typed"] is False


def test_rtx_itself_builds_in_this_process_too(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    graph.save(plan_graphs.se_net(), tmp_path / "net.onnx")
    sent = []
    builder = worker.Builder(trt, sent.append)
    shape = [1, plan_graphs.C, plan_graphs.SIDE, plan_graphs.SIDE]
    request = {"onnx": str(tmp_path / "net.onnx"), "targets": ["sm86"], "profiles": [{"x": [shape] * 3}]}
    reply = builder.build(REQUEST | request)
    assert reply["ok"]
    assert "correlation" in reply["layers"]
    assert sent[-1]["progress"][1:] == [sent[-1]["progress"][2]] * 2
    assert "sm86" in builder.capabilities()["targets"]
