import dataclasses

import numpy as np
import onnx_ir as ir
import plan_graphs
import pytest
from msgspec.structs import replace

from se_deploy import fusion, schema, se_blocks
from se_deploy.backends import registry
from se_deploy.backends.onnxruntime import session as ort
from se_deploy.backends.tensorrt.planner import start_planner
from se_deploy.errors import UnsupportedGraph
from se_deploy.fusion import FusionRules
from se_deploy.fusion.region import Graph
from se_deploy.passes import search
from se_deploy.plan import Kernel, Plan, PlanTensor

pytest.importorskip("tensorrt_rtx")


FP32_REORDERED = {"rtol": 1e-4, "atol": 1e-4}  # the same fp32 sums in another order


@pytest.fixture(scope="module")
def planner():
    started = start_planner()
    yield started
    started.close()


RULES = registry.get("tensorrt-rtx").form().fusion


def rules(plan):
    return registry.get(plan.runtime).form().fusion


def judge(plan, model, **which):
    block = plan_graphs.block(model, **which)
    (verdict,) = fusion.verdicts(plan, [block], model, rules(plan))
    return verdict


@pytest.mark.parametrize("tail", plan_graphs.TAILS)
@pytest.mark.parametrize("pool", ["avgpool", "nhwc"])
def test_a_respelled_squeeze_makes_four_kernels(planner, pool, tail):
    model = plan_graphs.se_net(pool, tail=tail)
    verdict = judge(planner.plan(model), model, tail=tail)
    assert (verdict.verdict, verdict.kernels, verdict.reasons) == ("fused", 4, ())


@pytest.mark.parametrize(("pool", "op"), [("gap", "GlobalAveragePool"), ("mean", "ReduceMean")])
def test_the_copy_before_the_squeeze_is_named_with_its_cure(planner, pool, op):
    model = plan_graphs.se_net(pool)
    verdict = judge(planner.plan(model), model)
    assert (verdict.verdict, verdict.kernels) == ("split", 5)
    (reason,) = verdict.reasons
    assert reason.startswith(f"copy NHWC to NCHW before {op}: respell the squeeze (`se-deploy export")


def test_a_squeeze_in_two_steps_is_split(planner):
    model = plan_graphs.se_net("twice")
    verdict = judge(planner.plan(model), model)
    assert verdict.verdict == "split"
    assert any("the squeeze takes 2 kernels" in reason for reason in verdict.reasons)


def test_the_shape_kernel_of_view_is_named(planner):
    model = plan_graphs.se_net("nhwc", "view", tail="none")
    verdict = judge(planner.plan(model), model, tail="none", layers="view")
    assert verdict.verdict == "split"
    assert verdict.reasons == (
        "shape kernel from 'n_g' (Reshape): canonicalize the block (`se-deploy export` does)",
    )


def test_a_float_map_out_of_an_int8_convolution_is_advice_and_no_fault(planner):
    model = plan_graphs.quantized_net(per_channel=True, dtype="float16")
    verdict = judge(planner.plan(model), model)
    assert verdict.verdict == "fused"
    assert "per-channel weights" in verdict.reasons[0]
    model = plan_graphs.quantized_net(per_channel=False, dtype="float16")
    assert not any("per-channel" in reason for reason in judge(planner.plan(model), model).reasons)


def test_onnx_runtime_fuses_what_it_can():
    for pool in plan_graphs.POOLS:
        model = plan_graphs.se_net(pool)
        verdict = judge(ort.plan(model), model)
        assert verdict.verdict == ("split" if pool == "twice" else "fused"), pool


def test_onnx_runtime_splits_at_shapes():
    model = plan_graphs.se_net(layers="view")
    verdict = judge(ort.plan(model), model, layers="view")
    assert verdict.verdict == "split"
    assert "shape kernel" in verdict.reasons[0]


