import plan_graphs
import pytest

from se_deploy.backends.tensorrt import cuda
from se_deploy.backends.tensorrt.session import TrtRuntime
from se_deploy.errors import BadArtifact, MissingRuntime


def has_gpu():
    try:
        cuda.Cuda().close()
    except MissingRuntime:
        return False
    return True


@pytest.mark.parametrize("data", [b"", b"junk", b"ptrt"])
def test_what_is_no_rtx_engine_is_refused_before_a_device_is_asked_for(tmp_path, data):
    path = tmp_path / "net.engine"
    path.write_bytes(data)
    with pytest.raises(BadArtifact, match="is no TensorRT-RTX engine"), TrtRuntime().open(path):
        pass


def test_a_file_that_is_not_there_and_a_graph_are_refused(tmp_path):
    with pytest.raises(BadArtifact, match="cannot be read"), TrtRuntime().open(tmp_path / "none.engine"):
        pass
    with pytest.raises(BadArtifact, match="a graph is no engine"), TrtRuntime().open(plan_graphs.se_net()):
        pass


@pytest.mark.skipif(has_gpu(), reason="there is a device here")
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_without_a_device_an_engine_says_what_is_missing(tmp_path, runtime):
    path = tmp_path / "net.engine"
    path.write_bytes(b"vtrt and more")
    with pytest.raises(MissingRuntime, match=r"CUDA|NVIDIA") as caught, TrtRuntime(runtime).open(path):
        pass
    assert "doctor" in caught.value.hint
    with pytest.raises(MissingRuntime):
        _ = TrtRuntime(runtime).device


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="no NVIDIA device")
def test_device_memory_comes_and_goes():
    device = cuda.Cuda()
    pointers = [device.take(1 << 20) for _ in range(3)]
    assert len(set(pointers)) == 3
    device.give(pointers[0])
    assert device.elapsed_ms(lambda: None) >= 0
    device.close()
