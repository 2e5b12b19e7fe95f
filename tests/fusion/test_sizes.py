"""A plan with free sizes is counted at the sizes of the graph that it was made from."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

from se_deploy import fusion, graph
from se_deploy.plan import Kernel, Plan, PlanTensor

FREE = (-1, 4, -1, -1)


def net(text):
    """The graph of `text` whose inputs but the first are weights; each node named after what it writes."""
    proto = parser.parse_model(text)
    for weights in proto.graph.input[1:]:
        kind = weights.type.tensor_type
        array = np.ones(
            [d.dim_value for d in kind.shape.dim], helper.tensor_dtype_to_np_dtype(kind.elem_type)
        )
        proto.graph.initializer.append(numpy_helper.from_array(array, weights.name))
    del proto.graph.input[1:]
    made = graph.tidy(ir.from_proto(proto))
    for node in made.graph:
        node.name = f"n_{node.outputs[0].name}"
    return made


@pytest.fixture
def model():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,8,6] x, float[4,3,1,1] w) => (float[1,4,1,1] y) {
        c = Conv(x, w)
        r = Relu(c)
        p = GlobalAveragePool(r)
        y = Sigmoid(p)
    }"""
    return net(text)


def tensor(name, dims):
    return PlanTensor(name, "float32", dims)


def kernel(inputs, outputs, *nodes):
    return Kernel("k", "kgen", inputs, outputs, nodes)


def filled(model, *kernels):
    return fusion.filled(Plan("any", "1", "any", kernels), model)


def test_tensors_are_sized_by_name_by_their_nodes_and_by_what_is_beside_them(model):
    copied = tensor("copied", (-1, 3, -1, -1))
    made = filled(
        model,
        kernel((tensor("x", (-1, 3, -1, -1)),), (copied,)),  # a copy, in no node of the graph
        kernel((copied,), (tensor("internal", FREE),), "n_c", "n_r"),
        kernel((tensor("internal", FREE),), (tensor("p", (-1, 4, 1, 1)),), "n_p"),
    )
    dims = [[t.dims for t in (*k.inputs, *k.outputs)] for k in made.plan.layers]
    assert dims == [
        [(-1, 3, 8, 6), (-1, 3, 8, 6)],
        [(-1, 3, 8, 6), (-1, 4, 8, 6)],
        [(-1, 4, 8, 6), (-1, 4, 1, 1)],
    ]
    assert made.unknown == ()
    assert made.plan.activation_bytes == 4 * (2 * 144 + 144 + 192 + 192 + 4)


def test_a_tensor_that_a_kernel_sees_in_another_rank_has_the_graph_s_sizes(model):
    made = filled(
        model,
        kernel((tensor("x", (-1, 3, -1, -1)),), (tensor("c", FREE),), "n_c"),
        kernel((tensor("c", (-1, 4, -1)),), (tensor("r", FREE),), "n_r"),
    )
    assert made.plan.layers[1].inputs[0].dims == (1, 4, 8, 6)
    assert made.plan.activation_bytes == 4 * (144 + 192 + 192 + 192)


def test_a_signal_that_a_kernel_sees_as_an_image_has_the_graph_s_sizes():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,48] x, float[4,3,1] w) => (float[1,4,48] y) { c = Conv(x, w) y = Relu(c) }"""
    signal, image = tensor("c", (-1, 4, -1)), tensor("c", (-1, 4, -1, 1))
    made = filled(
        net(text),
        kernel((tensor("x", (-1, 3, -1)),), (signal,), "n_c"),
        kernel((image,), (tensor("y", (-1, 4, -1)),), "n_y"),
    )
    assert made.plan.layers[1].inputs[0].dims == (1, 4, 48)
    alone = filled(net(text), kernel((image,), (tensor("y", (-1, 4, -1)),), "n_y"))
    assert alone.unknown == ("c",)


def test_a_first_size_that_is_no_batch_is_the_graph_s():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4,8,6] x) => (float[4,1,8,6] y) { t = Transpose<perm=[1,0,2,3]>(x) y = Relu(t) }"""
    free = (-1, -1, -1, -1)
    (layer,) = filled(net(text), kernel((tensor("x", free),), (tensor("t", free),), "n_t")).plan.layers
    assert (layer.inputs[0].dims, layer.outputs[0].dims) == ((-1, 4, 8, 6), (4, 1, 8, 6))


def test_sizes_are_passed_on_through_any_number_of_copies(model):
    names = ["x", "c1", "c2", "c3", "c4", "c5"]
    seen = {name: tensor(name, (-1, 3, -1, -1)) for name in names}
    copies = [kernel((seen[a],), (seen[b],)) for a, b in itertools.pairwise(names)]
    made = filled(model, *reversed(copies))
    assert made.unknown == ()
    assert made.plan.layers[0].outputs[0].dims == (-1, 3, 8, 6)


