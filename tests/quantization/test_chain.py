"""Every published rule: a chain that keeps it, and one that breaks it."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from chain_graphs import FIRST, conv, float_conv, last, model, pair

from se_deploy import graph
from se_deploy.cli.main import main
from se_deploy.commands.inspect import inspect
from se_deploy.quantization import chain
from se_deploy.quantization.chain import RULES

GATE = " p = GlobalAveragePool(r) f = Conv(p, fc_f) h = Relu(f) g = Conv(h, fc_g) t = Sigmoid(g) "
"""The gate `t` of an SE block on `r`, in float."""
SECOND = pair("r", "rq") + conv("rq", "o")


def weights(name, axis, more=""):
    """`name`, an INT8 convolution of `xq` with a scale for each channel along `axis` of its weights."""
    scales = "block_scales" if more else "channel_scales, channel_zeros"
    return (
        f" {name}_w = DequantizeLinear<axis = {axis}{more}>(int8_{name}, {scales}) "
        f"{name} = Conv<pads = [1, 1, 1, 1]>(xq, {name}_w, b_{name}) "
    )


WHOLE = {
    "relu": FIRST + " r = Relu(a) " + last("r"),
    "nothing between": FIRST + last("a"),
    "clip": FIRST + " r = Clip(a) " + last("r"),
    "hard swish": FIRST + " r = HardSwish(a) " + last("r"),
    "silu": FIRST + " g = Sigmoid(a) r = Mul(a, g) " + last("r"),
    "factors of a linear convolution": FIRST + " m = Mul(a, c_m) r = Relu(m) " + last("r"),
    "offset behind a pointwise kernel": FIRST + " h = HardSwish(a) r = Sub(h, c_o) " + last("r"),
    "max pooling commutes": FIRST
    + " r = Relu(a) m = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r) "
    + last("m"),
    "max pooling behind its pair": FIRST
    + " r = Relu(a) "
    + pair("r", "rq")
    + " m = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(rq) "
    + conv("m", "y"),
    "average pooling between pairs": FIRST
    + " r = Relu(a) "
    + pair("r", "rq")
    + " m = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(rq) "
    + last("m"),
    "shared residual": FIRST + " r = Relu(a) " + SECOND + " e = Add(o, rq) k = Relu(e) " + last("k"),
    "residual of a convolution": FIRST
    + conv("xq", "o")
    + pair("a", "aq")
    + " e = Add(o, aq) k = Relu(e) "
    + last("k"),
    "concat of floats with one scale behind": FIRST
    + conv("xq", "o")
    + " r = Relu(a) t = Relu(o) j = Concat<axis = 2>(r, t) "
    + last("j"),
    "se block": FIRST + " r = Relu(a) " + GATE + " e = Mul(r, t) " + last("e"),
    "two readers of one pair": FIRST + " r = Relu(a) " + SECOND + conv("rq", "d") + " y = Add(o, d) ",
}  # fmt: skip

BROKEN = {
    "zero-point": pair("x", "xq", zero="z3") + conv("xq", "a") + " y = Relu(a) ",
    "integer-type": pair("x", "xq", zero="u0") + conv("xq", "a") + " y = Relu(a) ",
    "integer-operator": pair("x", "xq")
    + " x_i = QuantizeLinear(x, s, z) o_i = QLinearConv<pads = [1, 1, 1, 1]>(x_i, s, z, int8_o, s, z, s, z)"
    + " y = DequantizeLinear(o_i, s, z) ",
    "weight-scales": pair("x", "xq") + weights("a", 1) + " y = Relu(a) ",
    "per-channel-activation": FIRST
    + " r = Relu(a) rq_q = QuantizeLinear<axis = 1>(r, channel_scales, channel_zeros)"
    + " rq = DequantizeLinear<axis = 1>(rq_q, channel_scales, channel_zeros) "
    + conv("rq", "y"),
    "half-quantized": pair("x", "xq") + float_conv("xq", "a") + " y = Relu(a) ",
    "between": FIRST + " r = Relu(a) m = Mul(r, c_m) o = Sub(m, c_o) " + last("o"),
    "not-fused": FIRST
    + " r = Relu(a) m = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r) "
    + last("m"),
    "residual-in-float": FIRST + " r = Relu(a) " + SECOND + " e = Add(o, r) k = Relu(e) " + last("k"),
    "extra-pair": FIRST
    + " r = Relu(a) "
    + SECOND
    + pair("o", "oq")
    + " e = Add(oq, rq) k = Relu(e) "
    + last("k"),
    "two-scales": FIRST + " r = Relu(a) " + SECOND + pair("r", "rq2", "s2") + " e = Add(o, rq2) " + last("e"),
    "concat": FIRST
    + conv("xq", "o")
    + " r = Relu(a) t = Relu(o) "
    + pair("t", "tq")
    + " j = Concat<axis = 2>(r, tq) "
    + conv("j", "y"),
    "inside-activation": FIRST + pair("a", "aq") + " g = Sigmoid(aq) r = Mul(aq, g) " + last("r"),
    "inside-gate": FIRST + " r = Relu(a) " + GATE + pair("t", "tq") + " e = Mul(r, tq) " + last("e"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_chain_has_no_break(name):
    found = chain.lint(model(WHOLE[name]))
    assert not found.breaks
    assert found.unbroken == len(found.int8) > 0
    assert found.unbroken_fraction == 1


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_is_broken_by_name(name):
    found = chain.lint(model(BROKEN[name]))
    assert {one.rule.name for one in found.breaks} == {name}
    assert found.unbroken < max(1, len(found.int8)) or not found.int8


def test_every_rule_has_a_graph_that_breaks_it_and_a_page():
    assert {rule.name for rule in RULES} - set(BROKEN) == {"scale"}, "a computed scale has a test of its own"
    assert all(rule.source.startswith("https://docs.nvidia.com/") and rule.says for rule in RULES)


def test_scales_that_are_computed_or_0_are_a_break():
    computed = " s3 = ReduceMax<keepdims = 0>(x) " + pair("x", "xq", "s3") + conv("xq", "a") + " y = Relu(a) "
    found = chain.lint(model(computed))
    assert [one.rule.name for one in found.breaks] == ["scale"]


def test_the_break_says_where_and_which_layers():
    found = chain.lint(model(BROKEN["residual-in-float"]))
    (one,) = {b.cause: b for b in found.breaks if "elsewhere" in b.cause}.values()
    assert "'r'" in one.cause
    names = {n.outputs[0].name: n.name for n in model(BROKEN["residual-in-float"]).graph}
    assert one.node == names["e"]
    assert one.layers == (names["a"],)


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (WHOLE["se block"], "GlobalAveragePool has no INT8 form"),
        (FIRST + " y = Relu(a) ", "it is an output of the network"),
        (FIRST + " r = Relu(a) " + float_conv("r", "y"), "this layer is in float"),
    ],
)
def test_what_the_network_ends_is_no_break(body, cause):
    found = chain.lint(model(body))
    assert not found.breaks
    assert cause in {end.cause for end in found.ends}


def test_padding_in_front_of_a_quantizer_breaks_even_at_the_input():
    body = " e = Pad(x, edges) m = Mul(e, c_m) " + pair("m", "xq") + conv("xq", "y", "pads = [0, 0, 0, 0]")
    found = chain.lint(model(body))
    assert [one.rule.name for one in found.breaks] == ["between"]
    assert "Pad, Mul" in found.breaks[0].cause


def test_factors_at_the_input_are_in_the_quantizer_s_own_kernel():
    body = " m = Mul(x, c_m) " + pair("m", "xq") + conv("xq", "y")
    assert not chain.lint(model(body)).breaks


def test_a_float_graph_has_no_chain():
    assert chain.lint(model(float_conv("x", "y"))) is None


def test_shares_count_every_layer_with_constant_weights():
    found = chain.lint(model(WHOLE["se block"], batch=1))
    inside, gate = 2 * 8 * 8 * 9 * 14 * 14, 2 * 8 * 8
    assert found.int8_macs_fraction == pytest.approx(inside / (inside + gate))
    assert len(found.in_float) == 2
    assert 0 < found.int8_bytes_fraction < 1


def test_bytes_are_those_of_the_kernels():
    found = chain.lint(model(WHOLE["relu"], batch=1))
    # quantize x (4 + 1), convolution (1 + 1), convolution (1 + 4) bytes per element
    assert found.int8_bytes_fraction == pytest.approx(4 / 12)


def test_a_float_residual_makes_the_convolution_write_floats():
    whole = chain.lint(model(WHOLE["shared residual"], batch=1)).int8_bytes_fraction
    broken = chain.lint(model(BROKEN["residual-in-float"], batch=1)).int8_bytes_fraction
    assert broken < whole


SPELLINGS = {
    "weights quantized in the graph": " w_q = QuantizeLinear(w_a, s, z) w_d = DequantizeLinear(w_q, s, z) "
    "a = Conv<pads = [1, 1, 1, 1]>(xq, w_d, b_a) ",
    "per channel": " w_q = QuantizeLinear<axis = 0>(w_a, channel_scales, channel_zeros) "
    "w_d = DequantizeLinear<axis = 0>(w_q, channel_scales, channel_zeros) "
    "a = Conv<pads = [1, 1, 1, 1]>(xq, w_d, b_a) ",
    "a scale that a node makes": " s_made = Identity(s) w_q = QuantizeLinear(w_a, s_made, z) "
    "w_d = DequantizeLinear(w_q, s_made, z) a = Conv<pads = [1, 1, 1, 1]>(xq, w_d, b_a) ",
    "behind a transpose": " w_q = QuantizeLinear(w_a, s, z) w_d = DequantizeLinear(w_q, s, z) "
    "w_t = Transpose<perm = [1, 0, 2, 3]>(w_d) a = Conv<pads = [1, 1, 1, 1]>(xq, w_t, b_a) ",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_weights_are_read_in_every_spelling(name):
    found = chain.lint(model(pair("x", "xq") + SPELLINGS[name] + " r = Relu(a) " + last("r")))
    assert len(found.int8) == 2
    assert not found.breaks


TURNED = "w_t = Transpose<perm = [1, 0, 2, 3]>(w_q) y = Conv<pads = [1, 1, 1, 1]>(xq, w_t, b_y) "
ALONG_0 = " w_q = DequantizeLinear<axis = 0>(int8_w, channel_scales, channel_zeros) "
ALONG_1 = " w_q = DequantizeLinear<axis = 1>(int8_w, channel_scales, channel_zeros) "
AXES = {
    "of a convolution's outputs": (weights("y", 0), True),
    "of a convolution's inputs": (weights("y", 1), False),
    "counted from behind": (weights("y", -4), True),
    "of inputs, turned round in the graph": (ALONG_1 + TURNED, True),
    "of outputs, turned round in the graph": (ALONG_0 + TURNED, False),
    "of a transposed convolution, inputs": (ALONG_0 + " y = ConvTranspose(xq, w_q, b_y) ", True),
    "of a transposed convolution, outputs": (ALONG_1 + " y = ConvTranspose(xq, w_q, b_y) ", True),
}  # fmt: skip


@pytest.mark.parametrize("name", AXES)
def test_the_scales_of_weights_lie_along_the_outputs(name):
    body, along = AXES[name]
    found = chain.lint(model(pair("x", "xq") + body, 1))
    assert [one.rule.name for one in found.breaks] == ([] if along else ["weight-scales"])
    assert found.int8_macs_fraction == (1 if along else 0)


MATRICES = {
    "the columns of a matrix": ("MatMul(xq, w)", 1, (8, 8), True),
    "the rows of a matrix": ("MatMul(xq, w)", 0, (8, 8), False),
    "the columns of Gemm's": ("Gemm(xq, w)", 1, (8, 8), True),
    "the rows of Gemm's": ("Gemm(xq, w)", 0, (8, 8), False),
    "the rows of Gemm's, turned round": ("Gemm<transB = 1>(xq, w)", 0, (8, 8), True),
    "the columns of Gemm's, turned round": ("Gemm<transB = 1>(xq, w)", 1, (8, 8), False),
    "the rows of a matrix in front": ("MatMul(w, xq)", 0, (8, 8), True),
    "the columns of a matrix in front": ("MatMul(w, xq)", 1, (8, 8), False),
}  # fmt: skip


@pytest.mark.parametrize("name", MATRICES)
def test_the_scales_of_matrices_lie_along_the_outputs(name):
    call, axis, shape, along = MATRICES[name]
    made = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[8,8] x) => (float[8,8] y) <float s = {{0.05}}, int8 z = {{0}}> {{
          x_q = QuantizeLinear(x, s, z) xq = DequantizeLinear(x_q, s, z)
          w = DequantizeLinear<axis = {axis}>(stored, scales, zeros)
          y = {call}
        }}""")
    random = np.random.default_rng(0)
    arrays = {
        "stored": random.integers(-127, 128, shape).astype(np.int8),
        "scales": np.linspace(0.05, 0.1, 8, dtype=np.float32),
        "zeros": np.zeros(8, np.int8),
    }
    (node,) = (n for n in made.graph if n.outputs[0].name == "w")
    for slot, (known, array) in enumerate(arrays.items()):
        node.replace_input_with(slot, graph.initializer(made, f"{known}_c", array))
    found = chain.lint(graph.tidy(graph.inline(made)))
    assert [one.rule.name for one in found.breaks] == ([] if along else ["weight-scales"])


