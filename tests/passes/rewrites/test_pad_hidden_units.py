import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewrites_graphs import apply, assert_same, build, se

from se_deploy import graph

NAME = "even-hidden-units"


def block(units, activation="a = Relu(h)", *, tail="z = Relu(y)", bias=True, seed=0):
    body, shapes = se(8, units)
    body = body.replace("a = Relu(h)", activation)
    if not bias:
        body = body.replace("f1, c1", "f1")
        del shapes["c1"]
    random = np.random.default_rng(seed)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return build("float[N,8,4,4] u", "float[N,8,4,4] z", f"x = Relu(u)\n{body}{tail}", arrays)


def hidden(model):
    return graph.dims(next(node for node in model.graph if node.name == "n_h").inputs[1])[0]


@settings(deadline=None, max_examples=12)
@given(
    units=st.sampled_from([5, 7, 9, 13]),
    activation=st.sampled_from(
        ["a = Relu(h)", "a = Tanh(h)", "a = HardSwish(h)", "t = Sigmoid(h)\na = Mul(h, t)"]
    ),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_one_unit_more_changes_nothing(units, activation, bias, seed):
    before = block(units, activation, bias=bias, seed=seed)
    after, applied = apply(before, NAME)
    assert [choice.site for choice in applied] == ["y"]
    assert hidden(after) == units + 1
    assert_same(before, after)
    assert apply(after, NAME)[1] == ()


@pytest.mark.parametrize("units", [1, 3, 4, 6, 8])
def test_an_even_number_and_a_very_small_one_stay(units):
    assert apply(block(units), NAME)[1] == ()


@pytest.mark.parametrize(
    "activation",
    [
        "a = Softmax<axis = 1>(h)",  # the new unit would take part of the sum
        "a = PRelu(h, slope)",  # a number per unit
        "one = Constant<value_float = 1.0>()\na = Div(one, h)",  # the new unit would be infinite
        "t = Relu(h)\na = Div(h, t)",  # or no number
    ],
)
def test_what_is_no_function_of_each_unit_alone_is_refused(activation):
    if "slope" in activation:
        activation = f"slope = Constant<value = float[5,1,1] {{{', '.join(['0.1'] * 5)}}}>()\n{activation}"
    assert apply(block(5, activation), NAME)[1] == ()


@pytest.mark.parametrize("read", ["a", "h"])
def test_hidden_units_that_something_else_reads_are_left_alone(read):
    tail = f"w = ReduceMax<keepdims = 1>({read})\nz = Mul(y, w)"
    assert apply(block(5, tail=tail), NAME)[1] == ()
