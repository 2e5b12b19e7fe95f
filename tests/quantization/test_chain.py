"""Every published rule: a chain that keeps it, and one that breaks it."""

import json

import numpy as np
import pytest
from chain_graphs import FIRST, conv, float_conv, last, model, pair

from se_deploy import graph
from se_deploy.cli.main import main
from se_deploy.quantization import chain
from se_deploy.quantization.chain import RULES

GATE = " p = GlobalAveragePool(r) f = Conv(p, fc_f) h = Relu(f) g = Conv(h, fc_g) t = Sigmoid(g) "
"""The gate `t` of an SE block on `r`, in float."""
SECOND = pair("r", "rq") + conv("rq", "o")

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
