from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from se_graphs import (
    ACTIVATIONS,
    GATES,
    LAYERS,
    OF_KNOWN_SIZE,
    SOURCES,
    SQUEEZES,
    Recipe,
    build,
    expectation,
    read,
)

from se_deploy import se_blocks
from se_deploy.se_blocks import constants, functions

PARTS = {
    "squeeze": SQUEEZES,
    "layers": LAYERS,
    "activation": ACTIVATIONS,
    "gate": GATES,
    "source": SOURCES,
    "norm": ["batch"],
    "extra": ["identity", "dropout", "cast"],
    "expand": ["shape"],
    "gate_first": [True],
    "constants": ["node", "computed"],
    "opset": [11, 13, 14, 17, 18, 20, 21],
    "spatial": [(7,), (1, 1), (4, 5, 6), (8, 8), (6, 1)],
    "channels": [2, 6, 16],
    "batch": [1, 2],
    "free_map": [True],
    "groups": [2],
    "reduced": [1, 8, None],
}
ONE_CHANGE = [(part, choice) for part, choices in PARTS.items() for choice in choices]


def changed(part, choice):
    recipe = dataclasses.replace(Recipe(), **{part: choice})
    if part == "activation" and choice == "hardswish":
        recipe = dataclasses.replace(recipe, opset=14)
    return recipe


def check(recipe):
    proto, mul, scaled = build(recipe)
    census = se_blocks.detect(read(proto))
    assert len(census.blocks) == 1, census
    block = census.blocks[0]
    assert {name: getattr(block, name) for name in expectation(recipe)} == expectation(recipe)
    assert (block.scale_node, block.output) == (mul, scaled)
    assert len(block.layers) == (2 if recipe.reduced else 1)
    assert block.nodes[-1] == mul or recipe.residual
    assert len(set(block.nodes)) == len(block.nodes) == len(block.spelling)
    return block


@pytest.mark.parametrize(("part", "choice"), ONE_CHANGE, ids=str)
def test_every_spelling_of_every_part_is_found(part, choice):
    check(changed(part, choice))


recipes = st.builds(
    Recipe,
    squeeze=st.sampled_from(sorted(SQUEEZES)),
    layers=st.sampled_from(sorted(LAYERS)),
    norm=st.sampled_from(["none", "batch"]),
    activation=st.sampled_from(sorted(set(ACTIVATIONS) - {"hardswish"})),
    gate=st.sampled_from(sorted(GATES)),
    extra=st.sampled_from(["none", "identity", "dropout", "cast"]),
    expand=st.sampled_from(["none", "shape"]),
    gate_first=st.booleans(),
    residual=st.booleans(),
    source=st.sampled_from(sorted(SOURCES)),
    spatial=st.sampled_from([(6, 5), (1, 1), (3, 1), (8, 8)]),
    channels=st.sampled_from([2, 6, 8]),
    reduced=st.sampled_from([None, 1, 2, 8]),
    opset=st.sampled_from([11, 13, 15, 17, 18, 21]),
    batch=st.sampled_from(["N", 1, 2]),
    free_map=st.booleans(),
    constants=st.sampled_from(["initializer", "node", "computed"]),
    seed=st.integers(0, 99),
)


@settings(max_examples=100, deadline=None)
@given(recipe=recipes)
def test_any_mixture_of_spellings_is_found(recipe):
    assume(not (recipe.free_map and recipe.squeeze in OF_KNOWN_SIZE))
    check(recipe)


def test_the_nodes_of_a_block_hold_its_shape_arithmetic_and_end_with_the_residual_add():
    block = check(Recipe(layers="gemm", expand="shape", residual=True))
    assert {"Shape", "Gather", "Concat", "Reshape", "Expand"} <= set(block.spelling)
    assert block.spelling[-2:] == ("Mul", "Add")


def test_weights_listed_as_inputs_are_weights():
    proto, _, scaled = build(Recipe())
    for tensor in proto.graph.initializer:
        info = proto.graph.input.add(name=tensor.name)
        info.type.tensor_type.elem_type = tensor.data_type
        for d in tensor.dims:
            info.type.tensor_type.shape.dim.add(dim_value=d)
    assert [b.output for b in se_blocks.detect(read(proto)).se] == [scaled]


def test_the_census_leaves_the_graph_alone():
    proto, _, _ = build(Recipe(layers="gemm"))
    model = read(proto)
    before = [(n.name, n.op_type, tuple(v.name for v in n.inputs if v)) for n in model.graph]
    se_blocks.detect(model)
    assert before == [(n.name, n.op_type, tuple(v.name for v in n.inputs if v)) for n in model.graph]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9), spread=st.floats(0.1, 3))
def test_a_function_keeps_its_name_at_any_gain(seed, spread):
    rng = np.random.default_rng(seed)
    name, samples = functions._ACTIVATIONS[rng.integers(len(functions._ACTIVATIONS))]
    assert functions.activation_name(spread * samples) == name


def test_the_formula_counts_weights_without_biases():
    conv = check(Recipe(channels=16, reduced=4))
    effective = check(Recipe(channels=6, reduced=None))
    assert se_blocks.formula_params([conv, conv, effective]) == 2 * (2 * 16 * 16 // 4) + 6 * 6
    assert conv.params == se_blocks.formula_params([conv]) + 16 + 4
    assert se_blocks.formula_params([]) == 0


@pytest.mark.parametrize("op_type", ["Sigmoid", "NoSuchOperator", "RandomNormalLike", "DequantizeLinear"])
def test_constants_are_computed_where_the_reference_knows_how(op_type):
    x = ir.Value(name="x", const_value=ir.tensor(np.zeros(3, np.float32)))
    node = ir.node(op_type, [x])
    array = constants.Constants(opset=17).array(node.outputs[0])
    if op_type == "Sigmoid":
        np.testing.assert_array_equal(array, np.full(3, 0.5, np.float32))
    else:
        assert array is None
