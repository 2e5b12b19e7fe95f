"""What the DLA takes of a block, by NVIDIA's table."""

import onnx_ir as ir
import plan_graphs
import pytest

from se_deploy import graph, se_blocks
from se_deploy.backends import registry
from se_deploy.backends.tensorrt import dla
from se_deploy.options import EngineFeatures


def left(model):
    (block,) = se_blocks.detect(model).se
    return dla.on_gpu(model, block)


@pytest.mark.parametrize(
    ("pool", "act", "ops"),
    [
        ("gap", "Relu", ("GlobalAveragePool",)), ("mean", "Relu", ("ReduceMean",)), ("avgpool", "Relu", ()),
        ("avgpool", "HardSwish", ("HardSwish",)), ("nhwc", "Relu", ("ReduceMean",)),
    ],
)  # fmt: skip
def test_each_spelling_of_the_parts_is_taken_or_named(pool, act, ops):
    assert left(plan_graphs.se_net(pool, act=act)) == ops


def test_weights_that_are_computed_are_not_taken():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y) { y = Conv(x, w) }"""
    (node,) = graph.tidy(ir.from_onnx_text(text)).graph
    assert dla._refused(node) == "Conv with computed weights"


def test_what_leaves_the_dla_is_told_by_block_and_only_where_it_is_asked_for():
    model = plan_graphs.se_net()
    blocks = se_blocks.detect(model).se
    notes = registry.get("tensorrt").engines.notes
    assert notes(model, blocks, EngineFeatures()) == ()
    said = notes(model, blocks, EngineFeatures(dla_core=0))
    assert "1 SE block goes to the GPU and back, 's' first" in said[0]
    assert "does not take GlobalAveragePool" in said[0]
    assert "free sizes" in said[1]
    fixed = plan_graphs.se_net("avgpool", batch="1")
    assert notes(fixed, se_blocks.detect(fixed).se, EngineFeatures(dla_core=0)) == ()
    quantized = plan_graphs.quantized_net(per_channel=True)
    assert "Q/DQ" in notes(quantized, (), EngineFeatures(dla_core=0))[-1]