def test_channels_that_the_compiler_pads_keep_their_number(model):
    padded = tensor("padded", (-1, 4, -1, -1))
    made = filled(
        model,
        kernel((tensor("x", (-1, 3, -1, -1)),), (padded,)),
        kernel((padded,), (tensor("wide", (-1, 16, -1, -1)),), "n_c"),
    )
    assert made.plan.layers[1].inputs[0].dims == (-1, 4, 8, 6)
    assert made.plan.layers[1].outputs[0].dims == (-1, 16, 8, 6)


def test_a_batch_that_the_engine_fixes_is_no_reason_for_an_unknown_size(model):
    fixed = tensor("fixed", (8, 3, -1, -1))
    made = filled(model, kernel((fixed,), (tensor("y", (8, 4, 1, 1)),), "n_c"))
    assert (made.unknown, made.plan.layers[0].inputs[0].dims) == ((), (8, 3, 8, 6))


def test_what_nothing_tells_the_size_of_is_named(model):
    odd = tensor("odd", (-1, 7, -1))
    made = filled(model, kernel((odd,), (odd,)))
    assert made.unknown == ("odd",)
    assert made.plan.layers[0].inputs[0].dims == odd.dims


def test_a_tensor_whose_sizes_are_all_planned_is_not_unknown(model):
    planned = tensor("planned", (-1, 7, 3, 3))
    made = filled(model, kernel((planned,), (planned,)))
    assert made.unknown == ()
    assert made.plan.layers[0].inputs[0].dims == planned.dims


def test_only_a_copy_has_the_size_of_what_is_beside_it(model):
    free = (-1, 3, -1, -1)
    copy = kernel((tensor("x", free),), (tensor("copied", free),))
    assert filled(model, copy).plan.layers[0].outputs[0].dims == (-1, 3, 8, 6)
    pool = kernel((tensor("x", free),), (tensor("partial", free),), "n_p")
    assert filled(model, pool).unknown == ("partial",)  # a pool's result is smaller, who knows how much


@pytest.mark.parametrize(
    "dims",
    [(-1, 2, -1, -1), (-1, 3, -1), (-1, 3, 7, -1), (-1, 3, 16, -1)],  # 3 x 7 would fit the weights
    ids=["fewer channels", "rank", "height", "larger height"],
)
def test_a_tensor_has_no_size_of_one_that_it_is_not(model, dims):
    made = filled(model, kernel((tensor("read", dims),), (tensor("y", (-1, 4, 1, 1)),), "n_c"))
    assert made.unknown == ("read",)


def test_weights_that_are_dequantized_are_no_activation_of_their_size():
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[1,4,8,6] x, int8[4,4,1,1] w, float s) => (float[1,4,8,6] y)
    { d = DequantizeLinear(w, s) y = Conv(x, d) }"""
    into = tensor("given", FREE), tensor("made", FREE)
    made = filled(net(text), kernel(into[:1], into[1:], "n_y", "n_d"))  # as TensorRT-RTX lists them
    (layer,) = made.plan.layers
    assert (layer.inputs[0].dims, layer.outputs[0].dims) == ((-1, 4, 8, 6), (-1, 4, 8, 6))


def test_an_exact_size_goes_before_one_with_padded_channels():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4,8,6] x, float[2,4,2,2] w) => (float[1,2,4,3] y)
    { a = Relu(x) y = Conv<strides=[2,2]>(a, w) }"""
    made = filled(net(text), kernel((), (tensor("internal", FREE),), "n_a", "n_y"))
    assert made.plan.layers[0].outputs[0].dims == (-1, 4, 8, 6)


@pytest.mark.parametrize("shape", [None, ir.Shape([1, 4, 8, None])], ids=["no rank", "one size free"])
def test_a_tensor_whose_size_the_graph_does_not_say_is_named(model, shape):
    (c,) = model.graph.node("n_c").outputs
    c.shape = shape
    made = filled(model, kernel((tensor("x", (-1, 3, 8, 6)),), (tensor("c", (-1, 4, -1)),), "n_c"))
    assert made.unknown == ("c",)


def test_figures_are_per_image():
    x = tensor("x", (8, 4, 2, 2))
    plan = Plan("any", "1", "any", (kernel((x,), (x,)),))
    assert plan.activation_bytes == 8 * 128
    eight = plan.per_image({"x": (8, 4, 2, 2)}, 8)
    assert (eight.activation_bytes, eight.shapes) == (128, (("x", (8, 4, 2, 2)),))
