from layer_graphs import model_of, weights

from se_deploy.quantization import residual

BODY = """
a = Conv(x, w) r = Relu(a)
c = Conv(r, u) s = Add(c, r) t = Relu(s)
d = Conv(t, v) q = Add(d, t) z = Relu(q)
y = Conv(z, k)
"""


def network():
    names = ("w", "u", "v", "k")
    return model_of(BODY, [(name, weights(4, 4, 1, 1)) for name in names], output="float[N,4,8,8] y")


def test_the_error_of_a_branch_reaches_what_lies_behind_its_adds():
    found = residual.behind_adds(network(), ["x", "r", "t", "z"])
    assert found == {"r": {"t", "z"}, "t": {"z"}}


def test_only_tensors_that_an_add_reads_count():
    assert residual.read_by_adds(network(), ["x", "r", "z"]) == {"r"}
