"""What only a machine with an NVIDIA GPU proves of ONNX Runtime's CUDA provider: `pytest -m gpu`."""

import numpy as np
import onnx_ir as ir
import plan_graphs
import pytest
from onnx import TensorProto, helper

from se_deploy.backends.onnxruntime.session import CUDA, OrtRuntime
from se_deploy.backends.tensorrt import gpu
from se_deploy.errors import BadArtifact, MissingRuntime

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(gpu.here() is None, reason="no NVIDIA device")]

DIMS = (plan_graphs.C, plan_graphs.SIDE, plan_graphs.SIDE)
LAUNCHED, REPLAYED = OrtRuntime(provider=CUDA), OrtRuntime(provider=CUDA, cuda_graph=True)


@pytest.fixture(autouse=True)
def provider():
    try:
        with LAUNCHED.open(plan_graphs.se_net()):
            pass
    except MissingRuntime as e:  # a build for the CPU, or libraries that are not here
        pytest.skip(e.message)


def feeds(batch, seed):
    return {"x": np.random.default_rng(seed).standard_normal((batch, *DIMS)).astype(np.float32)}


def test_a_replay_computes_what_a_launch_does_for_every_shape_and_new_data():
    model = plan_graphs.se_net()
    with LAUNCHED.open(model) as launched, REPLAYED.open(model) as replayed:
        for seed, batch in enumerate([1, 4, 1, 4, 2]):
            given = feeds(batch, seed)
            expected = launched.run(given)["y"]
            np.testing.assert_allclose(replayed.run(given)["y"], expected, rtol=2e-3, atol=2e-3)  # TF32
            assert (replayed.time(given, 3) > 0).all()
        assert replayed.cost(feeds(1, 0), 2).cuda_graph is True
        assert launched.cost(feeds(1, 0), 2).cuda_graph is False


def test_what_does_not_stay_on_the_gpu_is_refused_with_the_way_out():
    nodes = [helper.make_node("StringNormalizer", ["s"], ["t"]), helper.make_node("Relu", ["x"], ["y"])]
    kinds = {"x": TensorProto.FLOAT, "s": TensorProto.STRING, "y": TensorProto.FLOAT, "t": TensorProto.STRING}
    x, s, y, t = (helper.make_tensor_value_info(name, kind, [1]) for name, kind in kinds.items())
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x, s], [y, t]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(BadArtifact) as refused, REPLAYED.open(ir.from_proto(proto)):
        pass
    assert "--cuda-graph" in (refused.value.hint or "")