def test_onnx_runtime_on_the_cpu_falls_back_from_fp16():
    model = plan_graphs.se_net(dtype="float16")
    verdict = judge(ort.plan(model), model)
    assert verdict.verdict == "fallback"
    assert "works on float32, the graph asks for float16" in verdict.reasons[0]


@pytest.mark.parametrize("pool", plan_graphs.POOLS)
@pytest.mark.parametrize("layers", plan_graphs.LAYERS)
def test_a_block_is_found_again_by_its_output_alone(planner, pool, layers):
    model = plan_graphs.se_net(pool, layers)
    block = plan_graphs.block(model, layers=layers)
    for plan in (planner.plan(model), ort.plan(model)):
        known, found = fusion.verdicts(plan, [block, plan_graphs.unknown(block)], model, rules(plan))
        assert known == found


def test_the_census_and_the_hand_agree(planner):
    model = plan_graphs.se_net("nhwc")
    plan = planner.plan(model)
    (verdict,) = fusion.verdicts(plan, se_blocks.detect(model).se, model, RULES)
    assert verdict == judge(plan, model)


REWRITTEN = [
    ("none", ("hoist-squeeze-1x1", "gate-into-previous", "squeeze-nhwc-mean")),
    ("conv", ("gate-into-next", "squeeze-nhwc-mean")),
    ("conv", ("gate-into-next", "squeeze-average-pool")),
    ("conv", ("gate-into-next", "squeeze-nhwc-mean", "excite-as-sum")),
    ("residual", ("hoist-squeeze-1x1", "squeeze-nhwc-mean")),
]


@pytest.mark.parametrize(("tail", "names"), REWRITTEN)
def test_a_block_is_followed_through_rewrites(planner, tail, names):
    model = plan_graphs.se_net(tail=tail, batch=1)
    blocks = se_blocks.detect(model).se
    done = search.optimize(model, blocks, names)
    assert {choice.rewrite for choice in done.choices} == set(names)
    (verdict,) = fusion.verdicts(planner.plan(done.model), blocks, done.model, RULES)
    assert (verdict.verdict, verdict.kernels) == ("fused", 4)


def test_a_block_that_is_gone_is_said_to_be(planner):
    model = plan_graphs.se_net()
    gone = dataclasses.replace(plan_graphs.block(model), output="elsewhere", gate_output="nowhere")
    (verdict,) = fusion.verdicts(planner.plan(model), [gone], model, RULES)
    assert verdict.verdict == "split"
    assert "no tensor of this graph" in verdict.reasons[0]


def kernel(name, nodes, reads, writes, *, kind="kgen"):
    def tensors(names):
        return tuple(PlanTensor(n, "float32", (-1, 32, 14, 14), "nhwc") for n in names)

    return Kernel(name, kind, tensors(reads), tensors(writes), tuple(nodes))


BEST = (
    kernel("conv", ["n_m"], ["x"], ["m"], kind="correlation"),
    kernel("mean", ["n_p"], ["m"], ["p"]),
    kernel("fc1", ["n_f1", "n_a"], ["p"], ["a"], kind="correlation"),
    kernel("fc2", ["n_f2", "n_g"], ["a"], ["g"], kind="correlation"),
    kernel("scale", ["n_s", "n_e", "n_y"], ["m", "g", "x"], ["y"]),
)


def by_hand(*layers):
    model = plan_graphs.se_net()
    return judge(Plan("tensorrt-rtx", "", "sm86", layers), model)


def test_the_best_plan_is_fused():
    assert (by_hand(*BEST).verdict, by_hand(*BEST).kernels) == ("fused", 4)


def test_an_activation_of_its_own_is_named():
    apart = (kernel("fc1", ["n_f1"], ["p"], ["f"], kind="gemm"), kernel("relu", ["n_a"], ["f"], ["a"]))
    verdict = by_hand(*BEST[:2], *apart, *BEST[3:])
    assert (verdict.verdict, verdict.kernels) == ("split", 5)
    assert "the inner activation (Relu) has a kernel of its own" in verdict.reasons[0]


