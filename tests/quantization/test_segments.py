import numpy as np
import pytest
from layer_graphs import RUNTIME, image, model_of, weights

from se_deploy import calibration
from se_deploy.quantization import segments

W, V = weights(4, 4, 3, 3), weights(4, 4, 1, 1, seed=2)
BODIES = {
    "chain": "a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a) c = Conv(b, v) y = Relu(c)",
    "residual": "a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a) c = Conv(b, v) s = Add(c, b) t = Relu(s) "
    "d = Conv(t, v2) y = Add(d, a)",
    "a constant on the way": "k = Constant<value = float {2.0}>() a = Conv<pads = [1,1,1,1]>(x, w) "
    "b = Mul(a, k) c = Conv(b, v) y = Mul(c, k)",
    "a scalar from piece to piece": "k = Shape<start = 1, end = 2>(x) z = Constant<value = int64 {0}>() "
    "n = Gather(k, z) a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a) c = Conv(b, v) "
    "o = Constant<value = int64[1] {0}>() m = Unsqueeze(n, o)"
    "h = Concat<axis = 0>(o, m, o, o) t = Relu(c) y = Reshape(t, h)",
    "a body that reads what is outside": "a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a) c = Conv(b, v) "
    "m = ReduceMax<keepdims = 0>(c) z = Less(m, m) "
    "y = If(z)<then_branch = one () => (float[N,4,8,8] p) { p = Mul(b, c) }, "
    "else_branch = two () => (float[N,4,8,8] q) { q = Sub(c, b) }>",
    "a body inside a body": "a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a) c = Conv(b, v) "
    "m = ReduceMax<keepdims = 0>(c) z = Less(m, m) "
    "y = If(z)<then_branch = one () => (float[N,4,8,8] p) { p = Mul(b, c) }, "
    "else_branch = two () => (float[N,4,8,8] q) { k = Constant<value = int64 {2}>() "
    "t = Constant<value = bool {1}>() q = Loop(k, t, c)"
    "<body = three (int64 i, bool go, float[N,4,8,8] e) => (bool on, float[N,4,8,8] f) "
    "{ on = Identity(go) f = Sub(e, b) }> }>",
}  # fmt: skip


def network(name):
    constants = [("w", W), ("v", V), ("v2", V)]
    used = [(n, a) for n, a in constants if f" {n})" in BODIES[name]]
    return model_of(BODIES[name], used, output="float[N,4,8,8] y")


def walk(model, behind, x):
    held, kept = {"x": x}, {}
    pieces = segments.cut(model.clone(), behind)
    whole = model.clone()
    for piece in segments.cut(whole, behind):
        with RUNTIME.open(segments.as_model(whole, piece, held)) as session:
            held.update(session.run({name: held[name] for name in piece.reads}))
        kept.update({name: held[name] for name in behind if name in held})
        for name in piece.last_read:
            held.pop(name, None)
    return pieces, held, kept


@pytest.mark.parametrize("name", BODIES)
def test_pieces_in_order_give_what_the_whole_graph_gives(name):
    model, x = network(name), image()
    behind = ["a", "c", "y"]
    pieces, held, kept = walk(model, behind, x)
    with RUNTIME.open(calibration.with_outputs(model, behind)) as session:
        wanted = session.run({"x": x})
    assert [len(p.nodes) > 0 for p in pieces] == [True] * 3
    for tensor in behind:
        np.testing.assert_array_equal(kept[tensor], wanted[tensor])
    assert not held, "what nothing reads any more is dropped"


def test_what_lies_behind_the_last_tensor_is_left_out():
    model = network("residual")
    pieces = segments.cut(model, ["a"])
    assert [[node.op_type for node in piece.nodes] for piece in pieces] == [["Conv"]]
    assert pieces[0].reads == ("x",)
    assert pieces[0].leaves == ("a",)
