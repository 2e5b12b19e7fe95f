"""Shapes that onnx's inference loses: a Reshape to computed sizes, before operator set 14."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser
from onnx_ir.passes import common
from se_graphs import Net, Recipe, read, run, write

from se_deploy import graph, se_blocks, shape_inference
from se_deploy.errors import BadModel
from se_deploy.passes import canonical


def two_blocks(opset, **parts):
    """Two blocks, one behind the other: what the first one's sizes become, the second has to know."""
    net = Net(Recipe(opset=opset, **parts))
    x = net.op("Conv", "input", net.weight(8, 3, 1, 1))
    first = write(net, net.op("Relu", x))
    x = net.op("Conv", first.end, net.weight(8, 8, 1, 1))
    second = write(net, net.op("Relu", x))
    net.nodes.append(helper.make_node("Identity", [second.end], ["output"], name="out"))
    ends = [helper.make_tensor_value_info("input", 1, ["N", 3, 6, 5])]
    outputs = [helper.make_tensor_value_info("output", 1, None)]
    made = helper.make_graph(net.nodes, "g", ends, outputs, net.initializers)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8), [first.scaled, second.scaled]


@pytest.mark.parametrize("opset", [11, 12, 13, 14])
@pytest.mark.parametrize(
    "parts",
    [
        {"layers": "gemm"},
        {"squeeze": "flattened-by-shape"},
        {"expand": "shape"},
        {"expand": "shape", "squeeze": "sum-times"},
    ],
    ids=str,
)
def test_a_block_behind_one_that_computes_its_sizes_is_found(opset, parts):
    proto, outputs = two_blocks(opset, **parts)
    model = read(proto)
    assert [block.output for block in se_blocks.detect(model).se] == outputs
    assert graph.dims(graph.values(model)[outputs[1]])[1] == 8
    form = canonical.canonicalize(model).model
    x = np.random.default_rng(0).standard_normal((3, 3, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(run(form, x)[0], run(model, x)[0], rtol=1e-4, atol=1e-5)


def test_weights_are_constants_afterwards_and_no_inputs():
    model = ir.from_proto(two_blocks(11, layers="gemm")[0])
    shape_inference.infer(model)
    assert [value.name for value in model.graph.inputs] == ["input"]
    sizes = [value.const_value.size for value in model.graph.initializers.values()]
    assert max(sizes) == 64


def test_what_no_converter_knows_keeps_its_unknown_sizes():
    proto, outputs = two_blocks(11, layers="gemm")
    node = helper.make_node("NoSuchOperator", ["input"], ["other"], domain="elsewhere")
    proto.graph.node.append(node)
    proto.graph.output.append(helper.make_tensor_value_info("other", 1, None))
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert se_blocks.detect(read(proto)).se[0].output == outputs[0]


def small(body, opset, x="float[N,4,6,6] x", constants="int64[3] rows = {0, 4, -1}"):
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => (float y) <{constants}> {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


def test_an_operator_that_the_converter_refuses_keeps_its_unknown_sizes():
    model = small("t = Shape(x) v = Reshape(x, t) y = NoSuchOperator(v)", 11)
    with pytest.raises(RuntimeError, match="Assertion"):
        onnx.version_converter.convert_version(ir.to_proto(model), 14)
    shape_inference.infer(model)
    assert [node.op_type for node in model.graph] == ["Shape", "Reshape", "NoSuchOperator"]


@pytest.mark.parametrize("columns", [1, 400])  # above 1,000 bytes inference gets a shape, and no numbers
def test_a_weight_without_a_declared_shape_has_that_of_its_tensor(columns):
    model = small("v = Add(x, w) y = Relu(v)", 17, x=f"float[N,4,6,{columns}] x")
    weight = graph.initializer(model, "w", np.zeros((4, 1, columns), np.float32))
    model.graph[0].replace_input_with(1, weight)
    weight.shape, weight.type = None, None
    shape_inference.infer(model)
    assert graph.dims(model.graph[0].outputs[0]) == (None, 4, 6, columns)
    assert model.graph[0].outputs[0].dtype == ir.DataType.FLOAT


def test_shapes_inside_a_branch_are_inferred():
    branch = (
        "() => (float[N,4,3,3] %s) { %s = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) %s = Relu(%s) }"
    )
    body = f"""v = If (on) <then_branch = t {branch % ("p", "a", "p", "a")},
        else_branch = e {branch % ("q", "b", "q", "b")}> y = Relu(v)"""
    model = small(body, 17, x="float[N,4,6,6] x, bool on")
    shape_inference.infer(model)
    inside = model.graph[0].attributes["then_branch"].as_graph()
    assert graph.dims(inside[0].outputs[0]) == (None, 4, 3, 3)


def test_a_sequence_that_the_graph_makes_is_one():
    model = small("t = SequenceConstruct(x, x) y = SequenceAt(t, i)", 17, constants="int64 i = {0}")
    shape_inference.infer(model)
    assert isinstance(model.graph[0].outputs[0].type, ir.SequenceType)


def test_a_sequence_that_the_caller_gives_makes_sequences():
    model = small("t = Identity(x) y = SequenceAt(t, i)", 17, x="seq(float[N]) x", constants="int64 i = {0}")
    shape_inference.infer(model)
    assert isinstance(model.graph[0].outputs[0].type, ir.SequenceType)


@pytest.mark.parametrize(
    ("shape", "lost"),
    [
        (None, True),
        (["N", 4, 30], False),
        ([2, 4, 30], False),
        ([2, None, 30], True),
        (["N", "unk__7", 30], True),  # a name that inference made up
    ],
)
def test_a_reshape_of_sizes_that_nobody_named_is_lost(shape, lost):
    model = small("v = Reshape(x, rows) u = Relu(v) y = Relu(u)", 11)
    made = model.graph[0].outputs[0]
    made.shape = None if shape is None else ir.Shape(shape)
    assert [value.name for value in shape_inference._lost(model)] == (["v"] if lost else [])


def test_of_two_shapes_the_one_with_more_sizes_is_kept():
    shapes = (None, [], ["N"], ["N", 4], [2, 4], [2, 4, 6], [2, 4, 6, 6])
    known = [shape_inference._sizes(None if shape is None else ir.Shape(shape)) for shape in shapes]
    assert known == sorted(known)
    assert len({known[0], known[1], *known[3:]}) == 6  # a name says no more than the rank


def test_larger_weights_do_not_travel_to_the_converter():
    proto, _ = two_blocks(11, layers="gemm")
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((100, 2), np.float32), "large"))
    light = ir.to_proto(shape_inference._light(ir.from_proto(proto)))
    assert "large" in {value.name for value in light.graph.input}
    assert "large" not in {tensor.name for tensor in light.graph.initializer}


@pytest.mark.parametrize("opset", [11, 14, 20])
@pytest.mark.parametrize("parts", [{}, {"expand": "shape"}, {"squeeze": "sum-times"}], ids=str)
def test_what_is_read_back_is_what_onnx_ir_reads(opset, parts):
    proto, _ = two_blocks(opset, **parts)
    large = numpy_helper.from_array(np.zeros((8, 400), np.float32), "large")  # no numbers of it are given
    proto.graph.initializer.insert(0, large)
    ours, theirs = ir.from_proto(proto), ir.from_proto(proto)
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(theirs)
    shape_inference._infer_flat(ours, follow=True)
    assert ir.to_proto(ours) == ir.to_proto(theirs)
    assert len(ir.to_proto(ours).graph.value_info) > len(proto.graph.node) // 2


def test_a_node_that_inference_fails_on_leaves_the_graph_as_it_is():
    text = """<ir_version: 8, opset_import: ["" : 20]> g (float[N,3,4,4] x, float[1,9,1] signal)
        => (float[N,3,4,4] y) <int64[0] none = {}>
        { b = STFT <onesided = 1> (signal, none)  y = Relu(x) }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.insert(0, numpy_helper.from_array(np.zeros((8, 400), np.float32), "large"))
    model = ir.from_proto(proto)
    with pytest.raises(IndexError):
        onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shape_inference.infer(model)
    assert [value.name for value in model.graph.inputs] == ["x", "signal"]
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert {name: tensor.size for name, tensor in weights.items()} == {"large": 3200, "none": 0}


FOUND = Path(__file__).parent / "fuzz" / "found" / "onnx"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("split-into-fewer", "num_outputs is [1], and it has 3 outputs"),
        ("split-in-function", "num_outputs is [1], and it has 3 outputs"),  # the call of a function gives it
        ("split-into-no-number", "num_outputs is [], and it has 2 outputs"),  # a list, and an empty one
        ("split-into-2-to-the-31", "num_outputs is [2147483647]"),
        ("gather-batch-dims", "batch_dims is [-2147483648]"),
        ("layer-norm-axis", "axis is [2147483648]"),
        ("expand-to-a-rank-of-2-to-the-28", "sizes have the shape [268435456]"),
        ("expand-to-a-computed-rank", "sizes have the shape [20000000]"),
        ("window-of-too-many", "kernel_shape is [2, 1, 2, 1], its input has 3 dimensions"),
        ("axes-in-a-matrix", "axes have 2 dimensions"),
        ("domain-no-utf8", "is no UTF-8"),
    ],
)
def test_what_would_end_the_process_in_inference_is_refused_before(name, what):
    with pytest.raises(BadModel) as caught:
        graph.load(FOUND / name)
    assert name in caught.value.message
    assert what in caught.value.message


def to_computed_rank(opset, rank, sizes="sizes"):
    """A file of 200 bytes whose Expand has as many dimensions as a list is long that is computed."""
    nodes = [
        helper.make_node("ConstantOfShape", ["rank"], ["ones"], value=helper.make_tensor("one", 7, [1], [1])),
        helper.make_node("Abs", ["ones"], [sizes]),
        helper.make_node("Expand", ["x", sizes], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["y"], keepdims=0),
    ]
    given, wanted = (helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1]), ("y", [])))
    made = helper.make_graph(nodes, "g", [given], [wanted], [helper.make_tensor("rank", 7, [1], [rank])])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [9, 10, 12, 13])
def test_an_expand_to_a_computed_rank_keeps_it_and_the_graph_its_nodes(opset, tmp_path):
    file = tmp_path / "x.onnx"
    file.write_bytes(to_computed_rank(opset, 3, sizes="first-sizes:0").SerializeToString())
    model = graph.load(file)
    assert graph.ops(model) == ["ConstantOfShape", "Abs", "Expand", "ReduceMax"]
    assert [value.name for value in model.graph[2].inputs] == ["x", "first-sizes:0"]
    if opset < 13:
        assert len(model.graph[2].outputs[0].shape) == 3
    file.write_bytes(to_computed_rank(opset, 2_000).SerializeToString())
    with pytest.raises(BadModel, match=r"its sizes have the shape \[2000\]"):
        graph.load(file)


def test_inference_makes_no_dimension_of_each_number_in_a_list_of_millions(tmp_path):
    """In 100 bytes of file: it took 2 GB for these, and for a list of a billion all that there is."""
    text = """<ir_version: 8, opset_import: ["" : 20]> g (float[4000,5000] x) => (float16[n] y)
        <int64[1] flat = {-1}> { z = Reshape(x, flat)  y = Cast <to = 10> (z) }"""
    files = {"cast": parser.parse_model(text)}
    files |= {f"expand-{opset}": to_computed_rank(opset, 10_000_000) for opset in (9, 12)}
    for name, proto in files.items():
        (tmp_path / name).write_bytes(proto.SerializeToString())
    said = subprocess.run(
        [sys.executable, "-c", _LOAD, *(str(tmp_path / name) for name in files)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    *refused, peak = said.split()
    assert refused == ["expand-9", "expand-12"]
    assert int(peak) < 500 * 1024  # KiB


_LOAD = """
import pathlib, sys
from se_deploy import errors, graph
for file in map(pathlib.Path, sys.argv[1:]):
    try:
        graph.load(file)
    except errors.BadModel:
        print(file.name)
status = pathlib.Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0])  # ru_maxrss counts the parent's memory, as it is at the fork
"""


def test_lists_are_counted_where_inference_makes_dimensions_of_them():
    """A list of unknown length, here made by a ConstantOfShape, is inferred before."""
    text = """<ir_version: 8, opset_import: ["" : 20]> g (float[N,8,4,4] x, int64[{count}] list)
        => (float[N,8,4,4] y, int64[m] z) <int64[1] count = {{{count}}}>
        {{ y = Add(x, x)  {made}  z = Concat <axis = 0> (a, a) }}"""
    for made in ("a = Abs(list)", "b = ConstantOfShape(count) c = Cast <to = 7> (b) a = Abs(c)"):
        few, many = (
            ir.from_proto(parser.parse_model(text.format(count=count, made=made)))
            for count in (1000, 2_500_000)
        )
        assert shape_inference._has_few_numbers(few, look_ahead=True)
        assert not shape_inference._has_few_numbers(many, look_ahead=True)
        shape_inference.infer(many, from_file=True)
        assert graph.dims(many.graph[-1].outputs[0]) == (5_000_000,)


def test_a_negative_size_in_a_body_is_a_free_one():
    (node,) = graph.load(FOUND / "negative-in-a-body").graph
    old = node.attributes["body"].as_graph().inputs[2]
    assert graph.dims(old) == (None, None)


def test_sequences_keep_their_types_unknown_where_a_node_cannot_be_inferred():
    text = """<ir_version: 8, opset_import: ["" : 20]> g (float[4] x, float[1,9,1] signal) => (float[N] y)
        <int64[0] none = {}>
        { b = STFT <onesided = 1> (signal, none)  s = SequenceConstruct(x, b)
          y = ConcatFromSequence <axis = 0> (s) }"""
    proto = parser.parse_model(text)
    with pytest.raises(IndexError):
        onnx.shape_inference.infer_shapes(proto)
    model = ir.from_proto(proto)
    shape_inference.infer(model)
    assert [node.outputs[0].type for node in model.graph][:2] == [None, None]