def test_padding_an_odd_number_of_channels_is_named():
    def vector(name, channels):
        return (PlanTensor(name, "float16", (-1, channels, 1, 1)),)

    weights = (PlanTensor("w", "float16", (32, 20, 1, 1)),)
    pad = Kernel("pad", "kgen", vector("a", 19), vector("a2", 20), ("n_f2", "n_g"))
    fc2 = Kernel("fc2", "correlation", vector("a2", 20), vector("g", 32), ("n_f2", "n_g"), weights)
    verdict = by_hand(*BEST[:3], pad, fc2, BEST[4])
    assert (verdict.verdict, verdict.kernels) == ("split", 5)
    assert "the 19 channels into layer 'n_f2' are padded to 20" in verdict.reasons[0]


def test_a_gate_may_sit_with_the_scale_but_not_alone():
    fc2 = kernel("fc2", ["n_f2"], ["a"], ["f2"], kind="gemm")
    scale = kernel("scale", ["n_g", "n_s", "n_e", "n_y"], ["m", "f2", "x"], ["y"])
    assert by_hand(*BEST[:3], fc2, scale).verdict == "fused"
    alone = by_hand(*BEST[:3], fc2, kernel("gate", ["n_g"], ["f2"], ["g"]), BEST[4])
    assert alone.verdict == "split"
    assert "the gate (Sigmoid)" in alone.reasons[0]


def test_the_residual_may_sit_in_a_convolution_but_not_alone():
    scale = kernel("scale", ["n_s"], ["m", "g"], ["s"])
    conv = kernel("conv2", ["n_m", "n_e", "n_y"], ["x", "s"], ["y"], kind="correlation")
    assert by_hand(*BEST[1:4], scale, conv).verdict == "fused"
    alone = by_hand(*BEST[:4], scale, kernel("add", ["n_e", "n_y"], ["s", "x"], ["y"]))
    assert alone.verdict == "split"
    assert "Add+Relu behind the scale has a kernel of its own" in alone.reasons[0]


def test_the_scale_in_a_convolutions_kernel_is_not_counted_to_the_block():
    conv = kernel("conv", ["n_m", "n_s", "n_e", "n_y"], ["x", "g"], ["y"], kind="correlation")
    verdict = by_hand(*BEST[1:4], conv)
    assert (verdict.verdict, verdict.kernels) == ("fused", 3)


def test_a_cast_inside_the_block_is_named():
    cast = Kernel(
        "cast", "kgen", (PlanTensor("g", "float16", (32,)),), (PlanTensor("g32", "float32", (32,)),), ()
    )
    scale = kernel("scale", ["n_s", "n_e", "n_y"], ["m", "g32", "x"], ["y"])
    verdict = by_hand(*BEST[:4], cast, scale)
    assert (verdict.verdict, verdict.kernels) == ("split", 5)
    assert "cast float16 to float32 before Mul+Add+Relu" in verdict.reasons[0]


def test_a_copy_that_others_read_too_is_not_the_blocks():
    copy = kernel("copy", [], ["m"], ["m2"])
    mean = kernel("mean", ["n_p"], ["m2"], ["p"])
    other = kernel("other", [], ["m2"], ["z"])
    assert by_hand(BEST[0], copy, mean, *BEST[2:]).kernels == 5
    assert by_hand(BEST[0], copy, mean, *BEST[2:], other).kernels == 4


def test_an_int8_convolution_that_gives_float_is_no_fallback_of_the_block():
    model = plan_graphs.quantized_net(per_channel=True, dtype="float16")

    def made(layer, dtypes):
        tensors = [dataclasses.replace(t, dtype=dtypes.get(t.name, "float16")) for t in layer]
        return tuple(tensors)

    dtypes = {"x": "int8", "m": "float32"}
    layers = tuple(
        dataclasses.replace(k, inputs=made(k.inputs, dtypes), outputs=made(k.outputs, dtypes)) for k in BEST
    )
    verdict = judge(Plan("tensorrt-rtx", "", "sm86", layers), model)
    assert verdict.verdict == "fused"
    assert "float32 map out of an INT8 convolution" in verdict.reasons[0]


