"""A file of 200 bytes that asks for gigabytes is refused before anybody computes them."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from se_deploy import graph
from se_deploy.errors import BadModel
from se_deploy.passes import canonical

HUGE = {
    "range": "k = Range(zero, many, one)",
    "constant of shape": "s = ConstantOfShape(size) k = Cast<to = 1>(s)",
    "expand": "k = Expand(one, size)",
    "tile": "row = Reshape(one, single) k = Tile(row, size1)",
    "outer product": "a = Range(zero, some, one) row = Reshape(a, across) col = Reshape(a, down) "
    "k = Mul(row, col)",
}
CONSTANTS = (
    "<float zero = {0.0}, float one = {1.0}, float many = {2147483648.0}, float some = {60000.0}, "
    "int64[2] size = {65536, 32768}, int64[1] size1 = {2147483648}, int64[1] single = {1}, "
    "int64[2] across = {1, -1}, int64[2] down = {-1, 1}>"
)


def model(body):
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) '
        f"{CONSTANTS} {{ {body} m = ReduceMax<keepdims = 0>(k) y = Add(x, m) }}"
    )
    return parser.parse_model(text)


@pytest.mark.parametrize("body", HUGE.values(), ids=HUGE.keys())
def test_a_file_that_asks_for_gigabytes_is_refused_and_the_node_named(tmp_path, body):
    onnx.save(model(body), tmp_path / "huge.onnx")
    with pytest.raises(BadModel, match=r"node '.*' \(\w+\) would make [\d,]+ numbers out of constants"):
        graph.load(tmp_path / "huge.onnx")


@pytest.mark.parametrize("body", HUGE.values(), ids=HUGE.keys())
@pytest.mark.parametrize("shapes", ["inferred", "unknown"])
def test_what_would_be_huge_is_not_folded(body, shapes):
    given = ir.from_proto(model(body))
    if shapes == "inferred":
        graph.tidy(given)
    made = canonical.canonicalize(given).model
    assert all(value.const_value.size <= 60_000 for value in made.graph.initializers.values())


def test_a_table_of_positions_is_no_reason_to_refuse(tmp_path):
    onnx.save(model("k = Range(zero, some, one)"), tmp_path / "table.onnx")
    assert graph.load(tmp_path / "table.onnx").graph.num_nodes() == 3
