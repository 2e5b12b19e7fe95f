"""Any number of samples through a graph of a fixed batch, and no answer to padding leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_deploy import batching
from se_deploy.errors import BadData
from se_deploy.protocols import TensorSpec


class Frozen:
    """A session with a fixed batch that doubles rows, and counts what it was fed."""

    def __init__(self, size, outputs):
        self.size, self.outputs_of, self.fed = size, outputs, []

    @property
    def inputs(self):
        return (
            TensorSpec("x", np.dtype(np.float16), (self.size, 3)),
            TensorSpec("a", np.dtype(np.float32), ()),
        )

    @property
    def outputs(self):
        return ()

    def run(self, feeds):
        assert feeds["x"].dtype == np.float16
        self.fed.append(len(feeds["x"]))
        return {"y": self.outputs_of(feeds["x"] * feeds["a"])}


@given(size=st.integers(1, 5), count=st.integers(1, 13), rows=st.integers(1, 3))
def test_every_sample_is_answered_once_and_in_order(size, count, rows):
    session = Frozen(size, lambda x: np.repeat(x, rows, axis=0))
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    made = batching.run(session, {"x": x, "a": np.float32(2.0) * np.ones((), np.float32)})["y"]
    np.testing.assert_array_equal(made, np.repeat(x * 2, rows, axis=0))
    assert set(session.fed) == {size}


def test_an_output_without_a_row_for_each_sample_is_refused_only_where_there_is_padding():
    session = Frozen(4, lambda x: x.sum(keepdims=True).reshape(1))
    x, a = np.ones((6, 3), np.float32), np.ones((), np.float32)
    with pytest.raises(BadData, match="no row for each sample"):
        batching.run(session, {"x": x, "a": a})
    assert batching.run(session, {"x": x[:4], "a": a})["y"] == [12.0]


def test_a_free_batch_is_run_once():
    session = Frozen(None, lambda x: x)
    batching.run(session, {"x": np.ones((6, 3), np.float32), "a": np.ones((), np.float32)})
    assert session.fed == [6]


MIXING = {
    "a mean over the batch": lambda x: x - x.mean(axis=0, keepdims=True),
    "the batch last": lambda x: np.repeat(x, 4, axis=1).T,  # 12 rows, which is 3 for each of 4 samples
    "labels": lambda x: np.argsort(x[:, 0]),
}


@pytest.mark.parametrize("outputs", MIXING.values(), ids=MIXING)
@pytest.mark.parametrize("count", [1, 6])
def test_an_answer_that_depends_on_the_padding_is_refused(outputs, count):
    """It was handed over: what a batch of four makes of three copies of the last sample beside it."""
    session = Frozen(4, outputs)
    x = np.random.default_rng(0).random((count, 3), np.float32)
    x[-1] = [2, 3, 5]
    a = np.ones((), np.float32)
    if count > 1 or outputs is not MIXING["labels"]:  # alike samples have no order
        with pytest.raises(BadData, match="would be answered with padding"):
            batching.run(session, {"x": x, "a": a})
    whole = np.concatenate([x] * 4)[:4]
    made = batching.run(session, {"x": whole, "a": a})["y"]
    np.testing.assert_allclose(made, outputs(whole.astype(np.float16)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_answers_that_are_no_numbers_depend_on_no_padding(value):
    session = Frozen(4, lambda x: np.where(x > 0, x, np.float16(value)))
    x = np.float32([[1, -1, 2]])
    made = batching.run(session, {"x": x, "a": np.ones((), np.float32)})["y"]
    np.testing.assert_array_equal(made, np.where(x > 0, x, value))


def test_padding_is_tried_once_and_only_where_there_is_some():
    session = Frozen(4, lambda x: x)
    x, a = np.arange(30, dtype=np.float32).reshape(10, 3), np.ones((), np.float32)
    batching.run(session, {"x": x, "a": a})
    assert session.fed == [4] * 4
    batching.run(session, {"x": x[:8], "a": a})
    assert session.fed == [4] * 6