def test_nodes_put_between_the_blocks_own_belong_to_it():
    model = plan_graphs.se_net()
    block = plan_graphs.block(model)
    fc1 = model.graph.node("n_f1")
    cast = ir.node("Cast", [fc1.inputs[0]], {"to": ir.DataType.FLOAT}, name="n_cast")
    model.graph.insert_before(fc1, cast)
    fc1.replace_input_with(0, cast.outputs[0])
    layers = (*BEST[:2], kernel("cast", ["n_cast"], ["p"], ["p2"]), *BEST[2:])
    (verdict,) = fusion.verdicts(Plan("tensorrt-rtx", "", "sm86", layers), [block], model, RULES)
    assert (verdict.verdict, verdict.kernels) == ("split", 5)
    assert "Cast 'n_cast' has a kernel of its own" in verdict.reasons[0]


def test_an_activation_turned_for_the_squeeze_is_advice():
    turned = Kernel(
        "act",
        "kgen",
        (PlanTensor("m0", "float32", (-1, 32, 14, 14), "nhwc"),),
        (PlanTensor("m", "float32", (-1, 32, 14, 14), "nchw"),),
        ("n_act",),
    )
    verdict = by_hand(turned, *BEST[1:])
    assert verdict.verdict == "fused"
    assert "turns NHWC to NCHW for the squeeze" in verdict.reasons[0]


def test_bytes_are_of_the_blocks_own_kernels():
    own = sum(layer.activation_bytes for layer in BEST[1:])
    assert by_hand(*BEST).activation_bytes == own == 10 * 32 * 14 * 14 * 4


def test_the_tax_is_held_against_the_network_without_gates(planner):
    model = plan_graphs.se_net("nhwc")
    blocks = [plan_graphs.block(model)]
    plain = fusion.without_gates(model, blocks)
    plans = planner.plan(model), planner.plan(plain)
    sums = fusion.totals(plans[0], fusion.verdicts(plans[0], blocks, model, RULES), plans[1])
    assert (sums.kernels, sums.plain_kernels) == tuple(plan.kernels for plan in plans)
    assert sums.se_kernels == 4
    assert sums.tax == pytest.approx(sums.activation_bytes / sums.plain_activation_bytes - 1)
    assert 0 < sums.se_share < 1
    assert fusion.totals(plans[0], []).tax is None


@pytest.mark.parametrize("tail", plan_graphs.TAILS)
def test_without_gates_a_block_gives_what_it_is_given(tail):
    model = plan_graphs.se_net(tail=tail)
    before = [node.op_type for node in model.graph]
    plain = fusion.without_gates(model, [plan_graphs.block(model, tail=tail)])
    assert not {"GlobalAveragePool", "Sigmoid", "Mul"} & {node.op_type for node in plain.graph}
    assert [node.op_type for node in model.graph] == before
    x = np.random.default_rng(1).standard_normal((2, 32, 14, 14)).astype(np.float32)
    arrays = {k: v.const_value.numpy() for k, v in model.graph.initializers.items()}
    m = np.einsum("oc,nchw->nohw", arrays["w"][:, :, 0, 0], x) + arrays["b"][:, None, None]
    again = np.einsum("oc,nchw->nohw", arrays["w"][:, :, 0, 0], m) + arrays["b"][:, None, None]
    wanted = {"none": m, "residual": np.maximum(m + x, 0), "conv": again}[tail]
    with ort.OrtRuntime(threads=1).open(plain) as session:
        np.testing.assert_allclose(
            session.run({"x": x})["y"], wanted, rtol=1e-4, atol=1e-4
        )  # another order of sums


def test_a_gate_that_moved_into_weights_cannot_be_taken_out():
    model = plan_graphs.se_net()
    with pytest.raises(UnsupportedGraph, match="cannot be taken out"):
        fusion.without_gates(model, [plan_graphs.unknown(plan_graphs.block(model))])


