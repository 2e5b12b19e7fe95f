"""A short form of scripts/random_graphs, and that it would see what it is there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from random_graphs.nets import drawn
from random_graphs.steps import Steps
from se_deploy import graph
from se_deploy.passes import rewrites

SCRIPT = Path(__file__).parents[2] / "scripts" / "random_graphs"
FEW = 3  # networks, of many parts each


def steps_of(number):
    return Steps(drawn(7, number), np.random.default_rng([7, number]))


@pytest.mark.parametrize("number", range(FEW))
def test_a_random_network_goes_through_every_step(number):
    outcome = steps_of(number).run()
    assert outcome.findings == []
    assert outcome.ran["rewrites"]
    assert outcome.ran["FP16"] == 1


def test_the_same_numbers_give_the_same_network():
    one, other = drawn(3, 5), drawn(3, 5)
    assert one.proto.SerializeToString() == other.proto.SerializeToString()
    np.testing.assert_array_equal(one.feeds["input"], other.feeds["input"])
    assert one.blocks == other.blocks


def ready(number):
    """Give the steps of a network, and its canonical form, which nothing was found in."""
    steps = steps_of(number)
    steps.run()
    return steps, steps.canonical()


def test_a_step_that_changes_an_answer_is_a_finding():
    steps, form = ready(3)
    assert steps.outcome.findings == []
    weights = max(form.graph.initializers.values(), key=lambda v: v.const_value.size)
    array = weights.const_value.numpy().copy()
    array.reshape(-1)[0] += 0.01 * array.max()
    weights.const_value = ir.tensor(array)
    assert not steps.exact("a step", form)
    assert "is off by" in steps.outcome.findings[0]


def test_a_step_that_breaks_the_graph_is_a_finding():
    steps, form = ready(0)
    conv = next(node for node in form.graph if node.op_type == "Conv")
    conv.replace_input_with(1, graph.initializer(form, "other", np.zeros((3, 1, 1, 1), np.float32)))
    assert not steps.exact("a step", form)
    assert steps.outcome.findings


def test_a_block_that_is_missed_and_one_too_many_are_findings():
    steps = steps_of(1)
    steps.run()
    output, said = steps.drawn.blocks.popitem()
    steps.drawn.blocks["elsewhere"] = said
    steps.census()
    assert sorted(steps.outcome.findings) == [
        f"census: '{output}' is no block", "census: misses the block 'elsewhere'"
    ]  # fmt: skip


@pytest.mark.slow
def test_forty_networks_by_the_script(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "40", "--seed", "11", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 networks of seed 11" in done.stdout
    assert len([name for name in rewrites.names() if f"  {name}\n" in done.stdout]) > 10


def test_biases_corrected_for_rounded_activations_are_no_finding():
    """Network 660: 11 dB with its weights rounded alone and these biases, 24 dB as INT8."""
    assert Steps(drawn(0, 660), np.random.default_rng([0, 660, 1])).run().findings == []
