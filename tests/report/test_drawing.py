import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from se_deploy import graph, report, se_blocks
from se_deploy.commands import as_schema
from se_deploy.schema.results import Inspect

TIMES = "\N{MULTIPLICATION SIGN}"
BLOCK = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[N, 8, 6, 6] image) => (float[N, 8, 6, 6] y{outputs})
<float[8, 8, 3, 3] w0, float[2, 8, 1, 1] w1, float[8, 2, 1, 1] w2>
{{
  x = Conv <pads = [1, 1, 1, 1]> (image, w0)
  p = GlobalAveragePool(x)
  a = Conv(p, w1)
  b = Relu(a)
  c = Conv(b, w2)
  g = Sigmoid(c)
  s = Mul({scaled})
  y = Add(s, image)
  {readers}
}}
"""


def network(*, scaled="x, g", readers=0):
    lines = "".join(f"r{i} = Relu(s)\n" for i in range(readers))
    outputs = "".join(f", float[N, 8, 6, 6] r{i}" for i in range(readers))
    proto = onnx.parser.parse_model(BLOCK.format(scaled=scaled, readers=lines, outputs=outputs))
    for value, dims in (("w0", (8, 8, 3, 3)), ("w1", (2, 8, 1, 1)), ("w2", (8, 2, 1, 1))):
        size = dims[0] * dims[1] * dims[2] * dims[3]
        proto.graph.initializer.append(onnx.helper.make_tensor(value, 1, dims, [0.1] * size))
    return graph.tidy(graph.inline(ir.from_proto(proto)))


def block_of(model):
    (block,) = se_blocks.detect(model).blocks
    return block


def boxes(svg):
    """(role, texts, x, y, width, height) of each box."""
    found = []
    for group in ET.fromstring(svg).iter("g"):  # noqa: S314 - our own document
        rect = group.find("rect")
        corner = [float(rect.get(key)) for key in ("x", "y", "width", "height")]
        found.append(
            (group.get("class"), [text.text.replace(TIMES, "x") for text in group.findall("text")], *corner)
        )
    return found


def test_a_block_is_drawn_with_what_feeds_it_and_what_reads_it():
    svg = report.block_svg(model := network(), block_of(model))
    drawn = [(role, *texts) for role, texts, *_ in boxes(svg)]
    assert drawn == [
        ("inside", "GlobalAveragePool", "Nx8x1x1"),
        ("inside", "Conv 1x1", "Nx2x1x1"),
        ("inside", "Relu", "Nx2x1x1"),
        ("inside", "Conv 1x1", "Nx8x1x1"),
        ("inside", "Sigmoid", "Nx8x1x1"),
        ("inside scale", "Mul", "Nx8x6x6"),
        ("outside", "Conv 3x3", "Nx8x6x6"),
        ("outside", "Add", "Nx8x6x6"),
    ]
    assert svg.count('class="edge"') == 8


@settings(deadline=None, max_examples=12)
@given(readers=st.integers(0, 12), scaled=st.sampled_from(["x, g", "g, x"]))
def test_boxes_lie_inside_and_apart_and_arrows_point_down(readers, scaled):
    svg = report.block_svg(model := network(readers=readers, scaled=scaled), block_of(model))
    width, height = (float(n) for n in re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    found = boxes(svg)
    for i, (_, _, x, y, w, h) in enumerate(found):
        assert 0 <= x <= x + w <= width + 0.1
        assert 0 <= y <= y + h <= height + 0.1
        for _, _, x2, y2, w2, h2 in found[:i]:
            assert x + w < x2 or x2 + w2 < x or y + h < y2 or y2 + h2 < y
    for path in re.findall(r'class="edge" d="([^"]*)"', svg):
        ends = [float(n) for n in re.findall(r"[\d.]+", path)]
        assert ends[1] < ends[-1]


def test_of_many_readers_some_are_only_counted():
    svg = report.block_svg(model := network(readers=20), block_of(model))
    outside = [texts for role, texts, *_ in boxes(svg) if role == "outside"]
    assert ["17 more", "readers"] in outside
    assert len(outside) == 1 + 5


def test_a_graph_input_and_output_are_boxes():
    model = network()
    block = dataclasses.replace(block_of(model), nodes=tuple(node.name for node in model.graph))
    outside = [texts for role, texts, *_ in boxes(report.block_svg(model, block)) if role == "outside"]
    assert outside == [["input", "Nx8x6x6"], ["output", "Nx8x6x6"]]


def test_a_block_of_another_graph_is_refused():
    model = network()
    with pytest.raises(ValueError, match="no node of the block"):
        report.block_svg(model, dataclasses.replace(block_of(model), nodes=("elsewhere",)))


def test_names_are_escaped_in_the_drawing_and_its_page():
    model = network()
    node = next(node for node in model.graph if node.op_type == "Mul")
    node.name = node.outputs[0].name = "<script>alert(1)</script>"
    block = block_of(model)
    svg = report.block_svg(model, block)
    blocks = (as_schema.block(block),)
    inspection = Inspect(tool_version="1", warnings=(), blocks=blocks, rejected=(), plans=())
    page = report.inspect_html(inspection, {block.output: svg})
    assert page.count("<script") == 1, "the page's own"
    assert page.count('<svg class="graph"') == 1
    HTMLParser().feed(page)


def test_the_same_block_gives_the_same_drawing():
    first, second = network(), network()
    assert report.block_svg(first, block_of(first)) == report.block_svg(second, block_of(second))


def test_a_whole_network_shows_its_blocks_and_kernels():
    model = network()
    names = {node.op_type: node.name for node in model.graph}
    first_conv = next(node.name for node in model.graph)
    svg = report.network_svg(model, [block_of(model)], [[first_conv], [names["Mul"], names["Add"]]])
    drawn = {texts[0]: role for role, texts, *_ in boxes(svg)}
    assert drawn["Mul"] == "inside scale kernel-1"
    assert drawn["Add"] == "outside kernel-1"
    assert drawn["Conv 3x3"] == "outside kernel-0"
    assert drawn["Sigmoid"] == "inside"
    assert drawn["input"] == drawn["output"] == "outside"
    assert svg.count("inside-kernel") == 1, "from Mul to Add"
    assert svg.count('class="edge') == 11
    assert "8 nodes in 2 kernels, 1 SE block<" in svg


def test_a_network_that_nobody_could_read_is_not_drawn():
    model = network(readers=900)
    assert report.network_svg(model, [], []) is None
