import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_deploy.backends.tensorrt.layer_log import dtype_of, onnx_nodes, parse_layers
from se_deploy.errors import BuildFailed
from se_deploy.plan import SIZE_BYTES, Plan

NHWC = "Strides: [6272,1,448,32], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format"
NCHW = "Strides: [6272,196,14,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear"
LOG = f"""Layers:
Name: __mye142_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , \
StreamId: 0, Metadata:\x20
Name: c_myl0_2, LayerType: correlation, Inputs: [ {{ Name: x, Dimensions: [-1,32,14,14], {NHWC} }}], \
Constants: [ {{ Name: w, Dimensions: [32,32,1,1], {NCHW} }}, {{ Name: b, Dimensions: [32], {NCHW} }}], \
Outputs: [ {{ Name: y, Dimensions: [-1,32,14,14], {NCHW} }}], TacticName: __myelin_CASK_STUB, StreamId: 0, \
Metadata: [ONNX Layer: c]\x1f[ONNX Layer: r]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,32,14,14]
"""
NAMES = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\u2028\u2029\x85"), min_size=1
)


def test_reads_kernels_tensors_and_nodes():
    shape, conv = parse_layers(LOG)
    assert shape.host_only
    assert (conv.kind, conv.onnx_nodes) == ("correlation", ("c", "r"))
    assert (conv.inputs[0].dtype, conv.inputs[0].layout, conv.inputs[0].dims) == (
        "float16",
        "nhwc",
        (-1, 32, 14, 14),
    )
    assert (conv.outputs[0].dtype, conv.outputs[0].layout) == ("float32", "nchw")
    assert [t.name for t in conv.constants] == ["w", "b"]


def test_a_dynamic_dimension_counts_as_one_and_shape_calls_as_no_kernel():
    plan = Plan("tensorrt-rtx", "1.7", "sm86", parse_layers(LOG))
    assert plan.kernels == 1
    assert plan.activation_bytes == 32 * 14 * 14 * (2 + 4)
    assert plan.weight_bytes == (32 * 32 + 32) * 4


@given(st.lists(NAMES.filter(lambda n: "[ONNX Layer: " not in n and n.strip() == n), min_size=1, unique=True))
def test_node_names_survive_whatever_they_hold(names):
    metadata = "\x1f".join(f"[ONNX Layer: {name}]" for name in names)
    assert onnx_nodes(metadata) == tuple(names)


@given(NAMES, st.sampled_from(["blk[0]/conv, 1", "a b", "x {y}", "n], Outputs", "/m/Conv"]))
def test_layer_names_survive_whatever_they_hold(name, node):
    if "Name: " in name or ", LayerType: " in name:
        return
    line = LOG.splitlines()[2].replace("c_myl0_2", name).replace("[ONNX Layer: c]", f"[ONNX Layer: {node}]")
    (kernel,) = parse_layers(line)
    assert (kernel.name, kernel.onnx_nodes) == (name, (node, "r"))
    assert len(kernel.inputs) == len(kernel.outputs) == 1


@pytest.mark.parametrize(
    ("word", "dtype"),
    [("Float", "float32"), ("Half", "float16"), ("BF16", "bfloat16"), ("Int8", "int8"), ("FP8", "float8e4m3"),
     ("Int64", "int64"), ("Bool", "bool"), ("UInt8", "uint8"), ("Int32", "int32"), ("FP4", "float4")],
)  # fmt: skip
def test_every_element_type_has_a_size(word, dtype):
    assert dtype_of(word) == dtype
    assert dtype in SIZE_BYTES


def test_a_line_or_type_that_is_not_known_is_refused():
    with pytest.raises(BuildFailed, match="cannot be read"):
        parse_layers("Name: x, LayerType: kgen, Something: else")
    with pytest.raises(BuildFailed, match="Int7"):
        parse_layers(LOG.replace("Datatype: Half", "Datatype: Int7"))