def test_blocks_of_weights_are_named():
    found = chain.lint(model(pair("x", "xq") + weights("y", 1, ", block_size = 4"), 1))
    assert [(one.rule.name, "blocks of 4 along axis 1" in one.cause) for one in found.breaks] == [
        ("weight-scales", True)
    ]


INTEGER_BIAS = (
    " b = DequantizeLinear<axis = 0>(integers, channel_scales, integer_zeros) "
    " w = DequantizeLinear(int8_a, s, z) a = Conv<pads = [1, 1, 1, 1]>(xq, w, b) "
)


def test_a_bias_of_integers_is_no_int8():
    found = chain.lint(model(pair("x", "xq") + INTEGER_BIAS + " r = Relu(a) " + last("r"), 1))
    assert [(one.rule.name, "its bias: the integers are INT32" in one.cause) for one in found.breaks] == [
        ("integer-type", True)
    ]
    assert (len(found.int8), found.unbroken, found.int8_macs_fraction) == (2, 1, 0.5)


OPERATORS = {
    "a convolution": ("QLinearConv<pads = [1, 1, 1, 1]>(x_i, s, z, int8_o, s, z, s, z)", 1),
    "a matrix": ("QLinearMatMul(x_i, s, z, x_i, s, z, s, z)", 1),
    "what ONNX Runtime adds": ("com.microsoft.QLinearAdd(x_i, s, z, x_i, s, z, s, z)", 0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_that_compute_with_integers_are_breaks(name):
    call, layers = OPERATORS[name]
    body = f" x_i = QuantizeLinear(x, s, z) o = {call} y = DequantizeLinear(o, s, z) "
    found = chain.lint(model(body))
    (one,) = found.breaks
    assert (one.rule.name, len(found.int8), found.unbroken) == ("integer-operator", layers, 0)


def test_integers_without_any_quantizer_are_seen(tmp_path, capsys):
    made = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[2,8] x) => (int32[2,8] y) <int8 w> {
          x_i, x_s, x_z = DynamicQuantizeLinear(x)
          y = MatMulInteger(x_i, w, x_z)
        }""")
    random = np.random.default_rng(0)
    stored = graph.initializer(made, "w_c", random.integers(-127, 128, (8, 8)).astype(np.int8))
    made.graph.node(1).replace_input_with(1, stored)
    graph.save(graph.tidy(graph.inline(made)), tmp_path / "net.onnx")
    with pytest.raises(SystemExit, match="3"):
        main(["inspect", str(tmp_path / "net.onnx"), "--gate", "chain"])
    assert "MatMulInteger" in capsys.readouterr().err


def test_a_concat_of_different_scales_in_front_of_a_quantizer_is_a_break():
    body = (
        FIRST + conv("xq", "o") + " r = Relu(a) t = Relu(o) " + pair("r", "rq") + pair("t", "tq", "s2")
        + " j = Concat<axis = 2>(rq, tq) "
    )  # fmt: skip
    found = chain.lint(model(body + last("j")))
    names = {n.outputs[0].name: n.name for n in model(body + last("j")).graph}
    (one,) = found.breaks
    assert (one.rule.name, one.node, one.tensors) == ("concat", names["j"], ("r", "t", "j"))
    assert set(one.layers) == {names["a"], names["o"]}


def test_products_of_quantized_activations_are_read_as_int8():
    shared = " t = Transpose<perm = [0, 1, 3, 2]>(r) "
    whole = FIRST + " r = Relu(a) " + pair("r", "rq") + shared.replace("(r)", "(rq)") + " m = MatMul(rq, t) "
    floats = FIRST + " r = Relu(a) " + shared + " m = MatMul(r, t) "
    one, other = (chain.lint(model(body + last("m"), 1)) for body in (whole, floats))
    assert not one.breaks
    assert one.int8_bytes_fraction > other.int8_bytes_fraction
    assert "MatMul multiplies two activations in float" in {end.cause for end in other.ends}
    assert not any("MatMul" in end.cause for end in one.ends)


def test_what_is_inside_of_a_branch_is_said_not_to_be_judged(tmp_path):
    inner = " xq_q = QuantizeLinear(x, s, z) w = DequantizeLinear(xq_q, s, z) "
    made = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[2,8] x, bool c) => (float[2,8] y) <float s = {{0.05}}, int8 z = {{0}}> {{
          y = If(c) <then_branch = yes () => (float[2,8] w) {{ {inner} }},
                     else_branch = no () => (float[2,8] v) {{ v = Relu(x) }}>
        }}""")
    graph.save(made, tmp_path / "net.onnx")
    said = inspect(tmp_path / "net.onnx").warnings
    assert [("(If)" in one, "not judged" in one) for one in said] == [(True, True)]