def test_the_plan_in_json_has_the_contracts_keys(planner):
    model = plan_graphs.se_net()
    plan = planner.plan(model)
    found = fusion.to_schema(plan, fusion.verdicts(plan, [plan_graphs.block(model)], model, RULES), "fp32")
    found = schema.builtins(found)
    assert set(found) == {
        "runtime", "version", "target", "precision", "kernels", "activation_bytes", "weight_bytes", "layers",
        "blocks", "totals", "shapes",
    }  # fmt: skip
    assert set(found["layers"][0]) == {"name", "kind", "inputs", "outputs", "onnx_nodes"}
    assert set(found["blocks"][0]) == {
        "output", "verdict", "kernels", "activation_bytes", "reasons", "layers",
    }  # fmt: skip
    assert set(found["blocks"][0]["layers"]) <= {layer["name"] for layer in found["layers"]}
    assert len(found["blocks"][0]["layers"]) == found["blocks"][0]["kernels"]
    assert ("float32", (-1, 32, 14, 14)) in [pair for layer in found["layers"] for pair in layer["outputs"]]


def test_a_plan_is_read_back_from_its_json(planner):
    model = plan_graphs.se_net(dtype="float16")
    plan = planner.plan(model)
    fields = fusion.to_schema(plan, (), "fp16")
    again = fusion.from_schema(fields)
    kept = {"kernels": plan.kernels, "weight_bytes": plan.weight_bytes}
    assert replace(fusion.to_schema(again, (), "fp16"), **kept) == fields
    assert any(kernel.onnx_nodes for kernel in again.layers)


@pytest.mark.parametrize(
    ("tail", "after"),
    [
        ("s = Mul(m, g) e = Add(s, x) y = Relu(e)", ("n_e", "n_y")),
        ("s = Mul(m, g) e = Add(s, x) y = Neg(e)", ("n_e",)),
        ("s = Mul(m, g) e = Sub(s, x) y = Relu(e)", ()),  # no residual
        ("s = Mul(m, g) e = Max(s, x) y = Relu(e)", ()),
        ("s = Mul(m, g) e = Abs(s) y = Add(e, x)", ()),
        ("s = Mul(m, g) e = Add(s, b4) y = Relu(e)", ()),  # a bias
    ],
)
def test_behind_a_block_stands_a_sum_of_two_maps_and_its_activation(monkeypatch, tail, after):
    monkeypatch.setitem(plan_graphs.TAILS, "other", tail)
    monkeypatch.setitem(plan_graphs.OUTPUTS, "other", "s")
    made = plan_graphs._model
    monkeypatch.setattr(
        plan_graphs,
        "_model",
        lambda *args, **kw: made(*args, **kw, extra={"b4": np.ones((1, 32, 1, 1), np.float32)}),
    )
    model = plan_graphs.se_net(tail="other")
    region = Graph(model).region(plan_graphs.block(model, tail="other"))
    assert region.after == after


def test_a_compiler_without_pointwise_kernels_is_not_blamed_for_one():
    other = kernel("neg", ["n_neg"], ["p"], ["p2"])
    model = plan_graphs.se_net()
    fc1 = model.graph.node("n_f1")
    neg = ir.node("Neg", [fc1.inputs[0]], name="n_neg")
    model.graph.insert_before(fc1, neg)
    fc1.replace_input_with(0, neg.outputs[0])
    plan = Plan("any", "", "sm86", (*BEST[:2], other, *BEST[2:]))
    block = plan_graphs.block(model)
    (verdict,) = fusion.verdicts(plan, [block], model, FusionRules())
    assert ["has a kernel of its own" in reason for reason in verdict.reasons] == [True]
    (verdict,) = fusion.verdicts(plan, [block], model, FusionRules(fuses_pointwise=False))
    assert verdict.reasons == ()
