import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites_graphs import apply, assert_same, build, se

from se_deploy import graph

NAME = "dead-hidden-units"
UNITS = 5


def block(weights, activation="Relu(h)", *, first="Relu(u)", seed=0, bias=True):
    """SE on `first`, with the constants that `weights` gives instead of random ones."""
    body, shapes = se(8, UNITS)
    body = body.replace("Relu(h)", activation)
    if not bias:
        body = body.replace("f2, c2", "f2")
        del shapes["c2"]
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, change in weights.items():
        change(arrays[name])
    text = f"x = {first}\n{body}z = Relu(y)"
    return build("float[N,8,4,4] u", "float[N,8,4,4] z", text, arrays)


def zero(index):
    def change(array):
        array[index] = 0

    return change


def negative(index):
    def change(array):
        array[index] = -np.abs(array[index])

    return change


def hidden(model):
    """Count the hidden units by the first layer's rows."""
    conv = next(node for node in model.graph if node.name == "n_h")
    return graph.dims(conv.inputs[1])[0]


@settings(deadline=None, max_examples=12)
@given(
    unit=st.integers(0, UNITS - 1),
    activation=st.sampled_from(["Relu(h)", "Sigmoid(h)", "Tanh(h)", "HardSwish(h)"]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_fixed_unit_moves_into_the_bias(unit, activation, bias, seed):
    before = block({"f1": zero(unit)}, activation, seed=seed, bias=bias)
    after, applied = apply(before, NAME)
    assert [c.site for c in applied] == ["y"]
    assert hidden(after) == UNITS - 1
    assert_same(before, after)
    assert apply(after, NAME)[1] == ()


@pytest.mark.parametrize("bias", [-2e4, 2e4])
def test_a_fixed_unit_whose_sigmoid_is_at_its_end(bias):
    def far(array):
        array[2] = bias

    before = block({"f1": zero(2), "c1": far}, "Sigmoid(h)")
    after, applied = apply(before, NAME)
    assert hidden(after) == UNITS - 1
    assert len(applied) == 1
    assert_same(before, after)


def test_a_fixed_unit_of_a_silu():
    before = _silu()
    after, applied = apply(before, NAME)
    assert len(applied) == 1
    assert_same(before, after)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spelled", ["a = Sigmoid(h)", "t = Sigmoid(h)\na = Mul(h, t)"])
def test_a_gate_far_below_zero_gives_nothing_and_warns_of_nothing(spelled):
    body, shapes = se(8, UNITS)
    arrays = {n: np.random.default_rng(0).standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays["f1"][3], arrays["c1"][3] = 0, -1e4
    text = f"x = Relu(u)\n{body.replace('a = Relu(h)', spelled)}z = Relu(y)"
    before = build("float[N,8,4,4] u", "float[N,8,4,4] z", text, arrays)
    after, _ = apply(before, NAME)
    assert hidden(after) == UNITS - 1
    assert_same(before, after)


def _silu():
    body, shapes = se(8, UNITS)
    body = body.replace("a = Relu(h)", "t = Sigmoid(h)\na = Mul(h, t)")
    arrays = {n: np.random.default_rng(0).standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    arrays["f1"][3] = 0
    return build("float[N,8,4,4] u", "float[N,8,4,4] z", f"x = Relu(u)\n{body}z = Relu(y)", arrays)


@settings(deadline=None, max_examples=6)
@given(unit=st.integers(0, UNITS - 1), seed=st.integers(0, 99))
def test_an_unread_unit_goes(unit, seed):
    before = block({"f2": zero((slice(None), unit))}, seed=seed)
    after, applied = apply(before, NAME)
    assert len(applied) == 1
    assert hidden(after) == UNITS - 1
    assert_same(before, after)


def test_a_unit_that_is_always_negative_goes():
    before = block({"f1": negative(1), "c1": negative(1)})
    after, applied = apply(before, NAME)
    assert len(applied) == 1
    assert hidden(after) == UNITS - 1
    assert_same(before, after)


@pytest.mark.parametrize(
    "before",
    [
        block({}),
        block({"f1": negative(1), "c1": negative(1)}, first="Identity(u)"),
        block({"f1": negative(1), "c1": negative(1)}, "Sigmoid(h)"),
        block({"f1": negative(1), "c1": lambda c: c.__setitem__(1, 0.1)}),
        block({"f1": zero(1)}, "Softsign(h)"),
    ],
    ids=["all alive", "a map of any sign", "not Relu", "a positive bias", "an activation that is not known"],
)
def test_refuses(before):
    assert apply(before, NAME)[1] == ()


def test_one_unit_stays():
    before = block({"f2": zero(...)})
    after, applied = apply(before, NAME)
    assert len(applied) == 1
    assert hidden(after) == 1
    assert_same(before, after)


def test_nothing_else_is_touched():
    before = block({"f2": zero((slice(None), 0))})
    after, _ = apply(before, NAME)
    names = {node.name for node in after.graph}
    assert {node.name for node in before.graph} - names == {"n_e"}


def test_a_constant_that_would_overflow_the_bias_is_refused():
    body, shapes = se(6, 3)
    f1 = np.ones(shapes["f1"], np.float32)
    f1[0] = 0  # unit 0 is always relu(2)
    arrays = {
        "f1": f1,
        "c1": np.full(3, 2, np.float32),
        "f2": np.full(shapes["f2"], 3e38, np.float32),
        "c2": np.zeros(6, np.float32),
    }
    before = build("float[N,6,4,4] x", "float[N,6,4,4] z", f"{body}z = Relu(y)", shapes | arrays)
    assert apply(before, NAME)[1] == ()