def test_onnx_runtime_s_own_files_are_read(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    floats = float_conv("x", "a") + " r = Relu(a) " + float_conv("r", "o") + " e = Add(o, r) k = Relu(e) "
    graph.save(model(floats + float_conv("k", "y")), tmp_path / "net.onnx")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            random = np.random.default_rng(0)
            self.left = [random.standard_normal((1, 8, 14, 14)).astype(np.float32) for _ in range(2)]

        def get_next(self):
            return {"x": self.left.pop()} if self.left else None

    def lint(**options):
        quantization.quantize_static(
            tmp_path / "net.onnx", tmp_path / "q.onnx", Reader(), activation_type=options.pop("kind"),
            weight_type=quantization.QuantType.QInt8, **options,
        )  # fmt: skip
        return chain.lint(graph.load(tmp_path / "q.onnx"))

    plain = lint(kind=quantization.QuantType.QUInt8)
    assert {one.rule.name for one in plain.breaks} >= {"zero-point", "integer-type"}
    assert plain.unbroken == 0
    symmetric = {"ActivationSymmetric": True, "QuantizeBias": False}
    better = lint(kind=quantization.QuantType.QInt8, per_channel=True, extra_options=symmetric)
    assert len(better.int8) == 3
    assert {one.rule.name for one in better.breaks} <= {"extra-pair", "inside-activation", "two-scales"}


def test_inspect_shows_the_chain_everywhere(tmp_path, capsys):
    graph.save(model(BROKEN["between"]), tmp_path / "net.onnx")
    words = ["inspect", str(tmp_path / "net.onnx"), "--html", str(tmp_path / "page.html")]
    assert main([*words, "--json"], standalone_mode=False) in {0, None}
    found = json.loads(capsys.readouterr().out)["chain"]
    assert (found["int8_layers"], found["unbroken"], len(found["breaks"])) == (2, 1, 1)
    assert {"node", "cause", "source", "rule", "evidence", "layers"} <= set(found["breaks"][0])
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "1 of 2 INT8 layers" in page
    assert found["breaks"][0]["cause"] in page
    with pytest.raises(SystemExit, match="3"):
        main([*words, "--overwrite", "--gate", "chain"])
    assert "the INT8 chain breaks at" in capsys.readouterr().err
