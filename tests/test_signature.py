"""`--input` is read from the right: names hold colons, sizes are numbers or names, types are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_deploy import signature
from se_deploy.errors import BadInput
from se_deploy.signature import DeclaredInput, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("feats:Nx80xT", DeclaredInput("feats", ("N", 80, "T"))),
        ("lengths:N:int64", DeclaredInput("lengths", ("N",), "int64")),
        ("import/x:0:1x3", DeclaredInput("import/x:0", (1, 3))),
        ("a:b:N:bool", DeclaredInput("a:b", ("N",), "bool")),
        ("scale:", DeclaredInput("scale", ())),
        ("scale::float16", DeclaredInput("scale", (), "float16")),
        ("x:Nx3xHxW:uint8", DeclaredInput("x", ("N", 3, "H", "W"), "uint8")),
        ("x:bool", DeclaredInput("x", ("bool",))),  # with no other colon it is the dimension
    ],
)
def test_what_is_written_is_read(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "x", ":3", "x:0", "x:3x", "x:-1", "x:3x4.5", "x:3xa-b", "x:Nx3:float8"])
def test_what_declares_nothing_is_refused_with_the_grammar(text):
    with pytest.raises(BadInput) as e:
        parse(text)
    assert "NAME:DIMS" in e.value.hint or "float32" in e.value.hint


@given(
    st.text("ab:/.", min_size=1, max_size=6).filter(lambda name: not name.endswith(":")),
    st.lists(st.one_of(st.integers(1, 999), st.sampled_from("NTHWq")), max_size=4),
    st.sampled_from(signature.DTYPES),
)
def test_a_declared_input_comes_back_from_its_own_words(name, dims, dtype):
    one = DeclaredInput(name, tuple(dims), dtype)
    assert parse(str(one)) == one


def test_equal_names_are_one_dimension():
    inputs = (parse("a:NxTx3"), parse("b:NxTxH"))
    assert signature.free_names(inputs) == ("T", "H")
    assert [one.sized({"N": 2, "T": 5, "H": 7}) for one in inputs] == [(2, 5, 3), (2, 5, 7)]
